"""Decisions on keys, as administrators take them, and what the key stores of all masters say."""

from __future__ import annotations

from pathlib import Path

from lab.keys import make_pair
from lab.laboratory import Laboratory

MASTERS = ("saltm1", "saltm2", "saltm3")
STATES = {
    "minions": "accepted",
    "minions_rejected": "rejected",
    "minions_pre": "pending",
    "minions_denied": "denied",
}


def wait_for_key(lab: Laboratory, name: str, pub: str, masters: tuple[str, ...]) -> None:
    """Put a key where a minion that asks for the first time leaves it."""
    for master in masters:
        directory = f"{lab.host(master).master_pki_dir}/minions_pre"
        assert lab.run(master, "tee", f"{directory}/{name}", input=pub).returncode == 0
        lab.run(master, "chown", "--reference", directory, f"{directory}/{name}")


def wait_for_keys(lab: Laboratory, names: set[str]) -> None:
    """Put a key under many names where minions that ask for the first time leave theirs."""
    pub = make_pair()[1]
    script = (
        'cd "$1" && while read -r name; do printf %s "$2" > "$name"; done; chown --reference=. -- *'
    )
    for master in MASTERS:
        argv = ["sh", "-c", script, "sh", f"{lab.host(master).master_pki_dir}/minions_pre", pub]
        done = lab.run(master, *argv, input="".join(f"{name}\n" for name in names))
        assert done.returncode == 0, done.stderr


def state(lab: Laboratory, master: str, name: str) -> str | None:
    """Return what the key store of a master says of a key."""
    pki = lab.host(master).master_pki_dir
    paths = lab.run(master, "find", pki, "-path", f"{pki}/minions*/{name}").stdout.split()
    return "+".join(STATES[Path(path).parent.name] for path in paths) or None


def decide(lab: Laboratory, master: str, verb: str, name: str) -> None:
    """Decide with ``salt-key``, as an administrator does."""
    flags = ["--yes", "--include-all"] if verb in ("accept", "reject") else ["--yes"]
    done = lab.run(master, "salt-key", *flags, f"--{verb}={name}")
    assert done.returncode == 0, done.stderr


def until_all_say(lab: Laboratory, name: str, expected: str | None, *masters: str) -> None:
    """Wait until every master says the same of a key."""
    names = masters or MASTERS

    def said() -> dict[str, str | None]:
        return {master: state(lab, master, name) for master in names}

    what = f"{name} to be {expected} on {', '.join(names)}"
    lab.until(lambda: set(said().values()) == {expected}, what, said, interval=0.5)
