"""The command ``lab``: one laboratory per directory, driven by verbs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from lab import slowness
from lab.docker_driver import DockerDriver
from lab.model import REPOSITORY, SERIES, UNITS, Host, Lab, LabError, Trees
from lab.process_driver import ProcessDriver

NETS = {"process": "127.0.50", "docker": "192.168.50"}
ATTACK = Path(__file__).with_name("attack.py")
VERBS = ("stop", "start", "kill", "freeze", "thaw")


def driver_of(directory: Path, name: str, salt: str) -> Any:
    """Return the driver with that name for the laboratory in ``directory``."""
    if name == "docker":
        return DockerDriver(directory, salt)
    return ProcessDriver(directory, salt)


def up(
    directory: Path,
    driver: str = "process",
    masters: int = 3,
    minions: int = 1,
    pillar: Mapping[str, Any] | None = None,
    salt: str = SERIES[0],
    net: str | None = None,
    say: Any = print,
    initial_master: Mapping[str, Any] | None = None,
    slow: Fraction | None = None,
    fresh: bool = False,
) -> Lab:
    """
    Make a laboratory: one running master, everything else its minions, our trees served.

    masters, minions
        Hosts declared as masters (saltm1 ...) and further minions (web1 ...).
    pillar
        Merged over the laboratory's own pillar, ``multimaster:`` on top.
    net
        First three octets of the hosts' addresses.
    initial_master
        Options of the one master that there is before the formula.
    slow
        The share of the full speed that every host has from its start; by default ``LAB_SLOW``.
    fresh
        Only the hosts, with nothing of Salt running; of docker hosts.

    Raises :class:`LabError`; what was started by then is removed by ``lab down``.
    """
    if (directory / "lab.json").exists():
        raise LabError(f"there is a laboratory in {directory} already; remove it with: lab down")
    net = net or os.environ.get("LAB_NET") or NETS[driver]
    if masters < 1 or minions < 0:
        raise LabError(f"got {masters} masters and {minions} minions; at least 1 and 0 are needed")
    directory.mkdir(parents=True, exist_ok=True)
    engine = driver_of(directory, driver, salt)
    hosts = [
        engine.plan(f"saltm{number + 1}", ("master", "minion"), number, net)
        for number in range(masters)
    ] + [engine.plan(f"web{number + 1}", ("minion",), number, net) for number in range(minions)]
    lab = Lab(directory=directory, driver=driver, salt=salt, net=net, hosts=tuple(hosts))
    lab.save()
    slow = slow or share(os.environ.get("LAB_SLOW") or "1")
    slowness.record(directory, [host.id for host in hosts], slow)
    trees = trees_of(directory, initial_master or {})
    declare(lab, trees, pillar or {})
    started = time.monotonic()
    for line in engine.boot(lab, trees) if fresh else engine.up(lab, trees):
        say(f"[{time.monotonic() - started:5.1f} s] {line}")
    return lab


def share(text: str) -> Fraction:
    """Return a share of the full speed, such as ``1/3``; :class:`LabError` where it is none."""
    try:
        return slowness.parse(text)
    except ValueError as err:
        raise LabError(str(err)) from None


def trees_of(directory: Path, initial_master: Mapping[str, Any] | None = None) -> Trees:
    """Return what the first master of the laboratory in ``directory`` serves."""
    return Trees(
        file_roots=(REPOSITORY / "salt", directory / "srv/salt"),
        pillar_roots=(directory / "srv/pillar",),
        initial_master=dict(initial_master or {}),
        initial_minion={},
    )


def declare(lab: Lab, trees: Trees, pillar: Mapping[str, Any]) -> None:
    """Write the trees that belong to this laboratory: a state top file and the pillar."""
    engine = driver_of(lab.directory, lab.driver, lab.salt)
    file_roots, pillar_roots = engine.tree_paths(trees)
    declaration: dict[str, Any] = {
        "masters": [{"id": host.id, "address": host.address} for host in lab.masters],
        "install": {"method": "pkg" if lab.driver == "docker" else "none"},
    }
    if not pillar.get("multimaster", {}).get("roots"):
        # The same directories serve all masters, as long as nothing else is declared.
        own = {"file_roots": {"base": file_roots}, "pillar_roots": {"base": pillar_roots}}
        declaration["master"] = {"config": own}
    files, pillars = trees.file_roots[-1], trees.pillar_roots[-1]
    for directory in (files, pillars / "multimaster"):
        directory.mkdir(parents=True, exist_ok=True)
    _write_yaml(files / "top.sls", {"base": {"*": ["multimaster"]}})
    _write_yaml(pillars / "multimaster/init.sls", _merge({"multimaster": declaration}, pillar))
    for name in ("top.sls", "multimaster/keypair.sls"):
        (pillars / name).write_text((REPOSITORY / "pillar" / name).read_text())


def down(directory: Path) -> None:
    """Remove a laboratory, also one that did not come up completely."""
    lab = Lab.load(directory)
    driver_of(directory, lab.driver, lab.salt).down(lab)
    (directory / "lab.json").unlink()


def halt(directory: Path) -> None:
    """Stop everything of a laboratory, and leave its files (process driver)."""
    lab = Lab.load(directory)
    driver_of(directory, lab.driver, lab.salt).halt(lab)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``lab``; returns the exit status: 1 with a message for a :class:`LabError`."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(_run(parsed) or 0)
    except LabError as err:
        print(f"lab: {err}", file=sys.stderr)
        return 1


def _run(parsed: argparse.Namespace) -> int | None:
    directory = Path(parsed.dir).resolve()
    if parsed.command == "up":
        pillar = yaml.safe_load(Path(parsed.pillar).read_text()) if parsed.pillar else {}
        if not isinstance(pillar, dict):
            raise LabError(f"--pillar: got a {type(pillar).__name__}; supported: a YAML mapping")
        slow = share(parsed.slow) if parsed.slow else None
        up(directory, parsed.driver, parsed.masters, parsed.minions, pillar, parsed.salt, slow=slow)
        return 0
    if parsed.command == "down":
        down(directory)
        return 0
    lab = Lab.load(directory)
    driver = driver_of(directory, lab.driver, lab.salt)
    if parsed.command == "hosts":
        print(json.dumps([dataclasses.asdict(host) for host in lab.hosts], indent=2))
    elif parsed.command == "exec":
        argv = parsed.argv[1:] if parsed.argv[:1] == ["--"] else parsed.argv
        if not argv:
            raise LabError("exec: got no command; give one after --")
        return int(driver.exec(lab, lab.host(parsed.host), argv).returncode)
    elif parsed.command == "cut":
        driver.cut(lab, lab.host(parsed.host), lab.host(parsed.other))
    elif parsed.command == "heal":
        driver.heal(lab)
    elif parsed.command == "slow":
        driver.slow(lab, _hosts(lab, parsed.host), share(parsed.share))
    elif parsed.command == "net":
        driver.net(lab, _hosts(lab, parsed.host), parsed.delay, parsed.loss)
    elif parsed.command == "attack":
        host = lab.host(parsed.host)
        argv = [lab.python, "-c", ATTACK.read_text(), f"{host.config_dir}/minion"]
        return int(driver.exec(lab, host, argv).returncode)
    elif parsed.command in ("hold", "release"):
        getattr(driver, parsed.command)(lab, lab.host(parsed.host), parsed.unit)
    else:
        host = lab.host(parsed.host)
        for unit in [parsed.unit] if parsed.unit else _units(host):
            driver.control(lab, host, parsed.command, unit)
    return 0


def _hosts(lab: Lab, host_id: str) -> tuple[Host, ...]:
    return lab.hosts if host_id == "all" else (lab.host(host_id),)


def _units(host: Host) -> list[str]:
    return [unit for unit in UNITS if unit == "salt-minion" or "master" in host.roles]


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", default=os.environ.get("LAB_DIR", ".lab"), help="default: .lab")
    parser = argparse.ArgumentParser(prog="lab", description="Several Salt hosts on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help_text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_text, parents=[common])

    sub = command("up", "make a laboratory: one running master, all other hosts its minions")
    sub.add_argument("--driver", choices=sorted(NETS), default="process")
    sub.add_argument("--masters", type=int, default=3, metavar="N")
    sub.add_argument("--minions", type=int, default=1, metavar="M")
    sub.add_argument("--pillar", metavar="FILE", help="YAML merged over the declaration")
    sub.add_argument("--salt", choices=SERIES, default=SERIES[0])
    sub.add_argument("--slow", metavar="SHARE", help="of the full speed, such as 1/3 (or LAB_SLOW)")
    command("hosts", "list the hosts as JSON")
    sub = command("exec", "run a command on a host")
    sub.add_argument("host")
    sub.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    for verb in VERBS:
        sub = command(verb, f"{verb} a host's daemons")
        sub.add_argument("host")
        sub.add_argument("unit", nargs="?", choices=UNITS)
    sub = command("cut", "drop all traffic between two hosts (docker driver)")
    sub.add_argument("host")
    sub.add_argument("other")
    sub = command("net", "delay and lose what hosts send (docker driver)")
    sub.add_argument("host", metavar="HOST|all")
    sub.add_argument("--delay", default="0ms", metavar="TIME", help="such as 300ms")
    sub.add_argument("--loss", default="0%", metavar="PERCENT", help="such as 2%%")
    command("heal", "undo every cut, delay and loss")
    sub = command("slow", "give hosts a share of their speed; 1 undoes it")
    sub.add_argument("host", metavar="HOST|all")
    sub.add_argument("share", metavar="SHARE", help="such as 1/3")
    for verb, does in (("hold", "have every start of a daemon wait"), ("release", "undo hold")):
        sub = command(verb, does)
        sub.add_argument("host")
        sub.add_argument("unit", choices=UNITS)
    sub = command("attack", "send a master the messages on standard input, as a host's minion")
    sub.add_argument("host")
    command("down", "stop and remove everything")
    return parser


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))


if __name__ == "__main__":
    sys.exit(main())
