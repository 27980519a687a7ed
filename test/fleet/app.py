"""The services of the fleet tests. `echo PORT [IP]` answers each line with its host's name before it; `front PORT IP
PORT` asks another service on behalf of whoever connects and passes on what it heard, or why it heard nothing."""

import socket
import socketserver
import sys


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        self.wfile.write(socket.gethostname().encode() + b" heard " + line)


class Front(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            with socket.create_connection((sys.argv[3], int(sys.argv[4])), timeout=3) as upstream:
                upstream.sendall(b"ping\n")
                answer = upstream.makefile("rb").readline() or b"closed without an answer\n"
        except OSError as error:
            answer = f"{type(error).__name__}\n".encode()
        self.wfile.write(answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


handler = Echo if sys.argv[1] == "echo" else Front
address = sys.argv[3] if sys.argv[1] == "echo" and len(sys.argv) > 3 else "127.0.0.1"
Server((address, int(sys.argv[2])), handler).serve_forever()
