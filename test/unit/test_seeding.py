"""A new master gets the keys of the present one before it starts: page by page, and all or none."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import pytest

import multimaster_keypair as keypair
import multimaster_ledger as ledger

ID = "saltm2"
ALL = {"saltm1": "minions", ID: "minions", "web1": "minions", "web2": "minions_rejected"}
SEEDED = ("minions", "minions_pre", "minions_rejected")


@pytest.fixture
def ask(pillar_file):
    """Ask a key store for a page, as a pillar does."""

    def ask(source, after="", count=100, **changes):
        return pillar_file.keys_after(source.opts, {"after": after, "count": count, "nonce": "n"})

    return ask


def stored(host):
    """Where each key is on the host."""
    found = {}
    for where in SEEDED:
        if (host.pki / where).is_dir():
            found |= {path.name: where for path in (host.pki / where).iterdir()}
    return found


def seeds(host):
    path = host.root / "var/cache/salt/master/multimaster/seeds.json"
    return json.loads(path.read_text()) if path.exists() else None


def refused(host, words, **kwargs):
    from salt.exceptions import CommandExecutionError

    before = host.files()
    with pytest.raises(CommandExecutionError, match=words):
        host.call("seed_keys", **kwargs)
    assert host.files() == before


# What a page holds


def test_a_page_has_what_is_accepted_or_rejected_in_order_and_says_what_there_is(source, ask):
    page = ask(source)
    assert [(name, state) for name, state, _ in page["keys"]] == [
        ("saltm1", "accepted"),
        (ID, "accepted"),
        ("web1", "accepted"),
        ("web2", "rejected"),
    ]
    assert (page["origin"], page["nonce"], page["last"]) == ("oldmaster_master", "n", True)
    states = {name: state for name, state, _ in page["keys"]}
    assert (page["total"], page["digest"]) == (4, keypair.digest_of(states))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_pages_of_any_size_are_together_all_keys_each_once(source, ask, count):
    names, page = [], {"last": False}
    while not page["last"]:
        page = ask(source, names[-1] if names else "", count)
        assert 1 <= len(page["keys"]) <= count
        assert page["total"] == 4
        names += [name for name, _, _ in page["keys"]]
    assert names == sorted(ALL)


def test_a_page_is_bounded_whatever_is_asked_for(source, ask, monkeypatch, pillar_file):
    assert [len(ask(source, count=count)["keys"]) for count in (0, -5)] == [1, 1]
    monkeypatch.setattr(pillar_file, "PAGE", 2)
    page = ask(source, count=10**9)
    assert (len(page["keys"]), page["last"]) == (2, False)


def test_a_name_that_leads_elsewhere_has_no_accepted_key(source, pillar_file, minion_keys):
    # Before Salt 3008, and since.
    source.put("evil", minion_keys["web1"].pub, "minions_pre")
    for opts in (source.opts, {**source.opts, "keys.cache_driver": "localfs_key"}):
        for name in ("../minions_pre/evil", f"{source.pki}/minions_pre/evil", "..", ".", ""):
            assert pillar_file._accepted_key(opts, name) is None
    assert pillar_file._accepted_key(source.opts, "web1") == minion_keys["web1"].pub


@pytest.mark.parametrize(
    "asked",
    [
        5,
        [],
        "all",
        {},
        {"after": "", "count": 5},
        {"after": None, "count": 5, "nonce": "n"},
        {"after": "", "count": True, "nonce": "n"},
        {"after": "", "count": "5", "nonce": "n"},
        {"after": "", "count": 5, "nonce": 7},
    ],
    ids=repr,
)
def test_a_question_that_is_none_gets_no_page(source, pillar_file, asked):
    assert pillar_file.keys_after(source.opts, asked) is None


def test_odd_files_are_passed_over_and_fail_nothing(source, ask, minion_keys):
    directory = source.pki / "minions"
    (directory / "directory").mkdir()
    (directory / "link").symlink_to(directory / "web1")
    (directory / "dangling").symlink_to(directory / "nothing")
    (directory / "with\\backslash").write_text(minion_keys["web1"].pub)
    (directory / ".hidden").write_text(minion_keys["web1"].pub)
    (directory / "line\nbreak").write_text(minion_keys["web1"].pub)
    (directory / "invalid\udcff").write_text(minion_keys["web1"].pub)
    os.mkfifo(directory / "fifo")
    page = ask(source)
    assert ([name for name, _, _ in page["keys"]], page["total"]) == (sorted(ALL), 4)


def test_files_without_a_key_are_counted_and_come_without_one(source, ask):
    # To find that out, all would have to be read for each page.
    directory = source.pki / "minions"
    (directory / "binary").write_bytes(b"\xff\xfe\x00")
    (directory / "empty").write_text("")
    (directory / "huge").write_text("x" * 100_000)
    (directory / "rubbish").write_text("rubbish")
    page = ask(source)
    assert page["total"] == 8
    without = [name for name, _, pub in page["keys"] if pub is None]
    assert without == ["binary", "empty", "huge", "rubbish"]


@pytest.mark.parametrize(
    ("where", "state"),
    [
        (["minions", "minions_pre"], None),
        (["minions", "minions_rejected"], "rejected"),
        (["minions", "minions_denied"], "accepted"),
        (["minions_pre", "minions_rejected"], "rejected"),
    ],
)
def test_of_several_files_for_an_id_the_one_counts_that_counts_for_salt(
    source, ask, minion_keys, where, state
):
    for directory in where:
        source.put("web9", minion_keys["web1"].pub, directory)
    found = {name: state for name, state, _ in ask(source)["keys"]}
    assert found.get("web9") == state


@pytest.mark.parametrize("can_list_all", [True, False], ids=["list_all", "list"])
def test_other_key_stores_than_files_give_pages_too(
    source, ask, minion_keys, pillar_file, monkeypatch, can_list_all
):
    pub = minion_keys["web1"].pub
    states = {"web1": "accepted", "web2": "pending", "web3": "rejected"}

    class Cache:
        def list(self, bank):
            return list(states)

        def list_all(self, bank):
            if not can_list_all:
                raise AttributeError("Cache driver 'x' does not implement list_all")
            return {name: {"state": state} for name, state in states.items()}

        def fetch(self, bank, name):
            return {"state": states[name], "pub": pub}

    source.opts["keys.cache_driver"] = "mmap_key"
    monkeypatch.setattr(pillar_file, "_key_cache", lambda opts: Cache())
    page = ask(source)
    assert page["keys"] == [["web1", "accepted", pub], ["web3", "rejected", pub]]
    assert page["total"] == 2


# Sealing


def test_a_page_opens_only_where_it_is_for_and_is_no_key_pair(
    source, ask, pillar_file, minion_keys
):
    page = ask(source)
    sealed = pillar_file.seal_page(page, ID, minion_keys[ID].pub)
    opened = keypair.open_page(sealed, ID, minion_keys[ID].pem)
    assert [list(entry) for entry in opened.keys] == page["keys"]
    for minion_id, holder in (("web1", ID), (ID, "web1")):
        with pytest.raises(keypair.KeypairError, match="page of keys does not open"):
            keypair.open_page(sealed, minion_id, minion_keys[holder].pem)
    with pytest.raises(keypair.KeypairError, match="does not open"):
        keypair.open_bundle(sealed, ID, minion_keys[ID].pem)
    pair = pillar_file.seal({"pem": "x", "pub": "x"}, ID, minion_keys[ID].pub)
    with pytest.raises(keypair.KeypairError, match="does not open"):
        keypair.open_page(pair, ID, minion_keys[ID].pem)


@pytest.mark.parametrize(
    "change",
    [{"keys": [["a", "accepted"]]}, {"keys": [["a", "accepted", 5]]}, {"keys": 5}, {"total": "x"}],
    ids=repr,
)
def test_a_page_with_the_wrong_content_is_refused(source, ask, pillar_file, minion_keys, change):
    sealed = pillar_file.seal_page(ask(source) | change, ID, minion_keys[ID].pub)
    with pytest.raises(keypair.KeypairError, match="incomplete"):
        keypair.open_page(sealed, ID, minion_keys[ID].pem)


# Who gets one


@pytest.fixture
def render(pillar_file, source, shared, minion_keys, monkeypatch):
    """Render the pillar for a minion, over the key store of the source."""
    for suffix, text in zip(("pem", "pub"), shared, strict=True):
        (source.pki / f"master.{suffix}").write_text(text)
    declaration = {"masters": [{"id": "saltm1"}, {"id": ID}, {"id": "saltm9"}]}

    def render(minion_id, asked=None):
        grains = {"multimaster_keys": asked} if asked else {}
        opts = {"id": minion_id, "conf_file": "", "__role": "master", "grains": grains}
        monkeypatch.setattr(pillar_file, "__opts__", opts, raising=False)
        monkeypatch.setattr(pillar_file, "_declaration", lambda: declaration)
        monkeypatch.setattr(pillar_file, "master_config", lambda path: source.opts)
        return pillar_file.run()["multimaster"].get("keypair", {})

    return render


QUESTION = {"after": "", "count": 10, "nonce": "n"}


def test_a_declared_master_gets_a_page_only_if_it_asks(render, minion_keys):
    assert set(render(ID)) == {"sealed"}
    assert set(render(ID, {"after": ""})) == {"sealed"}
    given = render(ID, QUESTION)
    assert set(given) == {"sealed", "keys"}
    assert keypair.open_page(given["keys"], ID, minion_keys[ID].pem).total == 4


@pytest.mark.parametrize("where", ["minions", "minions_pre", "minions_rejected", None])
def test_no_other_minion_gets_a_page(render, source, minion_keys, where):
    if where:
        source.put("web9", minion_keys["web1"].pub, where)
    assert render("web9", QUESTION) == {}


@pytest.mark.parametrize("where", ["minions_pre", "minions_rejected", "minions_denied", None])
def test_a_declared_master_whose_key_is_not_accepted_gets_nothing(
    render, source, minion_keys, where
):
    if where:
        source.put("saltm9", minion_keys["web1"].pub, where)
    assert render("saltm9", QUESTION) == {}


# The new master asks


def test_all_keys_are_written_as_they_are_on_the_present_master(host, source, minion_keys):
    done = host.call("seed_keys")
    assert stored(host) == ALL
    assert (done["accepted"], done["rejected"]) == (["saltm1", ID, "web1"], ["web2"])
    for name, where in ALL.items():
        path = host.pki / where / name
        assert path.read_text() == (source.pki / where / name).read_text()
        assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o600, os.getuid())
    fingerprints = {
        name: keypair.fingerprint((source.pki / w / name).read_text()) for name, w in ALL.items()
    }
    assert seeds(host) == {"source": "", "keys": fingerprints}


def test_the_master_is_left_without_the_question(host, source):
    host.call("seed_keys")
    assert source.asked == [("", 2000), None]
    source.before = lambda asked: {} if asked else None
    source.asked.clear()
    refused(host, "asked 14 times")
    assert source.asked[-1] is None


def test_nothing_is_asked_of_this_host_without_a_master(host, source, shared):
    host.pillar = {"multimaster": {"keypair": {"pem": shared.pem, "pub": shared.pub}}}
    done = host.call("seed_keys")
    assert (done["accepted"], source.asked) == ([], [])
    assert "There is no master to ask" in done["reason"]


def test_who_has_the_pair_and_is_given_nothing_asks_for_nothing(host, source, shared):
    for suffix, text in zip(("pem", "pub"), shared, strict=True):
        host.write(f"etc/salt/pki/master/master.{suffix}", text)
    host.pillar = {"multimaster": {"keypair": {"refused": "of a reason", "pub": shared.pub}}}
    done = host.call("seed_keys")
    assert (done["accepted"], source.asked) == ([], [])
    assert done["reason"] == "No keys are asked for: saltm2 is not given any: of a reason"


def test_why_no_page_comes_is_told(host, source):
    # Since the pillar with the pair was rendered, the minion's key has become another one.
    source.before = lambda asked: {"multimaster": {"keypair": {"refused": "of a reason"}}}
    refused(host, "gives no keys.*of a reason")


def test_a_master_that_runs_with_its_engine_asks_nobody(host, source):
    host.write("var/run/salt-master.pid", str(os.getpid()))
    book = host.write("var/cache/salt/master/multimaster/ledger.db", "")
    assert "its engine keeps" in host.call("seed_keys")["reason"]
    assert source.asked == []
    # One that was there before the formula has no engine, and would not know the other masters.
    book.unlink()
    assert host.call("seed_keys")["accepted"] == ["saltm1", ID, "web1"]


def test_a_master_that_has_all_keys_asks_for_one_page_and_writes_nothing(
    host, source, minion_keys, monkeypatch
):
    monkeypatch.setattr(source.pillar_file, "PAGE", 1)
    for name, where in ALL.items():
        host.accept({name: minion_keys["web1"].pub}, where)
    before = host.files()
    done = host.call("seed_keys")
    assert (done["accepted"], done["reason"]) == ([], "All keys are here")
    assert source.asked == [("", 2000), None]
    assert host.files() == before


@pytest.fixture(autouse=True)
def pauses(host, monkeypatch):
    """The seconds between questions, instead of the pauses."""
    slept = []
    settings = host.modules["multimaster.seed_keys"].func.__globals__
    clock = SimpleNamespace(monotonic=time.monotonic, strftime=time.strftime, sleep=slept.append)
    monkeypatch.setitem(settings, "time", clock)
    return slept


def test_a_master_that_restarts_meanwhile_is_asked_again_ever_later(host, source, pauses):
    def before(asked):
        if asked and len(pauses) < 7:
            raise ConnectionRefusedError("it restarts")

    source.before = before
    host.call("seed_keys")
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert stored(host) == ALL


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_a_question_without_an_answer_is_followed_by_a_smaller_one(
    host, source, limit, caplog, monkeypatch
):
    from salt.exceptions import SaltReqTimeoutError

    settings = host.modules["multimaster.seed_keys"].func.__globals__
    monkeypatch.setitem(settings, "PAGE", 4)

    def before(asked):
        if asked and asked["count"] > max(1, limit):
            raise SaltReqTimeoutError("Message timed out")

    source.before = before
    host.call("seed_keys")
    assert stored(host) == ALL
    counts = [question[1] for question in source.asked if question]
    assert counts[:2] == [4, 2]
    assert "No page of 4 keys after ''" in caplog.text


def test_a_master_that_is_slow_gets_more_time(host, source, monkeypatch):
    from salt.exceptions import SaltReqTimeoutError

    settings = host.modules["multimaster.seed_keys"].func.__globals__
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=None)
    monkeypatch.setitem(settings, "time", fake)

    def before(asked):
        if asked and source.patience[-1] < 100:
            clock.now += source.patience[-1]
            raise SaltReqTimeoutError("Message timed out")

    source.before = before
    host.call("seed_keys")
    assert source.patience[:4] == [20, 40, 80, 160]
    assert stored(host) == ALL


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "no keys in the pillar multimaster.keypair .it may be of an older release"),
        ({"_errors": ["broken"]}, "no keys in the pillar multimaster.keypair .broken"),
        ("nonsense", "no pillar, but str"),
        ({"multimaster": {"keypair": {"keys": "x"}}}, "page of keys is malformed"),
        ({"multimaster": None}, "older release"),
    ],
    ids=repr,
)
def test_without_an_answer_the_reason_is_told_and_nothing_is_written(host, source, answer, words):
    source.before = lambda asked: answer
    refused(host, words)


def test_an_answer_out_of_a_cache_is_none(host, source):
    old = source.sealed(source.page({"after": "", "count": 10, "nonce": "another"}))
    source.before = lambda asked: old
    refused(host, "an answer to an earlier question")


def test_a_page_that_was_skipped_is_noticed(host, source, caplog):
    skipping = iter([True])

    def before(asked):
        if asked and next(skipping, False):
            return source.sealed(source.page(asked | {"after": "saltm2"}))
        return None

    source.before = before
    host.call("seed_keys")
    assert stored(host) == ALL
    assert "Keys have changed on oldmaster_master meanwhile" in caplog.text


def test_a_page_that_repeats_another_is_no_answer(host, source, monkeypatch):
    monkeypatch.setattr(source.pillar_file, "PAGE", 2)
    source.before = lambda asked: asked and source.sealed(source.page(asked | {"after": ""}))
    refused(host, "does not go on where the one before ended")


def test_keys_that_change_meanwhile_are_asked_for_again(
    host, source, minion_keys, monkeypatch, caplog
):
    monkeypatch.setattr(source.pillar_file, "PAGE", 2)
    changes = iter([lambda: source.put("aaa", minion_keys["web1"].pub), lambda: None])

    def before(asked):
        if asked and asked["after"]:
            next(changes, lambda: None)()

    source.before = before
    host.call("seed_keys")
    assert stored(host) == {**ALL, "aaa": "minions"}
    assert "Keys have changed on oldmaster_master meanwhile" in caplog.text


def test_keys_that_never_stop_changing_keep_no_master_from_its_start(
    host, source, minion_keys, monkeypatch
):
    """The ledger of the one that they come from tells of what has changed since."""
    monkeypatch.setattr(source.pillar_file, "PAGE", 2)

    def before(asked):
        if asked and asked["after"]:
            source.put(f"aaa{len(source.asked)}", minion_keys["web1"].pub)

    source.before = before
    host.call("seed_keys")
    # What was there all the time is there, and noted as no decision of this master's.
    assert set(stored(host)) >= set(ALL)
    assert set(seeds(host)["keys"]) == set(stored(host))


def test_a_bad_entry_is_set_aside_and_named(host, source, minion_keys):
    (source.pki / "minions/rubbish").write_text("rubbish")
    (source.pki / "minions/broken").write_text("-----BEGIN PUBLIC KEY-----\nx\n")
    done = host.call("seed_keys")
    assert done["refused"] == ["broken", "rubbish"]
    assert stored(host) == ALL


@pytest.mark.parametrize("name", ["../web9", "a/b", "a\\b", ".web9", "", "..", "a\0b", "a\nb"])
def test_an_id_that_is_none_is_set_aside(host, source, minion_keys, name):
    def before(asked):
        if not asked:
            return None
        page = source.page(asked)
        page["keys"].append([name, "accepted", minion_keys["web1"].pub])
        page["keys"].sort()
        states = {entry[0]: entry[1] for entry in page["keys"]}
        return source.sealed(page | {"digest": keypair.digest_of(states)})

    source.before = before
    if name == "":
        # Not after the beginning.
        refused(host, "does not go on")
        return
    assert host.call("seed_keys")["refused"] == [name]
    assert stored(host) == ALL


# What is there already


@pytest.mark.parametrize("test", [True, False], ids=["test", ""])
@pytest.mark.parametrize(
    ("where", "same", "outcome"),
    [
        (None, True, "written"),
        ("minions_pre", True, "written"),
        ("minions_pre", False, "written"),
        ("minions_denied", False, "written"),
        ("minions", True, "kept"),
        ("minions", False, "named: is accepted here with another key"),
        ("minions_rejected", True, "named: is rejected here"),
        ("minions_rejected", False, "named: is rejected here with another key"),
    ],
)
def test_the_truth_table_of_keys_that_are_there(
    host, source, minion_keys, other, where, same, outcome, test
):
    pub = minion_keys["web1"].pub if same else other.pub
    if where:
        host.accept({"web1": pub}, where)
    before = host.files()
    done = host.call("seed_keys", test=test)
    assert ("web1" in done["accepted"]) == (outcome == "written")
    named = {"web1": outcome.removeprefix("named: ")} if outcome.startswith("named") else {}
    assert done["kept"] == named
    if test:
        assert host.files() == before
        return
    expected = "minions" if outcome == "written" else where
    assert stored(host)["web1"] == expected
    text = (host.pki / expected / "web1").read_text()
    assert text == (minion_keys["web1"].pub if outcome == "written" else pub)
    assert not (host.pki / "minions_pre/web1").exists()
    assert ("web1" in seeds(host)["keys"]) == (outcome == "written")


def test_what_an_apply_that_was_cut_off_has_written_stays_provisional(host, source, monkeypatch):
    host.call("seed_keys")
    first = seeds(host)["keys"]
    (host.pki / "minions/web1").unlink()
    (source.pki / "minions/saltm1").unlink()
    done = host.call("seed_keys")
    assert done["accepted"] == ["web1"]
    assert seeds(host)["keys"] == first


def test_the_seeds_are_noted_before_the_first_key_is_there(host, source, monkeypatch):
    def rename(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="no space"):
        host.call("seed_keys")
    assert set(seeds(host)["keys"]) == set(ALL)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("origin", "address", "source_id"),
    [
        ("saltm1", "192.0.2.99", "saltm1"),
        ("saltm1_master", "192.0.2.99", "saltm1"),
        ("oldhost_master", "192.0.2.3", "saltm3"),
        ("oldhost_master", "192.0.2.99", ""),
        # Its own: the address is another master's, then.
        ("oldhost_master", "192.0.2.2", ""),
    ],
)
def test_the_master_that_the_keys_come_from_is_found_among_the_declared(
    host, source, origin, address, source_id, monkeypatch
):
    masters = [{"id": f"saltm{n}", "address": f"192.0.2.{n}"} for n in (1, 2, 3)]
    source.opts["id"] = origin
    monkeypatch.setitem(
        host.modules["multimaster.seed_keys"].func.__globals__["__opts__"],
        "master_ip",
        address,
    )
    options = {"id": ID, "multimaster": {"masters": masters}}
    host.call("seed_keys", options=options)
    assert seeds(host)["source"] == source_id


def test_the_state_names_some_of_many_and_what_was_left(host, source, minion_keys, other):
    for number in range(20):
        source.put(f"db{number:02}", minion_keys["web1"].pub)
    (source.pki / "minions/rubbish").write_text("rubbish")
    host.accept({"web1": other.pub})
    arguments = {
        "declaration": {
            "masters": [{"id": f"saltm{n}", "address": f"192.0.2.{n}"} for n in (1, 2)]
        },
        "config_dir": str(host.config_dir),
        "extension_dir": f"{host.root}/var/lib/multimaster",
    }
    done = host.state("keys_seeded", "multimaster", **arguments)
    assert done.result is True
    named = ", ".join(f"db{number:02}" for number in range(10))
    assert done.changes == {"accepted": f"22 ({named} and 12 more)", "rejected": "1 (web2)"}
    assert done.comment == "25 keys came from oldmaster_master"
    assert done.warnings == [
        "No usable key is under 1 (rubbish)",
        "Left alone: 1 (web1 is accepted here with another key)",
    ]


# Pure


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_a_seed_that_was_decided_on_stays_and_one_that_was_not_goes(verdict):
    key = ledger.Key("accepted", "f1")
    decision = ledger.Decision("web1", "f1", verdict, ledger.BEFORE, "saltm1", "PEM")
    assert ledger.settle("web1", "f1", {}, key).verb == "delete"
    assert ledger.settle("web1", "f1", {"f1": decision}, key).verb == (
        "none" if verdict == "accepted" else "reject"
    )
    gone = ledger.Decision("web1", "f1", "deleted", ledger.BEFORE, "saltm1")
    assert ledger.settle("web1", "f1", {"f1": gone}, key).verb == "delete"
    # Another key was decided on: this one was deleted before.
    successor = ledger.Decision("web1", "f2", "accepted", ledger.BEFORE, "saltm1", "PEM")
    assert ledger.settle("web1", "f1", {"f2": successor}, key).verb == "delete"


@pytest.mark.parametrize("found", [None, ledger.Key("pending", "f1"), ledger.Key("accepted", "f9")])
def test_what_somebody_has_put_in_a_seeds_place_stays(found):
    assert ledger.settle("web1", "f1", {}, found).verb == "none"


def test_digests_tell_ids_and_states_apart():
    states = [
        {},
        {"a": "accepted"},
        {"a": "rejected"},
        {"b": "accepted"},
        {"a": "accepted", "b": "accepted"},
    ]
    assert len({keypair.digest_of(one) for one in states}) == len(states)
    both = {"a": "accepted", "b": "rejected"}
    assert keypair.digest_of(both) == keypair.digest_of(dict(reversed(both.items())))
