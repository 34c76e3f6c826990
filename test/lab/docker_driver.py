"""The docker driver: every host a Debian container with systemd and Salt from real packages.

No ``--privileged``.  systemd needs CAP_SYS_ADMIN (it mounts), no seccomp filter, and a cgroup tree
that it may write; partitions need CAP_NET_ADMIN inside the container's own network.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from lab import docker_image, slowness
from lab.model import UNITS, Host, Lab, LabError, Trees
from lab.wait import ENOUGH, until

LABEL = "multimaster.lab"

# Where the directories of `Trees` appear, in every host: what shared storage would give.
FILES, PILLAR = "/srv/lab/files", "/srv/lab/pillar"

# Seconds. Generous: it bounds a hang of the engine, and the machine may be busy.
ENGINE_TIMEOUT = 300

# The chains that hold the partitions, and what is done to packets that leave, so that healing is
# to empty them.
CHAIN, LEAVING = "LAB-CUT", "LAB-NET"
DELAYER = Path(__file__).with_name("delay_packets.py")

# Microseconds in which a throttled host gets its share of a processor.
PERIOD = 100_000

SIGNALS = {"kill": "SIGKILL", "freeze": "SIGSTOP", "thaw": "SIGCONT"}


def engine_answers() -> bool:
    """Tell whether a Docker engine answers on this machine."""
    try:
        answer = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=15,
            stdin=subprocess.DEVNULL,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def name(lab: Lab) -> str:
    """Return the name of the laboratory's network, prefix of its containers' names."""
    digest = hashlib.sha256(str(lab.directory.resolve()).encode()).hexdigest()
    return f"lab-{digest[:8]}"


def container(lab: Lab, host: Host) -> str:
    """Return the name of the host's container."""
    return f"{name(lab)}-{host.id}"


class DockerDriver:
    """Containers on one user-defined network; see :class:`lab.model.Driver`."""

    def __init__(self, directory: Path, salt: str) -> None:
        self.directory = directory
        self.salt = salt
        # Addresses that hosts have beside their own, and the ids of these hosts.
        self.aliases: dict[str, str] = {}

    def tree_paths(self, trees: Trees) -> tuple[list[str], list[str]]:
        """Return file and pillar roots as every host sees them: where they are mounted."""
        return (
            [f"{FILES}/{number}" for number in range(len(trees.file_roots))],
            [f"{PILLAR}/{number}" for number in range(len(trees.pillar_roots))],
        )

    def plan(self, host_id: str, roles: tuple[str, ...], index: int, net: str) -> Host:
        """Return the host's description: addresses .10, .100, .101 ... and .150, .151 ..."""
        if "master" in roles:
            last = 10 if index == 0 else 99 + index
            if last >= 150:
                raise LabError(f"masters: got more than 51; the network {net}.0/24 has room for 51")
        else:
            last = 150 + index
            if last >= 255:
                raise LabError(f"minions: got more than 105; {net}.0/24 has room for 105")
        return Host(
            id=host_id,
            roles=roles,
            address=f"{net}.{last}",
            config_dir="/etc/salt",
            master_pki_dir="/etc/salt/pki/master",
            minion_pki_dir="/etc/salt/pki/minion",
            master_cache_dir="/var/cache/salt/master",
            minion_cache_dir="/var/cache/salt/minion",
            log_dir="/var/log/salt",
            root="/",
        )

    def up(self, lab: Lab, trees: Trees) -> Iterator[str]:
        """Build the image where needed, then create, start and join every host."""
        yield from self.boot(lab, trees)
        first = lab.masters[0]
        yield f"installing salt-master on {first.id}"
        self._install_master(lab, first)
        yield "starting the minions"
        argv = ["systemctl", "enable", "--now", "--no-block", "salt-minion.service"]
        _each(lambda host: self._must(lab, host, argv), lab.hosts)
        yield "accepting the minions' keys"
        self._accept(lab, first)
        yield "waiting for every minion's answer"
        self._wait_for_answers(lab, first, int(trees.initial_master.get("publish_port", 4505)))

    def boot(self, lab: Lab, trees: Trees) -> Iterator[str]:
        """Create and start every host; nothing of Salt runs, and no minion has a key pair."""
        _require_engine()
        if _containers(lab):
            raise LabError(f"the laboratory in {lab.directory} is up already; see: lab down")
        for release in sorted(set(docker_image.releases())):
            yield from docker_image.build(lab.salt, release=release)
        # `down` asks the engine only when this file says that there may be something of ours.
        _marker(lab).write_text(name(lab) + "\n")

        yield f"network {name(lab)} ({lab.net}.0/24)"
        _create_network(lab)
        yield f"starting {len(lab.hosts)} hosts"
        cgroup = _docker("info", "--format", "{{.CgroupVersion}}").stdout.strip()
        _each(lambda host: self._start(lab, host, trees, cgroup), lab.hosts)
        _each(lambda host: self._wait_for_boot(lab, host), lab.hosts)

    def exec(
        self, lab: Lab, host: Host, argv: Sequence[str], **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run ``argv`` in the host's container; ``kwargs`` go to :func:`subprocess.run`.

        With ``timeout`` the command is ended inside the container too, not only its client here.
        """
        kwargs.setdefault("text", True)
        argv = list(argv)
        if kwargs.get("timeout") is not None:
            # One second later than the client's, so that the caller always sees TimeoutExpired.
            argv = ["timeout", "--kill-after=5", f"{kwargs['timeout'] + 1:g}", *argv]
        try:
            return subprocess.run(
                ["docker", "exec", "--interactive", container(lab, host), *argv], **kwargs
            )
        except FileNotFoundError:
            raise LabError(_NO_CLIENT) from None

    def control(self, lab: Lab, host: Host, verb: str, unit: str) -> None:
        """Start or stop a unit through systemd, or signal all of its processes."""
        if unit not in UNITS:
            raise LabError(f"unit: got {unit!r}; supported: {', '.join(UNITS)}")
        service = f"{unit}.service"
        if verb == "start":
            # A unit killed several times in ten seconds would otherwise be refused its next start.
            self._run(lab, host, ["systemctl", "reset-failed", service])
            self._must(lab, host, ["sh", "-c", _START, "sh", service, _held(unit)])
        elif verb == "stop":
            # Nothing to stop on a host that has only been declared a master.
            if self._state(lab, host, service) != "inactive":
                self._must(lab, host, ["systemctl", "stop", service])
        elif verb in SIGNALS:
            if self._state(lab, host, service) in ("inactive", "failed"):
                raise LabError(f"{unit} does not run on {host.id}")
            self._must(lab, host, ["systemctl", "kill", "--signal", SIGNALS[verb], service])
            if verb == "kill":
                self._wait_for_death(lab, host, service)
        else:
            supported = ", ".join(["start", "stop", *SIGNALS])
            raise LabError(f"verb: got {verb!r}; supported: {supported}")

    def cut(self, lab: Lab, one: Host, *others: Host) -> None:
        """Drop, silently and on arrival, every packet between a host and others, all at once."""
        if one in others:
            raise LabError(f"cut: got {one.id!r} twice; name two hosts")
        # Dropped where it arrives: to drop it where it leaves would tell the sender.
        sources = {one: others, **dict.fromkeys(others, (one,))}

        def drop(here: Host) -> None:
            addresses = [there.address for there in sources[here]]
            self._must(lab, here, ["sh", "-c", _CUT, "sh", CHAIN, *addresses])

        _each(drop, sources)

    def heal(self, lab: Lab) -> None:
        """Empty the chains on every host; hosts that were never cut or delayed have none."""

        def flush(host: Host) -> None:
            for chain in (CHAIN, LEAVING):
                if self._run(lab, host, [*_IPTABLES, "--list-rules", chain]).returncode == 0:
                    self._must(lab, host, [*_IPTABLES, "--flush", chain])
            self._must(lab, host, ["sh", "-c", _UNDELAY])

        _each(flush, lab.hosts)

    def net(self, lab: Lab, hosts: Iterable[Host], delay: str, loss: str) -> None:
        """Delay and lose what hosts send, with netem where the kernel has it; see :meth:`heal`.

        Without it, a program does it that netfilter asks.
        """
        seconds, share = _amount(delay, {"ms": 0.001, "s": 1}), _amount(loss, {"%": 0.01})

        def worsen(host: Host) -> None:
            self._must(lab, host, ["sh", "-c", _UNDELAY])
            netem = ["netem", "delay", f"{seconds * 1000:g}ms", "loss", f"{share * 100:g}%"]
            tc = ["tc", "qdisc", "replace", "dev", "eth0", "root", *netem]
            if self._run(lab, host, tc).returncode == 0:
                return
            argv = ["exec", "--detach", container(lab, host), _PYTHON, "-c"]
            _docker(*argv, DELAYER.read_text(), f"{seconds:g}", f"{share:g}")
            ready = ["cat", "/proc/net/netfilter/nfnetlink_queue"]
            what = f"packets of {host.id} to be delayed"
            until(lambda: self._must(lab, host, ready).strip(), lab.patience, what)
            self._must(lab, host, ["sh", "-c", _LEAVING, "sh", LEAVING])

        _each(worsen, hosts)

    def hold(self, lab: Lab, host: Host, unit: str) -> None:
        """Have every start of a unit wait; it is ``activating`` until :meth:`release`."""
        self._must(lab, host, ["sh", "-c", _HOLD, "sh", unit, _held(unit)])

    def release(self, lab: Lab, host: Host, unit: str) -> None:
        """Let a unit that is held start."""
        self._must(lab, host, ["rm", "-f", _held(unit)])

    def pause(self, lab: Lab, host: Host) -> None:
        """Stop all processes of a host; its kernel still answers, see :meth:`cut`."""
        _docker("pause", container(lab, host))

    def resume(self, lab: Lab, host: Host) -> None:
        """Undo :meth:`pause`."""
        _docker("unpause", container(lab, host))

    def slow(self, lab: Lab, hosts: Iterable[Host], share: Fraction) -> None:
        """Limit each host to a share of one processor; 1 takes the limit away."""
        names = [host.id for host in hosts]
        with slowness.still(lab.directory):
            slowness.record(lab.directory, names, share)
        quota = -1 if share == 1 else round(share * PERIOD)
        limits = [f"--cpu-period={PERIOD}", f"--cpu-quota={quota}"]
        _docker("update", *limits, *[container(lab, lab.host(name)) for name in names])

    def subscribed(self, lab: Lab, host: Host) -> set[str]:
        """Return the ids of the masters to whose publishers a host's minion listens."""
        argv = [*_SOCKETS, "dport = :4505"]
        lines = self._must(lab, host, argv).splitlines()
        peers = {line.split()[-1].rpartition(":")[0] for line in lines}
        places = {master.address: master.id for master in lab.masters} | self.aliases
        return {places[peer] for peer in peers if peer in places}

    def down(self, lab: Lab) -> None:
        """Remove every container and network with this laboratory's label, and nothing else."""
        if not _marker(lab).exists():
            return
        _require_engine()
        containers = _containers(lab)
        if containers:
            _docker("rm", "--force", "--volumes", *containers)
            what = "the laboratory's containers to be removed"
            until(lambda: not _containers(lab), lab.patience, what)
        # A network keeps an end point for a moment after its container is gone.
        what = "the laboratory's network to be removed"
        until(lambda: _remove_networks(lab), lab.patience, what)
        _marker(lab).unlink(missing_ok=True)

    # Steps of `up`, and how hosts are asked.

    def _run(
        self, lab: Lab, host: Host, argv: Sequence[str], timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        timeout = timeout or lab.patience
        try:
            return self.exec(
                lab, host, argv, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{host.id}: no result after {timeout:g} s: {' '.join(argv)}") from None

    def _must(self, lab: Lab, host: Host, argv: Sequence[str], timeout: float | None = None) -> str:
        done = self._run(lab, host, argv, timeout)
        if done.returncode != 0:
            output = (done.stdout + done.stderr).strip()
            raise LabError(f"{host.id}: {' '.join(argv)} ended with {done.returncode}: {output}")
        return done.stdout

    def _start(self, lab: Lab, host: Host, trees: Trees, cgroup: str) -> None:
        """Create the host's container, give it its configuration, and start it."""
        argv = ["create", "--name", container(lab, host), "--hostname", host.id]
        argv += ["--label", f"{LABEL}={name(lab)}"]
        argv += ["--network", name(lab), "--ip", host.address, "--network-alias", host.id]
        argv += ["--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN"]
        # AppArmor's and SELinux's container profiles forbid the mounts of systemd and of the trees.
        for option in ("seccomp=unconfined", "apparmor=unconfined", "label=disable"):
            argv += ["--security-opt", option]
        argv += ["--tmpfs", "/run", "--tmpfs", "/run/lock"]
        if cgroup == "1":
            # Newer engines make the first mount read-only recursively; systemd writes the second.
            argv += ["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:ro"]
            argv += ["--volume", "/sys/fs/cgroup/systemd:/sys/fs/cgroup/systemd:rw"]
        else:
            argv += ["--cgroupns", "private"]
        file_paths, pillar_paths = self.tree_paths(trees)
        sources = trees.file_roots + trees.pillar_roots
        for source, target in zip(sources, file_paths + pillar_paths, strict=True):
            argv += ["--mount", f"type=bind,source={source.resolve()},target={target},readonly"]
        releases = docker_image.releases()
        release = releases[lab.hosts.index(host) % len(releases)]
        _docker(*argv, docker_image.tag(lab.salt, release=release))
        configuration = _archive(self._configuration(lab, host, trees))
        _docker("cp", "-", f"{container(lab, host)}:/", content=configuration)
        _docker("start", container(lab, host))
        if share := slowness.shares(lab.directory).get(host.id):
            self.slow(lab, [host], Fraction(share))

    def _configuration(self, lab: Lab, host: Host, trees: Trees) -> dict[str, str]:
        """Return the configuration that the administrator has before the formula: path to text."""
        first = lab.masters[0]
        minion = dict(trees.initial_minion) | {"id": host.id, "master": first.address}
        files = {"etc/salt/minion": _yaml(minion)}
        if host.id == first.id:
            file_roots, pillar_roots = self.tree_paths(trees)
            # `user` is what upstream's own configuration file says; ours takes that file's place.
            master = {"user": "salt"} | dict(trees.initial_master)
            master |= {"file_roots": {"base": file_roots}}
            master |= {"pillar_roots": {"base": pillar_roots}}
            files["etc/salt/master"] = _yaml(master)
        return files

    def _wait_for_boot(self, lab: Lab, host: Host) -> None:
        def booted() -> bool:
            done = self._run(lab, host, ["systemctl", "is-system-running", "--wait"])
            return done.stdout.strip() in ("running", "degraded")

        try:
            until(booted, lab.patience, f"systemd on {host.id} to have started")
        except LabError as err:
            logs = _docker("logs", "--tail", "20", container(lab, host), check=False)
            raise LabError(f"{err}\n{logs.stdout}{logs.stderr}".rstrip()) from err

    def _install_master(self, lab: Lab, host: Host) -> None:
        # Its configuration is there already, and is to stay; DEBIAN_FRONTEND so that nothing asks.
        argv = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet"]
        argv += ["--option", "Dpkg::Options::=--force-confold", "salt-master"]
        # Nothing of it can be seen before its end.
        self._must(lab, host, argv, timeout=ENOUGH * lab.patience)
        service = "salt-master.service"

        def running() -> bool:
            state = self._state(lab, host, service)
            if state == "failed":
                journal = ["journalctl", "--unit", service, "--lines", "20", "--no-pager"]
                said = self._must(lab, host, journal)
                raise LabError(f"salt-master on {host.id} does not start:\n{said}".rstrip())
            return state == "active"

        until(running, lab.patience, f"salt-master on {host.id} to run")

    def _state(self, lab: Lab, host: Host, service: str) -> str:
        argv = ["systemctl", "show", "--property", "ActiveState", "--value", service]
        return self._must(lab, host, argv).strip()

    def _wait_for_death(self, lab: Lab, host: Host, service: str) -> None:
        until(
            lambda: self._state(lab, host, service) in ("inactive", "failed"),
            lab.patience,
            f"{service} on {host.id} to be dead",
        )

    def _accept(self, lab: Lab, master: Host) -> None:
        """Accept exactly the expected ids, each only with the key that its own host shows."""

        pending = f"{master.master_pki_dir}/minions_pre"
        ids = {host.id for host in lab.hosts}

        def missing() -> set[str]:
            return ids - set(self._must(lab, master, ["ls", pending]).split())

        # One look a second: every look starts a process on a machine that is busy with the hosts.
        _until_none(lab, missing, f"every key to reach {master.id}")

        def compare(host: Host) -> None:
            own = self._must(lab, host, ["cat", f"{host.minion_pki_dir}/minion.pub"])
            offered = self._must(lab, master, ["cat", f"{pending}/{host.id}"])
            if own.split() != offered.split():
                raise LabError(f"{host.id}: the key offered to {master.id} is not this host's")

        _each(compare, lab.hosts)
        self._must(lab, master, ["salt-key", "--yes", "--accept", ",".join(sorted(ids))])

    def _wait_for_answers(self, lab: Lab, master: Host, publish_port: int) -> None:
        addresses = {host.address for host in lab.hosts}
        sockets = [*_SOCKETS, f"sport = :{publish_port}"]

        def missing() -> set[str]:
            lines = self._must(lab, master, sockets).splitlines()
            return addresses - {line.split()[-1].rpartition(":")[0] for line in lines}

        # A test.ping that misses one minion takes 20 seconds; their connections cost nothing to
        # look at, and each is made only after its minion was accepted.
        _until_none(lab, missing, f"every minion to be connected to {master.id}")
        timeout = f"--timeout={lab.slowed(5):.0f}"
        argv = ["salt", timeout, "--out", "json", "--static", "*", "test.ping"]

        def silent() -> set[str]:
            done = self._run(lab, master, argv)
            try:
                result = json.loads(done.stdout)
            except ValueError:
                result = {}
            return {host.id for host in lab.hosts if result.get(host.id) is not True}

        _until_none(lab, silent, "every minion to answer test.ping")


def _until_none(lab: Lab, missing: Callable[[], set[str]], what: str) -> None:
    """Wait until nobody is missing, for as long as somebody comes now and then."""
    last: set[str] = set()

    def complete() -> bool:
        nonlocal last
        last = missing()
        return not last

    until(complete, lab.patience, what, 1, lambda: f"missing: {sorted(last)}")


def _held(unit: str) -> str:
    return f"/run/lab-{unit}.held"


def _amount(text: str, units: dict[str, float]) -> float:
    """Return a number with its unit, such as 300ms, in seconds or as a share."""
    with contextlib.suppress(ValueError):
        for unit, factor in units.items():
            if text.endswith(unit):
                return float(text.removesuffix(unit)) * factor
    raise LabError(f"net: got {text!r}; supported: a number and one of: {', '.join(units)}")


_IPTABLES = ["iptables", "--wait", "10"]
_CUT = """
set -e
chain=$1
shift
exists() { iptables --wait 10 --check "$@" 2>/dev/null; }
iptables --wait 10 --new-chain "$chain" 2>/dev/null || true
exists INPUT --jump "$chain" || iptables --wait 10 --insert INPUT --jump "$chain"
for source in "$@"; do
    exists "$chain" --source "$source/32" --jump DROP ||
        iptables --wait 10 --append "$chain" --source "$source/32" --jump DROP
done
"""
_LEAVING = """
set -e
chain=$1
iptables --wait 10 --new-chain "$chain" 2>/dev/null || iptables --wait 10 --flush "$chain"
iptables --wait 10 --check OUTPUT --out-interface eth0 --jump "$chain" 2>/dev/null ||
    iptables --wait 10 --insert OUTPUT --out-interface eth0 --jump "$chain"
iptables --wait 10 --append "$chain" --jump NFQUEUE --queue-num 0 --queue-bypass
"""
_UNDELAY = """
tc qdisc del dev eth0 root 2>/dev/null
for pid in $(sed -n 's/^ *0 *\\([0-9]*\\) .*/\\1/p' /proc/net/netfilter/nfnetlink_queue); do
    kill "$pid"
done 2>/dev/null
true
"""
# A start counts as under way, however long it is held.
_HOLD = r"""
set -e
directory=/run/systemd/system/$1.service.d
mkdir -p "$directory"
cat > "$directory/lab-hold.conf" <<end
[Service]
TimeoutStartSec=infinity
ExecStartPre=+/bin/sh -c 'while [ -e $2 ]; do sleep 0.1; done'
end
touch "$2"
systemctl daemon-reload
"""
_START = """
[ -e "$2" ] && exec systemctl start --no-block "$1"
exec systemctl start "$1"
"""
_PYTHON = "/opt/saltstack/salt/bin/python3"
_SOCKETS = ["ss", "--tcp", "--numeric", "--no-header", "state", "established"]

_NO_CLIENT = "no docker client on this machine; install Docker, or use --driver process"


def _require_engine() -> None:
    if engine_answers():
        return
    try:
        subprocess.run(["docker", "--version"], capture_output=True, check=False)
    except FileNotFoundError:
        raise LabError(_NO_CLIENT) from None
    raise LabError(
        "no Docker engine answers: start it (systemctl start docker), check with `docker info` "
        "that you may use it, or use --driver process"
    )


def _docker(
    *arguments: str,
    timeout: float = ENGINE_TIMEOUT,
    check: bool = True,
    content: bytes | None = None,
) -> subprocess.CompletedProcess[str]:
    argv = ["docker", *arguments]
    try:
        done = subprocess.run(argv, input=content or b"", capture_output=True, timeout=timeout)
    except FileNotFoundError:
        raise LabError(_NO_CLIENT) from None
    except subprocess.TimeoutExpired:
        raise LabError(f"no result after {timeout:g} s: {' '.join(argv)}") from None
    stdout, stderr = (out.decode(errors="replace") for out in (done.stdout, done.stderr))
    if check and done.returncode != 0:
        raise LabError(f"docker {arguments[0]} ended with {done.returncode}: {stderr.strip()}")
    return subprocess.CompletedProcess(argv, done.returncode, stdout, stderr)


def _each(action: Callable[[Host], object], hosts: Iterable[Host]) -> None:
    """Run ``action`` for all hosts at once; raise the first error after all have ended."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        for result in list(pool.map(_caught(action), hosts)):
            if result is not None:
                raise result


def _caught(action: Callable[[Host], object]) -> Callable[[Host], LabError | None]:
    def run(host: Host) -> LabError | None:
        try:
            action(host)
        except LabError as err:
            return err
        return None

    return run


def _marker(lab: Lab) -> Path:
    return lab.directory / "docker-network"


def _containers(lab: Lab) -> list[str]:
    label = f"label={LABEL}={name(lab)}"
    return _docker("ps", "--all", "--quiet", "--filter", label).stdout.split()


def _remove_networks(lab: Lab) -> bool:
    label = f"label={LABEL}={name(lab)}"
    for network in _docker("network", "ls", "--quiet", "--filter", label).stdout.split():
        _docker("network", "rm", network, check=False)
    return not _docker("network", "ls", "--quiet", "--filter", label).stdout.split()


def _create_network(lab: Lab) -> None:
    argv = ["network", "create", "--label", f"{LABEL}={name(lab)}", "--subnet", f"{lab.net}.0/24"]
    made = _docker(*argv, name(lab), check=False)
    if made.returncode != 0:
        raise LabError(
            f"cannot make a Docker network {lab.net}.0/24: {made.stderr.strip()}; "
            "LAB_NET=<three octets> chooses other addresses"
        )


def _yaml(mapping: dict[str, Any]) -> str:
    return yaml.safe_dump(mapping, sort_keys=False, default_flow_style=False)


def _archive(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, text in files.items():
            content = text.encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()
