"""bad-wire.py IF1 IF2 FILE: carries frames between two interfaces, as badly as the JSON in FILE says, read again at each SIGHUP:

{"loss": 0..1, "duplicate": 0..1, "delayMs": n, "jitterMs": n, "maxBytes": n}

Each frame waits for delayMs and a random part of jitterMs more, so that frames overtake each other; frames beyond maxBytes are dropped and nobody is
told. Each order is confirmed by a line with what was done to frames before. The dice are the same in each run. Kernels without netem can do it, too."""

import heapq
import json
import random
import select
import signal
import socket
import sys
import time

ETH_P_ALL = 3
OUTGOING = 4

dice = random.Random(1)
order = {"loss": 0, "duplicate": 0, "delayMs": 0, "jitterMs": 0, "maxBytes": 1 << 16}
done = {"carried": 0, "lost": 0, "duplicated": 0, "overtaken": 0, "tooBig": 0}
waiting = []
count = 0
latest = 0.0


def opened(interface):
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    end.bind((interface, 0))
    end.setblocking(False)
    return end


def take(frame, to):
    global count, latest
    if len(frame) > order["maxBytes"]:
        done["tooBig"] += 1
        return
    if dice.random() < order["loss"]:
        done["lost"] += 1
        return
    copies = 2 if dice.random() < order["duplicate"] else 1
    done["duplicated"] += copies - 1
    for _ in range(copies):
        count += 1
        at = time.monotonic() + (order["delayMs"] + dice.random() * order["jitterMs"]) / 1000
        done["overtaken"] += at < latest
        latest = max(at, latest)
        heapq.heappush(waiting, (at, count, frame, to))


def send_due():
    while waiting and waiting[0][0] <= time.monotonic():
        _, _, frame, to = heapq.heappop(waiting)
        try:
            to.send(frame)
            done["carried"] += 1
        except OSError:
            done["lost"] += 1


def obey(*_):
    with open(sys.argv[3]) as file:
        order.update(json.load(file))
    print(json.dumps(done), flush=True)


ends = [opened(sys.argv[1]), opened(sys.argv[2])]
signal.signal(signal.SIGHUP, obey)
obey()
while True:
    pause = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    readable, _, _ = select.select(ends, [], [], pause)
    for end in readable:
        other = ends[1] if end is ends[0] else ends[0]
        for _ in range(64):
            try:
                frame, address = end.recvfrom(1 << 16)
            except BlockingIOError:
                break
            if address[2] != OUTGOING:
                take(frame, other)
    send_due()
