"""Delays and loses what a host sends, where there is no netem: a program for that host, as root.

Takes seconds, and the share that is lost.  Packets come from netfilter's queue 0 and get their
verdict after that time; so their sender learns nothing of it, as it would of a rule that drops.
"""

import random
import select
import socket
import struct
import sys
import time
from collections import deque

# From linux/netfilter/nfnetlink.h and nfnetlink_queue.h.
NETLINK_NETFILTER, SUBSYSTEM = 12, 3 << 8
PACKET, VERDICT, CONFIG = SUBSYSTEM | 0, SUBSYSTEM | 1, SUBSYSTEM | 2
CONFIG_CMD, CONFIG_PARAMS, CONFIG_LENGTH = 1, 2, 3
BIND, COPY_META, DROP, ACCEPT = 1, 1, 0, 1
VERDICT_HEADER = 2
REQUEST = 1
# Packets under way.
LENGTH = 65536


def attribute(kind: int, content: bytes) -> bytes:
    """Return a netlink attribute, padded to four octets."""
    length = 4 + len(content)
    return struct.pack("HH", length, kind) + content + bytes(-length % 4)


def send(queue: socket.socket, kind: int, *attributes: bytes) -> None:
    """Send a message about queue 0 to the kernel."""
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, 0) + b"".join(attributes)
    queue.send(struct.pack("IHHII", 16 + len(body), kind, REQUEST, 0, 0) + body)


def main(seconds: float, share: float) -> None:
    """Delay and lose packets for ever."""
    queue = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    queue.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    queue.bind((0, 0))
    command = struct.pack("!BBH", BIND, 0, socket.AF_INET)
    send(queue, CONFIG, attribute(CONFIG_CMD, command))
    send(queue, CONFIG, attribute(CONFIG_PARAMS, struct.pack("!IB", 0, COPY_META)))
    send(queue, CONFIG, attribute(CONFIG_LENGTH, struct.pack("!I", LENGTH)))
    waiting: deque[tuple[float, bytes]] = deque()
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([queue], [], [], patience)[0]:
            data = queue.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("IH", data)
                if kind == PACKET:
                    # The header is the first attribute; the packet's id comes first in it.
                    waiting.append((time.monotonic() + seconds, data[24:28]))
                data = data[(length + 3) & ~3 :]
        while waiting and waiting[0][0] <= time.monotonic():
            _, number = waiting.popleft()
            verdict = struct.pack("!I", DROP if random.random() < share else ACCEPT) + number
            send(queue, VERDICT, attribute(VERDICT_HEADER, verdict))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
