"""
Accepts connections for some seconds and closes them at once: a program, not a part of the core,
and here because it has to be a file on every host.

Stands in for a master that is not there yet while others try whether its ports can be reached.  It
reads nothing that is sent.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Sequence


def program() -> str:
    """Return the path of this file, for whoever starts it as a program."""
    return os.path.abspath(__file__)


def main(argv: Sequence[str]) -> None:
    """
    Accept and close in a process of its own, whose id is printed, until the time is over.

    argv
        Seconds, at least 1, and the numbers of the listening sockets, which are inherited.
    """
    seconds, *numbers = map(int, argv)
    pid = os.fork()
    if pid:
        print(pid)
        return
    # Its parent is init then, and the job that started this is not kept waiting by an open pipe.
    os.setsid()
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    # Its default action ends the process, whatever it is at.
    signal.alarm(max(1, seconds))
    with selectors.DefaultSelector() as ready:
        for number in numbers:
            listening = socket.socket(fileno=number)
            listening.setblocking(False)
            ready.register(listening, selectors.EVENT_READ, listening.accept)
        while True:
            for key, _ in ready.select():
                with contextlib.suppress(OSError):
                    key.data()[0].close()


if __name__ == "__main__":
    main(sys.argv[1:])
