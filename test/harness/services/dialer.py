"""dialer.py OPTIONS: opens new connections at a steady rate, whatever becomes of the earlier ones, and writes one line
of JSON for each when it has ended. OPTIONS is JSON: `targets` (["IP:PORT", "[IP6]:PORT"], in turn), `rate` a second,
`canary`, `patience` in seconds, `log` (a file to append to; standard output without it).

Each connection says one line, the canary and its own number, which no earlier life of the same log had, and is served when a line comes back that holds it. Ends
on SIGTERM, after the connections that are open. Plain Python: test machines have no Node of their own."""

import errno
import json
import os
import signal
import socket
import sys
import threading
import time

options = json.loads(sys.argv[1])
targets = [target.rsplit(":", 1) for target in options["targets"]]
patience = options["patience"]
out = os.open(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if "log" in options else 1
over = threading.Event()

# Numbers of one life; those in flight when the last one was cut off are in no log.
LIFE = 1_000_000

NAMES = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ETIMEDOUT: "timeout"}


def attempt(number, ip, port):
    line = b"%s-%d\n" % (options["canary"].encode(), number)
    with socket.create_connection((ip.strip("[]"), int(port)), patience) as connection:
        connection.sendall(line)
        answer = connection.makefile("rb").readline()
    if not answer:
        return "cut"
    return "served" if line.strip() in answer else "wrong"


def call(number, ip, port):
    began = time.monotonic()
    at = time.time()
    try:
        outcome = attempt(number, ip, port)
    except TimeoutError:
        outcome = "timeout"
    except OSError as error:
        outcome = NAMES.get(error.errno) or errno.errorcode.get(error.errno, "unknown")
    record = {
        "number": number,
        "target": f"{ip}:{port}",
        "atMs": at * 1000,
        "outcome": outcome,
        "waitedMs": (time.monotonic() - began) * 1000,
    }
    # One write: lines of several threads do not mix.
    os.write(out, json.dumps(record).encode() + b"\n")


def next_life():
    if "log" not in options:
        return 0
    with open(options["log"]) as log:
        numbers = [json.loads(line)["number"] for line in log if line.endswith("}\n")]
    return (max(numbers) // LIFE + 1) * LIFE if numbers else 0


signal.signal(signal.SIGTERM, lambda *_: over.set())
threading.stack_size(256 * 1024)
first = next_life()
began = time.monotonic()
count = 0
running = []
while True:
    pause = began + count / options["rate"] - time.monotonic()
    if over.wait(max(0, pause)):
        break
    ip, port = targets[count % len(targets)]
    thread = threading.Thread(target=call, args=(first + count, ip, port))
    thread.start()
    running.append(thread)
    running = [thread for thread in running if thread.is_alive()]
    count += 1
for thread in running:
    thread.join()
