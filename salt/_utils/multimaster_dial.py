"""
Asks masters for a real answer, and tells which of them a minion is connected to.

Not a part of the core, since it talks to the network, and imports Salt where it does; here because
the liveness engine, the execution module and the cut-over, a program, all need it.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# What a master answers to every minion that it has let in, from memory, in an encrypted answer
# with the asker's nonce in it: nobody but that master can give it.
REQUEST = {"cmd": "_file_envs"}
# What Salt takes for no publish_port.
UNSET = 4506
# Master -> the port of its publisher, as it has said.
_TOLD: dict[str, int] = {}


def ask(
    opts: Mapping[str, Any], address: str, timeout: float, kept: list[Any] | None = None
) -> bool:
    """
    Ask a master something as this minion, and tell whether a real answer came.

    opts
        The minion's options.
    timeout
        Seconds for signing in and for the answer, each; the call may take twice as long.
    kept
        Where the channel is left for the next question, and taken from.

    Signs in where needed, so that a master with another key, or without this minion's, counts as
    one that does not answer.
    """
    return isinstance(_send(opts, address, timeout, dict(REQUEST), kept), list)


def classify(opts: Mapping[str, Any], address: str, timeout: float) -> str:
    """
    Return what a master says to this minion, in a word of ``multimaster_cutover``.

    Accepted is proved by an answer that only a master can give which has let this minion in; the
    rest by the signature of the key that this minion knows its masters by, if it has met them: who
    cannot give that is a stranger, whatever it says.  Never makes a key pair for the minion.
    """
    import multimaster_cutover as cutover

    said = cutover.SILENT
    # Whatever goes wrong, and Salt even exits on some answers, is no answer.
    with contextlib.suppress(Exception, SystemExit):
        said = _sign_in(opts, address, timeout)
        if said in (cutover.ACCEPTED, cutover.FOREIGN):
            # A minion that verifies signatures takes another key, too, if it is well signed.
            mine = ask_afresh(opts, address, timeout)
            if mine or said == cutover.ACCEPTED:
                said = cutover.ACCEPTED if mine else cutover.SILENT
    return said


def lets_in(opts: Mapping[str, Any], address: str, timeout: float) -> bool:
    """
    Tell whether a master lets this minion in, be it that one of the two signs and the other not.

    Proved by the signature of the key that this minion knows its masters by.  Salt would not let
    the minion use such an answer, so that :func:`classify` does not count it.
    """
    import multimaster_cutover as cutover

    # Whatever goes wrong, and Salt even exits on some answers, is no answer.
    with contextlib.suppress(Exception, SystemExit):
        return _sign_in(opts, address, timeout) == cutover.ACCEPTED
    return False


def _sign_in(opts: Mapping[str, Any], address: str, timeout: float) -> str:
    """Return what a master answers when this minion signs in; raise where it says nothing."""
    import salt.crypt
    import salt.payload
    from salt.exceptions import SaltClientError

    import multimaster_cutover as cutover

    try:
        mine, nonce, answer = knock(opts, address, timeout)
    except (TimeoutError, FileNotFoundError):
        return cutover.SILENT
    except (OSError, SaltClientError):
        # Nobody listens, there is no way, or no such name.
        return cutover.REFUSED
    load = answer["load"]
    known = os.path.join(mine["pki_dir"], "minion_master.pub")
    if not isinstance(load, bytes):
        # Only what is wrong with the request is said without a signature.
        return cutover.REFUSED
    if os.path.isfile(known) and not salt.crypt.verify_signature(
        known, load, answer["sig"], algorithm=mine["signing_algorithm"]
    ):
        return cutover.FOREIGN
    load = salt.payload.loads(load)
    if load["nonce"] != nonce:
        return cutover.FOREIGN
    if "pub_key" in load:
        return cutover.ACCEPTED
    words = {True: cutover.PENDING, False: cutover.REJECTED}
    return words.get(load["ret"], cutover.REFUSED)


def knock(
    opts: Mapping[str, Any], address: str, timeout: float
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """
    Ask a master to sign this minion in.

    Returns the minion's options for that master, the nonce of the request, and the answer as it
    came: it may be anybody's.  Raises OSError where nobody answers or the minion has no key pair,
    SaltClientError where the name leads nowhere, and SaltReqTimeoutError.
    """
    import salt.channel.client
    import salt.crypt

    mine = _mine(opts, address, timeout)
    # Salt waits long for a master that is not there.
    ip = mine["master_ip"].strip("[]")
    socket.create_connection((ip, mine["master_port"]), timeout).close()
    if not _has_pair(mine):
        raise FileNotFoundError("the minion has no key pair")
    request = salt.crypt.SAuth(mine).minion_sign_in_payload()
    channel = salt.channel.client.ReqChannel.factory(mine, crypt="clear")
    try:
        return mine, request["nonce"], channel.send(request, tries=1, timeout=timeout)
    finally:
        channel.close()


def _send(
    opts: Mapping[str, Any],
    address: str,
    timeout: float,
    load: dict[str, Any],
    kept: list[Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Return a master's answer, or None."""
    from salt.exceptions import SaltReqTimeoutError

    answer, good = None, False
    # Whatever goes wrong, and Salt even exits on some answers, is no answer.
    with contextlib.suppress(Exception, SystemExit):
        used = _taken(kept or [])
        channel = used or _channel(opts, address, timeout, **kwargs)
        try:
            answer = channel.send(load, tries=1, timeout=timeout)
            good = answer is not None
            _note_port(address, channel)
        except SaltReqTimeoutError:
            # It dials anew for the next question; who has signed in need not do so again.
            good = used is not None
        finally:
            if good and kept == []:
                kept.append(channel)
            else:
                channel.close()
    return answer


def _note_port(address: str, channel: Any) -> None:
    """Note what a master has said of its publisher; a channel without a sign-in knows nothing."""
    with contextlib.suppress(Exception):
        _TOLD[address] = int(channel.auth.creds["publish_port"])


def _taken(kept: list[Any]) -> Any:
    # Threads take it from each other.
    try:
        return kept.pop()
    except IndexError:
        return None


def forget(kept: list[Any]) -> None:
    """Close the channels that were kept."""
    while channel := _taken(kept):
        channel.close()


def _channel(opts: Mapping[str, Any], address: str, timeout: float, **kwargs: Any) -> Any:
    import salt.channel.client

    if kwargs.get("crypt") != "clear" and not _has_pair(opts):
        raise FileNotFoundError("the minion has no key pair")
    return salt.channel.client.ReqChannel.factory(_mine(opts, address, timeout), **kwargs)


def _has_pair(opts: Mapping[str, Any]) -> bool:
    """Tell whether the minion has a key pair: without one Salt would make it, as the daemon may."""
    return all(os.path.isfile(f"{opts['pki_dir']}/minion.{suffix}") for suffix in ("pem", "pub"))


def _mine(opts: Mapping[str, Any], address: str, timeout: float) -> dict[str, Any]:
    """Return this minion's options with one master; raise where its name leads nowhere."""
    import salt.minion

    mine = {**opts, "master": address, "auth_timeout": timeout, "auth_tries": 1, "auth_retries": 1}
    # Or a name that leads nowhere would be looked up for ever.
    mine["retry_dns"] = 0
    # Left from the master that the daemon is with; the address that is asked has its own.
    for name in ("master_ip", "master_uri", "master_uri_list"):
        mine.pop(name, None)
    mine.update(salt.minion.prep_ip_port(mine))
    mine.update(salt.minion.resolve_dns(mine, fallback=False))
    return mine


def is_there(
    opts: Mapping[str, Any], address: str, timeout: float, kept: list[Any] | None = None
) -> bool:
    """
    Tell whether some master answers at an address, be it one that this minion may not sign in to.

    Proves nothing: anybody can give that answer.
    """
    return _send(opts, address, timeout, {"cmd": "ping"}, crypt="clear") is not None


def ask_afresh(
    opts: Mapping[str, Any], address: str, timeout: float, kept: list[Any] | None = None
) -> bool:
    """
    Ask a master as ``ask`` does, after signing in once more.

    A master that was restarted goes on to answer to those that it knew, and may not let them in any
    more: then nobody reads its commands.
    """
    import salt.crypt

    salt.crypt.AsyncAuth.creds_map.clear()
    forget(kept or [])
    return ask(opts, address, timeout, kept)


def tell(
    opts: Mapping[str, Any], address: str, timeout: float, tag: str, data: Mapping[str, Any]
) -> bool:
    """
    Send a master an event as this minion, and tell whether it was taken.

    Not through the minion's daemon, which drops what it is given before it is ready, and may be
    connected by then (``handle_event`` in Salt 3008.3).
    """
    load = {"cmd": "_minion_event", "id": opts["id"], "tag": tag, "data": dict(data)}
    return give(opts, address, timeout, load) == [None]


def give(
    opts: Mapping[str, Any], address: str, timeout: float, load: Mapping[str, Any]
) -> list[Any]:
    """
    Send a master an event, or the return of a job, as this minion.

    Returns a list with its answer, which is None from who has taken it (Salt 3008.3), else ``""``,
    False or ``{}``; an empty list without an answer.
    """
    with contextlib.suppress(Exception, SystemExit):
        channel = _channel(opts, address, timeout)
        try:
            # Salt 3008 adds the token by itself; one that is there may be part of what was signed.
            load = {"tok": channel.auth.gen_token(b"salt"), **load}
            return [channel.send(load, tries=1, timeout=timeout)]
        finally:
            channel.close()
    return []


def tell_each(
    opts: Mapping[str, Any],
    addresses: Iterable[str],
    timeout: float,
    tag: str,
    data: Mapping[str, Any],
) -> list[str]:
    """
    Send each of some masters an event as ``tell`` does, all at the same time.

    Returns those that have taken it.
    """
    return _which(addresses, timeout, lambda address: tell(opts, address, timeout, tag, data))


def answering(opts: Mapping[str, Any], addresses: Iterable[str], timeout: float) -> list[str]:
    """Return those of some masters that answer as ``ask`` wants it, all asked at the same time."""
    return _which(addresses, timeout, lambda address: ask(opts, address, timeout))


def _which(addresses: Iterable[str], timeout: float, say: Callable[[str], bool]) -> list[str]:
    """Return the addresses of which something is said to be true, in their order."""
    said: dict[str, bool] = {}

    def note(address: str) -> None:
        said[address] = say(address)

    addresses = list(addresses)
    threads = [threading.Thread(target=note, args=(one,), daemon=True) for one in addresses]
    for thread in threads:
        thread.start()
    # For signing in and for the answer.
    deadline = time.monotonic() + 2 * timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [address for address in addresses if said.get(address)]


WAYS = {"ask": ask, "afresh": ask_afresh, "there": is_there}


def put(
    opts: Mapping[str, Any],
    address: str,
    timeout: float,
    heard: threading.Event,
    way: str = "ask",
    kept: list[Any] | None = None,
) -> None:
    """Ask a master in one of the ``WAYS``, in a thread; set the event when the answer is yes."""

    def run() -> None:
        if WAYS[way](opts, address, timeout, kept):
            heard.set()

    # Not waited for when this process ends.
    threading.Thread(target=run, daemon=True).start()


def publish_port(opts: Mapping[str, Any], address: str) -> int:
    """
    Return the port where this minion subscribes to a master.

    As Salt 3006 to 3008 find it (``AsyncPubChannel.connect``): the option, which the formula sets;
    where it is not set, or 4506, what the master has said when this process signed in to it.
    """
    port = int(opts.get("publish_port", UNSET))
    return port if port != UNSET else _TOLD.get(address, 4505)


def connected(pid: int, addresses: Iterable[str], opts: Mapping[str, Any]) -> list[str]:
    """
    Return those of some masters whose publisher a minion's daemon is connected to.

    pid
        The daemon.
    opts
        The minion's options.
    """
    return list(among(links(pid), addresses, opts))


def among(
    links: Iterable[tuple[str, int, int]], addresses: Iterable[str], opts: Mapping[str, Any]
) -> dict[str, set[str]]:
    """
    Return those of some masters to whose publisher there is one of the connections.

    Each with the addresses where that is.
    """
    found = {}
    for address in addresses:
        there = {place for place, *_ in subscriptions(links, address, opts)}
        if there:
            found[address] = there
    return found


def subscriptions(
    links: Iterable[tuple[str, int, int]], address: str, opts: Mapping[str, Any]
) -> set[tuple[str, int, int]]:
    """
    Return those of the connections that lead to a master's publisher.

    A minion has others to a master's host: for requests, to a database, of a log handler.
    """
    places, port = resolve(address), publish_port(opts, address)
    return {link for link in links if link[0] in places and link[1] == port}


def publishers(
    links: Iterable[tuple[str, int, int]], addresses: Iterable[str], opts: Mapping[str, Any]
) -> set[str]:
    """Return where there is one of the connections to a port of some masters' publishers."""
    ports = {publish_port(opts, address) for address in addresses}
    return {place for place, port, _ in links if port in ports}


def links(pid: int) -> set[tuple[str, int, int]]:
    """
    Return the connections of a daemon: address, port, and their own port.

    Not those of its children, which are jobs and engines, and take longer to find than all the
    rest.
    """
    import psutil

    found = set()
    with contextlib.suppress(psutil.Error):
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_ESTABLISHED:
                address = connection.raddr.ip.removeprefix("::ffff:")
                found.add((address, connection.raddr.port, connection.laddr.port))
    return found


def sockets(pid: int) -> frozenset[str]:
    """Return the sockets of a process, each by a name that no other one has; none if unknown."""
    directory, found = f"/proc/{pid}/fd", set()
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"{directory}/{name}"))
    return frozenset(name for name in found if name.startswith("socket:"))


def resolve(address: str) -> set[str]:
    """Return the IP addresses of a name, or of an address itself; none if there is none."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
    except OSError:
        return set()
