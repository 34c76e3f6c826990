"""What a laboratory is made of: hosts, their paths, and what a driver can do with them.

Nothing here starts a process.  The drivers (``process``, ``docker``) implement :class:`Driver`;
the command line (``cli``) and the tests speak to that interface only.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from lab import slowness

UNITS = ("salt-master", "salt-minion")
SERIES = ("3008", "3007", "3006")
REPOSITORY = Path(__file__).resolve().parents[2]
# Seconds without any progress after which a wait gives up, at full speed. Only a wait that fails
# takes so long.
PATIENCE = 300


class LabError(Exception):
    """A laboratory command cannot be carried out; the message is meant for a person."""


@dataclass(frozen=True)
class Host:
    """One Salt host: its minion id, declared roles, address, and paths as seen on that host.

    ``root`` is the host's root directory as seen from the machine that runs the laboratory
    (process driver: a directory of the laboratory; docker driver: "/", inside the container).
    """

    id: str
    roles: tuple[str, ...]
    address: str
    config_dir: str
    master_pki_dir: str
    minion_pki_dir: str
    master_cache_dir: str
    minion_cache_dir: str
    log_dir: str
    root: str


@dataclass(frozen=True)
class Lab:
    """One laboratory: its directory, driver, Salt series, network prefix and hosts in order."""

    directory: Path
    driver: str
    salt: str
    net: str
    hosts: tuple[Host, ...]

    @property
    def masters(self) -> tuple[Host, ...]:
        """The hosts declared as masters, in order; only the first runs one before the apply."""
        return tuple(host for host in self.hosts if "master" in host.roles)

    @property
    def python(self) -> str:
        """The Python that Salt has on the hosts."""
        return "/opt/saltstack/salt/bin/python3" if self.driver == "docker" else "python3"

    def slowed(self, seconds: float) -> float:
        """Return how long the slowest host takes for what takes so many seconds at full speed."""
        return seconds / min(slowness.shares(self.directory).values(), default=1)

    @property
    def patience(self) -> float:
        """Seconds without any progress after which a wait for this laboratory gives up."""
        return self.slowed(PATIENCE)

    def host(self, host_id: str) -> Host:
        """Return the host with that id; raise :class:`LabError` naming the known ones."""
        for host in self.hosts:
            if host.id == host_id:
                return host
        known = ", ".join(host.id for host in self.hosts)
        raise LabError(f"host: got {host_id!r}; this laboratory has {known}")

    def save(self) -> None:
        """Write ``lab.json`` into the laboratory's directory."""
        record = dataclasses.asdict(self) | {"directory": str(self.directory)}
        (self.directory / "lab.json").write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Lab:
        """Read ``lab.json``; raise :class:`LabError` where there is no laboratory."""
        try:
            record = json.loads((directory / "lab.json").read_text())
        except FileNotFoundError:
            raise LabError(f"no laboratory in {directory}; make one with: lab up") from None
        hosts = tuple(
            Host(**(host | {"roles": tuple(host["roles"])})) for host in record.pop("hosts")
        )
        return cls(**(record | {"directory": directory, "hosts": hosts}))


class Driver(Protocol):
    """What every driver offers.  All methods are synchronous and bounded in time."""

    def plan(self, host_id: str, roles: tuple[str, ...], index: int, net: str) -> Host:
        """Return the host's description, before anything exists.

        ``index`` counts masters from 0 (address .10, .100, .101, .102 ...) and the
        other hosts from 0 (address .150, .151 ...).
        """

    def up(self, lab: Lab, trees: Trees) -> Iterator[str]:
        """Create and start every host; yield a progress line for each step.

        Afterwards saltm1 runs salt-master and salt-minion, every other host only
        salt-minion; keys are accepted on saltm1; every minion answers ``test.ping``.
        """

    def exec(
        self, lab: Lab, host: Host, argv: Sequence[str], **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` on the host with its PATH; ``kwargs`` go to :func:`subprocess.run`."""

    def control(self, lab: Lab, host: Host, verb: str, unit: str) -> None:
        """``verb``: start, stop, kill (SIGKILL), freeze (SIGSTOP) or thaw (SIGCONT) one unit."""

    def hold(self, lab: Lab, host: Host, unit: str) -> None:
        """Have every start of a unit wait until :meth:`release`; meanwhile it counts as starting.

        A daemon that runs goes on until somebody restarts it.
        """

    def release(self, lab: Lab, host: Host, unit: str) -> None:
        """Undo :meth:`hold`."""

    def slow(self, lab: Lab, hosts: Iterable[Host], share: Fraction) -> None:
        """Give hosts a share of their speed; 1 undoes it."""

    def net(self, lab: Lab, hosts: Iterable[Host], delay: str, loss: str) -> None:
        """Delay (such as 300ms) and lose (such as 2%) what hosts send; :meth:`heal` undoes it."""

    def cut(self, lab: Lab, one: Host, *others: Host) -> None:
        """Drop all traffic of a host with others; :class:`LabError` where the driver cannot."""

    def heal(self, lab: Lab) -> None:
        """Undo every :meth:`cut` and :meth:`net`."""

    def subscribed(self, lab: Lab, host: Host) -> set[str]:
        """Return the ids of the masters to whose publishers a host's minion listens."""

    def down(self, lab: Lab) -> None:
        """Stop and remove everything but the laboratory's directory; works on a half-made one."""


@dataclass(frozen=True)
class Trees:
    """What saltm1 serves: file and pillar roots on the machine, and master options for them."""

    file_roots: tuple[Path, ...]
    pillar_roots: tuple[Path, ...]
    initial_master: Mapping[str, Any]
    initial_minion: Mapping[str, Any]
