"""What holds on every multi-master topology, seen from outside through testinfra.

Each check takes testinfra hosts, waits where a system may need time, and raises
:class:`AssertionError`.  Kitchen's tests and the tests over the docker laboratory share them;
the paths are those of the packages.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from testinfra.host import Host

from lab.model import LabError
from lab.wait import until

MASTER_PKI = "/etc/salt/pki/master"
MINION_MASTER = "/etc/salt/pki/minion/minion_master.pub"
PORTS = (4505, 4506)
# Seconds: four minions meet three masters on a small machine, with back-off between attempts.
PATIENCE = 180


@dataclass(frozen=True)
class Topology:
    """A declaration as the checks need it: masters by id with their addresses, other minions.

    Some of these may have been masters, and been cleaned.
    """

    masters: Mapping[str, str]
    minions: tuple[str, ...]
    former: tuple[str, ...] = ()
    mode: str = "hot"
    signing: bool = False

    @classmethod
    def of(
        cls,
        masters: Mapping[str, str],
        minions: Iterable[str],
        former: Iterable[str],
        declared: Mapping[str, Any],
    ) -> Topology:
        """Return the topology of a suite's step."""
        stated = {name: declared[name] for name in ("mode", "signing") if name in declared}
        return cls(masters, tuple(minions), tuple(former), **stated)

    @property
    def ids(self) -> set[str]:
        """Every minion id: masters are minions too."""
        return {*self.masters, *self.minions}

    def used(self, minion_id: str) -> int:
        """Return how many masters a minion is with at a time; a master's own, with all."""
        return 1 if self.mode == "failover" and minion_id not in self.masters else len(self.masters)


def not_running(containers: Iterable[str]) -> list[str]:
    """Return those of some containers that do not run, or are not there at all.

    To ask one that is not there, testinfra would try the commands of one system after the other.
    """
    argv = ["docker", "ps", "--format", "{{.Names}}"]
    running = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    return [container for container in containers if container not in running]


def check_everything(hosts: Mapping[str, Host], topology: Topology) -> None:
    """Every check below, on every host that it is for."""
    masters = {name: hosts[name] for name in topology.masters}
    check_same_key(masters)
    check_everyone_answers(masters, topology)
    for name, master in masters.items():
        check_unit(master, "salt-master")
        check_listening(master, topology.masters[name])
        check_key_files(master, name)
        check_no_key_waits(master, topology)
    for host in hosts.values():
        check_unit(host, "salt-minion")
        check_masters_of_minion(host, topology)
        check_minion_trusts(host, masters)
        check_private_keys_only_in_pki(host)
        check_verifies(host, topology)
    for name in topology.minions:
        check_is_no_master(hosts[name], name in topology.former)


def check_unit(host: Host, unit: str) -> None:
    """The unit runs and starts with the system."""
    service = host.service(unit)
    _eventually(lambda: service.is_running, True, f"{unit} to run")
    assert service.is_enabled, f"{unit} does not start with the system"


def check_listening(host: Host, address: str) -> None:
    """The master listens on both of its ports, at the declared address or on all addresses."""
    for port in PORTS:
        accepted = {f"tcp://{at}:{port}" for at in (address, "0.0.0.0", "::")}

        def listens(accepted: set[str] = accepted) -> bool:
            return not accepted.isdisjoint(host.socket.get_listening_sockets())

        _eventually(listens, True, f"port {port} to listen")


def check_key_files(host: Host, master_id: str) -> None:
    """The master's user owns the pair, alone reads the private half, and nobody changes either."""
    for name, mode in (("master.pem", 0o400), ("master.pub", 0o644)):
        key = host.file(live_key(host, master_id, name))
        assert key.is_file, f"{key.path} is no regular file"
        # Of any group: the first master's pair is Salt's own work, and of root's.
        assert key.user == "salt", f"{key.path} belongs to {key.user}"
        # Any subset of the mode will do.
        assert key.mode | mode == mode, f"{key.path} has mode {key.mode:o}"


def check_same_key(masters: Mapping[str, Host]) -> None:
    """All masters hold one key pair, and its halves belong together."""
    found = {master: public_keys(host, master) for master, host in masters.items()}
    digests = set().union(*found.values())
    assert "" not in digests, f"a key cannot be read: {found}"
    assert len(digests) == 1, f"public keys (SHA-256) differ: {found}"


def check_masters_of_minion(host: Host, topology: Topology) -> None:
    """The minion's effective configuration lists exactly the declared masters, in that order."""
    expected = list(topology.masters.values())
    _eventually(
        lambda: _json(host, "salt-call --local config.get master").get("local"),
        expected,
        "the minion's configuration to list the masters",
    )


def check_minion_trusts(host: Host, masters: Mapping[str, Host]) -> None:
    """The one master key that the minion has seen is the one that all masters hold."""
    expected = set().union(*(public_keys(master, name) for name, master in masters.items()))
    _eventually(lambda: {_digest(host, MINION_MASTER)}, expected, "the minion to have met a master")


def check_everyone_answers(masters: Mapping[str, Host], topology: Topology) -> None:
    """Every minion answers a command that each of its masters sends, and no other."""
    _eventually(
        lambda: Counter(one for master in masters.values() for one in answering(master)),
        {minion_id: topology.used(minion_id) for minion_id in topology.ids},
        "every minion to answer as many masters as it is to be with",
    )


def check_minion_answers(masters: Mapping[str, Host], topology: Topology, minion_id: str) -> None:
    """This one minion answers a command that each of its masters sends."""
    _eventually(
        lambda: sum(minion_id in answering(master, minion_id) for master in masters.values()),
        topology.used(minion_id),
        f"{minion_id} to answer",
    )


def check_verifies(host: Host, topology: Topology) -> None:
    """The minion takes no master for one of its own whose key is not signed, where they sign."""
    option = "verify_master_pubkey_sign"
    _eventually(
        lambda: _json(host, f"salt-call --local config.get {option}").get("local"),
        topology.signing,
        "the minion to verify what its masters sign",
    )


def accept_everyone(master: Host, topology: Topology) -> None:
    """Accept the keys of the topology's minions on this master, as they come, and no others."""

    def accepted() -> set[str]:
        keys = _json(master, "salt-key --list=all")
        waiting = sorted(topology.ids.intersection(keys.get("minions_pre", ())))
        if waiting:
            master.run(f"salt-key --yes --accept={','.join(waiting)}")
        return topology.ids.intersection(keys.get("minions", ()))

    _eventually(accepted, topology.ids, "every minion's key to come")


def check_no_key_waits(master: Host, topology: Topology) -> None:
    """This master has accepted every minion, and no key is pending, rejected or denied."""
    _eventually(
        lambda: {state: set(ids) for state, ids in _json(master, "salt-key --list=all").items()},
        {
            "minions": topology.ids,
            "minions_pre": set(),
            "minions_rejected": set(),
            "minions_denied": set(),
        },
        "all keys to be accepted",
    )


def check_private_keys_only_in_pki(host: Host) -> None:
    """No cache, log, configuration or temporary file holds a private key."""
    found = host.run(
        "grep --recursive --text --files-with-matches --extended-regexp"
        " --regexp='-----BEGIN [A-Z ]*PRIVATE KEY-----'"
        " /etc/salt /root /run /srv /tmp /var/cache/salt /var/log /var/tmp"
    ).stdout.splitlines()
    assert found, "the search found not even the minion's own key"
    stray = [path for path in found if not path.startswith("/etc/salt/pki/")]
    assert not stray, f"private keys in {stray}"


def check_is_no_master(host: Host, former: bool = False) -> None:
    """A host that is no master has no master's program, configuration or key.

    One that was a master keeps the package, and its pair in a backup.
    """
    if former:
        service = host.service("salt-master")
        assert not service.is_running, "salt-master runs"
        assert not service.is_enabled, "salt-master starts with the system"
        assert not host.file("/etc/salt/master.d/multimaster.conf").exists
        find = f"find {MASTER_PKI} -maxdepth 1 -name '*.pem'"
    else:
        assert not host.package("salt-master").is_installed, "salt-master is installed"
        find = f"find {MASTER_PKI} -type f -o -type l"
    found = host.run(find).stdout.split()
    assert not found, f"a master's keys: {found}"


def answering(master: Host, target: str = "*") -> set[str]:
    """Return the ids of the targeted minions that answer ``test.ping`` to this master."""
    answers = _json(master, f"salt --static --timeout=10 '{target}' test.ping")
    return {minion for minion, answer in answers.items() if answer is True}


def live_key(host: Host, master_id: str, name: str) -> str:
    """Return the path of the file that serves as ``master.pem`` or ``master.pub``.

    Salt 3008 keeps the pair in ``<id>.pem`` and ``<id>.pub`` and links the old names to it.
    """
    own = f"{MASTER_PKI}/{master_id.removesuffix('_master')}{name.removeprefix('master')}"
    return own if host.file(own).exists else f"{MASTER_PKI}/{name}"


def public_keys(host: Host, master_id: str) -> set[str]:
    """Return the SHA-256 of the public key, from each half of the master's pair.

    The public key is computed on the host: the private half never leaves it.
    """
    private = live_key(host, master_id, "master.pem")
    return {
        _digest(host, private, private=True),
        _digest(host, live_key(host, master_id, "master.pub")),
    }


def _digest(host: Host, path: str, private: bool = False) -> str:
    """Return the SHA-256 of the public key in a file, empty where there is no such key."""
    result = host.run(f"openssl pkey -in {path} {'' if private else '-pubin'} -pubout")
    return hashlib.sha256(result.stdout.encode()).hexdigest() if result.succeeded else ""


def _json(host: Host, command: str) -> dict[str, Any]:
    """Return what a Salt command printed as JSON, empty while it does not succeed in that."""
    result = host.run(f"{command} --out=json --log-level=quiet")
    try:
        return dict(json.loads(result.stdout))
    except (ValueError, TypeError):
        return {}


def _eventually(observe: Callable[[], Any], expected: Any, what: str) -> None:
    """Wait until ``observe`` returns what is expected, for as long as that changes."""
    seen: list[Any] = []

    def met() -> bool:
        seen[:] = [observe()]
        return bool(seen[0] == expected)

    try:
        until(met, PATIENCE, what, interval=1, seen=lambda: seen[0])
    except LabError as err:
        raise AssertionError(f"{err}\nexpected: {expected}") from None
