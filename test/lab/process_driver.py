"""
Hosts as directories on this machine: no root, no Docker.

Each host has its own ``root_dir``, a loopback address and a supervisord that stands in for init.
Salt comes from the virtual environment of the chosen series.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml
from supervisor.xmlrpc import SupervisorTransport

from lab import slowness
from lab.keys import make_pair
from lab.model import SERIES, UNITS, Host, Lab, LabError, Trees
from lab.wait import until

COMMANDS = ("salt", "salt-call", "salt-cp", "salt-key", "salt-run")
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "thaw": signal.SIGCONT}

# Characters of a master's log that are shown when a laboratory does not come up.
LAST_WORDS = 4000

SUPERVISORD = """\
[unix_http_server]
file={sockets}/supervisor.sock
chmod=0600
[supervisord]
directory={root}
logfile={logs}/supervisord.log
pidfile={root}/supervisord.pid
childlogdir={logs}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

# As the packages' units do: SIGTERM to the main process, then, after systemd's default, SIGKILL to
# what is left; no restart.
PROGRAM = """\
[program:{unit}]
command={root}/bin/daemon {prefix}/bin/{unit} -c {config_dir}
autostart=false
autorestart=false
startsecs=1
stopwaitsecs=90
killasgroup=true
redirect_stderr=true
stdout_logfile={logs}/{unit}.out
"""


# A start that is held waits while that file is there. Salt takes the zombie of a daemon's
# predecessor for a running instance, and exits; a predecessor that was killed waits for this
# machine's init for as long as that takes.
DAEMON = r"""#!/bin/sh
ended() { ! grep -qs '^State:.Z' "/proc/$1/status"; }
while [ -e ROOT/"${1##*/}.held" ]; do sleep 0.1; done
for file in ROOT/var/run/process_*.pid; do
    pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p' "$file" 2>/dev/null)
    until ended "$pid"; do sleep 0.1; done
done
exec "$@"
"""


class ProcessDriver:
    """See :class:`lab.model.Driver`."""

    def __init__(self, directory: Path, salt: str) -> None:
        self.directory = directory
        self.salt = salt

    @property
    def prefix(self) -> Path:
        """The virtual environment that the chosen Salt series is in."""
        main = Path(sys.prefix)
        return main if self.salt == SERIES[0] else main / f"salt-{self.salt}"

    def plan(self, host_id: str, roles: tuple[str, ...], index: int, net: str) -> Host:
        """Describe a host: masters at .10, .100, .101 ..., the others at .150, .151 ..."""
        root = self.directory / "hosts" / host_id
        number = (10 if index == 0 else 99 + index) if "master" in roles else 150 + index
        return Host(
            id=host_id,
            roles=roles,
            address=f"{net}.{number}",
            config_dir=str(root / "etc/salt"),
            master_pki_dir=str(root / "etc/salt/pki/master"),
            minion_pki_dir=str(root / "etc/salt/pki/minion"),
            master_cache_dir=str(root / "var/cache/salt/master"),
            minion_cache_dir=str(root / "var/cache/salt/minion"),
            log_dir=str(root / "var/log/salt"),
            root=str(root),
        )

    def tree_paths(self, trees: Trees) -> tuple[list[str], list[str]]:
        """Return file and pillar roots as the hosts see them: the machine's own paths."""
        return [str(p) for p in trees.file_roots], [str(p) for p in trees.pillar_roots]

    def up(self, lab: Lab, trees: Trees) -> Iterator[str]:
        """Write every host, start the daemons, and wait until each minion answers."""
        if not (self.prefix / "bin/salt").exists():
            target = "setup" if self.salt == SERIES[0] else f"setup-{self.salt}"
            raise LabError(
                f"Salt {self.salt} is not installed in {self.prefix}; run: make {target}"
            )
        # Unix sockets have short names only, whatever the depth of the laboratory's directory.
        sockets = Path(tempfile.mkdtemp(prefix="lab-"))
        (lab.directory / "sockets").symlink_to(sockets)
        first = lab.masters[0]
        for host in lab.hosts:
            self._write_host(lab, host, trees)
        yield f"{len(lab.hosts)} hosts written"
        for host in lab.hosts:
            self._start_init(host)
        # Slow from the start, if that is asked for.
        self.slow(lab, (), Fraction(1))
        self.control(lab, first, "start", "salt-master")
        what = f"salt-master on {first.id} to listen"
        until(lambda: _listens(first.address, 4506), lab.patience, what)
        yield f"salt-master runs on {first.id}"
        for host in lab.hosts:
            self._ask(lab, host, "startProcess", "salt-minion", False)
        # A test.ping that misses one minion takes 20 seconds; to look at connections costs nothing.
        wanted = {host.id for host in lab.hosts}
        there: set[str] = set()

        def complete(look: Callable[[Lab, Host], set[str]]) -> bool:
            nonlocal there
            there = look(lab, first)
            return there >= wanted

        try:
            for what, look in (
                (f"every minion to be connected to {first.id}", self.connected),
                ("an answer of every minion", self._answering),
            ):
                until(partial(complete, look), lab.patience, what, seen=lambda: sorted(there))
        except LabError as err:
            # The hosts are removed now, and their logs with them.
            said = Path(first.log_dir, "master").read_text(errors="replace")[-LAST_WORDS:]
            raise LabError(f"{err}; the end of {first.id}'s log:\n{said}") from err
        yield "every minion answers"

    def exec(
        self, lab: Lab, host: Host, argv: Sequence[str], **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` with the host's Salt commands first in PATH."""
        path = f"{host.root}/bin{os.pathsep}{self.prefix}/bin{os.pathsep}{os.environ['PATH']}"
        command = shutil.which(argv[0], path=path) or argv[0]
        kwargs.setdefault("text", True)
        kwargs.setdefault("check", False)
        environment = {**os.environ, "PATH": path, slowness.VARIABLE: host.root}
        return subprocess.run([command, *argv[1:]], env=environment, **kwargs)

    def control(self, lab: Lab, host: Host, verb: str, unit: str) -> None:
        """Start or stop through supervisord; signals go to the daemon and all its children."""
        if unit == "salt-master" and "master" not in host.roles:
            raise LabError(f"{host.id} is not declared a master")
        stopped = f"the end of {unit} on {host.id}"

        def settled() -> bool:
            # After stopwaitsecs supervisord kills it.
            return self._state(lab, host, unit) != "STOPPING"

        if verb == "start":
            until(settled, lab.patience, stopped)
        running = self._state(lab, host, unit) in ("RUNNING", "STARTING")
        if verb == "start" and not running:
            self._ask(lab, host, "startProcess", unit)
        elif verb == "stop":
            if running:
                # supervisord would poll without a pause until the process is gone.
                self._ask(lab, host, "stopProcess", unit, False)
            until(settled, lab.patience, stopped)
        elif verb in SIGNALS:
            if not running:
                raise LabError(f"{unit} does not run on {host.id}")
            daemon = psutil.Process(self._ask(lab, host, "getProcessInfo", unit)["pid"])
            processes = [daemon, *daemon.children(recursive=True)]
            with slowness.still(lab.directory):
                frozen = slowness.frozen_file(host.root, unit)
                if verb == "freeze":
                    frozen.write_text(json.dumps([process.pid for process in processes]))
                else:
                    frozen.unlink(missing_ok=True)
                for process in processes:
                    # A job of it may end meanwhile.
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(SIGNALS[verb])
            if verb == "kill":
                # Zombies may stay for seconds; whoever starts a daemon waits for them.
                dead = lambda: not any(map(_alive, processes))  # noqa: E731
                until(dead, lab.patience, stopped, interval=0.01)

    def hold(self, lab: Lab, host: Host, unit: str) -> None:
        """Have every start of a unit wait from now on, until :meth:`release`."""
        Path(host.root, f"{unit}.held").touch()

    def release(self, lab: Lab, host: Host, unit: str) -> None:
        """Let a unit that is held start."""
        Path(host.root, f"{unit}.held").unlink(missing_ok=True)

    def slow(self, lab: Lab, hosts: Iterable[Host], share: Fraction) -> None:
        """Let hosts run for a share of the time only; 1 undoes it."""
        with slowness.still(lab.directory):
            slowness.record(lab.directory, [host.id for host in hosts], share)
            slowness.carry_out(lab.directory)

    def net(self, lab: Lab, hosts: Iterable[Host], delay: str, loss: str) -> None:
        """Refuse, like :meth:`cut`."""
        raise LabError("net: the process driver cannot; supported with --driver docker")

    def cut(self, lab: Lab, one: Host, *others: Host) -> None:
        """Refuse: all hosts share one loopback interface."""
        raise LabError("cut: the process driver cannot; supported with --driver docker")

    def heal(self, lab: Lab) -> None:
        """Refuse, like :meth:`cut`."""
        raise LabError("heal: the process driver cannot; supported with --driver docker")

    def halt(self, lab: Lab) -> None:
        """Stop every process that belongs to a host, whoever started it; the hosts' files stay."""
        self.slow(lab, lab.hosts, Fraction(1))
        roots = [f"{host.root}/" for host in lab.hosts]
        what = "the end of the laboratory's processes"
        until(lambda: not self._signal_all(roots), lab.patience, what)

    def down(self, lab: Lab) -> None:
        """Stop everything, and remove the hosts."""
        self.halt(lab)
        link = lab.directory / "sockets"
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
            link.unlink()
        shutil.rmtree(lab.directory / "hosts", ignore_errors=True)

    def _signal_all(self, roots: Sequence[str]) -> list[psutil.Process]:
        """Kill what has a host's directory in its arguments; return what was still there."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            arguments = process.info["cmdline"] or []
            if process.pid == os.getpid() or process.info["status"] == psutil.STATUS_ZOMBIE:
                continue
            # Also behind the name of an option: a restart waits for as long as it takes.
            if any(root in argument for argument in arguments for root in roots):
                found.append(process)
        for process in found:
            try:
                for child in process.children(recursive=True):
                    child.kill()
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return found

    def _write_host(self, lab: Lab, host: Host, trees: Trees) -> None:
        root = Path(host.root)
        for path in (*map(Path, (host.config_dir, host.log_dir)), root / "bin"):
            path.mkdir(parents=True, exist_ok=True)
        # Salt puts every path below its root_dir, that of its sockets too; so this is short.
        sockets = lab.directory.joinpath("sockets").readlink() / host.id
        sockets.symlink_to(root)
        common = {"user": _user(), "root_dir": str(sockets)}
        file_roots, pillar_roots = self.tree_paths(trees)
        minion = {
            **trees.initial_minion,
            **common,
            "id": host.id,
            "master": lab.masters[0].address,
            "module_dirs": [str(Path(__file__).parent / "extensions")],
            "providers": {"service": "supervisor_service"},
            "lab_supervisor": {
                "socket": str(sockets / "supervisor.sock"),
                "flags": str(root),
            },
        }
        _write_yaml(Path(host.config_dir, "minion"), minion)
        if "master" in host.roles:
            # What a distribution's package brings: a base configuration, and no running daemon.
            # Each worker costs more than a second of processor time at the master's start.
            master: dict[str, Any] = {**common, "interface": host.address, "worker_threads": 2}
            if host == lab.masters[0]:
                master["file_roots"] = {"base": file_roots}
                master["pillar_roots"] = {"base": pillar_roots}
                master |= trees.initial_master
            _write_yaml(Path(host.config_dir, "master"), master)
        self._write_commands(host)
        self._write_supervisor(host, sockets)
        self._write_key(lab, host)

    def _write_commands(self, host: Host) -> None:
        for name in COMMANDS:
            script = Path(host.root, "bin", name)
            script.write_text(
                f'#!/bin/sh\nexec "{self.prefix}/bin/{name}" -c "{host.config_dir}" "$@"\n'
            )
            script.chmod(0o755)
        daemon = Path(host.root, "bin/daemon")
        daemon.write_text(DAEMON.replace("ROOT", shlex.quote(host.root)))
        daemon.chmod(0o755)

    def _write_supervisor(self, host: Host, sockets: Path) -> None:
        units = [unit for unit in UNITS if unit == "salt-minion" or "master" in host.roles]
        text = SUPERVISORD.format(root=host.root, logs=host.log_dir, sockets=sockets)
        for unit in units:
            text += PROGRAM.format(
                unit=unit,
                root=host.root,
                prefix=self.prefix,
                config_dir=host.config_dir,
                logs=host.log_dir,
            )
        Path(host.root, "supervisord.conf").write_text(text)

    def _write_key(self, lab: Lab, host: Host) -> None:
        """Make the minion's key pair, and have it accepted by the first master."""
        pem, pub = make_pair()
        pki = Path(host.minion_pki_dir)
        pki.mkdir(parents=True, mode=0o700)
        (pki / "minion.pem").touch(mode=0o600)
        (pki / "minion.pem").write_text(pem)
        (pki / "minion.pub").write_text(pub)
        accepted = Path(lab.masters[0].master_pki_dir, "minions")
        accepted.mkdir(parents=True, exist_ok=True)
        (accepted / host.id).write_text(pub)

    def connected(self, lab: Lab, master: Host) -> set[str]:
        """Return the ids of the minions that listen to a master's publisher; costs no Salt job."""
        publisher = (master.address, 4505)
        listening = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.raddr == publisher and connection.status == psutil.CONN_ESTABLISHED
        }
        return {host.id for host in lab.hosts if listening & self._processes(lab, host)}

    def subscribed(self, lab: Lab, host: Host) -> set[str]:
        """Return the ids of the masters to whose publishers a host's minion listens."""
        publishers: set[Any] = set()
        # Of each process for itself: a job has its parent's sockets, too, and may end meanwhile.
        for pid in self._processes(lab, host):
            with contextlib.suppress(psutil.Error):
                publishers.update(
                    connection.raddr
                    for connection in psutil.Process(pid).net_connections("tcp")
                    if connection.status == psutil.CONN_ESTABLISHED
                )
        return {master.id for master in lab.masters if (master.address, 4505) in publishers}

    def _processes(self, lab: Lab, host: Host) -> set[int]:
        """Return the process ids of a host's minion daemon and its children."""
        pid = self._ask(lab, host, "getProcessInfo", "salt-minion")["pid"]
        try:
            daemon = psutil.Process(pid)
            return {pid, *(child.pid for child in daemon.children(recursive=True))}
        except psutil.Error:
            return set()

    def _answering(self, lab: Lab, master: Host) -> set[str]:
        argv = ["salt", "*", "test.ping", "--out=json", "--static"]
        argv.append(f"--timeout={lab.slowed(2):.0f}")
        answer = self.exec(lab, master, argv, capture_output=True)
        try:
            return {name for name, value in json.loads(answer.stdout).items() if value is True}
        except ValueError:
            return set()

    def _ask(self, lab: Lab, host: Host, method: str, *arguments: Any) -> Any:
        """Call supervisord on a host, once it answers."""
        sockets = lab.directory.joinpath("sockets").readlink()
        socket_file = sockets / host.id / "supervisor.sock"

        def call(name: str, *args: Any) -> Any:
            transport = SupervisorTransport(serverurl=f"unix://{socket_file}")
            try:
                proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
                return getattr(proxy.supervisor, name)(*args)
            finally:
                transport.close()

        def answers() -> bool:
            try:
                return bool(call("getState")["statecode"] == 1)
            except OSError:
                return False

        until(answers, lab.patience, f"supervisord of {host.id}", interval=0.05)
        return call(method, *arguments)

    def _state(self, lab: Lab, host: Host, unit: str) -> str:
        return str(self._ask(lab, host, "getProcessInfo", unit)["statename"])

    def _start_init(self, host: Host) -> None:
        argv = [f"{sys.prefix}/bin/supervisord", "-c", f"{host.root}/supervisord.conf"]
        environment = {**os.environ, slowness.VARIABLE: host.root}
        result = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
        if result.returncode:
            raise LabError(f"{argv[0]}: {result.stderr.strip() or result.stdout.strip()}")


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


def _user() -> str:
    return psutil.Process().username()


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
