"""Prints every event of a master's bus, a line each, until it is ended: a program for a host.

Takes the path of the master's configuration; waits for a master that does not run yet.
"""

import sys

import salt.config
import salt.utils.event


def main() -> None:
    """Listen, whether the master is there, gone or back."""
    opts = salt.config.master_config(sys.argv[1])
    with salt.utils.event.get_event("master", opts=opts) as bus:
        while True:
            event = bus.get_event(wait=5, full=True, auto_reconnect=True)
            if event is not None:
                print(event, flush=True)


if __name__ == "__main__":
    main()
