"""Snapshots of roots: manifests, changes, pins, and what is on disk whatever happens."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import multimaster_roots as roots
from multimaster_roots import File, Manifest, Pin, RootsError, Unsettled

HASHES = [f"{number:064x}" for number in range(5)]
BASE = "file_roots/base/0"


# Manifests

names = st.sampled_from(["a", "b", "c", "top.sls", "ü"])
files = st.builds(
    File, st.sampled_from(HASHES), st.integers(0, 9), st.sampled_from([0o644, 0o755, 0o600])
)


@st.composite
def manifests(draw):
    """A manifest that a tree can have."""
    entries: dict[str, File | None] = {BASE: None}
    for _ in range(draw(st.integers(0, 12))):
        directory = draw(st.sampled_from([path for path, e in entries.items() if e is None]))
        entries.setdefault(f"{directory}/{draw(names)}", draw(st.none() | files))
    return Manifest(entries)


@given(old=manifests(), new=manifests())
def test_a_change_leads_from_one_manifest_to_the_other(old, new):
    change = json.loads(json.dumps(roots.delta(old, new)))
    assert roots.apply(change, old) == new
    assert roots.apply(change, old).digest == new.digest
    assert (old.digest == new.digest) == (old == new)


@given(manifest=manifests())
def test_a_manifest_is_read_as_it_was_written(manifest):
    assert roots.parse(manifest.text) == manifest
    assert roots.apply(roots.delta(manifest, manifest), manifest) == manifest


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "file_roots/base/0/../../x",
        "file_roots/base/0//x",
        "other/base/0/x",
        "file_roots/base/x/y",
        "file_roots/../0/x",
        "file_roots/base/0/a\0b",
        "file_roots/base",
        "file_roots/base/0/absent/x",
        "file_roots/base/0/file/x",
    ],
)
def test_no_path_leads_out_of_the_roots(path):
    entry = [HASHES[0], 1, 0o644]
    text = Manifest({BASE: None, f"{BASE}/file": File(HASHES[0], 1, 0o644)}).text
    assert roots.parse(text)
    change = {"gone": [], "set": {path: entry}}
    with pytest.raises(RootsError):
        roots.apply(change, roots.parse(text))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "entries": {}}'])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(RootsError):
        roots.parse(text)


@pytest.mark.parametrize("entry", [["x", 1, 0], [HASHES[0], -1, 0], [HASHES[0], 1, 0o4755], 5, [1]])
def test_what_is_no_entry_is_refused(entry):
    with pytest.raises(RootsError):
        roots.apply({"gone": [], "set": {f"{BASE}/x": entry}}, Manifest({BASE: None}))


# Pins

NEW, OLD = "00000002-b", "00000001-a"
# What a minion asks for in a state run, with the seconds before each request.
HIGHSTATE = [("top", 1), ("more", 0.1), ("list", 0.1), *[("list", 1.2), ("other", 0.1)] * 6]
HIGHSTATE += [("sls", 0.1), ("more", 0.1), ("sls", 0.1), ("other", 900), ("more", 0.1)]
HIGHSTATE += [("other", 0.1), ("sls", 1800)]
SLS = [("list", 1), ("sls", 0.1), ("more", 0.1), ("sls", 0.2), ("other", 600), ("more", 0.1)]
# As Salt 3006 begins.
LISTED_FIRST = [("list", 1), ("top", 0.2), ("more", 0.1), ("list", 1), ("sls", 0.1), ("other", 60)]


class Minion:
    """A minion's requests, on a clock of its own."""

    def __init__(self, pin=None):
        self.pin, self.now, self.current = pin, 1000.0, OLD

    def ask(self, kind, after=0.1, environment="base"):
        self.now += after
        self.pin = roots.pinned(self.pin, kind, environment, self.current, self.now)
        return self.pin.tree


@pytest.mark.parametrize("run", [HIGHSTATE, SLS, LISTED_FIRST], ids=["highstate", "sls", "3006"])
def test_a_run_is_served_from_one_tree_wherever_the_switch_comes(run):
    for switch in range(len(run) + 1):
        minion = Minion()
        got = []
        for number, (kind, after) in enumerate(run):
            minion.current = NEW if number >= switch else OLD
            got.append(minion.ask(kind, after))
        assert len(set(got)) == 1, (switch, got)
        # The next one is served from what is the newest then.
        minion.current = NEW
        assert {minion.ask(kind, after) for kind, after in run} == {NEW}


@pytest.mark.parametrize("next_run", [HIGHSTATE, SLS, LISTED_FIRST])
def test_the_run_after_one_that_has_returned_gets_the_newest(next_run):
    minion = Minion()
    for kind, after in SLS:
        minion.ask(kind, after)
    minion.pin = roots.released(minion.pin)
    minion.current = NEW
    assert minion.ask(*next_run[0]) == NEW


def test_who_is_in_no_run_gets_the_newest_after_a_moment():
    minion = Minion()
    for kind, after in SLS:
        minion.ask(kind, after)
    minion.current = NEW
    assert minion.ask("other", 60) == OLD
    minion = Minion()
    for kind, after in SLS[:4]:
        minion.ask(kind, after)
    minion.current = NEW
    assert minion.ask("other", 20) == OLD
    minion.pin = roots.released(minion.pin)
    assert minion.ask("other", 1) == OLD
    assert minion.ask("other", 11) == NEW


def test_who_asks_all_the_time_gets_the_newest_all_the_same():
    minion = Minion()
    minion.ask("other")
    minion.current = NEW
    trees = [minion.ask("other", 5) for _ in range(14)]
    assert trees[0] == OLD
    assert trees[-1] == NEW


def test_a_file_that_is_on_its_way_stays_the_same_file():
    minion = Minion()
    minion.ask("other")
    minion.current = NEW
    assert {minion.ask("more", 100) for _ in range(5)} == {OLD}


def test_a_listing_of_another_environment_within_a_run_changes_nothing():
    minion = Minion()
    for kind, after in SLS[:4]:
        minion.ask(kind, after)
    minion.current = NEW
    assert minion.ask("list", 0.2, "dev") == OLD
    assert minion.ask("sls", 0.1, "dev") == OLD
    # But it begins a run of its own after that.
    assert minion.ask("list", 20, "dev") == NEW


def test_a_listing_within_a_template_changes_nothing():
    minion = Minion()
    for kind, after in SLS[:4]:
        minion.ask(kind, after)
    minion.current = NEW
    assert minion.ask("list", 0.05) == OLD
    assert minion.ask("list", 2) == NEW


def test_a_run_that_never_returned_is_over_in_the_end():
    minion = Minion()
    for kind, after in SLS:
        minion.ask(kind, after)
    minion.current = NEW
    assert roots.holds(minion.pin, minion.now + 3000)
    assert not roots.holds(minion.pin, minion.now + 3700)
    assert minion.ask("other", 3700) == NEW


def test_pins_are_shared_by_all_who_look(tmp_path):
    pins, others = roots.Pins(str(tmp_path)), roots.Pins(str(tmp_path))
    assert pins.get("web1") is None
    for name, tree in (("web1", OLD), ("../../web2", NEW), ("web\n3", NEW)):
        pin = Pin(tree, 1000.0, 1001.5, run=True, marks=("list:base",), other=True)
        pins.put(name, pin)
        assert others.get(name) == pin
    assert others.in_use(1002.0) == {OLD, NEW}
    others.release("web1")
    assert pins.get("web1").returned
    assert sorted(os.listdir(tmp_path)) == ["pins"]
    assert others.in_use(1000.0 + 2 * roots.RUN_IDLE) == set()


# Live directories


@pytest.fixture
def live(tmp_path):
    """Live directories as an administrator has them."""
    made = tmp_path / "live"
    for path, text in {
        "salt/top.sls": "base: {'*': [web]}",
        "salt/web/init.sls": "one",
        "salt/web/files/page": "x" * 1000,
        "salt/empty": "",
        "pillar/top.sls": "base: {}",
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    (made / "salt/web/files/run").write_text("#!/bin/sh")
    (made / "salt/web/files/run").chmod(0o755)
    (made / "salt/nothing").mkdir()
    return made


def looked(live):
    return roots.scan(
        {
            "file_roots": {"base": [str(live / "salt")]},
            "pillar_roots": {"base": [str(live / "pillar")]},
        }
    )


@pytest.fixture
def store(tmp_path):
    made = roots.Store(str(tmp_path / "roots"))
    made.prepare()
    return made


@pytest.fixture
def first(store, live):
    """The first snapshot, which is served."""
    name = store.capture(looked(live))
    store.switch(name)
    return name


def content(store, name=None):
    """What is in a tree: path -> mode and content."""
    top = Path(store.tree(name or store.current()))
    return {
        str(path.relative_to(top)): (stat.S_IMODE(path.stat().st_mode), path.read_text())
        for path in top.rglob("*")
        if path.is_file()
    }


def live_content(live):
    found = {}
    for kind, directory in (("file_roots", "salt"), ("pillar_roots", "pillar")):
        for path in (live / directory).rglob("*"):
            if path.is_file():
                where = f"{kind}/base/0/{path.relative_to(live / directory)}"
                found[where] = (stat.S_IMODE(path.stat().st_mode), path.read_text())
    return found


def test_a_snapshot_is_what_the_directories_are(store, live, first):
    assert content(store) == live_content(live)
    assert os.path.isdir(store.tree(first, f"{BASE}/nothing"))
    assert stat.S_IMODE(os.stat(store.directory).st_mode) == 0o700
    assert not store.damage(first)
    manifest = store.manifest(first)
    assert manifest.environments("file_roots") == {"base": 1}
    assert set(manifest.digests()) == {"file_roots", "pillar_roots"}


def test_the_next_one_shares_what_is_unchanged(store, live, first):
    (live / "salt/web/init.sls").write_text("two")
    (live / "salt/top.sls").unlink()
    second = store.capture(looked(live))
    store.switch(second)
    assert content(store) == live_content(live)
    path = f"{BASE}/web/files/page"
    assert os.stat(store.tree(first, path)).st_ino == os.stat(store.tree(second, path)).st_ino
    assert content(store, first)[f"{BASE}/web/init.sls"][1] == "one"
    assert not store.damage(first)


def test_nothing_new_makes_no_snapshot(store, live, first):
    assert store.capture(looked(live)) is None
    os.utime(live / "salt/top.sls")
    assert store.capture(looked(live)) is None
    (live / "salt/top.sls").chmod(0o600)
    assert store.capture(looked(live))


def test_who_is_still_writing_is_waited_for(store, live, first):
    (live / "salt/web/init.sls").write_text("half a")
    scan = looked(live)
    (live / "salt/web/init.sls").write_text("half a sentence")
    with pytest.raises(Unsettled):
        store.capture(scan)
    assert store.names() == [first]
    assert os.listdir(store.incoming) == ["objects"]


def test_links_are_followed_and_what_cannot_be_served_is_named(live, tmp_path, store):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    (live / "salt/linked").symlink_to(outside)
    (live / "salt/link").symlink_to("top.sls")
    (live / "salt/dangling").symlink_to("nowhere")
    (live / "salt/web/loop").symlink_to("..")
    os.mkfifo(live / "salt/pipe")
    (live / "salt/.git").mkdir()
    with open(os.fsencode(live / "salt") + b"/\xff", "w"):
        pass
    seen = looked(live)
    assert f"{BASE}/linked/file" in seen.entries
    skipped = {os.path.basename(path.strip("'")): why for path, why in seen.skipped.items()}
    assert skipped == {
        "dangling": "No such file or directory",
        "loop": "a link to a directory that it is in",
        "pipe": "neither a file nor a directory",
        "\\udcff": "its name is not UTF-8",
    }
    assert not any(".git" in path or "loop" in path for path in seen.entries)
    store.switch(store.capture(seen))
    copy = store.tree(store.current(), f"{BASE}/link")
    assert not os.path.islink(copy)
    assert Path(copy).read_text() == "base: {'*': [web]}"


def test_an_absent_directory_is_no_deletion(live):
    (live / "pillar/top.sls").unlink()
    (live / "pillar").rmdir()
    with pytest.raises(RootsError, match="pillar: No such file"):
        looked(live)


# What follows


@pytest.fixture
def follower(tmp_path):
    made = roots.Store(str(tmp_path / "follower"))
    made.prepare()
    return made


def fetch(follower, store, limit=7):
    """Bring a follower what the store serves, in small pieces."""
    name = store.current()
    manifest = roots.parse(store.manifest(name).text)
    where = {entry.sha256: path for path, entry in manifest.entries.items() if entry}
    for sha256, size in follower.missing(manifest).items():
        data = Path(store.tree(name, where[sha256])).read_bytes()
        for offset in range(follower.received().get(sha256, 0), size, limit):
            follower.receive(sha256, size, offset, data[offset : offset + limit])
    made = follower.build(manifest)
    follower.switch(made)
    return made


def test_a_follower_gets_the_same_tree_and_next_time_only_what_is_new(store, live, first, follower):
    fetch(follower, store)
    assert content(follower) == live_content(live)
    assert follower.manifest(follower.current()) == store.manifest(first)
    (live / "salt/web/init.sls").write_text("two")
    (live / "salt/web/files/page").rename(live / "salt/moved")
    store.switch(store.capture(looked(live)))
    missing = follower.missing(store.manifest(store.current()))
    assert list(missing.values()) == [3]
    fetch(follower, store)
    assert content(follower) == live_content(live)
    assert os.listdir(follower.objects) == []


def test_the_same_content_with_two_modes_is_two_files(store, live, follower):
    for name, mode in (("a", 0o644), ("b", 0o755), ("c", 0o644)):
        (live / f"salt/{name}").write_text("same")
        (live / f"salt/{name}").chmod(mode)
    store.switch(store.capture(looked(live)))
    fetch(follower, store)
    assert content(follower) == live_content(live)
    assert not follower.damage(follower.current())


def test_a_piece_that_is_not_what_was_asked_for_is_refused(follower):
    sha256 = HASHES[1]
    with pytest.raises(RootsError, match="not what its hash says"):
        follower.receive(sha256, 3, 0, b"abc")
    assert follower.received() == {}
    follower.receive(sha256, 9, 0, b"abc")
    for offset, data in ((0, b"abc"), (6, b"abc"), (3, b"abcdefg")):
        with pytest.raises(RootsError, match="a piece at"):
            follower.receive(sha256, 9, offset, data)
    with pytest.raises(RootsError, match="no hash"):
        follower.receive("../../x", 3, 0, b"abc")


def test_a_tree_is_not_made_without_all_of_its_contents(store, first, follower):
    with pytest.raises(RootsError, match="is not here"):
        follower.build(store.manifest(first))
    assert follower.names() == []


# Edits in the served tree


def edit(path, how):
    {
        "written": lambda: path.write_text("edited"),
        "replaced": lambda: (path.with_name("x").write_text("e"), path.with_name("x").rename(path)),
        "deleted": path.unlink,
        "mode": lambda: path.chmod(0o666),
        "added": lambda: path.with_name("added").write_text("new"),
        "directory": lambda: (path.unlink(), path.mkdir()),
        "link": lambda: (path.unlink(), path.symlink_to("/etc/passwd")),
    }[how]()


@pytest.mark.parametrize(
    "how", ["written", "replaced", "deleted", "mode", "added", "directory", "link"]
)
def test_an_edit_is_noticed_kept_and_put_right(store, live, first, how):
    expected = content(store)
    path = Path(store.tree(first, f"{BASE}/web/init.sls"))
    edit(path, how)
    damage = store.damage(first)
    assert damage
    assert store.damage(first, "file_roots") == damage
    assert not store.damage(first, "pillar_roots")
    kept = Path(store.keep_aside(first, damage, "now"))
    copy = kept / f"{BASE}/web/init.sls"
    assert {
        "written": lambda: copy.read_text() == "edited",
        "replaced": lambda: copy.read_text() == "e",
        "deleted": lambda: f"{BASE}/web/init.sls" in (kept / "deleted").read_text(),
        "mode": lambda: copy.read_text() == "one",
        "added": lambda: copy.with_name("added").read_text() == "new",
        "directory": copy.is_dir,
        "link": lambda: os.readlink(copy) == "/etc/passwd",
    }[how]()
    assert store.keep_aside(first, damage, "later") is None
    index = store.index(first)[f"{BASE}/web/init.sls"]
    opened = store.open_file(first, f"{BASE}/web/init.sls", index)
    if how == "added":
        opened.close()
    else:
        assert opened is None
    name = store.capture(looked(live))
    store.switch(name)
    assert content(store) == expected
    assert not store.damage(name)


def test_a_follower_takes_what_it_has_from_an_older_tree(store, live, first, follower):
    old = fetch(follower, store)
    (live / "salt/top.sls").write_text("other")
    store.switch(store.capture(looked(live)))
    new = fetch(follower, store)
    # Another file than the older tree has.
    edit(Path(follower.tree(new, f"{BASE}/web/init.sls")), "replaced")
    assert follower.damage(new)
    assert not follower.damage(old)
    assert follower.missing(follower.manifest(new)) == {}
    follower.switch(follower.build(follower.manifest(new)))
    assert content(follower) == live_content(live)


# How long trees stay


def test_trees_stay_while_they_are_young_or_pinned_or_among_the_last_two(store, live, first):
    for number in range(4):
        (live / "salt/web/init.sls").write_text(f"{number}")
        store.switch(store.capture(looked(live)))
    names = store.names()
    now = os.stat(store.directory).st_mtime
    assert store.outdated(set(), now) == []
    late = now + roots.KEPT + 60
    assert store.outdated({names[1]}, late) == [names[0], names[2]]
    store.remove(names[0])
    assert store.names() == names[1:]


# Killed anywhere

POINTS = ["makedirs", "link", "fsync", "rename", "replace", "symlink", "chmod", "unlink", "utime"]


def killed_at(point, times, act):
    """Run something in a child that kills itself before the n-th call of a function of ``os``."""
    child = os.fork()
    if not child:
        left = times
        real = getattr(os, point)

        def killed(*args, **kwargs):
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        try:
            setattr(os, point, killed)
            act()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("times", range(1, 8))
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("who", ["source", "follower"])
def test_whoever_is_killed_has_the_old_tree_or_the_new_one(
    store, live, first, follower, who, point, times
):
    fetch(follower, store)
    old = live_content(live)
    (live / "salt/web/init.sls").write_text("two")
    (live / "salt/web/files/page").write_text("y" * 100)
    (live / "salt/top.sls").unlink()
    if who == "follower":
        store.switch(store.capture(looked(live)))
    new = live_content(live)
    mine = follower if who == "follower" else store

    def act():
        mine.prepare()
        if who == "follower":
            fetch(mine, store)
        else:
            mine.switch(mine.capture(looked(live)))

    killed_at(point, times, act)
    after = roots.Store(mine.directory)
    assert content(after) in (old, new)
    assert not after.damage(after.current())
    after.prepare()
    assert content(after) in (old, new)
    assert os.listdir(after.incoming) == ["objects"]
    assert after.names()[-1] == after.current()
    assert not os.path.lexists(f"{after.directory}/current.new")
    # And the next one is as good as any.
    if who == "follower":
        fetch(after, store)
    elif name := after.capture(looked(live)):
        after.switch(name)
    assert content(after) == new
    assert not after.damage(after.current())
