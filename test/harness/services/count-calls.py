"""count-calls.py OPTIONS: opens connections and counts what becomes of each. OPTIONS is JSON: `targets` ([IP, PORT, COUNT,
SPEAKS_FIRST]) and `atOnce`. Prints one line of JSON: for each target how many were connected, and how they ended."""

import json
import random
import socket
import sys
import threading

options = json.loads(sys.argv[1])
work = [target for target in options["targets"] for _ in range(target[2])]
random.Random(1).shuffle(work)
lock = threading.Lock()
tally = {}


def call(ip, port, speaks_first):
    try:
        connection = socket.create_connection((ip, port), 15)
    except OSError as error:
        return "unconnected %s" % type(error).__name__
    with connection:
        try:
            if not speaks_first:
                connection.sendall(b"hello\n")
            answer = connection.makefile("rb").readline()
            return "served" if answer else "cut"
        except OSError as error:
            return type(error).__name__


def caller():
    while True:
        with lock:
            if not work:
                return
            ip, port, _, speaks_first = work.pop()
        outcome = call(ip, port, speaks_first)
        with lock:
            counts = tally.setdefault("%s:%d" % (ip, port), {})
            counts[outcome] = counts.get(outcome, 0) + 1


threads = [threading.Thread(target=caller) for _ in range(options["atOnce"])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(tally))
