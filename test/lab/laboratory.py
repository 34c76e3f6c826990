"""A laboratory as tests use it: verbs, bounded waits, and the scan for private keys."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil

from lab import cli, slowness
from lab.model import PATIENCE as PATIENCE
from lab.model import Host, Lab, LabError
from lab.wait import ENOUGH, until

SCANNER = Path(__file__).with_name("scan_host.py")
RECORDER = Path(__file__).with_name("record_events.py")
# Prints which minions answer. For one that is away the program ``salt`` waits 10 s more.
PING = """
import json, sys, salt.client
client = salt.client.LocalClient(sys.argv[1])
timeout, gather = map(float, sys.argv[3:])
given = {"tgt_type": "compound", "timeout": timeout, "gather_job_timeout": gather}
print(json.dumps(client.cmd(sys.argv[2], "test.ping", **given)))
"""
# What `salt` prints when no minion is meant, and in the place of a return that did not come.
NOBODY, SILENT = "No minions matched the target.", "Minion did not return."
# Seconds of `salt`, at full speed, without a sign of a minion.
TIMEOUT = 60


class Laboratory:
    """A laboratory with the verbs that tests need; every wait is bounded and named."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.driver = cli.driver_of(lab.directory, lab.driver, lab.salt)
        self.arguments_seen: set[str] = set()

    @property
    def python(self) -> str:
        """The Python that Salt has on the hosts."""
        return self.lab.python

    @property
    def _all(self) -> tuple[str, ...]:
        return tuple(host.id for host in self.lab.masters)

    def host(self, host_id: str) -> Host:
        """Return the host with that id."""
        return self.lab.host(host_id)

    @property
    def ids(self) -> set[str]:
        """The minion ids of all hosts."""
        return {host.id for host in self.lab.hosts}

    def until(
        self,
        condition: Callable[[], object],
        what: str,
        seen: Callable[[], object] | None = None,
        interval: float = 1,
    ) -> None:
        """
        Wait for a condition, for as long as what is ``seen`` changes now and then.

        An AssertionError names the condition and what was seen last.
        """
        try:
            until(condition, self.lab.patience, what, interval, seen)
        except LabError as err:
            raise AssertionError(str(err)) from err

    def run(self, host_id: str, *argv: str, timeout: float | None = None, **kwargs: Any) -> Any:
        """Run a command on a host; the result has returncode, stdout and stderr."""
        # As what it does cannot be seen, it may take as long as a wait may in any case.
        timeout = timeout or ENOUGH * self.lab.patience
        return self.driver.exec(
            self.lab, self.host(host_id), argv, capture_output=True, timeout=timeout, **kwargs
        )

    def attack(self, host_id: str, *messages: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Send masters what no minion would, as the one on a host; return what each said to it."""
        host = self.host(host_id)
        argv = [self.python, "-c", cli.ATTACK.read_text(), f"{host.config_dir}/minion"]
        done = self.run(host_id, *argv, input="".join(f"{json.dumps(m)}\n" for m in messages))
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(said) == len(messages), done.stderr
        return said

    def json(self, host_id: str, *argv: str) -> Any:
        """Run a Salt command and return its output; an AssertionError shows what it printed."""
        done = self.run(host_id, *argv, "--out=json", "--log-level=error")
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"{' '.join(argv)}: {done.stdout}{done.stderr}") from None

    def salt(self, master: str, target: str, *argv: str) -> dict[str, Any]:
        """Give a command on a master; return what each minion returned."""
        ids = ",".join(sorted(self.ids)) if target == "*" else target
        command = ["salt", f"--timeout={self.lab.slowed(TIMEOUT):.0f}", "--list", ids, *argv]
        if self.lab.slowed(1) > 1:
            return self._patiently(master, set(ids.split(",")), command)
        # Not --static, for which Salt asks every minion first whether it is there.
        done = self.run(master, *command, "--out=json", "--out-indent=-1", "--log-level=error")
        if done.stdout.startswith(NOBODY):
            return {}
        try:
            returns = [json.loads(line) for line in done.stdout.splitlines()]
        except ValueError:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}") from None
        return {
            minion: value
            for one in returns
            for minion, value in one.items()
            if not str(value).startswith(SILENT)
        }

    def _patiently(self, master: str, ids: set[str], command: Sequence[str]) -> dict[str, Any]:
        """
        Give a command on a slow master, and wait for the return of every minion.

        Salt's own wait ends with an error when its master takes longer than `gather_job_timeout`
        to take the question whether the job goes on.
        """
        given = self.run(master, *command, "--async")
        found: dict[str, Any] = {}
        job = re.search(r"\b\d{20}\b", given.stdout)
        assert job, given.stdout + given.stderr

        def returned() -> bool:
            with contextlib.suppress(AssertionError):
                found.update(self.json(master, "salt-run", "jobs.lookup_jid", job[0]))
            return ids <= set(found)

        self.until(
            returned,
            f"the returns of {' '.join(command)}",
            lambda: f"missing: {sorted(ids - set(found))}",
        )
        return found

    def command(self, minions: set[str], *argv: str) -> dict[str, Any]:
        """Give a command to minions at one time, each through a master that it answers to."""
        homes: dict[str, set[str]] = {}
        missing = minions

        def found() -> bool:
            nonlocal missing
            homes.clear()
            missing = minions
            for master in self.lab.masters:
                wanted = f"L@{','.join(sorted(missing))}"
                if missing and (here := missing & self.answering(master.id, wanted)):
                    homes[master.id] = here
                    missing = missing - here
            return not missing

        self.until(
            found,
            f"{sorted(minions)} to answer to a master",
            lambda: f"missing: {sorted(missing)}",
        )
        with ThreadPoolExecutor() as pool:
            given = [
                pool.submit(self.salt, master, ",".join(sorted(here)), *argv)
                for master, here in homes.items()
            ]
        return {minion: value for one in given for minion, value in one.result().items()}

    def apply(self, target: str = "*", master: str = "saltm1", *argv: str) -> dict[str, Any]:
        """Apply the formula, watching the arguments of all processes meanwhile."""
        with self._watching():
            return self.salt(master, target, "state.apply", "multimaster", *argv)

    def answering(self, master: str, target: str = "*") -> set[str]:
        """Return the minions that answer a command given on a master."""
        argv = [self.python, "-c", PING, f"{self.host(master).config_dir}/master", target]
        argv += [f"{self.lab.slowed(seconds):g}" for seconds in (5, 2)]
        done = self.run(master, *argv)
        with contextlib.suppress(ValueError):
            return {name for name, value in json.loads(done.stdout).items() if value is True}
        return set()

    def until_answering(self, *masters: str) -> None:
        """Wait until all minions answer to one of some masters, or of all; name the rest."""
        masters = masters or self._all
        missing = self.ids

        def complete() -> bool:
            nonlocal missing
            missing = self.ids
            for master in masters:
                missing = missing - self.answering(master) if missing else missing
            return not missing

        self.until(
            complete,
            f"all minions to answer to {' or '.join(masters)}",
            lambda: f"missing: {sorted(missing)}",
        )

    def status(self, master: str = "saltm1") -> tuple[int, dict[str, Any]]:
        """Return exit status and data of ``multimaster.status``."""
        patience = f"timeout={self.lab.slowed(15):.0f}"
        done = self.run(master, "salt-run", "multimaster.status", patience, "--out=json")
        with contextlib.suppress(ValueError):
            # A master that is just starting gives the reason why it cannot, as text.
            if isinstance(data := json.loads(done.stdout), dict) and "problems" in data:
                return done.returncode, data
        return done.returncode or 1, {"problems": [(done.stdout + done.stderr).strip()]}

    def until_connected(self, master: str = "saltm1") -> dict[str, Any]:
        """Wait until the status on a master finds nothing wrong; return it."""
        # Each look costs all hosts something, and a restart would only be later for it.
        self.until(self.restarted, "the end of every restart", self.steps)
        seen: dict[str, Any] = {}

        def connected() -> bool:
            nonlocal seen
            code, seen = self.status(master)
            return code == 0

        problems = lambda: f"problems: {seen.get('problems')}"  # noqa: E731
        self.until(connected, "everything to be connected", problems)
        return seen

    def until_idle(self, *masters: str) -> None:
        """
        Wait until a broken-off apply is over: nobody applies or cuts over, and all minions answer.

        In failover mode they may be with any master; then name none, which means all.
        """
        masters = masters or self._all
        self.until_answering(*masters)
        self.until(lambda: self._idle(masters), "the end of every apply")
        self.until(
            lambda: not any(self.cutting_over(host.id) for host in self.lab.hosts),
            "the end of every cut-over",
            self.steps,
        )

    def until_settled(self, *masters: str) -> None:
        """Wait until no restart is to come either, and all minions answer."""
        self.until_idle(*masters)
        self.until(self.restarted, "the end of every restart", self.steps)
        self.until_answering(*masters)

    def _idle(self, masters: Sequence[str]) -> bool:
        for master in masters:
            here = ",".join(self.answering(master))
            argv = ("saltutil.is_running", "state.apply")
            if here and any(self.salt(master, here, *argv).values()):
                return False
        return True

    def restarted(self) -> bool:
        """Tell whether every restart that was asked for is over."""
        return not any(
            # Who has gone back goes on proving, without an end.
            self.cutting_over(host.id) or (self.step(host.id) != "back" and self._restarting(host))
            for host in self.lab.hosts
        )

    def _restarting(self, host: Host) -> bool:
        # With the process driver all hosts' processes are seen.  The brackets keep a driver's own
        # process that carries this from being one.
        found = f"[m]ultimaster_restart.py --config={host.config_dir}/minion "
        return not self.run(host.id, "pgrep", "--full", "--", found).returncode

    def cutting_over(self, minion: str) -> bool:
        """Tell whether a minion is on its way to a new configuration."""
        return self.step(minion) not in (None, "kept", "back")

    def step(self, minion: str) -> str | None:
        """
        Return the step of a minion's cut-over; None where there was none.

        ``back`` where the old list is in force again and the new one is proved on.
        """
        path = f"{self.host(minion).minion_cache_dir}/multimaster/cutover.json"
        with contextlib.suppress(ValueError):
            journal = json.loads(self.read(minion, path))
            back = journal.get("back") and journal.get("step") == "proving"
            return "back" if back else str(journal.get("step"))
        return None

    def steps(self) -> dict[str, str | None]:
        """Return the step of every host's cut-over."""
        return {host.id: self.step(host.id) for host in self.lab.hosts}

    def declare(self, **changes: Any) -> None:
        """Change the declaration that saltm1 serves."""
        cli.declare(self.lab, cli.trees_of(self.lab.directory), {"multimaster": changes})

    def masters(self, count: int) -> list[dict[str, str]]:
        """Return the declaration of the first ``count`` hosts that are to be masters."""
        return [{"id": host.id, "address": host.address} for host in self.lab.masters[:count]]

    def proved_masters(self, count: int) -> list[dict[str, str]]:
        """Return what :meth:`masters` does, with the fingerprints of their minions' keys."""
        argv = ["salt-call", "--local", "key.finger"]
        return [
            {**entry, "fingerprint": self.json(entry["id"], *argv)["local"]}
            for entry in self.masters(count)
        ]

    @contextlib.contextmanager
    def stopped(self, host_id: str, unit: str) -> Iterator[None]:
        """Stop a daemon for the duration of the block."""
        self.driver.control(self.lab, self.host(host_id), "stop", unit)
        try:
            yield
        finally:
            self.driver.control(self.lab, self.host(host_id), "start", unit)

    @contextlib.contextmanager
    def slowed(self, share: str, *host_ids: str) -> Iterator[None]:
        """Give hosts, by default all, a share of the full speed, such as ``1/3``."""
        hosts = [self.host(host_id) for host_id in host_ids] or self.lab.hosts
        before = slowness.shares(self.lab.directory)
        self.driver.slow(self.lab, hosts, cli.share(share))
        try:
            yield
        finally:
            for host in hosts:
                again = Fraction(before.get(host.id, 1)).limit_denominator(1000)
                self.driver.slow(self.lab, [host], again)

    @contextlib.contextmanager
    def held(self, host_id: str, unit: str) -> Iterator[None]:
        """Have every start of a daemon, by whomever, wait for the end of the block."""
        self.driver.hold(self.lab, self.host(host_id), unit)
        try:
            yield
        finally:
            self.driver.release(self.lab, self.host(host_id), unit)

    @contextlib.contextmanager
    def distant(self, *host_ids: str, delay: str = "0ms", loss: str = "0%") -> Iterator[None]:
        """Delay and lose what hosts, by default all, send (docker driver)."""
        hosts = [self.host(host_id) for host_id in host_ids] or self.lab.hosts
        self.driver.net(self.lab, hosts, delay, loss)
        try:
            yield
        finally:
            self.driver.heal(self.lab)

    def bring_together(self) -> None:
        """Restart the hosts that are no masters: in failover mode each begins with the first."""
        for host in self.lab.hosts:
            if "master" not in host.roles:
                with self.stopped(host.id, "salt-minion"):
                    pass
        self.until_answering(self.lab.masters[0].id)

    def read(self, host_id: str, path: str) -> str:
        """Return the content of a file on a host."""
        return str(self.run(host_id, "cat", path).stdout)

    def logs(self, host_id: str, lines: int = 40) -> str:
        """Return the ends of a host's logs, each with its name."""
        found = self.run(host_id, "find", self.host(host_id).log_dir, "-type", "f").stdout.split()
        return str(self.run(host_id, "tail", "-v", "-n", str(lines), *found).stdout)

    def private_keys(self) -> list[str]:
        """Return the masters' private key, and that of the signing pair, from the first master."""
        pki = self.host("saltm1").master_pki_dir
        keys = [self.read("saltm1", f"{pki}/{name}.pem") for name in ("master", "master_sign")]
        # The second is there with signing only.
        return [keys[0], *filter(None, keys[1:])]

    def assert_no_key_outside_pki(self) -> None:
        """Scan every file and the recorded arguments of every host for the private keys."""
        needles = [needle for key in self.private_keys() for needle in needles_of(key)]
        for host in self.lab.hosts:
            whole = ["/etc", "/var", "/tmp", "/root", "/run"]
            roots = whole if self.lab.driver == "docker" else [host.root]
            job = {
                "needles": needles,
                "roots": roots,
                "allowed": [f"{host.master_pki_dir}/", f"{host.minion_pki_dir}/"],
            }
            scan = [self.python, "-c", SCANNER.read_text()]
            done = self.run(host.id, *scan, input=json.dumps(job))
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout) == [], f"private key on {host.id}"
        for arguments in self.arguments_seen:
            assert not any(needle in arguments for needle in needles), "private key in arguments"
        events = {host.id: self.events(host.id) for host in self.lab.masters}
        for name, stream in events.items():
            assert not any(needle in stream for needle in needles), f"private key on {name}'s bus"
        assert "salt/job/" in events["saltm1"], "no event was recorded"

    def record_events(self) -> None:
        """Write what passes the bus of every master, also one to come, to a file, until the end."""
        for host in self.lab.masters:
            argv = [self.python, "-c", RECORDER.read_text(), f"{host.config_dir}/master"]
            threading.Thread(target=self._record, args=(host, argv), daemon=True).start()

    def _record(self, host: Host, argv: list[str]) -> None:
        with open(self._events(host), "w") as stream:
            self.driver.exec(self.lab, host, argv, stdout=stream, stderr=subprocess.DEVNULL)

    def events(self, master: str) -> str:
        """Return what has passed the bus of a master so far, a line for each event."""
        return self._events(self.host(master)).read_text()

    def _events(self, host: Host) -> Path:
        return self.lab.directory / f"events-{host.id}"

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Record the arguments of all processes of this machine, containers' included."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                for process in psutil.process_iter(["cmdline"]):
                    self.arguments_seen.add(" ".join(process.info["cmdline"] or []))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def needles_of(pem: str) -> list[str]:
    """Return pieces by which a private key is found: its lines, and them encoded once more."""
    lines = [line for line in pem.splitlines() if not line.startswith("-----")]
    assert len(lines) > 10, "no private key to look for"
    body = lines[3:8]
    encoded = [
        base64.b64encode("\n".join(lines)[shift:].encode()).decode()[100:160] for shift in range(3)
    ]
    return body + encoded


@contextlib.contextmanager
def laboratory(
    directory: Path, driver: str, pillar: Mapping[str, Any] | None = None, **kwargs: Any
) -> Iterator[Laboratory]:
    """Make a laboratory and remove it, whatever happens."""
    try:
        made = Laboratory(cli.up(directory, driver, pillar=pillar, **kwargs))
        made.record_events()
        yield made
    finally:
        if (directory / "lab.json").exists():
            cli.down(directory)


@contextlib.contextmanager
def applied(directory: Path, driver: str, **kwargs: Any) -> Iterator[Laboratory]:
    """Make a laboratory with the formula applied; in the end no private key may have got out."""
    with laboratory(directory, driver, **kwargs) as made:
        assert not (failed := failures(made.apply())), failed
        made.until_connected()
        yield made
        made.assert_no_key_outside_pki()


def failures(result: Mapping[str, Any]) -> list[str]:
    """Return what failed in the result of a state run, in words."""
    found = []
    for minion, states in result.items():
        if not isinstance(states, dict):
            found.append(f"{minion}: {states}")
            continue
        for state in states.values():
            if state["result"] is False:
                found.append(f"{minion}: {state['__id__']}: {state['comment']}")
    return found


def changed(result: Mapping[str, Any]) -> list[str]:
    """Return the ids of the states that changed something, as minion:id."""
    return [
        f"{minion}:{state['__id__']}"
        for minion, states in result.items()
        for state in states.values()
        if state["changes"]
    ]
