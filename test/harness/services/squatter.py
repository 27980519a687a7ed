"""squatter.py TARGETS: a local user who takes ports. TARGETS is JSON: [["tcp" | "udp", "IP", PORT], ...].

Tries each until it is bound, with every option that lets several programs share a port. Says so in one line of JSON
(`bound`), says what reaches it (`took`, with the bytes as text), and answers "stolen". Ends on SIGTERM."""

import json
import socket
import sys
import threading
import time


def say(**record):
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def bound(kind, ip, port):
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    while True:
        taken = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind((ip, port))
            if kind == "tcp":
                taken.listen(64)
            return taken
        except OSError:
            taken.close()
            time.sleep(0.005)


def squat(kind, ip, port):
    taken = bound(kind, ip, port)
    say(bound=f"{kind} {ip} {port}")
    while True:
        if kind == "udp":
            words, caller = taken.recvfrom(4096)
            say(took=f"{kind} {ip} {port}", words=words.decode("latin1"))
            taken.sendto(b"stolen", caller)
            continue
        connection, _ = taken.accept()
        connection.settimeout(1)
        try:
            words = connection.recv(4096)
        except OSError:
            words = b""
        say(took=f"{kind} {ip} {port}", words=words.decode("latin1"))
        connection.sendall(b"stolen")
        connection.close()


for target in json.loads(sys.argv[1]):
    threading.Thread(target=squat, args=target, daemon=True).start()
while True:
    time.sleep(3600)
