"""Snapshots of roots: manifests, changes, pins, and what is on disk whatever happens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import multimaster_peers
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
        "file_roots/base/٣",
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


@pytest.mark.parametrize("path", ["a/" * 2000 + "a", "a" * 5000, "\ud800"])
def test_no_path_is_taken_that_a_system_cannot_have(path):
    with pytest.raises(RootsError):
        roots.parse(Manifest({BASE: None, f"{BASE}/{path}": None}).text)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
paths = st.text() | st.sampled_from(
    [BASE, f"{BASE}/x", f"{BASE}/../x", "/etc/passwd", f"{BASE}/x/y"]
)
listed = st.dictionaries(
    paths,
    anything | st.lists(anything | st.sampled_from([HASHES[0], 1, 0o644, True, 1.5]), max_size=4),
)


def is_sane(manifest):
    """Tell whether nothing in a manifest leads anywhere else, or is another thing than it says."""
    for path, entry in manifest.entries.items():
        assert os.path.normpath(f"/roots/{path}") == f"/roots/{path}"
        assert path.startswith(("file_roots/", "pillar_roots/"))
        path.encode()
        if entry:
            assert type(entry.size) is type(entry.mode) is int
            assert len(entry.sha256) == 64
            assert entry.mode | 0o400 <= 0o777
    return roots.parse(manifest.text) == manifest


@given(
    st.text()
    | anything.map(json.dumps)
    | st.builds(lambda v, e: json.dumps({"version": v, "entries": e}), st.just(1), listed)
    | st.integers(900, 100_000).map(lambda depth: "[" * depth)
)
def test_any_text_is_a_manifest_or_refused(text):
    try:
        manifest = roots.parse(text)
    except RootsError:
        return
    assert is_sane(manifest)


@given(
    anything | st.fixed_dictionaries({"gone": anything | st.lists(paths), "set": listed}),
    manifests(),
)
def test_anything_is_a_change_or_refused(change, old):
    try:
        manifest = roots.apply(change, old)
    except RootsError:
        return
    assert is_sane(manifest)


@pytest.mark.parametrize("entry", [["x", 1, 0], [HASHES[0], -1, 0], [HASHES[0], 1, 0o4755], 5, [1]])
def test_what_is_no_entry_is_refused(entry):
    with pytest.raises(RootsError):
        roots.apply({"gone": [], "set": {f"{BASE}/x": entry}}, Manifest({BASE: None}))


# Pins

NEW, OLD = f"00000002-{'b' * 16}", f"00000001-{'a' * 16}"
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


def test_a_run_keeps_its_tree_however_long_it_asks_for_nothing():
    minion = Minion()
    for kind, after in SLS:
        minion.ask(kind, after)
    minion.current = NEW
    assert roots.holds(minion.pin, minion.now + 1_000_000)
    assert minion.ask("other", 1_000_000) == OLD
    minion.pin = roots.released(minion.pin)
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
    others.release("web1", 999.0)
    assert pins.get("web1").run
    for name in ("web1", "../../web2", "web\n3"):
        others.release(name, 1000.0)
    assert pins.get("web1").returned
    assert sorted(os.listdir(tmp_path)) == ["pins"]
    assert others.in_use(1000.0 + 2 * roots.RUN_IDLE) == set()


@given(
    st.binary(max_size=100)
    | anything.map(lambda told: json.dumps(told).encode())
    | st.fixed_dictionaries(
        {
            name: anything | st.sampled_from([NEW, "../../x", "web1", [], True, 1.5])
            for name in ("minion", "tree", "made", "run", "returned", "marks", "other")
        }
    ).map(lambda told: json.dumps(told).encode())
    | st.integers(900, 100_000).map(lambda depth: b"[" * depth)
)
def test_any_file_among_the_pins_stops_nothing(tmp_path_factory, content):
    directory = tmp_path_factory.mktemp("pins")
    pins = roots.Pins(str(directory))
    good = Pin(NEW, 1000.0, 1001.0)
    pins.put("web2", good)
    path = Path(pins.directory, os.path.basename(pins._path("web1")))
    path.write_bytes(content)
    Path(pins.directory, "directory").mkdir()
    assert NEW in pins.in_use(1002.0)
    found = pins.get("web1")
    assert found is None or "/" not in found.tree
    pinned = roots.pinned(found, "other", "base", NEW, 1002.0)
    pins.put("web1", pinned)
    assert pins.get("web1").tree == pinned.tree
    assert pins.get("web2") == good


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


def reasons(seen):
    """What was skipped: base name -> reason."""
    return {os.path.basename(path.strip("'")): why for path, why in seen.skipped.items()}


@pytest.mark.parametrize("name", ["line\nfeed", "escape\x1b[2J", "\x7f", "csi\x9b"])
def test_a_name_with_control_characters_is_skipped_and_named(live, name):
    (live / "salt" / name).write_text("x")
    (live / "salt/web" / name).mkdir()
    (live / "salt/web" / name / "below").write_text("x")
    seen = looked(live)
    assert not any(name in path for path in seen.entries)
    assert f"{BASE}/web/init.sls" in seen.entries
    assert len(seen.skipped) == 2
    for path, why in seen.skipped.items():
        assert path.isprintable()
        assert "control characters" in why


@pytest.fixture
def deep(live, monkeypatch):
    """A directory deeper than a program can follow, which pytest could not remove either."""
    monkeypatch.chdir(live / "salt")
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    yield live
    for _ in range(1500):
        os.chdir("..")
        os.rmdir("d")


def test_a_directory_that_is_too_deep_is_skipped_and_the_rest_is_taken(deep, store):
    seen = looked(deep)
    assert set(seen.skipped.values()) == {"its path is too long"}
    store.switch(store.capture(seen))
    assert f"{BASE}/web/init.sls" in content(store)
    assert not store.damage(store.current())


def scan(live, **settings):
    return roots.scan({"file_roots": {"base": [str(live / "salt")]}}, **settings)


def test_links_out_of_a_root_are_followed_only_as_salt_would(live, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    (live / "salt/directory").symlink_to(outside)
    (live / "salt/file").symlink_to(outside / "file")
    (live / "salt/twice").symlink_to("file")
    (live / "salt/up").symlink_to("../pillar/top.sls")
    (live / "salt/inner").symlink_to("web")
    (live / "salt/link").symlink_to(live / "salt/top.sls")
    assert f"{BASE}/directory/file" in scan(live, follow=True).entries
    seen = scan(live, follow=False)
    for name in ("directory", "directory/file", "file", "twice", "up"):
        assert f"{BASE}/{name}" not in seen.entries
    assert {f"{BASE}/inner/init.sls", f"{BASE}/link", f"{BASE}/web/init.sls"} <= set(seen.entries)
    assert set(reasons(seen)) == {"directory", "file", "twice", "up"}
    assert set(seen.skipped.values()) == {
        "a link out of its root; fileserver_followsymlinks is off"
    }


@pytest.fixture
def pki(tmp_path):
    """A directory with keys."""
    made = tmp_path / "etc/pki"
    (made / "minions").mkdir(parents=True)
    (made / "master.pem").write_text("secret")
    (made / "minions/web1").write_text("public")
    return made


def test_nothing_where_keys_are_is_taken_by_whatever_way(live, pki, tmp_path):
    (live / "salt/file").symlink_to(pki / "master.pem")
    (live / "salt/directory").symlink_to(pki)
    (live / "salt/deeper").symlink_to(pki / "minions")
    (live / "salt/above").symlink_to(pki.parent)
    (tmp_path / "alias").symlink_to(pki)
    (live / "salt/alias").symlink_to(tmp_path / "alias/minions/web1")
    os.link(pki / "master.pem", live / "salt/second")
    os.link(live / "salt/top.sls", live / "salt/harmless")
    seen = scan(live, guarded=[str(tmp_path / "alias")])
    taken = {path for path, entry in seen.entries.items() if entry}
    assert not [path for path in taken if "master" in path or "web1" in path]
    assert reasons(seen) == dict.fromkeys(
        ["file", "directory", "deeper", "alias", "second", "pki"], "it is where keys are"
    )
    assert {f"{BASE}/harmless", f"{BASE}/top.sls", f"{BASE}/web/init.sls"} <= taken


def test_no_key_is_taken_where_another_file_was_looked_at(live, pki, store):
    seen = scan(live, guarded=[str(pki)])
    key = pki / "master.pem"
    # As with a directory above it that is swapped for a link at the right moments.
    seen.entries[f"{BASE}/swapped"] = roots.Seen(str(key), roots._mark(key.stat()), 0o644)
    store.switch(store.capture(seen))
    assert f"{BASE}/swapped" not in content(store)
    assert f"{BASE}/web/init.sls" in content(store)
    assert seen.skipped == {str(key): "it is where keys are"}


def test_a_root_where_keys_are_is_not_taken(live, pki):
    declared = {"file_roots": {"base": [str(live / "salt"), str(pki / "minions")]}}
    seen = roots.scan(declared, [str(pki)])
    assert not any(path.startswith("file_roots/base/1/") for path in seen.entries)
    assert f"{BASE}/top.sls" in seen.entries
    assert list(seen.skipped.values()) == ["it is where keys are"]


def failing(monkeypatch, function, name, error):
    """Have a function of the system fail for one path, as a bad disk does."""
    real = getattr(os, function)

    def called(path, *args, **kwargs):
        if str(path).endswith(name) and "/live/" in str(path):
            raise OSError(error, os.strerror(error))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, function, called)


@pytest.mark.parametrize(("function", "name"), [("open", "page"), ("scandir", "files")])
def test_what_cannot_be_read_stays_what_it_was_and_the_rest_is_taken(
    live, store, first, monkeypatch, function, name
):
    (live / "salt/web/files/page").write_text("two")
    (live / "salt/web/init.sls").write_text("two")
    failing(monkeypatch, function, name, errno.EIO)
    seen = looked(live)
    made = store.capture(seen)
    assert reasons(seen) == {name: "Input/output error"}
    store.switch(made)
    found = content(store)
    assert found[f"{BASE}/web/init.sls"][1] == "two"
    assert found[f"{BASE}/web/files/page"][1] == "x" * 1000
    assert not store.damage(made)
    monkeypatch.undo()
    store.switch(store.capture(looked(live)))
    assert content(store) == live_content(live)


def test_what_cannot_be_read_and_never_was_is_left_out(live, store, monkeypatch):
    failing(monkeypatch, "open", "page", errno.EIO)
    store.switch(store.capture(looked(live)))
    assert f"{BASE}/web/files/page" not in content(store)
    assert f"{BASE}/web/files/run" in content(store)
    assert not store.damage(store.current())


def test_a_file_that_vanishes_or_becomes_a_pipe_is_looked_at_again(live, store, first):
    (live / "salt/web/init.sls").write_text("two")
    seen = looked(live)
    (live / "salt/web/init.sls").unlink()
    with pytest.raises(Unsettled):
        store.capture(seen)
    os.mkfifo(live / "salt/web/init.sls")
    with pytest.raises(Unsettled):
        store.capture(seen)


def test_a_file_that_is_longer_than_it_says_is_left_out(live, store):
    # Of size 0, with content; others of that kind never end.
    (live / "salt/endless").symlink_to("/proc/version")
    seen = looked(live)
    store.switch(store.capture(seen))
    assert reasons(seen) == {"endless": "it does not have the size that it says"}
    assert f"{BASE}/endless" not in content(store)
    assert f"{BASE}/web/init.sls" in content(store)
    assert not store.damage(store.current())


def test_of_what_is_changed_in_each_look_the_innermost_is_never_still():
    counts = {}
    for number in range(3):
        changed = [
            f"{BASE}/log/a",
            f"{BASE}/new/{number}",
            *([f"{BASE}/once"] if not number else []),
        ]
        counts = roots.restless(counts, changed)
    assert roots.never_still(counts, 3) == {f"{BASE}/log/a", f"{BASE}/new"}
    assert roots.never_still(counts, 4) == set()
    assert roots.restless(counts, []) == {}
    entries = dict.fromkeys([BASE, f"{BASE}/log", f"{BASE}/log/a", f"{BASE}/new", f"{BASE}/new/1"])
    left = roots.without(entries, {f"{BASE}/log/a", f"{BASE}/new"})
    assert set(left) == {BASE, f"{BASE}/log"}


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


# What a disk may have made of a store


def test_a_snapshot_that_is_not_readable_is_removed_and_the_one_before_served(store, live, first):
    (live / "salt/web/init.sls").write_text("two")
    second = store.capture(looked(live))
    store.switch(second)
    Path(store.trees, second, "manifest").write_bytes(b"\xff\0")
    for junk in ("lost+found", "x", "-1"):
        Path(store.trees, junk).mkdir()
    again = roots.Store(store.directory)
    again.prepare()
    assert again.current() == first
    assert again.names() == [first]
    third = again.capture(looked(live))
    again.switch(third)
    assert content(again) == live_content(live)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[[[", b"\xff", b'{"version": 1, "entries": {}}'])
def test_without_any_snapshot_that_is_readable_there_is_none(store, live, first, damage):
    Path(store.trees, first, "manifest").write_bytes(damage)
    again = roots.Store(store.directory)
    again.prepare()
    assert again.current() is None
    again.switch(again.capture(looked(live)))
    assert content(again) == live_content(live)


@pytest.mark.parametrize("what", ["index", "live"])
@pytest.mark.parametrize("damage", [b"", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_marks_that_are_damaged_are_of_nothing(store, live, first, what, damage):
    Path(store.trees, first, what).write_bytes(damage)
    again = roots.Store(store.directory)
    again.prepare()
    made = again.capture(looked(live))
    again.switch(made or again.current())
    assert content(again) == live_content(live)
    assert not again.damage(again.current())


@pytest.mark.parametrize("damage", [b"", b"[]", b"5", b"\xff", b"[" * 100_000])
def test_a_damaged_status_is_none(store, damage):
    Path(store.status_file).write_bytes(damage)
    assert store.read_status() == {}


@pytest.mark.parametrize("what", ["file", "directory", "elsewhere", "dangling"])
def test_what_is_in_place_of_the_link_to_the_newest_does_not_stay(store, live, first, what):
    link = Path(store.directory, "current")
    link.unlink()
    if what == "file":
        link.write_text("x")
    elif what == "directory":
        (link / "x").mkdir(parents=True)
    else:
        link.symlink_to({"elsewhere": "/etc", "dangling": "trees/00000009-0123456789abcdef"}[what])
    again = roots.Store(store.directory)
    again.prepare()
    assert again.current() in (None, first)
    again.switch(again.capture(looked(live)) or first)
    assert content(again) == live_content(live)


def test_a_part_that_is_too_long_is_fetched_anew(store, first, follower):
    manifest = store.manifest(first)
    sha256 = manifest.entries[f"{BASE}/web/files/page"].sha256
    Path(follower.objects, f"{sha256}.part").write_bytes(b"y" * 2000)
    other = manifest.entries[f"{BASE}/web/init.sls"].sha256
    Path(follower.objects, other).write_bytes(b"longer than it should be")
    Path(follower.objects, "lost+found").mkdir()
    fetch(follower, store)
    assert content(follower) == content(store)


def test_one_edit_that_cannot_be_kept_keeps_no_other_from_it(store, first, monkeypatch):
    for name in ("page", "run"):
        Path(store.tree(first, f"{BASE}/web/files/{name}")).unlink()
        Path(store.tree(first, f"{BASE}/web/files/{name}")).write_text("edited")
    real = shutil.copyfile

    def copy(source, target):
        if source.endswith("page"):
            raise OSError(errno.EIO, "Input/output error")
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(RootsError, match="page"):
        store.keep_aside(first, store.damage(first), "stamp")
    assert Path(store.kept, "stamp", f"{BASE}/web/files/run").read_text() == "edited"


def test_a_content_that_the_disk_does_not_give_keeps_no_other_from_being_told(store, first):
    class Bad:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def seek(self, offset):
            pass

        def read(self, size):
            raise OSError(errno.EIO, "Input/output error")

    entries = store.manifest(first).entries
    bad, good = (entries[f"{BASE}/web/{name}"].sha256 for name in ("files/page", "init.sls"))
    real = store.open_file
    store.open_file = lambda name, path, looks: (
        Bad() if path.endswith("page") else real(name, path, looks)
    )
    told = list(roots.contents(store, first, [(bad, 0), (good, 0)]))
    assert told == [(good, 0, b"one")]


def test_a_note_of_root_is_not_written_through_a_link(store, tmp_path):
    Path(store.directory, "demand").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        multimaster_peers.demand(store.demand)
    assert not (tmp_path / "elsewhere").exists()
    assert multimaster_peers.demanded(store.demand)
    multimaster_peers.demand(store.demand)
    assert multimaster_peers.demanded(store.demand)
    assert not multimaster_peers.demanded(store.demand)
