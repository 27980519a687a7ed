"""New connections at a steady rate until a file appears, from the cgroup of a service: what became of them, as JSON.

dial.py STOP-FILE UNIT RATE IP:PORT... asks each address in turn, in a thread of its own, so that a slow one holds up nobody."""

import json
import os
import socket
import sys
import threading
import time

stop, unit, rate, targets = sys.argv[1], sys.argv[2], float(sys.argv[3]), [t.rsplit(":", 1) for t in sys.argv[4:]]
with open(f"/sys/fs/cgroup/system.slice/{unit}/cgroup.procs", "w") as procs:
    procs.write("0")
began = time.monotonic()
calls = []


def call(ip, port):
    start = time.monotonic()
    try:
        with socket.create_connection((ip, int(port)), 30) as connection:
            connection.sendall(b"ping\n")
            answer = connection.makefile().readline()
        outcome = "ok" if answer.endswith(" heard ping\n") else f"answered {answer!r}"
    except OSError as error:
        outcome = type(error).__name__
    calls.append((start - began, f"{ip}:{port}", outcome, time.monotonic() - start))


threads = []
while not os.path.exists(stop):
    number = len(threads)
    thread = threading.Thread(target=call, args=targets[number % len(targets)])
    threads.append(thread)
    thread.start()
    time.sleep(max(0, began + (number + 1) / rate - time.monotonic()))
for thread in threads:
    thread.join()
os.unlink(stop)
calls.sort()
print(
    json.dumps(
        {
            "calls": len(calls),
            "failures": [f"{at:.2f} s {target} {outcome} after {took:.2f} s" for at, target, outcome, took in calls if outcome != "ok"],
            "slowestMs": round(max(took for *_, took in calls) * 1000),
            "p99Ms": round(sorted(took for *_, took in calls)[len(calls) * 99 // 100] * 1000),
        }
    )
)
