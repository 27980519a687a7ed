"""mail.py serve PORT | mail.py send IP PORT: SMTP, a protocol in which the server speaks first.

`serve` takes mail until SIGTERM and says "listening". `send` sends one by Python's smtplib and prints the server's greeting, then what it
said of the mail."""

import smtplib
import socketserver
import sys

ANSWERS = {b"EHLO": b"250 mail", b"MAIL": b"250 ok", b"RCPT": b"250 ok", b"DATA": b"354 go on", b"QUIT": b"221 bye"}


class Conversation(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line + b"\r\n")

    def handle(self):
        self.say(b"220 mail speaks first")
        for line in self.rfile:
            word = line[:4].upper()
            self.say(ANSWERS.get(word, b"502 no"))
            if word == b"QUIT":
                return
            if word == b"DATA":
                taken = sum(len(text.rstrip(b"\r\n")) for text in iter(self.rfile.readline, b".\r\n"))
                self.say(b"250 took %d bytes" % taken)


if sys.argv[1] == "serve":
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[2])), Conversation) as server:
        print("listening", flush=True)
        server.serve_forever()

with smtplib.SMTP(local_hostname="caller", timeout=10) as client:
    print(client.connect(sys.argv[2], int(sys.argv[3]))[1].decode())
    client.ehlo()
    client.mail("a@example.com")
    client.rcpt("b@example.com")
    print(client.data(b"x" * 100_000)[1].decode())
