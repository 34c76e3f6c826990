"""The execution module on a real host: key store, configuration files, processes, connections."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import grp
import json
import os
import pwd
import secrets
import socket
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from unit.odd_keys import NAMES, odd

ID = "saltm2"
REQUESTS = "var/cache/salt/minion/multimaster/restarts/salt-minion"


def refused(host, words, function, *args, **kwargs):
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match=words):
        host.call(function, *args, **kwargs)


def run_daemon(host, role, argv=()):
    """This process stands in for the daemon, or a new one: only its pid and start are looked at."""
    process = subprocess.Popen(argv) if argv else None
    host.write(f"var/run/salt-{role}.pid", str(process.pid if process else os.getpid()))
    return process


@contextlib.contextmanager
def listening(address):
    with socket.create_server((address, 0)) as server:
        yield server.getsockname()[1]


# Decisions on keys, for other masters


@pytest.mark.usefixtures("offer")
class TestLedger:
    @pytest.fixture
    def book(self, host):
        """The ledger of this host's master, as its engine makes it."""
        import multimaster_ledger

        host.call("install_keypair")
        directory = host.root / "var/cache/salt/master/multimaster"
        with multimaster_ledger.Ledger(str(directory / "ledger.db")) as book:
            yield book

    def decide(self, book, name, pub="PEM"):
        return book.decide(name, "f" * 64, "accepted", ID, pub, "here")

    def test_is_told_signed_with_the_shared_key(self, host, shared, book):
        import multimaster_keypair
        import multimaster_ledger

        decision = self.decide(book, "web1")
        reply = host.call("ledger_pull", "saltm3", "nonce")
        answer = reply["answer"]
        multimaster_keypair.verify_answer(answer, "nonce", reply["signature"], shared.pub)
        assert (answer["origin"], answer["asker"]) == (ID, "saltm3")
        assert answer["place"] == answer["end"]
        assert (answer["epoch"], answer["digest"]) == (book.epoch, book.digest)
        assert multimaster_ledger.unpack(answer["decisions"]) == [decision]
        assert not shared.shows_in(repr(reply))

    def test_is_settled_once_it_is_complete_and_no_seed_is_in_doubt(self, host, book):
        def settled():
            return host.call("ledger_pull", "saltm3", "nonce")["answer"]["settled"]

        self.decide(book, "web1")
        # The engine has not looked at all keys yet.
        assert settled() is False
        book.completed()
        assert settled() is True
        seeds = host.write("var/cache/salt/master/multimaster/seeds.json", '{"keys": {"a": "f"}}')
        assert settled() is False
        assert host.call("key_digest")["provisional"] == 1
        seeds.unlink()
        assert settled() is True
        assert host.call("key_digest")["provisional"] == 0

    def test_is_told_from_where_the_asker_was(self, host, book):
        import multimaster_ledger

        self.decide(book, "web1")
        place = host.call("ledger_pull", "saltm3", "nonce")["answer"]["place"]
        second = self.decide(book, "web2")
        answer = host.call("ledger_pull", "saltm3", "nonce", book.epoch, place)["answer"]
        assert multimaster_ledger.unpack(answer["decisions"]) == [second]
        # And what was decided last before and last now, so that it knows its own past again.
        assert (answer["before"], answer["mark"]) == (book.mark(place), book.mark(book.end))
        assert len({answer["before"], answer["mark"], ""}) == 3
        # Unless that was another ledger.
        answer = host.call("ledger_pull", "saltm3", "nonce", "another", place)["answer"]
        assert len(multimaster_ledger.unpack(answer["decisions"])) == 2

    def test_is_not_told_to_one_who_knows_it_all(self, host, book):
        import multimaster_ledger

        self.decide(book, "web1")
        answer = host.call("ledger_pull", "saltm3", "nonce", "", 0, book.digest)["answer"]
        assert multimaster_ledger.unpack(answer["decisions"]) == []
        assert answer["place"] == answer["end"] == book.end

    def test_is_told_in_answers_that_the_event_bus_takes(self, host, book):
        import salt.config
        import salt.payload

        # As long as the PEM of a key of 4096 bits, and as hard to compress.
        for number in range(1100):
            self.decide(book, f"minion-{number}.example.com", secrets.token_urlsafe(600))
        reply = host.call("ledger_pull", "saltm3", "nonce")
        assert reply["answer"]["place"] < reply["answer"]["end"]
        limit = salt.config.DEFAULT_MASTER_OPTS["max_event_size"]
        assert len(salt.payload.dumps(reply)) < limit

    def test_is_told_whatever_the_texts_of_keys_are_in_answers_that_the_bus_takes(self, host, book):
        import salt.config

        import multimaster_ledger

        # As long as a text can be, and as hard to compress; one as an older release kept it, and
        # one that a bad disk has changed.
        for number in range(60):
            self.decide(book, f"web{number}", secrets.token_urlsafe(12_000))
        self.decide(book, "huge", secrets.token_urlsafe(900_000))
        self.decide(book, "bad", "PEM")
        book._db.execute("UPDATE decision SET verdict = 'excepted' WHERE id = 'bad'")
        self.decide(book, "last", "PEM")
        found, place, end = {}, 0, 1
        while place < end:
            reply = host.call("ledger_pull", "saltm3", "nonce", book.epoch, place)["answer"]
            assert reply["place"] > place
            place, end = reply["place"], reply["end"]
            assert len(reply["decisions"]) < salt.config.DEFAULT_MASTER_OPTS["max_event_size"] / 2
            found |= {one.id: one.pub for one in multimaster_ledger.unpack(reply["decisions"])}
        assert set(found) == {*(f"web{number}" for number in range(60)), "huge", "last"}
        assert found["huge"] == ""

    def test_is_not_told_by_a_host_without_a_pair(self, host):
        refused(host, "no master's key pair on saltm2", "ledger_pull", "saltm3", "nonce")

    def test_that_is_not_there_yet_is_said_so_signed(self, host, shared):
        import multimaster_keypair

        host.call("install_keypair")
        reply = host.call("ledger_pull", "saltm3", "nonce")
        multimaster_keypair.verify_answer(reply["answer"], "nonce", reply["signature"], shared.pub)
        assert reply["answer"] == {"origin": ID, "asker": "saltm3", "epoch": None}

    def test_is_what_the_history_comes_from(self, host, book):
        self.decide(book, "web1")
        (entry,) = host.call("key_history", "web1")
        assert (entry["verdict"], entry["origin"], entry["via"]) == ("accepted", ID, "here")
        assert host.call("key_history", "web2") == []

    def test_is_where_the_status_finds_what_the_engine_has_set_aside(self, host, book):
        book.put_aside({f"web{number}": "no space" for number in range(30)})
        aside = host.call("key_digest")["aside"]
        assert aside["web0"] == "no space"
        assert (len(aside), aside["..."]) == (21, "10 more")

    def propose(self, book, *names):
        for name in names:
            book.decide(name, "f" * 64, "deletion proposed", "saltm1", "PEM", "here")

    def test_is_where_the_status_finds_what_is_proposed(self, host, book):
        assert host.call("key_digest")["proposed"] == []
        self.propose(book, *(f"web{number}" for number in range(30)))
        (group,) = host.call("key_digest")["proposed"]
        assert (group["verdict"], group["origin"]) == ("deletion proposed", "saltm1")
        assert (group["count"], len(group["ids"])) == (30, 20)
        assert 0 < group["since"] <= group["until"]

    # As in the class below.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("test", [True, False])
    @pytest.mark.parametrize(
        ("verb", "becomes"), [("confirm", "deleted"), ("take_back", "accepted")]
    )
    def test_is_what_the_engine_settles_when_it_is_told_to(self, host, book, verb, becomes, test):
        self.propose(book, "web1", "web2", "db1", "5")
        found = host.call("key_settle", verb, ["web*", 5], test)
        assert found["count"] == 3
        assert found["keys"]["web1"]["recorded"] > 0
        assert sorted(found["keys"]) == ["5", "web1", "web2"]
        row = found["keys"]["web1"]
        assert (row["proposed"], row["origin"]) == ("deletion proposed", "saltm1")
        assert row["becomes"] == becomes
        left = list((host.root / "var/cache/salt/master/multimaster").glob("settle-*"))
        if test:
            assert left == []
        else:
            (path,) = left
            wanted = [[name, "f" * 64] for name in ("5", "web1", "web2")]
            assert json.loads(path.read_text()) == [verb, wanted]

    def test_of_which_nothing_is_proposed_is_not_settled(self, host, book):
        refused(host, "supported: none is proposed", "key_settle", "confirm", ["*"])
        self.propose(book, "web1")
        refused(host, "ids: got db1; .*matches one of 1: web1", "key_settle", "confirm", ["db1"])
        refused(host, "verb: got 'x'", "key_settle", "x", ["*"])
        refused(host, "ids: got 'web1'", "key_settle", "confirm", "web1")
        refused(host, r"ids: got \[\]", "key_settle", "confirm", [])

    @pytest.fixture
    def decided(self, host, book, minion_keys):
        """Have a key accepted by decision and there; return its fingerprint."""
        import multimaster_keypair
        import multimaster_ledger

        pub = minion_keys["web1"].pub
        host.accept({"web1": pub})
        fingerprint = multimaster_keypair.fingerprint(pub)
        book.decide("web1", fingerprint, "accepted", ID, pub, "here")
        book.note({"web1": multimaster_ledger.key("accepted", fingerprint)})
        book.completed()
        return fingerprint

    def test_is_compared_with_what_is_in_the_key_store(self, host, book, decided, other):
        import multimaster_keypair

        def astray():
            return host.call("key_digest")["astray"]

        assert astray() == {}
        # An engine that cannot write has noted nothing else than what is there.
        second = multimaster_keypair.fingerprint(other.pub)
        book.decide("web2", second, "accepted", "saltm1", other.pub, "saltm1")
        assert astray() == {"web2": "missing, and decided: accepted"}
        book.decide("web1", decided, "deleted", "saltm1", "", "saltm1")
        assert astray()["web1"] == "accepted, and decided: deleted"
        book.decide("web1", second, "accepted", "saltm1", other.pub, "saltm1")
        assert astray()["web1"] == "accepted with another key, and decided: accepted"
        book.decide("web1", second, "rejected", "saltm1", other.pub, "saltm1")
        host.accept({"web1": other.pub})
        assert astray()["web1"] == "accepted, and decided: rejected"
        # What no engine has recorded.
        host.accept({"web3": other.pub})
        assert astray()["web3"] == "accepted, and not decided on"

    @pytest.mark.parametrize("why", ["early", "seeds", "proposed here", "conflict", "pending"])
    def test_that_is_not_all_of_it_is_compared_with_nothing(
        self, host, book, decided, other, minion_keys, why
    ):
        import multimaster_keypair
        import multimaster_ledger

        found = multimaster_keypair.fingerprint(other.pub)
        if why == "early":
            book._set("complete", False)
            host.accept({"web2": other.pub})
        elif why == "seeds":
            host.accept({"web2": other.pub})
            seeds = json.dumps({"source": "saltm1", "keys": {"web2": found}})
            host.write("var/cache/salt/master/multimaster/seeds.json", seeds)
        elif why == "proposed here":
            # With what an engine remembers of it, and one that was stopped before it could.
            pub = minion_keys["web1"].pub
            for name in ("web1", "web2"):
                book.decide(name, decided, "deletion proposed", ID, pub, "here")
            book.note({"web1": multimaster_ledger.key("deleted", decided)})
            (host.pki / "minions/web1").unlink()
        elif why == "conflict":
            book.decide("web1", found, "accepted", "saltm1", other.pub, "saltm1")
        else:
            host.accept({"web2": other.pub}, "minions_pre")
        assert host.call("key_digest")["astray"] == {}

    def test_of_many_keys_that_are_otherwise_than_decided_some_are_named(self, host, book, decided):
        for number in range(30):
            book.decide(f"web{number + 10}", "f" * 64, "accepted", "saltm1", "PEM", "saltm1")
        astray = host.call("key_digest")["astray"]
        assert (len(astray), astray["..."]) == (21, "10 more")

    @pytest.mark.parametrize("fault", ["read-only", "another user's", "full"])
    def test_whether_keys_can_be_written_is_told(self, host, decided, monkeypatch, fault):
        assert "unwritable" not in host.call("key_digest")
        path = f"{host.pki}/minions"
        real = os.statvfs(path)

        def statvfs(path):
            changed = {"f_flag": real.f_flag | os.ST_RDONLY} if fault == "read-only" else {}
            changed |= {"f_bavail": 0, "f_bfree": 0} if fault == "full" else {}
            names = ("f_flag", "f_bavail", "f_bfree", "f_files", "f_favail", "f_ffree")
            return SimpleNamespace(**{n: changed.get(n, getattr(real, n)) for n in names})

        monkeypatch.setattr(os, "statvfs", statvfs)
        access = os.access
        monkeypatch.setattr(
            os, "access", lambda *args, **flags: fault == "full" if flags else access(*args)
        )
        why = {
            "read-only": "read-only file system",
            "full": "no space left",
            "another user's": f"not writable for {getpass.getuser()}",
        }[fault]
        assert host.call("key_digest")["unwritable"] == f"{path}: {why}"

    def test_a_file_that_salt_has_not_finished_is_no_minions_key(self, host, book, decided, other):
        import salt.cache
        import salt.config

        import multimaster_gather

        host.accept({"tmpab_123cd": "", "tmpab_123ce": other.pub})
        opts = salt.config.master_config(str(host.config_dir / "master"))

        def counted():
            return (
                host.call("key_digest")["counts"]["accepted"],
                set(host.call("key_states")),
                set(host.call("report")["accepted"]),
                multimaster_gather.accepted(opts),
            )

        assert host.call("key_digest")["astray"] == {}
        assert counted() == (1, {"web1"}, {"web1"}, {"web1"})
        # A minion may be called so, and has been here then.
        salt.cache.factory(opts).store("grains", "tmpab_123ce", {"os": "Debian"})
        both = {"web1", "tmpab_123ce"}
        assert counted() == (2, both, both, both)

    def test_is_in_the_report(self, host, book):
        self.decide(book, "web1")
        book.decide("web1", "0" * 64, "rejected", ID, "PEM", "here")
        report = host.call("report")
        assert (report["digest"], report["conflicts"]) == (book.digest, ["web1"])


@pytest.mark.usefixtures("offer")
class TestKeyDecide:
    @pytest.fixture
    def fingerprint(self, host, minion_keys):
        import multimaster_keypair

        host.call("install_keypair")
        host.accept({"web1": minion_keys["web1"].pub}, "minions_pre")
        return multimaster_keypair.fingerprint(minion_keys["web1"].pub)

    def test_states_have_fingerprints(self, host, fingerprint):
        assert host.call("key_states", "web*") == {
            "web1": {"state": "pending", "fingerprint": fingerprint}
        }
        assert host.call("key_states", "db*") == {}

    def test_states_come_in_pages(self, host, fingerprint, minion_keys):
        import multimaster_ledger

        host.accept({"db1": minion_keys["web1"].pub, "web2": minion_keys["web1"].pub})

        def page(*args):
            return list(multimaster_ledger.unsqueeze(host.call("key_page", *args)))

        assert page("*", "", 2) == ["db1", "web1"]
        assert page("*", "web1", 2) == ["web2"]
        assert page("web*", "db1", 1) == ["web1"]
        whole = multimaster_ledger.unsqueeze(host.call("key_page", "*", "", 9))
        assert whole == host.call("key_states")

    def test_a_page_of_the_longest_ids_is_cut_and_says_so(self, host, fingerprint, minion_keys):
        import multimaster_ledger

        # Whoever knocks chooses an id; so many that the text is longer than half of what is let by.
        names = {secrets.token_hex(127) for _ in range(4000)}
        host.accept(dict.fromkeys(names, minion_keys["web1"].pub), "minions_pre")
        found, after, more = [], "", True
        while more:
            text = host.call("key_page", "*", after, 8000)
            assert len(text) <= 1 << 19
            page = multimaster_ledger.unsqueeze(text)
            more = page.pop("", None)
            found += page
            after = max(page)
        assert sorted(found) == sorted({*names, "web1"})

    @pytest.mark.parametrize("state", ["minions", "minions_pre", "minions_rejected"])
    def test_a_denied_key_under_an_id_changes_nothing_of_its_own(
        self, host, fingerprint, other, minion_keys, state
    ):
        import multimaster_keypair

        (host.pki / "minions_pre/web1").unlink()
        host.accept({"web1": minion_keys["web1"].pub}, state)
        before = host.call("key_states")
        assert before["web1"]["fingerprint"] == fingerprint
        counts = host.call("key_digest")["counts"]
        host.accept({"web1": other.pub}, "minions_denied")
        denied = [multimaster_keypair.fingerprint(other.pub)]
        assert host.call("key_states") == {"web1": {**before["web1"], "denied": denied}}
        assert host.call("key_digest")["counts"] == {**counts, "denied": 1}
        verdict = "accept" if state == "minions_rejected" else "reject"
        assert host.call("key_decide", verdict, "web1", fingerprint, test=True)["changed"] is True

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_a_decision_by_the_real_fingerprint_holds_though_there_is_a_denied_key(
        self, host, fingerprint, other
    ):
        import multimaster_keypair

        denied = [multimaster_keypair.fingerprint(other.pub)]
        host.accept({"web1": other.pub}, "minions_denied")
        for verb, state in (("accept", "accepted"), ("reject", "rejected"), ("accept", "accepted")):
            assert host.call("key_decide", verb, "web1", fingerprint)["changed"] is True
            own = {"state": state, "fingerprint": fingerprint, "denied": denied}
            assert host.call("key_states")["web1"] == own
        # What `resolve` has every master do: the key that stays is not the intruder's.
        for test in (True, False):
            done = host.call("key_decide", "only", "web1", fingerprint, test=test)
            assert (done["changed"], done["was"]) == (True, "minions_denied")
            assert (host.pki / "minions_denied/web1").exists() is test
        assert host.call("key_decide", "only", "web1", fingerprint)["changed"] is False
        assert host.accepted() == {"web1"}

    def test_a_name_that_leads_elsewhere_is_no_id(self, host, fingerprint, minion_keys):
        host.write("etc/salt/pki/master/minions_denied/kept", minion_keys["web1"].pub)
        outside = host.write("etc/salt/pki/elsewhere", minion_keys["web1"].pub)
        for name in ("../../elsewhere", "../minions_denied/kept", str(outside), ".", ""):
            refused(host, "supported: a minion id", "key_decide", "delete", name, fingerprint)
        assert outside.exists()

    def test_a_denied_key_is_deleted_alone(self, host, fingerprint, other):
        import multimaster_keypair

        host.accept({"web1": other.pub, "web2": other.pub}, "minions_denied")
        assert host.call("key_states", "web2")["web2"]["state"] == "denied"
        wrong = multimaster_keypair.fingerprint(other.pub)
        refused(
            host, f"has {fingerprint}, and denied {wrong}", "key_decide", "accept", "web1", wrong
        )
        for name in ("web1", "web2"):
            done = host.call("key_decide", "delete", name, wrong[:16])
            assert (done["changed"], done["was"]) == (True, "minions_denied")
        assert host.call("key_states") == {"web1": {"state": "pending", "fingerprint": fingerprint}}
        assert not list((host.pki / "minions_denied").iterdir())

    def test_which_key_is_denied_under_whose_id_is_told(self, host, fingerprint, other):
        import multimaster_keypair
        import multimaster_ledger

        wrong = multimaster_keypair.fingerprint(other.pub)
        assert host.call("key_digest")["refused"] == {}
        host.accept({"web1": other.pub, "web2": other.pub}, "minions_denied")
        assert host.call("key_digest")["refused"] == {
            "web1": {"denied": wrong, "state": "pending", "fingerprint": fingerprint},
            "web2": {"denied": wrong, "state": None, "fingerprint": None},
        }
        assert host.call("key_states", "web1") == {
            "web1": {"state": "pending", "fingerprint": fingerprint, "denied": [wrong]}
        }
        page = multimaster_ledger.unsqueeze(host.call("key_page", "*", "", 9))
        assert page == host.call("key_states")

    def test_a_denied_key_is_cleared_and_no_other_one(self, host, fingerprint, other):
        import multimaster_keypair

        wrong = multimaster_keypair.fingerprint(other.pub)
        nothing = {"changed": False, "found": fingerprint}
        # Not the key that is in use, nor what is not there.
        assert host.call("key_decide", "clear", "web1", fingerprint) == nothing
        assert host.call("key_decide", "clear", "web1", wrong) == nothing
        host.accept({"web1": other.pub}, "minions_denied")
        done = host.call("key_decide", "clear", "web1", wrong[:16], test=True)
        assert (done["changed"], done["was"]) == (True, "minions_denied")
        assert (host.pki / "minions_denied/web1").exists()
        assert host.call("key_decide", "clear", "web1", wrong[:16]) == done
        assert not (host.pki / "minions_denied/web1").exists()
        assert host.call("key_states")["web1"]["fingerprint"] == fingerprint

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("name", NAMES)
    def test_whatever_is_in_a_file_can_be_named_and_deleted(self, host, fingerprint, other, name):
        (host.pki / "minions_pre/web2").write_bytes(odd(other.pub)[name])
        found = host.call("key_states")
        assert found["web1"]["fingerprint"] == fingerprint
        assert host.call("key_decide", "delete", "web2", found["web2"]["fingerprint"])["changed"]
        assert set(host.call("key_states")) == {"web1"}

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_what_salt_cannot_do_is_not_said_to_be_done(self, host, fingerprint, other):
        (host.pki / "minions_pre/web2").write_bytes(odd(other.pub)["another letter"])
        found = host.call("key_states")["web2"]["fingerprint"]
        refused(host, "Salt cannot accept this key", "key_decide", "accept", "web2", found)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_does_what_is_asked_once(self, host, fingerprint):
        before = host.files()
        planned = host.call("key_decide", "accept", "web1", fingerprint, test=True)
        assert (planned["changed"], host.files()) == (True, before)
        for verb, state in (("accept", "accepted"), ("reject", "rejected"), ("accept", "accepted")):
            assert host.call("key_decide", verb, "web1", fingerprint[:16])["changed"] is True
            assert host.call("key_states", "web1")["web1"]["state"] == state
            assert host.call("key_decide", verb, "web1", fingerprint)["changed"] is False
        assert host.call("key_decide", "only", "web1", fingerprint)["changed"] is False
        assert host.call("key_decide", "only", "web1", "0" * 64)["changed"] is True
        assert host.call("key_states", "web1") == {}

    @pytest.mark.parametrize(
        ("verdict", "name", "wrong", "message"),
        [
            ("approve", "web1", "0" * 64, "verdict: got 'approve'; supported: accept, reject"),
            ("accept", "web1", "0" * 64, "this master has "),
            ("accept", "web1", "", "supported: 16 hexadecimal digits or more"),
            ("accept", "web1", "0123", "supported: 16 hexadecimal digits or more"),
            ("accept", "web1", 1234567812345678, "supported: 16 hexadecimal digits or more"),
            ("delete", "web2", "0" * 64, "this master has no key"),
        ],
    )
    def test_refuses_another_key(self, host, fingerprint, verdict, name, wrong, message):
        before = host.files()
        refused(host, message, "key_decide", verdict, name, wrong)
        assert host.files() == before


# Configuration


def taken(host, role, options):
    """What a role's options would be, as the states take them."""
    found = {}
    host.call("check_config", role, options, take=found.update)
    return found


class TestCheckConfig:
    @pytest.mark.parametrize("role", ["minion", "master"])
    def test_returns_main_file_and_drop_ins_together(self, host, role):
        host.write(f"etc/salt/{role}.d/a.conf", {"log_level": "debug"})
        options = taken(host, role, {"timeout": 7})
        assert options["root_dir"] == str(host.root)
        assert options["log_level"] == "debug"
        assert options["timeout"] == 7

    def test_gives_secrets_to_its_own_process_and_to_nobody_who_calls_it_from_elsewhere(self, host):
        secret = [{"vault": {"token": "hunter2"}}]
        host.write("etc/salt/master.d/a.conf", {"ext_pillar": secret})
        assert "hunter2" not in repr(host.call("check_config", "master", {"timeout": 7}))
        found = {}
        given = host.call("check_config", "master", {"timeout": 7}, take=found.update)
        assert found["ext_pillar"] == secret
        assert "hunter2" not in repr(given)
        # What Salt can bring here from a command line, or from another host.
        for word in (True, "print", 1, ["x"], {"x": 1}):
            refused(host, "take: got ", "check_config", "master", {"timeout": 7}, take=word)
        with pytest.raises(TypeError):
            host.call("check_config", "master", {"timeout": 7}, raw=True)

    def test_quotes_no_secret_where_salt_fails(self, host, monkeypatch):
        def fail(*_, **__):
            raise ValueError("gitfs_remotes: https://me:hunter2@h/a, {'password': 'hunter2'}")

        host.write("etc/salt/master.d/a.conf", {"timeout": 5})
        monkeypatch.setattr("salt.config.apply_master_config", fail)
        monkeypatch.setitem(
            host.modules["multimaster.check_config"].func.__globals__,
            "ROLES",
            {"master": (fail, "SALT_MASTER_CONFIG")},
        )
        from salt.exceptions import CommandExecutionError

        with pytest.raises(CommandExecutionError, match="cannot parse") as err:
            host.call("check_config", "master", {"timeout": 7})
        assert "hunter2" not in str(err.value)

    @pytest.mark.parametrize("role", ["minion", "master"])
    def test_puts_the_new_drop_in_in_place_of_the_old_one(self, host, role):
        host.write(f"etc/salt/{role}.d/multimaster.conf", {"timeout": 1, "log_level": "debug"})
        assert "log_level" not in taken(host, role, {"timeout": 7})
        assert "timeout" not in host.call("check_config", role, None)

    def test_takes_a_host_without_any_configuration(self, host):
        (host.config_dir / "master").unlink()
        assert taken(host, "master", {"timeout": 7})["timeout"] == 7

    @pytest.mark.parametrize(
        ("role", "name", "content"),
        [
            ("minion", "zz.conf", {"master": "192.0.2.9"}),
            ("master", "zz.conf", {"id": "mine"}),
            # Two lists would be one list of both.
            ("minion", "aa.conf", {"master": ["192.0.2.9"]}),
        ],
        ids=["minion", "master", "lists"],
    )
    def test_names_an_option_that_another_file_sets_too(self, host, role, name, content):
        host.write(f"etc/salt/{role}.d/{name}", content)
        options = {"master": ["192.0.2.1", "192.0.2.2"]} if role == "minion" else {"id": ID}
        (option,) = content
        refused(host, f"another file also sets '{option}'", "check_config", role, options)

    @pytest.mark.parametrize("role", ["minion", "master"])
    @pytest.mark.parametrize("path", ["", ".d/a.conf"], ids=["main file", "drop-in"])
    def test_names_a_configuration_that_does_not_parse(self, host, role, path):
        host.write(f"etc/salt/{role}{path}", "a: [1\nb: }")
        refused(host, f"cannot parse the {role} configuration", "check_config", role, {"x": 1})

    def test_changes_nothing_and_leaves_nothing(self, host, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        host.write("etc/salt/minion.d/multimaster.conf", {"timeout": 1})
        before = host.files()
        host.call("check_config", "minion", {"timeout": 7})
        assert host.files() == before
        assert not list(tmp_path.iterdir())


def test_a_daemon_runs_with_its_users_group(host):
    user = pwd.getpwnam(getpass.getuser())
    assert host.call("daemon_group", "master") == grp.getgrgid(user.pw_gid).gr_name


# Restarts


class TestStale:
    @pytest.mark.parametrize("service", ["salt-minion", "salt-master"])
    def test_names_files_that_are_newer_than_the_daemon(self, host, service):
        import psutil

        run_daemon(host, service.removeprefix("salt-"))
        started = psutil.Process().create_time()
        old, new = host.write("var/old", "x"), host.write("var/[new]", "x")
        os.utime(old, (started - 10, started - 10))
        os.utime(new, (started + 10, started + 10))
        paths = [str(old), str(new), str(host.root / "var/missing")]
        assert host.call("stale", service, paths) == [str(new)]
        assert host.call("stale", service, [str(host.root / "var/[o[]*")]) == [str(new)]

    @pytest.mark.parametrize("pid", [None, "", "nonsense", "999999999"], ids=repr)
    def test_is_nothing_without_a_daemon(self, host, pid):
        if pid is not None:
            host.write("var/run/salt-minion.pid", pid)
        new = host.write("var/new", "x")
        assert host.call("stale", "salt-minion", [str(new)]) == []


class TestRestart:
    @pytest.fixture(autouse=True)
    def log_dir(self, host):
        (host.root / "var/log/salt").mkdir(parents=True)

    def test_waits_for_the_calling_job_outside_the_daemons_tree(self, host, commands):
        import salt.payload

        job = {"pid": os.getpid(), "jid": "20260101000000000000"}
        path = host.write("var/cache/salt/minion/proc/20260101000000000000", "")
        path.write_bytes(salt.payload.dumps(job))
        assert host.call("restart", "salt-minion", timeout=9) is True
        ((*detached, python, program), options) = commands[0][:4], commands[0][4:]
        assert detached == ["setsid", "--fork"]
        assert Path(python).name.startswith("python")
        assert Path(program).name == "multimaster_restart.py"
        told = json.loads((host.root / REQUESTS / "20260101000000000000").read_text())
        assert (told["jid"], told["job"][0], told["timeout"]) == (job["jid"], os.getpid(), 9)
        assert f"--pidfile={host.root}/var/run/salt-minion.pid" in options
        assert not any(option.startswith("--master-config") for option in options)

    @pytest.mark.parametrize("name", ["..", ".", "", "../../x", "/etc", "a/b", ".lock", "a\0b"])
    def test_leads_nowhere_else_by_the_name_of_a_service(self, host, commands, name):
        kept = host.write("var/cache/salt/minion/multimaster/kept", "x")
        for function in ("restart", "outstanding", "withdraw"):
            refused(host, "service: got .*the name of a service", function, name)
        assert kept.exists()
        assert commands == []

    def test_of_a_master_waits_for_the_returns_of_its_job_too(self, host, commands):
        host.call("restart", "salt-master")
        assert f"--pidfile={host.root}/var/run/salt-master.pid" in commands[0]
        assert f"--master-config={host.config_dir}/master" in commands[0]

    def test_logs_into_a_private_file_and_through_no_link(self, host, commands):
        log, victim = host.root / "var/log/salt/multimaster-restart.log", host.root / "var/victim"
        victim.write_text("kept")
        log.symlink_to(victim)
        host.call("restart", "salt-minion")
        assert victim.read_text() == "kept"
        assert (log.is_symlink(), log.stat().st_mode & 0o777) == (False, 0o600)

    def test_under_systemd_is_a_unit_of_its_own(self, host, commands, monkeypatch):
        monkeypatch.setattr("salt.utils.systemd.booted", lambda context: True)
        host.call("restart", "salt-minion")
        assert commands[0][0] == "systemd-run"

    def test_passes_everything_as_a_list(self, host, commands):
        host.call("restart", "salt-minion; reboot")
        assert "--service=salt-minion; reboot" in commands[0]
        refused(host, "the name of a service", "restart", "../../salt-minion")

    def test_that_cannot_be_started_is_an_error(self, host, monkeypatch):
        monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: SimpleNamespace(returncode=1))
        refused(host, "cannot restart salt-minion", "restart", "salt-minion")

    def test_is_outstanding_until_there_is_another_daemon(self, host, commands):
        first = run_daemon(host, "minion", ["sleep", "1000"])
        assert host.call("outstanding", "salt-minion") is False
        host.call("restart", "salt-minion")
        assert host.call("outstanding", "salt-minion") is True
        told = host.call("masters")["restarts"]["salt-minion"]
        assert (told["timeout"], told["waiting"]) == (600, "nobody yet")
        first.kill()
        first.wait()
        assert host.call("outstanding", "salt-minion") is True
        run_daemon(host, "minion")
        assert host.call("outstanding", "salt-minion") is False
        assert host.call("masters")["restarts"] == {}

    def test_that_nobody_works_on_is_taken_up(self, host, commands):
        run_daemon(host, "minion")
        host.call("restart", "salt-minion")
        assert host.call("resume") == ["salt-minion"]
        assert len(commands) == 2
        with open(host.root / REQUESTS / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert host.call("resume") == []

    def test_that_was_served_by_somebody_else_leaves_nothing_behind(self, host, commands):
        # Or the engine would look at it for ever.
        host.call("restart", "salt-minion")
        run_daemon(host, "minion")
        assert host.call("resume") == []
        assert list((host.root / REQUESTS).glob("[!.]*")) == []

    def test_is_to_come_though_the_minion_has_gone_back_from_a_cut_over(self, host, commands):
        # It may wait for its new masters for ever.
        run_daemon(host, "minion")
        journal = {"serial": "1", "since": 1, "drop_in": "x", "masters": 1, "old": []}
        path = host.write(TestCutOver.JOURNAL, "")
        path.write_text(json.dumps(journal | {"step": "proving", "back": False}))
        host.call("restart", "salt-minion")
        assert host.call("outstanding", "salt-minion") is False
        path.write_text(json.dumps(journal | {"step": "proving", "back": True}))
        host.call("restart", "salt-minion")
        assert host.call("outstanding", "salt-minion") is True
        del commands[:]
        with open(f"{path}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert host.call("resume") == ["salt-minion"]

    def test_is_withdrawn(self, host, commands):
        run_daemon(host, "minion")
        assert host.call("withdraw", "salt-minion") is False
        host.call("restart", "salt-minion")
        assert host.call("withdraw", "salt-minion", test=True) is True
        assert host.call("outstanding", "salt-minion") is True
        assert host.call("withdraw", "salt-minion") is True
        assert host.call("outstanding", "salt-minion") is False

    def test_that_cannot_be_read_is_none(self, host):
        run_daemon(host, "minion")
        for text in ("", "[]", "{}", '{"jid": 1, "job": 0, "daemon": 0}'):
            host.write(f"{REQUESTS}/20261128053135432829", text)
            assert host.call("outstanding", "salt-minion") is False


# Leaving


@pytest.mark.usefixtures("offer")
class TestLeave:
    def test_takes_the_installed_pair_away_after_a_backup(self, host, shared):
        host.call("install_keypair")
        done = host.call("leave")
        assert {Path(path).name for path in done["removed"]} == {
            f"{name}.{suffix}" for name in (ID, "master") for suffix in ("pem", "pub")
        }
        assert not any(os.path.lexists(path) for path in done["removed"])
        backup = Path(done["backup"])
        assert (backup / f"{ID}.pem").read_text() == shared.pem
        assert stat.S_IMODE(backup.stat().st_mode) == 0o700

    def test_says_what_it_would_take_away(self, host):
        host.call("install_keypair")
        before = host.files()
        plan = host.call("leave", test=True)
        assert host.files() == before
        assert plan["removed"] == host.call("leave")["removed"]

    def test_leaves_nothing_to_be_taken_away(self, host):
        host.call("install_keypair")
        host.call("leave")
        assert host.call("leave") == {"removed": []}
        assert host.call("joined_by_us") is False

    def test_keeps_the_pair_of_a_master_that_was_there_before(self, host, shared):
        host.write(f"etc/salt/pki/master/{ID}.pem", shared.pem)
        host.write(f"etc/salt/pki/master/{ID}.pub", shared.pub)
        host.call("install_keypair")
        before = host.files()
        assert host.call("leave") == {"removed": []}
        assert host.files() == before

    def test_touches_nothing_while_the_master_runs(self, host):
        host.call("install_keypair")
        run_daemon(host, "master")
        before = host.files()
        refused(host, "salt-master still runs", "leave")
        assert host.files() == before

    def test_lets_a_master_join_again(self, host):
        host.call("install_keypair")
        host.call("leave")
        assert host.call("install_keypair")["action"] == "write"


# Connections


class TestMasters:
    def test_are_connected_when_the_daemon_is_at_their_publisher(self, host, monkeypatch):
        masters = ["127.0.0.1", "127.0.0.2"]
        host.write("etc/salt/minion.d/multimaster.conf", {"master": masters})
        with listening("127.0.0.1") as port, socket.create_connection(("127.0.0.1", port)):
            run_daemon(host, "minion")
            # What the daemon has read, whatever the files say by now.
            monkeypatch.setitem(host.modules.pack["__opts__"], "publish_port", port)
            found = host.call("masters")
        assert (found["configured"], found["connected"]) == (masters, ["127.0.0.1"])

    def test_are_not_connected_for_what_else_there_is_on_their_hosts(self, host):
        host.write("etc/salt/minion.d/multimaster.conf", {"master": ["127.0.0.1"]})
        with listening("127.0.0.1") as port, socket.create_connection(("127.0.0.1", port)):
            run_daemon(host, "minion")
            assert host.call("masters")["connected"] == []

    def test_are_not_connected_without_a_daemon(self, host):
        host.write("etc/salt/minion.d/multimaster.conf", {"master": "127.0.0.1"})
        found = host.call("masters")
        assert (found["configured"], found["connected"]) == (["127.0.0.1"], [])

    @pytest.mark.parametrize("where", ["__opts__", "__pillar__"])
    @pytest.mark.parametrize(
        ("unmet", "waits"), [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", None), (None, None)]
    )
    def test_have_no_beacons_before_the_first_of_them(self, host, monkeypatch, where, unmet, waits):
        host.write("etc/salt/minion.d/multimaster.conf", {"master": ["127.0.0.1", "127.0.0.2"]})
        if unmet:
            host.write(f"var/cache/salt/minion/multimaster/unmet/{unmet}", "")
        assert host.call("masters")["beacons"] is None
        monkeypatch.setitem(host.modules.pack[where], "beacons", {"load": []})
        assert host.call("masters")["beacons"] == waits

    @pytest.mark.parametrize(
        ("where", "option", "value", "waits"),
        [
            ("__opts__", "beacons_before_connect", True, None),
            ("__pillar__", "beacons", {"load": []}, "127.0.0.1"),
        ],
        ids=["of files", "of the pillar"],
    )
    def test_may_have_beacons_before_a_connection(
        self, host, monkeypatch, where, option, value, waits
    ):
        host.write("etc/salt/minion.d/multimaster.conf", {"master": ["127.0.0.1", "127.0.0.2"]})
        host.write("var/cache/salt/minion/multimaster/unmet/127.0.0.1", "")
        for name, found in {"beacons": {"load": []}, "beacons_before_connect": True}.items():
            monkeypatch.setitem(host.modules.pack["__opts__"], name, found)
        monkeypatch.setitem(host.modules.pack[where], option, value)
        assert host.call("masters")["beacons"] == waits

    def test_have_no_beacons_to_wait_for_one_of_them_at_a_time(self, host, monkeypatch):
        there = {"master": ["127.0.0.1", "127.0.0.2"], "master_type": "failover"}
        host.write("etc/salt/minion.d/multimaster.conf", there)
        # From before it was so.
        host.write("var/cache/salt/minion/multimaster/unmet/127.0.0.1", "")
        monkeypatch.setitem(host.modules.pack["__opts__"], "beacons", {"load": []})
        assert host.call("masters")["beacons"] is None

    def test_are_silent_where_the_engine_says_so(self, host):
        host.write("etc/salt/minion.d/multimaster.conf", {"master": ["127.0.0.1", "127.0.0.2"]})
        host.write("var/cache/salt/minion/multimaster/silent/127.0.0.2", "")
        host.write("var/cache/salt/minion/multimaster/silent/127.0.0.9", "")
        assert host.call("masters")["silent"] == ["127.0.0.2"]


@pytest.fixture
def commands(monkeypatch):
    """What would be run; really run, it would restart this process's service."""
    commands = []
    monkeypatch.setattr(
        "subprocess.run",
        lambda argv, **kwargs: commands.append(argv) or SimpleNamespace(returncode=0),
    )
    # Whatever this machine is.
    monkeypatch.setattr("salt.utils.systemd.booted", lambda context: False)
    return commands


class TestSettings:
    def test_show_value_and_reason_of_every_derived_option(self, host):
        masters = [{"id": "saltm1", "address": "192.0.2.1"}]
        host.modules.pack["__pillar__"]["multimaster"] = {"masters": masters, "minions": 700}
        found = host.call("settings")
        assert found["master"]["value"] == ["192.0.2.1"]
        assert found["recon_max"]["value"] == 1300
        assert "700 minions" in found["recon_max"]["reason"]

    def test_of_an_invalid_declaration_are_refused(self, host):
        host.modules.pack["__pillar__"]["multimaster"] = {"masters": []}
        refused(host, "masters: got", "settings")


class TestCutOver:
    DROP_IN = "etc/salt/minion.d/multimaster.conf"

    def prepare(self, host, options):
        path = str(host.root / self.DROP_IN)
        return host.call("prepare_cut_over", path, options, 1, 600)

    JOURNAL = "var/cache/salt/minion/multimaster/cutover.json"

    def test_is_prepared_for_a_new_configuration_of_a_minion_that_runs(self, host):
        host.write(self.DROP_IN, {"master": ["192.0.2.1"]})
        run_daemon(host, "minion")
        assert self.prepare(host, {"master": ["192.0.2.2"]}) is True
        cutover = host.call("masters")["cutover"]
        assert (cutover["step"], cutover["timeout"]) == ("prepared", 600)
        assert json.loads((host.root / self.JOURNAL).read_text())["old"] == ["192.0.2.1"]

    def test_is_not_needed_without_a_change_or_a_daemon(self, host):
        host.write(self.DROP_IN, {"master": ["192.0.2.1"]})
        assert self.prepare(host, {"master": ["192.0.2.2"]}) is False
        run_daemon(host, "minion")
        assert self.prepare(host, {"master": ["192.0.2.1"]}) is False
        assert host.call("masters")["cutover"] == {}

    def test_of_a_first_drop_in_has_one_with_the_engine_to_go_back_to(self, host):
        run_daemon(host, "minion")
        mine = {"multimaster_minion": {"masters": ["192.0.2.2"], "service": "salt-minion"}}
        assert self.prepare(host, {"master": ["192.0.2.2"], "engines": [{"theirs": {}}, mine]})
        saved = yaml.safe_load((host.root / f"{self.JOURNAL}.old").read_text())
        engine = {"service": "salt-minion", "restart_timeout": 600}
        assert saved == {"engines": [{"theirs": {}}, {"multimaster_minion": engine}]}

    def test_that_went_back_is_forgotten_when_the_old_configuration_is_wanted(self, host):
        host.write(self.DROP_IN, {"master": ["192.0.2.1"]})
        host.write(self.JOURNAL, json.dumps({"step": "proving", "back": True}))
        assert host.call("masters")["cutover"]["back"] is True
        self.prepare(host, {"master": ["192.0.2.1"]})
        assert host.call("masters")["cutover"] == {}

    def test_is_withdrawn(self, host):
        # Or it would put back what clean has removed.
        host.write(self.DROP_IN, {"master": ["192.0.2.1"]})
        run_daemon(host, "minion")
        self.prepare(host, {"master": ["192.0.2.2"]})
        assert host.call("withdraw", "salt-minion", test=True) is True
        assert host.call("masters")["cutover"]["step"] == "prepared"
        assert host.call("withdraw", "salt-minion") is True
        assert host.call("masters")["cutover"] == {}
        assert host.call("withdraw", "salt-minion") is False

    def test_that_was_broken_off_is_taken_up_once(self, host, commands):
        host.write("var/log/salt/minion", "")
        run_daemon(host, "minion")
        assert host.call("resume") == []
        self.prepare(host, {"master": ["192.0.2.2"]})
        # As long as this job, this process, is there to ask for the restart.
        assert host.call("resume") == []
        path = host.root / self.JOURNAL
        path.write_text(json.dumps(json.loads(path.read_text()) | {"job": [2**22 + 1, 1, ""]}))
        assert host.call("resume") == ["salt-minion"]
        (argv,) = commands
        assert Path(argv[3]).name == "multimaster_restart.py"
        assert f"--journal={host.root / self.JOURNAL}" in argv
        with open(host.root / f"{self.JOURNAL}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert host.call("resume") == []


class TestOtherMastersUp:
    def declare(self, host, **masters):
        listed = [{"id": name, "address": address} for name, address in masters.items()]
        host.write("etc/salt/master.d/multimaster.conf", {"multimaster": {"masters": listed}})

    @pytest.fixture
    def says(self, host, monkeypatch):
        """What each master says; the laboratory has real ones."""
        said = {}
        host.modules.pack["__utils__"].get("multimaster_dial.classify")
        monkeypatch.setitem(
            host.modules.pack["__utils__"]._dict,
            "multimaster_dial.classify",
            lambda _, address, __: said[address],
        )
        return said

    def test_are_those_that_let_this_minion_in(self, host, says):
        says |= {"192.0.2.1": "silent", "192.0.2.3": "accepted"}
        self.declare(host, saltm1="192.0.2.1", saltm2="192.0.2.2", saltm3="192.0.2.3")
        assert host.call("other_masters_up") == ["saltm3"]

    def test_are_asked_as_the_daemons_of_this_host_are_configured(self, host, monkeypatch):
        asked = []
        host.modules.pack["__utils__"].get("multimaster_dial.classify")
        monkeypatch.setitem(
            host.modules.pack["__utils__"]._dict,
            "multimaster_dial.classify",
            lambda opts, *_: asked.append(opts["pki_dir"]) or "accepted",
        )
        self.declare(host, saltm1="192.0.2.1")
        host.config_dir.rename(elsewhere := host.config_dir.with_name("daemons"))
        host.write("etc/salt/minion", {"id": "saltm2"})
        assert host.call("other_masters_up", config_dir=str(elsewhere)) == ["saltm1"]
        assert asked == [f"{host.root}/etc/salt/pki/minion"]

    def test_are_none_that_only_take_connections(self, host):
        with listening("127.0.0.1") as port:
            self.declare(host, saltm1="127.0.0.1")
            host.write("etc/salt/minion.d/multimaster.conf", {"master_port": port})
            assert host.call("other_masters_up", timeout=1) == []

    @pytest.mark.parametrize("said", ["pending", "rejected", "foreign key", "refused", "silent"])
    def test_are_none_of_those_that_do_not(self, host, says, said):
        says["192.0.2.1"] = said
        self.declare(host, saltm1="192.0.2.1", saltm2="192.0.2.2")
        assert host.call("other_masters_up") == []

    def test_never_include_this_one(self, host, says):
        says["192.0.2.2"] = "accepted"
        self.declare(host, saltm2="192.0.2.2")
        assert host.call("other_masters_up") == []

    def test_are_none_without_a_declaration(self, host):
        assert host.call("other_masters_up") == []


@pytest.fixture
def masters(host, monkeypatch):
    """Two masters, of which the second answers; what each was asked."""
    asked = []

    def ask(opts, addresses, *arguments):
        asked.append((opts["id"], addresses, *arguments))
        return [address for address in addresses if address == "192.0.2.2"]

    utils = host.modules.pack["__utils__"]
    for name in ("multimaster_dial.tell_each", "multimaster_dial.answering"):
        # Else it is loaded later, over this one.
        utils.get(name)
        monkeypatch.setitem(utils._dict, name, ask)
    host.write(
        "etc/salt/minion.d/masters.conf", {"master": ["192.0.2.1", "192.0.2.2"], "auth_timeout": 7}
    )
    return asked


def test_an_event_is_sent_to_each_configured_master_once(host, masters):
    sent = host.call("event_send", "site/done", {"what": "backup"})
    assert sent == {"192.0.2.1": False, "192.0.2.2": True}
    # As patiently as the minion signs in.
    assert masters == [(ID, ["192.0.2.1", "192.0.2.2"], 7, "site/done", {"what": "backup"})]


def test_an_event_that_no_master_takes_is_an_error(host, masters):
    host.write("etc/salt/minion.d/masters.conf", {"master": "192.0.2.1"})
    refused(host, "no master has taken .*192.0.2.1", "event_send", "site/done")


@pytest.mark.parametrize("data", ["text", 0, ["list"]], ids=repr)
def test_the_data_of_an_event_is_a_mapping(host, masters, data):
    refused(host, "data: got .*; supported: a mapping", "event_send", "site/done", data)
    assert not masters


def test_the_masters_that_are_up_are_told(host, masters):
    assert host.call("up", timeout=3) == ["192.0.2.2"]
    assert masters == [(ID, ["192.0.2.1", "192.0.2.2"], 3)]


def test_names_that_do_not_resolve_are_listed(host, monkeypatch):
    real = socket.getaddrinfo

    def getaddrinfo(name, *args):
        # Instead of a name server's answer.
        if name == "salt.invalid":
            raise socket.gaierror("unknown")
        return real(name, *args)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert host.call("unresolved", ["192.0.2.1", "salt.invalid", "::1"]) == ["salt.invalid"]


# Report and versions


@pytest.mark.usefixtures("offer")
def test_the_report_of_a_stopped_master_has_its_keys_and_no_secret(host, shared, minion_keys):
    import multimaster_keypair

    host.call("install_keypair")
    for where in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        host.accept({f"{where}-1": minion_keys["web1"].pub}, where)
    report = host.call("report")
    assert report["running"] is False
    assert report["fingerprint"] == multimaster_keypair.fingerprint(shared.pub)
    assert report["accepted"] == ["minions-1"]
    assert report["pending"] == ["minions_pre-1"]
    assert report["rejected"] == ["minions_rejected-1"]
    assert report["denied"] == ["minions_denied-1"]
    assert report["answering"] == []
    assert not shared.shows_in(repr(report))


class TestSynced:
    def test_is_true_with_the_file_servers_modules(self, host):
        assert host.call("synced") is True

    @pytest.mark.parametrize("fault", ["older", "missing"])
    def test_is_false_if_one_file_differs(self, host, tmp_path, monkeypatch, fault):
        import shutil

        copy = tmp_path / "ext"
        shutil.copytree(host.extension_modules, copy)
        victim = copy / "utils/multimaster_topology.py"
        if fault == "older":
            victim.write_text("# an older version\n")
        else:
            victim.unlink()
        opts = host.modules.pack["__opts__"]
        monkeypatch.setitem(opts, "extension_modules", str(copy))
        assert host.call("synced") is False


# What is signed for other masters


@pytest.mark.usefixtures("offer")
def test_what_masters_ask_is_answered_signed_with_the_shared_key(host, shared):
    import multimaster_keypair as keypair

    host.call("install_keypair")
    host.accept({"web1": shared.pub})
    reply = host.call("signed", "multimaster.key_states", "nonce", ["web*"])
    assert not shared.shows_in(repr(reply))
    question = ("multimaster.key_states", ID, "nonce")
    found, why = keypair.proved(reply, *question, shared.pub)
    assert (list(found), why) == (["web1"], None)
    named = host.call("signed", "multimaster.key_states", "nonce", named={"like": "db*"})
    assert keypair.proved(named, *question, shared.pub) == ({}, None)


@pytest.mark.usefixtures("offer")
def test_a_host_whose_private_key_does_not_fit_its_public_key_says_so(host, shared, other):
    """All that was heard of it was that its answer is not signed with the masters' key."""
    import multimaster_keypair as keypair

    host.call("install_keypair")
    (host.pki / "saltm2.pem").unlink()
    (host.pki / "saltm2.pem").write_text(other.pem)
    reply = host.call("signed", "multimaster.key_states", "nonce")
    _, why = keypair.proved(reply, "multimaster.key_states", ID, "nonce", shared.pub)
    path = f"{host.pki}/saltm2.pem"
    assert why == (
        "the answer is not signed with the masters' key: "
        f"the private key {path} does not fit the public key beside it"
    )
    assert not other.shows_in(repr(reply))


@pytest.mark.usefixtures("offer")
def test_an_error_is_answered_signed(host, shared):
    import multimaster_keypair as keypair

    host.call("install_keypair")
    asked = ["lose", "web1", "f" * 64]
    reply = host.call("signed", "multimaster.key_decide", "nonce", asked)
    _, why = keypair.proved(reply, "multimaster.key_decide", ID, "nonce", shared.pub)
    assert why.startswith("verdict: got 'lose'; supported: accept")


def test_a_master_to_be_answers_and_proves_nothing(host, shared):
    import multimaster_keypair as keypair

    reply = host.call("signed", "multimaster.outstanding", "nonce", ["salt-master"])
    assert keypair.claimed(reply) is False
    _, why = keypair.proved(reply, "multimaster.outstanding", ID, "nonce", shared.pub)
    assert why == "the answer is not signed"


@pytest.mark.parametrize("function", ["cmd.run", "state.apply", "multimaster.signed", "", ["x"], 5])
def test_nothing_else_is_run_for_a_signature(host, function):
    refused(host, "function: got .*; supported: multimaster.key_decide", "signed", function, "n")


def test_all_that_is_signed_is_checked_when_it_is_read(host):
    import multimaster_said

    signed = host.modules["multimaster.signed"].func.__globals__["SIGNED"]
    assert set(signed) <= set(multimaster_said.ANSWERS)
    assert all(name in host.modules for name in signed)
