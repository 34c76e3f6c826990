"""File and pillar roots of one master are those of all, without anything that they share."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from lab.laboratory import PATIENCE, SCANNER, Laboratory, failures, laboratory
from lab.model import REPOSITORY
from lab.wait import until

NET = "127.0.103"
MASTERS = ("saltm1", "saltm2", "saltm3")
SOURCE, FOLLOWERS = MASTERS[0], MASTERS[1:]
# Of which nothing may be seen outside of the masters' snapshots.
RUNS = Path(__file__).with_name("steady_runs.py")
# Has a master look at its roots for each line of input, quicker than a runner.
NUDGE = """
import sys, salt.config, salt.utils.event
opts = salt.config.master_config(sys.argv[1])
with salt.utils.event.get_event("master", opts=opts, listen=False) as bus:
    for line in sys.stdin:
        bus.fire_event({"origin": ""}, "multimaster/roots/publish")
"""
SECRET = "a-marker-that-only-pillars-have"
DIRECTORY = "var/cache/salt/master/multimaster/roots"


class Roots:
    """The live directories of the source, and what each master has of them."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab
        self.salt = lab.lab.directory / "srv/salt"
        self.pillar = lab.lab.directory / "srv/pillar"

    def write(self, path: str, text: str) -> None:
        """Change one live file, as an editor does, at once."""
        target = self.salt / path
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.new")
        scratch.write_text(text)
        scratch.rename(target)

    def store(self, master: str) -> Path:
        """Where a master has its snapshots."""
        return Path(self.lab.host(master).root, DIRECTORY)

    def served(self, master: str, path: str = "file_roots/base/1") -> Path:
        """Where a master has what it serves."""
        return self.store(master) / "current/tree" / path

    def status(self, master: str) -> dict[str, Any]:
        """What a master says of its roots, without asking its minion."""
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads((self.store(master) / "status.json").read_text()))
        return {}

    def until(self, condition: Callable[[str], bool], what: str, *masters: str) -> None:
        """Wait until something holds on every master."""
        names = masters or MASTERS
        until(lambda: all(condition(m) for m in names), PATIENCE, f"{what} on {names}", 0.02)

    def until_served(self, path: str, text: str | None, *masters: str) -> None:
        """Wait until masters serve a file with that content; or no longer, with None."""

        def served(master: str) -> bool:
            try:
                return (self.served(master) / path).read_text() == text
            except FileNotFoundError:
                return text is None

        self.until(served, f"{path} as {str(text)[:20]!r}", *masters)

    def until_well(self, *masters: str) -> None:
        """Wait until all masters serve the same, and find nothing wrong."""

        def well() -> bool:
            found = [self.status(m) for m in masters or MASTERS]
            digests = {status.get("digest") for status in found}
            return len(digests) == 1 and all(
                status.get("snapshot") and status.get("problem") is None for status in found
            )

        until(well, PATIENCE, "all masters to serve the same roots", interval=0.1)


def declaration(directory: Path) -> dict[str, Any]:
    """The declaration of a laboratory that is going to be in a directory."""
    return {
        "roots": {
            "replicate": {
                "source": SOURCE,
                "file_roots": {"base": [str(REPOSITORY / "salt"), str(directory / "srv/salt")]},
                "pillar_roots": {"base": [str(directory / "srv/pillar")]},
            }
        }
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Three masters and two minions, with the formula applied; nothing secret may have got out."""
    directory = tmp_path_factory.mktemp("lab") / "lab"
    pillar = {"multimaster": declaration(directory)}
    with laboratory(directory, "process", masters=3, minions=2, net=NET, pillar=pillar) as made:
        live = Roots(made)
        # Of no minion, so that it is in no cache of Salt's either.
        (live.pillar / "unassigned.sls").write_text(f"secret: {SECRET}\n")
        (live.pillar / "data.sls").write_text("data: of the pillar\n")
        (live.pillar / "top.sls").write_text(
            "base:\n  '*':\n    - multimaster\n    - multimaster.keypair\n    - data\n"
        )
        version(live, 0)
        assert not (failed := failures(made.apply())), failed
        made.until_connected()
        live.until_well()
        yield made
        made.assert_no_key_outside_pki()
        assert_secret_is_nowhere_else(made)


@pytest.fixture
def live(lab: Laboratory) -> Iterator[Roots]:
    made = Roots(lab)
    yield made
    made.until_well()


def version(live: Roots, number: int) -> None:
    """Give the files that one state run includes a new number, all at once."""
    tree = live.salt / "numbered"
    scratch = live.salt.with_name("numbered.new")
    scratch.mkdir()
    for name in ("one", "two", "three"):
        # A run takes its time, so that many a switch comes in the middle of one.
        text = f"{{% do salt['test.sleep'](0.2) %}}\n{name}-{number}:\n"
        text += f"  test.succeed_without_changes:\n    - name: '{number}'\n"
        (scratch / f"{name}.sls").write_text(text)
    # One after the other: a switch between two of them is what is looked for.
    includes = "include:\n  - numbered.one\n  - numbered.two\n  - numbered.three\n"
    (scratch / "init.sls").write_text(includes)
    (scratch / "content").write_text(f"{number}\n")
    old = live.salt.with_name("numbered.old")
    if tree.exists():
        tree.rename(old)
    scratch.rename(tree)
    shutil.rmtree(old, ignore_errors=True)


def publish(lab: Laboratory) -> None:
    """Have the source look now."""
    done = lab.run("saltm2", "salt-run", "multimaster.roots_publish", "--out=json")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_master_serves_what_the_source_has(lab: Laboratory, live: Roots) -> None:
    for master in MASTERS:
        assert lab.host(master).root in str(live.served(master))
        for path in ("top.sls", "numbered/init.sls"):
            assert (live.served(master) / path).read_text() == (live.salt / path).read_text()
        shown = lab.salt(master, "web1", "cp.hash_file", "salt://multimaster/init.sls")["web1"]
        assert shown["hsum"]
        pillar = lab.json(master, "salt-run", "pillar.show_pillar", "web1")
        assert pillar["data"] == "of the pillar"
        assert SECRET in (live.served(master, "pillar_roots/base/0") / "unassigned.sls").read_text()
        assert [each["id"] for each in pillar["multimaster"]["masters"]] == list(MASTERS)
    status = lab.salt("saltm3", ",".join(MASTERS), "multimaster_roots.status")
    assert [status[master]["role"] for master in MASTERS] == ["source", "follower", "follower"]
    assert len({json.dumps(status[master]["digests"]) for master in MASTERS}) == 1


def test_every_master_applies_the_formula_and_changes_nothing(lab: Laboratory) -> None:
    for master in FOLLOWERS:
        result = lab.apply("*", master)
        assert set(result) == lab.ids
        assert not failures(result)
        assert [s for states in result.values() for s in states.values() if s["changes"]] == []


def test_a_change_is_on_all_masters_by_itself(live: Roots) -> None:
    # How soon: make bench.
    live.write("one-more/init.sls", "{}")
    live.until_served("one-more/init.sls", "{}")
    (live.salt / "one-more/init.sls").unlink()
    live.until_served("one-more/init.sls", None)


def test_somebody_may_tell_of_a_change(lab: Laboratory, live: Roots) -> None:
    live.write("told", "now")
    publish(lab)
    live.until_served("told", "now")


def test_a_large_file_arrives_whole(live: Roots) -> None:
    # Compresses to more than one answer holds.
    text = "".join(f"{number * 2654435761 % 2**32:x}" for number in range(300_000))
    live.write("large", text)
    live.until_served("large", text)


def test_an_edit_on_a_follower_is_kept_aside_and_reported(lab: Laboratory, live: Roots) -> None:
    path = live.served("saltm2") / "numbered/content"
    expected = path.read_text()
    path.chmod(0o644)
    path.write_text("edited on saltm2\n")
    # Not served meanwhile, whatever the time.
    shown = lab.salt("saltm2", "web1", "cp.get_file_str", "salt://numbered/content")["web1"]
    assert shown in (False, "", expected)
    live.until_served("numbered/content", expected, "saltm2")
    kept = list((live.store("saltm2") / "kept").glob("*/file_roots/base/1/numbered/content"))
    assert [copy.read_text() for copy in kept] == ["edited on saltm2\n"]
    assert len(lab.salt("saltm2", "saltm2", "multimaster_roots.status")["saltm2"]["kept"]) == 1
    shown = lab.salt("saltm2", "web1", "cp.get_file_str", "salt://numbered/content")["web1"]
    assert shown == expected


@pytest.mark.parametrize("victim", [SOURCE, pytest.param("saltm2", marks=pytest.mark.long)])
def test_who_is_killed_in_the_middle_of_a_transfer_catches_up(
    lab: Laboratory, live: Roots, victim: str
) -> None:
    files = {f"many/{number}": f"{victim} {number * 2654435761}" * 2000 for number in range(60)}
    for path, text in files.items():
        live.write(path, text)
    incoming = live.store("saltm2") / "incoming/objects"
    what = "a transfer to saltm2 to have begun"
    until(lambda: any(incoming.iterdir()), PATIENCE, what, interval=0.005)
    control(lab, "kill", victim)
    served = live.served("saltm2") / "many"
    there = len(list(served.iterdir())) if served.exists() else 0
    control(lab, "start", victim)
    for path, text in files.items():
        live.until_served(path, text)
    # All of them, or none.
    assert there in (0, len(files))
    shutil.rmtree(live.salt / "many")
    live.until_served("many/1", None)


@pytest.mark.long
def test_without_the_source_the_last_content_is_served(lab: Laboratory, live: Roots) -> None:
    live.write("lasting", "yes")
    live.until_served("lasting", "yes")
    with lab.stopped(SOURCE, "salt-minion"):

        def told(master: str) -> bool:
            return "does not answer" in (live.status(master).get("problem") or "")

        for master in FOLLOWERS:
            lab.salt(master, master, "multimaster_roots.wake", SOURCE)
        live.until(told, "a problem", *FOLLOWERS)
        for master in FOLLOWERS:
            argv = ("cp.get_file_str", "salt://lasting")
            assert lab.salt(master, "web1", *argv)["web1"] == "yes"
    live.until_well()


def control(lab: Laboratory, verb: str, master: str) -> None:
    """Kill or start a master; the source with the minion on its host, which does the telling."""
    for unit in ("salt-master", "salt-minion") if master == SOURCE else ("salt-master",):
        lab.driver.control(lab.lab, lab.host(master), verb, unit)


@pytest.mark.parametrize(
    ("runs", "changes"), [(30, 8), pytest.param(1000, 200, marks=pytest.mark.long)]
)
def test_no_state_run_sees_two_versions(
    lab: Laboratory, live: Roots, runs: int, changes: int
) -> None:
    seen: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        # One run at a time on each minion, as Salt has it; each from another master.
        for minion, master in (("web1", "saltm2"), ("web2", "saltm3"), (SOURCE, SOURCE)):
            argv = [sys.executable, str(RUNS), config_of(lab, master), minion, "numbered"]
            stack.enter_context(program(argv, seen))
        nudge = stack.enter_context(program([sys.executable, "-c", NUDGE, config_of(lab, SOURCE)]))
        for number in range(1, changes + 1):
            version(live, number)
            before, text = len(seen), f"{number}\n"

            def published(before: int = before, text: str = text) -> bool:
                nudge.write("now\n")
                nudge.flush()
                try:
                    found = (live.served(SOURCE) / "numbered/content").read_text()
                except FileNotFoundError:
                    return False
                # Some runs for each change, so that they come in the middle of them.
                return found == text and len(seen) >= before + runs / changes / 2

            until(published, PATIENCE, f"change {number}", interval=0.2)
        until(lambda: len(seen) >= runs, 20 * PATIENCE, f"{runs} state runs", interval=0.5)
    live.until_served("numbered/content", f"{changes}\n")
    print(f"{len(seen)} runs, {changes} changes", end=", ")
    assert [run for run in seen if "error" in run] == []
    numbers = [frozenset(name.partition("-")[2] for name in run["ids"]) for run in seen]
    assert [run for run in seen if len(run["ids"]) != 3] == []
    assert [found for found in numbers if len(found) != 1] == []
    # And they did see different ones.
    print(f"{len(set(numbers))} versions seen")
    assert len(set(numbers)) > changes / 4


@contextlib.contextmanager
def program(argv: list[str], told: list[Any] | None = None) -> Iterator[IO[str]]:
    """Run a program until the end of the block; collect the lines of JSON that it prints."""

    def listen(stream: IO[str]) -> None:
        for line in stream:
            (told if told is not None else []).append(json.loads(line))

    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        listener = threading.Thread(target=listen, args=(process.stdout,))
        listener.start()
        try:
            yield process.stdin
        finally:
            process.stdin.close()
            listener.join()


def config_of(lab: Laboratory, master: str) -> str:
    return f"{lab.host(master).config_dir}/master"


def assert_secret_is_nowhere_else(lab: Laboratory) -> None:
    """Look for the marker in every file of every host, and in all events."""
    for host in lab.lab.hosts:
        allowed = [f"{host.root}/{DIRECTORY}/"]
        job = {"needles": [SECRET], "roots": [host.root], "allowed": allowed}
        done = lab.run(host.id, lab.python, "-c", SCANNER.read_text(), input=json.dumps(job))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [], f"pillar content on {host.id}"
    for master in MASTERS:
        events = lab.events(master)
        assert "multimaster_roots.pull" in events or master == SOURCE
        assert SECRET not in events
