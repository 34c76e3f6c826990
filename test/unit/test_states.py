"""The states: each says in test mode exactly what it would do, does it once, and fails in words."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from typing import Any

import pytest

import multimaster_restart

ID = "saltm2"
MASTERS = [{"id": f"saltm{n}", "address": f"192.0.2.{n}"} for n in (1, 2, 3)]
ROLES = ("minion", "master")
CHANGING = [
    "minion_config",
    "master_config",
    "extended",
    "keypair",
    "signing",
    "signing_pub",
    "keys_seeded",
    "current",
    "restarted",
    "left",
]
RESTARTS = ["current", "restarted"]
DECLARATION = {"mode": "hot", "masters": MASTERS}
SIGNING = {**DECLARATION, "signing": True}


@pytest.fixture
def restarts(host, monkeypatch):
    """The restarts asked for; really carried out, they would restart this process's service."""
    restarts = []
    monkeypatch.setitem(
        host.modules._dict, "multimaster.restart", lambda name, *args: restarts.append(name)
    )
    return restarts


@pytest.fixture
def running(host, monkeypatch):
    """Let a service seem to run: there is no init here to ask."""
    services = {"salt-minion": True}
    # Has the loader look for it, so that it does not replace ours.
    host.modules.get("service.status")
    host.modules.get("multimaster.restart")
    monkeypatch.setitem(host.modules._dict, "service.status", lambda name: services.get(name))
    return services


@pytest.fixture
def drop_in(host):
    """A drop-in that is newer than the minion, which is this process."""
    import psutil

    host.write("var/run/salt-minion.pid", str(os.getpid()))
    path = host.write("etc/salt/minion.d/multimaster.conf", {"master": ["192.0.2.1"]})
    later = psutil.Process().create_time() + 10
    os.utime(path, (later, later))
    return path


@pytest.fixture
def state(host, request):
    """Call a state by function; the arguments are the usual ones unless given."""

    def call(function: str, *, test: bool = False, **changes: Any):
        config_dir = str(host.config_dir)
        minion, master = (f"{config_dir}/{role}.d/multimaster.conf" for role in ROLES)
        extensions = f"{host.root}/var/lib/multimaster"
        derived = {
            "declaration": DECLARATION,
            "config_dir": config_dir,
            "extension_dir": extensions,
        }
        usual = {
            "declared": {"name": "multimaster", "declaration": DECLARATION},
            "minion_config": {"name": minion, "declaration": DECLARATION, "config_dir": config_dir},
            "master_config": {"name": master, **derived},
            "extended": {"name": extensions, "files": ["engines/multimaster.py"]},
            "keypair": {"name": "multimaster", **derived},
            "signing": {"name": "multimaster", **derived, "declaration": SIGNING},
            "signing_pub": {"name": "multimaster", "config_dir": config_dir},
            "keys_seeded": {"name": "multimaster", **derived},
            "minion_keypair": {"name": "salt-minion", "config_dir": config_dir},
            "current": {"name": "salt-minion", "files": [minion], "config_dir": config_dir},
            "restarted": {"name": "salt-minion", "config_dir": config_dir},
            "withdrawn": {"name": "salt-minion", "config_dir": config_dir},
            "left": {"name": "salt-master", "config_dir": config_dir},
            "provided": {"name": "multimaster", "config_dir": config_dir},
            "another_master": {"name": "multimaster", "config_dir": config_dir},
        }[function]
        return host.state(function, test=test, **usual | changes)

    return call


def prepare(function, host):
    """Bring the host to where a state has something to do."""
    if function == "left":
        host.call("install_keypair")


@pytest.mark.usefixtures("source", "running", "drop_in")
class TestEveryState:
    @pytest.mark.parametrize("function", CHANGING)
    def test_predicts_what_it_does_and_touches_nothing_meanwhile(
        self, host, state, restarts, function
    ):
        prepare(function, host)
        before = host.files()
        would = state(function, test=True)
        assert would.result is None
        assert would.changes
        assert would.comment
        assert host.files() == before
        assert not restarts
        did = state(function)
        assert did.result is True
        assert did.changes == would.changes
        assert host.files() != before or restarts

    # What a restart changes is the daemon, and there is none.
    @pytest.mark.parametrize("function", [name for name in CHANGING if name not in RESTARTS])
    @pytest.mark.parametrize("test", [False, True], ids=["", "test"])
    def test_does_nothing_twice(self, host, state, function, test):
        prepare(function, host)
        state(function)
        before = host.files()
        again = state(function, test=test)
        assert again.result is True
        assert again.changes == {}
        assert again.comment
        assert host.files() == before

    @pytest.mark.parametrize("function", CHANGING)
    def test_shows_no_key(self, host, state, restarts, function, shared, minion_keys):
        prepare(function, host)
        for test in (True, False):
            shown = repr(state(function, test=test))
            assert not shared.shows_in(shown)
            assert not minion_keys[ID].shows_in(shown)
            assert not minion_keys["web1"].shows_in(shown)


@pytest.mark.parametrize("test", [False, True], ids=["", "test"])
class TestFailure:
    """Fails alike in test mode and without, changes nothing, and says why."""

    @pytest.fixture(autouse=True)
    def nothing_changes(self, host):
        self.host = host
        self.before = None
        yield
        assert host.files() == self.before

    def fails(self, state, function, words, *, test, **changes):
        self.before = self.host.files()
        failed = state(function, test=test, **changes)
        assert failed.result is False
        assert failed.changes == {}
        assert words in failed.comment

    def test_of_declared_lists_every_finding(self, state, test):
        words = "mode: got 'failsafe'; supported: hot, failover\nmasters: got []"
        bad = {"mode": "failsafe", "masters": []}
        self.fails(state, "declared", words, test=test, declaration=bad)

    @pytest.mark.parametrize("bad", ["hot", None, 5, [], {7: {}}], ids=repr)
    def test_of_declared_survives_any_declaration(self, state, test, bad):
        self.fails(state, "declared", "nothing was changed", test=test, declaration=bad)

    @pytest.mark.parametrize("role", ROLES)
    def test_of_a_drop_in_names_a_file_that_overrides_it(self, host, state, test, role):
        option = {"minion": {"master": "192.0.2.9"}, "master": {"id": "x"}}[role]
        host.write(f"etc/salt/{role}.d/zz.conf", option)
        self.fails(state, f"{role}_config", "another file also sets", test=test)

    @pytest.mark.parametrize("role", ROLES)
    def test_of_a_drop_in_names_a_configuration_that_does_not_parse(self, host, state, test, role):
        host.write(f"etc/salt/{role}", "a: [1\nb: }")
        self.fails(state, f"{role}_config", "cannot parse", test=test)

    def test_of_extended_names_the_file_that_is_not_there(self, state, test):
        self.fails(state, "extended", "engines/none.py", test=test, files=["engines/none.py"])

    def test_of_keypair_without_a_pillar_says_what_to_do(self, state, test):
        self.fails(state, "keypair", "assign it the pillar", test=test)

    @pytest.mark.usefixtures("offer")
    def test_of_keypair_gives_the_reason_of_the_refusal(self, host, state, test, other):
        host.write(f"etc/salt/pki/master/{ID}.pem", other.pem)
        host.write(f"etc/salt/pki/master/{ID}.pub", other.pub)
        host.accept({"web1": other.pub})
        self.fails(state, "keypair", "replace_keypair: true", test=test)

    @pytest.mark.parametrize("function", ["keypair", "signing", "keys_seeded", "master_config"])
    def test_of_a_host_that_is_refused_the_pair_gives_the_reason(
        self, host, state, test, shared, function
    ):
        host.pillar = {"multimaster": {"keypair": {"refused": "of a reason", "pub": shared.pub}}}
        declaration = {"declaration": SIGNING}
        words = "saltm2 is not given the key pair: of a reason"
        self.fails(state, function, words, test=test, **declaration)

    def test_of_keypair_names_a_minion_key_that_is_not_there(self, host, state, test):
        host.pillar = {"multimaster": {"keypair": {"sealed": "x"}}}
        self.fails(state, "keypair", "minion.pem", test=test)

    def test_of_keys_seeded_without_a_pillar_says_what_to_do(self, state, test):
        self.fails(state, "keys_seeded", "assign it the pillar", test=test)

    def test_of_another_master_keeps_the_last_one(self, state, test):
        self.fails(state, "another_master", "this one stays", test=test)


@pytest.mark.usefixtures("offer")
def test_left_fails_while_the_master_runs(host, state):
    host.call("install_keypair")
    host.write("var/run/salt-master.pid", str(os.getpid()))
    before = host.files()
    failed = state("left")
    assert (failed.result, failed.changes) == (False, {})
    assert "salt-master still runs" in failed.comment
    assert host.files() == before


@pytest.mark.usefixtures("running", "drop_in")
@pytest.mark.parametrize("function", ["current", "restarted"])
def test_a_restart_that_cannot_be_had_fails_in_words(host, state, monkeypatch, function):
    from salt.exceptions import CommandExecutionError

    def restart(*args):
        raise CommandExecutionError("no systemd-run")

    # As on a machine that has it, and refuses.
    monkeypatch.setitem(host.modules._dict, "multimaster.restart", restart)
    failed = state(function)
    assert (failed.result, failed.changes, failed.comment) == (False, {}, "no systemd-run")


# What each one does


@pytest.mark.usefixtures("drop_in")
def test_a_restart_is_withdrawn_once(host, state):
    restarts = "var/cache/salt/minion/multimaster/restarts/salt-minion"
    told = {"jid": "1", "job": None, "timeout": 600}
    told["daemon"] = multimaster_restart.process(os.getpid())
    path = host.write(f"{restarts}/20260101000000000001", json.dumps(told))
    would = state("withdrawn", test=True)
    assert (would.result, would.changes) == (None, {"restart": "withdrawn"})
    assert path.exists()
    did = state("withdrawn")
    assert (did.result, did.changes) == (True, would.changes)
    assert not path.exists()
    for test in (True, False):
        again = state("withdrawn", test=test)
        assert (again.result, again.changes) == (True, {})


def test_declared_says_what_it_understood(state):
    ret = state("declared")
    assert (ret.result, ret.changes) == (True, {})
    assert ret.comment == "mode hot, masters saltm1, saltm2, saltm3"
    assert not ret.warnings


def test_declared_warns_of_a_name_that_does_not_resolve(host, state, monkeypatch):
    host.modules.get("multimaster.unresolved")
    # Instead of a name server's answer.
    monkeypatch.setitem(host.modules._dict, "multimaster.unresolved", lambda names: names[-1:])
    ret = state("declared")
    assert ret.result is True
    assert ret.warnings[0].startswith("192.0.2.3 cannot be resolved")


def test_the_minions_drop_in_is_what_the_minion_then_has(host, state):
    import salt.config

    state("minion_config")
    opts = salt.config.minion_config(str(host.config_dir / "minion"), cache_minion_id=False)
    assert opts["master"] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert opts["rejected_retry"] is True


def test_the_masters_drop_in_keeps_the_hosts_engines(host, state):
    import salt.config

    host.write("etc/salt/master.d/engines.conf", {"engines": [{"reactor": {"refresh": 5}}]})
    # Two drop-ins with one list are merged: what the formula kept would be there twice.
    state("master_config")
    opts = salt.config.master_config(str(host.config_dir / "master"))
    assert opts["id"] == ID
    ours = [{"multimaster": {}}, {"multimaster_drift": {}}]
    assert opts["engines"] == [{"reactor": {"refresh": 5}}, *ours]
    assert opts["module_dirs"] == [f"{host.root}/var/lib/multimaster"]


@pytest.mark.parametrize("role", ROLES)
def test_a_drop_in_is_not_for_everybody_to_read(host, state, role):
    state(f"{role}_config")
    path = host.config_dir / f"{role}.d/multimaster.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("test", [False, True], ids=["", "test"])
@pytest.mark.parametrize("role", ROLES)
def test_a_drop_in_with_secrets_is_not_shown(host, state, role, test):
    state(f"{role}_config")
    declaration = DECLARATION | {role: {"config": {"sdb": {"password": "swordfish"}}}}
    ret = state(f"{role}_config", test=test, declaration=declaration)
    assert ret.changes
    assert "swordfish" not in repr(ret)


@pytest.mark.usefixtures("offer")
def test_keypair_says_where_the_old_pair_is(host, state, other):
    host.write(f"etc/salt/pki/master/{ID}.pem", other.pem)
    host.write(f"etc/salt/pki/master/{ID}.pub", other.pub)
    ret = state("keypair")
    assert list(ret.changes) == ["replace"]
    (backup,) = host.pki.glob("multimaster-backup-*")
    assert str(backup) in ret.comment


@pytest.mark.parametrize("test", [False, True], ids=["", "test"])
def test_keypair_that_is_in_place_warns_if_it_would_not_be_given(host, state, shared, test):
    host.pillar = {"multimaster": {"keypair": {"pem": shared.pem, "pub": shared.pub}}}
    assert state("keypair").result is True
    host.pillar = {"multimaster": {"keypair": {"refused": "of a reason", "pub": shared.pub}}}
    ret = state("keypair", test=test)
    assert (ret.result, ret.changes) == (True, {})
    assert ret.warnings == ["saltm2 is not given the key pair, and keeps it: of a reason"]


@pytest.mark.usefixtures("offer")
def test_keypair_replaces_at_the_operators_word(host, state, shared, other):
    host.write(f"etc/salt/pki/master/{ID}.pem", other.pem)
    host.write(f"etc/salt/pki/master/{ID}.pub", other.pub)
    host.accept({"web1": other.pub})
    assert state("keypair", replace=True).result is True
    assert (host.pki / f"{ID}.pem").read_text().strip() == shared.pem.strip()


@pytest.mark.usefixtures("drop_in")
@pytest.mark.parametrize("test", [False, True], ids=["", "test"])
class TestRestart:
    def test_is_not_for_a_daemon_that_does_not_run(self, host, state, running, restarts, test):
        running["salt-minion"] = False
        (host.root / "var/run/salt-minion.pid").unlink()
        ret = state("current", test=test)
        assert (ret.result, ret.changes) == (True, {})
        assert not restarts

    def test_is_not_for_a_daemon_that_is_current(self, state, running, restarts, drop_in, test):
        os.utime(drop_in, (1, 1))
        ret = state("current", test=test)
        assert (ret.result, ret.changes) == (True, {})
        assert not restarts


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("written", ["the file", "its directory"])
def test_a_file_that_would_be_written_predicts_the_restart(state, drop_in, written):
    # In test mode it is as old as ever.
    os.utime(drop_in, (1, 1))
    earlier = {"name": str(drop_in if written == "the file" else drop_in.parent), "result": None}
    ret = state("current", test=True, running={"earlier": earlier | {"changes": {"x": "y"}}})
    assert (ret.result, ret.changes) == (None, {"restart": "after this job"})
    ret = state("current", test=True, running={"earlier": earlier | {"changes": {}}})
    assert (ret.result, ret.changes) == (True, {})


@pytest.mark.usefixtures("running")
def test_a_daemon_started_after_the_change_is_not_restarted(state, restarts, drop_in):
    os.utime(drop_in, (1, 1))
    earlier = {"name": str(drop_in), "result": True, "changes": {"x": "y"}}
    ret = state("current", running={"earlier": earlier})
    assert (ret.result, ret.changes) == (True, {})
    assert not restarts


def test_left_has_nothing_to_do_on_a_master_that_was_there_before(host, state, shared):
    host.write(f"etc/salt/pki/master/{ID}.pem", shared.pem)
    before = host.files()
    ret = state("left")
    assert (ret.result, ret.changes) == (True, {})
    assert host.files() == before


def test_a_daemon_is_given_the_modules_of_a_run_with_another_configuration(host, state):
    assert state("provided").changes == {}
    theirs = host.root / "etc/daemon"
    host.write(
        "etc/daemon/minion", {"id": "saltm2", "extension_modules": f"{host.root}/var/theirs"}
    )
    given = state("provided", config_dir=str(theirs))
    names = {f"{kind}/multimaster.py" for kind in ("modules", "states", "engines")}
    assert names <= set(given.changes)
    assert not any(path.startswith(("runners", "output")) for path in given.changes)
    for path in given.changes:
        written = (host.root / "var/theirs" / path).read_bytes()
        assert written == (host.checkout / f"salt/_{path}").read_bytes()
    assert state("provided", config_dir=str(theirs)).changes == {}


def test_another_master_names_those_that_answer(host, state, monkeypatch):
    # Really asked for in test_modules.
    host.modules.get("multimaster.other_masters_up")
    asked = []

    def up(**arguments):
        asked.append(arguments)
        return ["saltm1", "saltm3"]

    monkeypatch.setitem(host.modules._dict, "multimaster.other_masters_up", up)
    ret = state("another_master")
    # Masterless, `salt-call` may have a configuration of its own.
    assert asked == [{"config_dir": str(host.config_dir)}]
    assert (ret.result, ret.changes, ret.comment) == (True, {}, "Also there: saltm1, saltm3")


# Signing


def test_a_signing_pair_is_not_installed_unless_signing_is_declared(host, offer, state):
    assert state("signing", declaration=DECLARATION).changes == {}
    assert not (host.pki / "master_sign.pem").exists()


@pytest.mark.usefixtures("offer")
def test_a_master_signs_as_soon_as_the_pillar_brings_the_pair(host, state):
    import salt.config

    for declaration, signs in ((DECLARATION, False), (SIGNING, True)):
        assert state("signing", declaration=declaration).result is True
        assert state("master_config", declaration=declaration).result is True
        opts = salt.config.master_config(str(host.config_dir / "master"))
        assert opts["master_sign_pubkey"] is signs
        assert opts["master_use_pubkey_signature"] is signs


@pytest.fixture
def offer_without_signing(host, shared):
    host.pillar = {"multimaster": {"keypair": {"pem": shared.pem, "pub": shared.pub}}}


@pytest.mark.usefixtures("offer_without_signing")
class TestWithoutAPairInPillar:
    def test_the_first_declared_master_makes_one_and_does_not_sign_yet(self, host, state):
        first = {**SIGNING, "masters": [{"id": ID, "address": "192.0.2.2"}]}
        made = state("signing", declaration=first)
        assert made.changes == {"create": "the signing pair"}
        assert "does not sign yet" in made.warnings[0]
        again = state("signing", declaration=first)
        assert (again.result, again.changes) == (True, {})
        assert "does not sign yet" in again.warnings[0]

    def test_another_master_waits_for_it(self, host, state):
        waits = state("signing")
        assert (waits.result, waits.changes) == (True, {})
        assert "only saltm1 makes one" in waits.comment
        assert "from saltm1" in waits.warnings[0]
        assert not (host.pki / "master_sign.pem").exists()

    def test_a_master_that_signs_goes_on(self, host, state):
        import salt.config

        host.write("etc/salt/master.d/multimaster.conf", {"master_sign_pubkey": True})
        assert state("master_config", declaration=SIGNING).result is True
        opts = salt.config.master_config(str(host.config_dir / "master"))
        assert opts["master_sign_pubkey"] is True

    @pytest.mark.parametrize("test", [False, True], ids=["", "test"])
    def test_a_master_that_signs_and_lost_its_pair_makes_no_second_one(self, host, state, test):
        host.write("etc/salt/master.d/multimaster.conf", {"master_sign_pubkey": True})
        only = {**SIGNING, "masters": [{"id": ID, "address": "192.0.2.2"}]}
        failed = state("signing", declaration=only, test=test)
        assert failed.result is False
        assert "there is no signing pair here" in failed.comment
        assert not (host.pki / "master_sign.pem").exists()


@pytest.mark.parametrize("declaration", [DECLARATION, SIGNING], ids=["off", "on"])
@pytest.mark.parametrize("before", [False, True])
def test_whether_a_minion_verifies_is_not_changed_by_an_apply(host, state, declaration, before):
    import salt.config

    host.write("etc/salt/minion.d/multimaster.conf", {"verify_master_pubkey_sign": before})
    assert state("minion_config", declaration=declaration).result is True
    opts = salt.config.minion_config(str(host.config_dir / "minion"), cache_minion_id=False)
    assert opts["verify_master_pubkey_sign"] is before


# A minion's own key pair


@pytest.fixture
def minion_daemon(host, monkeypatch):
    """A process that seems to be the minion's daemon, and what init is told of it."""
    process = subprocess.Popen(["sleep", "infinity"])
    host.write("var/run/salt-minion.pid", str(process.pid))
    pem = host.root / "etc/salt/pki/minion/minion.pem"
    told = []

    def stop(service):
        told.append(("stop", service, pem.exists()))
        process.terminate()
        process.wait()
        return True

    def start(service):
        told.append(("start", service, pem.exists()))
        return True

    # Has the loader look for them, so that it does not replace ours.
    host.modules.get("service.status")
    monkeypatch.setitem(host.modules._dict, "service.stop", stop)
    monkeypatch.setitem(host.modules._dict, "service.start", start)
    yield told
    process.kill()
    process.wait()


class TestMinionKeypair:
    @pytest.fixture(autouse=True)
    def pki(self, host):
        self.pki = host.root / "etc/salt/pki/minion"

    def test_is_made_once_and_in_salts_way(self, host, state):
        import salt.crypt

        before = host.files()
        would = state("minion_keypair", test=True)
        assert (would.result, host.files()) == (None, before)
        did = state("minion_keypair")
        assert (did.result, did.changes) == (True, would.changes)
        opts = {**host.modules.pack["__opts__"], "master_uri": ""}
        made = {path.name: path.read_bytes() for path in self.pki.iterdir()}
        assert set(made) == {"minion.pem", "minion.pub"}
        assert salt.crypt.SAuth(opts).get_keys()
        assert stat.S_IMODE((self.pki / "minion.pem").stat().st_mode) == 0o400
        assert stat.S_IMODE(self.pki.stat().st_mode) == 0o700
        for test in (True, False):
            again = state("minion_keypair", test=test)
            assert (again.result, again.changes) == (True, {})
        assert {path.name: path.read_bytes() for path in self.pki.iterdir()} == made

    def test_is_made_while_nobody_else_may(self, state, minion_daemon):
        assert state("minion_keypair", test=True).result is None
        assert minion_daemon == []
        assert state("minion_keypair").result is True
        assert minion_daemon == [("stop", "salt-minion", False), ("start", "salt-minion", True)]

    @pytest.mark.usefixtures("minion_daemon")
    def test_with_it_a_minion_starts_at_its_new_masters_and_nothing_is_left_to_prove(
        self, host, state
    ):
        state("minion_config")
        journal = host.root / "var/cache/salt/minion/multimaster/cutover.json"
        assert journal.exists()
        state("minion_keypair")
        assert not journal.exists()

    @pytest.mark.usefixtures("minion_daemon")
    def test_is_not_made_beside_a_daemon_that_init_does_not_stop(self, host, state, monkeypatch):
        monkeypatch.setitem(host.modules._dict, "service.stop", lambda service: False)
        before = host.files()
        failed = state("minion_keypair")
        assert (failed.result, failed.changes) == (False, {})
        assert "cannot stop salt-minion" in failed.comment
        assert host.files() == before

    @pytest.mark.usefixtures("minion_daemon")
    def test_is_not_made_beside_a_daemon_that_does_not_end(self, host, state, monkeypatch):
        monkeypatch.setitem(host.modules._dict, "service.stop", lambda service: True)
        module = host.modules["multimaster.make_minion_keypair"].func.__globals__
        monkeypatch.setitem(module, "STOPPED_WITHIN", 0.1)
        before = host.files()
        failed = state("minion_keypair")
        assert (failed.result, failed.changes) == (False, {})
        assert "its process goes on" in failed.comment
        assert host.files() == before

    def test_that_cannot_be_made_leaves_no_daemon_stopped(self, host, state, minion_daemon):
        host.write("etc/salt/pki", "a file")
        failed = state("minion_keypair")
        assert (failed.result, failed.changes) == (False, {})
        assert [what for what, *_ in minion_daemon] == ["stop", "start"]

    @pytest.mark.parametrize("test", [False, True], ids=["", "test"])
    @pytest.mark.parametrize("name", ["minion.pem", "minion.pub"])
    def test_of_which_a_half_is_lost_is_nobodys_to_guess(self, host, state, name, test):
        host.write(f"etc/salt/pki/minion/{name}", "its other half")
        before = host.files()
        failed = state("minion_keypair", test=test)
        assert (failed.result, failed.changes) == (False, {})
        assert f"has {name} without its other half" in failed.comment
        assert host.files() == before

    @pytest.mark.parametrize("test", [False, True], ids=["", "test"])
    def test_is_not_made_anew_by_a_job_of_the_minion_itself(self, host, state, test):
        # Whoever gave it the job knows it by a key.
        host.write("var/run/salt-minion.pid", str(os.getpid()))
        failed = state("minion_keypair", test=test)
        assert (failed.result, failed.changes) == (False, {})
        assert "has lost its key pair" in failed.comment
        assert not self.pki.exists()
