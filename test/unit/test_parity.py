"""Configuration that is equal on every master: nothing is replaced silently, no secret is shown."""

from __future__ import annotations

import stat
from typing import Any

import pytest

ID = "saltm2"
MASTERS = [{"id": f"saltm{n}", "address": f"192.0.2.{n}"} for n in (1, 2, 3)]
WORD = "swordfish-in-every-place"
both_modes = pytest.mark.parametrize("test", [False, True], ids=["", "test"])
# The states that come before the master's daemon, in their order.
OF_A_MASTER = ["keypair", "signing", "keys_seeded", "master_config"]


# Autosign by grain asks for them.
PROVED = [{**master, "fingerprint": ":".join(["a1"] * 32)} for master in MASTERS]


def declare(**settings: Any) -> dict[str, Any]:
    return {"masters": MASTERS, **settings}


@pytest.fixture
def state(host):
    """Call a state of ours with its usual arguments."""

    def call(function: str, declaration: dict[str, Any], *, test: bool = False):
        config_dir = str(host.config_dir)
        common = {"declaration": declaration, "config_dir": config_dir}
        extensions = {"extension_dir": f"{host.root}/var/lib/multimaster"}
        arguments = {
            "minion_config": {"name": f"{config_dir}/minion.d/multimaster.conf", **common},
            "master_config": {
                "name": f"{config_dir}/master.d/multimaster.conf",
                **common,
                **extensions,
            },
            "autosign": {"name": f"{config_dir}/multimaster", **common},
        }
        usual = {"name": "multimaster", **common, **extensions}
        return host.state(function, test=test, **arguments.get(function, usual))

    return call


def opts_of(host, role="master"):
    import salt.config

    path = str(host.config_dir / role)
    if role == "minion":
        return salt.config.minion_config(path, cache_minion_id=False)
    return salt.config.master_config(path)


# Never silently


class TestWhatIsThereAlready:
    @both_modes
    @pytest.mark.usefixtures("offer")
    @pytest.mark.parametrize("function", OF_A_MASTER)
    def test_is_not_replaced_and_nothing_else_is_changed(self, host, state, function, test):
        host.write("etc/salt/master.d/aa.conf", {"worker_threads": 3})
        before = host.files()
        declaration = declare(master={"config": {"worker_threads": 8}}, signing=True)
        ret = state(function, declaration, test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert (
            f"worker_threads: {host.config_dir}/master.d/aa.conf also sets it: worker_threads is "
            "3 there and 8 here; remove it there, or list it under multimaster:master:override"
        ) in ret.comment
        assert host.files() == before

    @pytest.mark.parametrize("place", ["master", "master.d/aa.conf", "extra/one.conf"])
    def test_is_named_with_its_file(self, host, state, place):
        common = host.config_dir.joinpath("master").read_text()
        host.write("etc/salt/master", common + "include: extra/*.conf\n")
        path = host.write(f"etc/salt/{place}", "timeout: 7\n" + common)
        ret = state("master_config", declare(master={"config": {"timeout": 9}}))
        assert ret.result is False
        assert f"timeout: {path} also sets it" in ret.comment
        # What the main file includes comes last and would win.
        assert ("override" in ret.comment) is (place != "extra/one.conf")

    def test_may_be_the_same(self, host, state):
        host.write("etc/salt/master.d/aa.conf", {"timeout": 9})
        assert state("master_config", declare(master={"config": {"timeout": 9}})).result

    @pytest.mark.parametrize("place", ["master", "master.d/aa.conf"])
    def test_is_replaced_where_the_declaration_says_so(self, host, state, place):
        content = host.config_dir.joinpath("master").read_text() + "timeout: 7\n"
        host.write(f"etc/salt/{place}", content)
        declaration = declare(master={"config": {"timeout": 9}, "override": ["timeout"]})
        ret = state("master_config", declaration)
        assert ret.changes["timeout"] == {"old": 7, "new": 9}
        assert opts_of(host)["timeout"] == 9
        for test in (True, False):
            again = state("master_config", declaration, test=test)
            assert (again.result, again.changes) == (True, {})

    @pytest.mark.parametrize(
        ("name", "option", "there", "here"),
        [
            ("zz.conf", "timeout", 7, 9),
            # Salt would merge these, in whatever order.
            ("aa.conf", "peer", {"a": ["test.ping"]}, {"b": ["test.ping"]}),
            ("aa.conf", "gitfs_remotes", ["https://a"], ["https://b"]),
        ],
        ids=["later", "mapping", "list"],
    )
    def test_that_would_win_all_the_same_is_refused_in_spite_of_an_override(
        self, host, state, name, option, there, here
    ):
        host.write(f"etc/salt/master.d/{name}", {option: there})
        settings: dict[str, Any] = {"config": {option: here}}
        ret = state("master_config", declare(master=settings))
        assert ret.result is False
        assert "override" not in ret.comment
        ret = state("master_config", declare(master=settings | {"override": [option]}))
        assert ret.result is False
        assert f"master.d/{name}: another file also sets {option!r}" in ret.comment

    def test_is_replaced_in_a_derived_option_only_if_told_to(self, host, state):
        host.write("etc/salt/master.d/aa.conf", {"master_sign_pubkey": True})
        assert "master_sign_pubkey is True there" in state("master_config", declare()).comment
        declaration = declare(master={"override": ["master_sign_pubkey"]})
        assert state("master_config", declaration).result is True

    def test_of_the_id_is_replaced_and_shown(self, host, state):
        host.write("etc/salt/master.d/aa.conf", {"id": "elsewhere"})
        ret = state("master_config", declare())
        assert ret.changes["id"] == {"old": "elsewhere", "new": ID}

    def test_of_engines_and_module_dirs_is_kept(self, host, state):
        common = host.config_dir.joinpath("master").read_text()
        host.write("etc/salt/master", common + "engines: [{x: {}}]\nmodule_dirs: [/srv/mods]\n")
        assert state("master_config", declare()).result is True
        assert opts_of(host)["module_dirs"][0] == "/srv/mods"

    @both_modes
    def test_is_not_shown_if_it_may_be_a_secret(self, host, state, test):
        host.write("etc/salt/master.d/aa.conf", {"mysql.pass": WORD})
        declaration = declare(master={"config": {"mysql.pass": WORD[::-1]}})
        ret = state("master_config", declaration, test=test)
        assert "mysql.pass is 'hash:" in ret.comment
        assert WORD not in repr(ret)
        assert WORD[::-1] not in repr(ret)

    def test_is_not_shown_by_the_check_of_a_later_file(self, host, state):
        host.write("etc/salt/master.d/zz.conf", {"mysql.pass": WORD})
        settings = {"config": {"mysql.pass": WORD[::-1]}, "override": ["mysql.pass"]}
        ret = state("master_config", declare(master=settings))
        assert "another file also sets 'mysql.pass'" in ret.comment
        assert WORD not in ret.comment
        assert WORD[::-1] not in ret.comment

    @both_modes
    def test_on_a_minion_is_not_replaced_either(self, host, state, test):
        host.write("etc/salt/minion.d/aa.conf", {"log_level": "debug"})
        before = host.files()
        declaration = declare(minion={"config": {"log_level": "info"}})
        ret = state("minion_config", declaration, test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert "log_level is 'debug' there and 'info' here" in ret.comment
        assert "multimaster:minion:override" in ret.comment
        assert host.files() == before

    def test_on_a_minion_is_replaced_where_the_declaration_says_so(self, host, state):
        host.write("etc/salt/minion.d/aa.conf", {"log_level": "debug"})
        settings = {"config": {"log_level": "info"}, "override": ["log_level"]}
        assert state("minion_config", declare(minion=settings)).result is True
        assert opts_of(host, "minion")["log_level"] == "info"

    def test_of_a_derived_option_is_replaced_on_a_minion(self, host, state):
        common = host.config_dir.joinpath("minion").read_text()
        host.write("etc/salt/minion", common + "master: 192.0.2.99\nretry_dns: 30\n")
        ret = state("minion_config", declare())
        assert ret.result is True
        assert ret.changes["retry_dns"] == {"old": 30, "new": 5}

    def test_of_a_derived_option_is_named_on_a_minion(self, host, state):
        there = {"master_alive_interval": 3, "return_retry_tries": 10, "rejected_retry": False}
        path = host.write("etc/salt/minion.d/aa.conf", there)
        ret = state("minion_config", declare())
        assert ret.result is True
        effective = opts_of(host, "minion")
        assert (effective["master_alive_interval"], effective["return_retry_tries"]) == (0, 1)
        (warning,) = ret.warnings
        for option, value in there.items():
            assert f"{option}: {path} also sets it: {option} is {value} there and " in warning
        # Not its list of masters, which is what the formula is for.
        assert "\nmaster: " not in warning
        settings = {"override": list(there)}
        assert state("minion_config", declare(minion=settings)).warnings == []

    @both_modes
    @pytest.mark.parametrize(
        ("role", "option", "there", "here"),
        [
            ("master", "ret_port", 14506, 4506),
            ("master", "transport", "tcp", "zeromq"),
            ("minion", "master_port", 14506, 4506),
            ("minion", "publish_port", 14505, 4505),
        ],
    )
    def test_of_what_is_dialled_and_served_is_refused(
        self, host, state, role, option, there, here, test
    ):
        path = host.write(f"etc/salt/{role}.d/aa.conf", {option: there})
        before = host.files()
        ret = state(f"{role}_config", declare(), test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert (
            f"{option}: {path} also sets it: {option} is {there!r} there and {here!r} here"
        ) in ret.comment
        assert "declare it under master:config and minion:config" in ret.comment
        assert host.files() == before

    @pytest.mark.parametrize("role", ["master", "minion"])
    def test_of_ipv6_may_stay_where_nobody_needs_it(self, host, state, role):
        host.write(f"etc/salt/{role}.d/aa.conf", {"ipv6": True})
        assert state(f"{role}_config", declare()).result is True
        assert opts_of(host, role)["ipv6"] is True

    @pytest.mark.parametrize("role", ["master", "minion"])
    def test_of_ports_may_be_what_is_declared(self, host, state, role):
        ports = {"master": {"ret_port": 14506}, "minion": {"master_port": 14506}}
        host.write(f"etc/salt/{role}.d/aa.conf", ports[role])
        declaration = declare(**{name: {"config": value} for name, value in ports.items()})
        assert state(f"{role}_config", declaration).result is True

    @both_modes
    @pytest.mark.parametrize(
        ("role", "there", "finding"),
        [
            ("master", {"require_minion_sign_messages": True}, "minion_sign_messages: got False"),
            ("master", {"minimum_auth_version": 4}, "minimum_auth_version: got 4"),
            ("minion", {"minion_sign_messages": True}, "signing_algorithm: got None"),
            ("minion", {"keysize": 1024}, "minion:config:keysize: got 1024"),
        ],
        ids=repr,
    )
    def test_that_the_other_role_does_not_understand_is_refused(
        self, host, state, role, there, finding, test
    ):
        host.write(f"etc/salt/{role}.d/aa.conf", there)
        before = host.files()
        ret = state(f"{role}_config", declare(), test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert ret.comment.startswith(f"With what the {role}'s files say on this host:\n")
        assert finding in ret.comment
        assert host.files() == before

    @both_modes
    def test_of_an_interface_is_refused_where_minions_dial_ipv6(self, host, state, test):
        host.write("etc/salt/master.d/aa.conf", {"interface": "192.0.2.2"})
        masters = [MASTERS[0], {"id": ID, "address": "2001:db8::2"}]
        ret = state("master_config", {"masters": masters}, test=test)
        assert ret.result is False
        assert (
            "interface: got '192.0.2.2'; supported: '::' or an IPv6 address, as minions dial "
            "2001:db8::2"
        ) in ret.comment

    def test_of_no_interface_is_all_of_them_where_minions_dial_ipv6(self, host, state):
        masters = [MASTERS[0], {"id": ID, "address": "2001:db8::2"}]
        assert state("master_config", {"masters": masters}).result is True
        effective = opts_of(host)
        assert (effective["interface"], effective["ipv6"]) == ("::", True)


# What changes


class TestChanges:
    @both_modes
    def test_are_those_of_the_effective_configuration(self, host, state, test):
        settings = {"config": {"worker_threads": 8, "timeout": 5, "peer": {"a": ["test.*"]}}}
        ret = state("master_config", declare(master=settings), test=test)
        # The default and not nothing.
        assert ret.changes["worker_threads"] == {"old": 5, "new": 8}
        assert ret.changes["peer:a:0"] == {"new": "test.*"}
        # That is the default.
        assert "timeout" not in ret.changes

    def test_name_a_value_that_goes_back_to_the_default(self, host, state):
        state("master_config", declare(master={"config": {"worker_threads": 8}}))
        ret = state("master_config", declare())
        assert ret.changes["worker_threads"] == {"old": 8, "new": 5}
        # Salt 3008 derives others from it.
        assert {path.partition(":")[0] for path in ret.changes} <= {
            "worker_threads",
            "worker_pools",
        }

    @both_modes
    @pytest.mark.parametrize("role", ["minion", "master"])
    def test_have_nothing_of_the_copy_that_they_were_computed_in(
        self, host, state, role, test, tmp_path, monkeypatch
    ):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        ret = state(f"{role}_config", declare(), test=test)
        assert ret.changes
        assert str(tmp_path) not in repr(ret)
        assert not list(tmp_path.iterdir())

    def test_in_the_form_only_are_told_as_such(self, host, state):
        state("master_config", declare(master={"config": {"worker_threads": 8}}))
        settings = {"config": {"worker_threads": 8, "timeout": 5}}
        for test in (True, False):
            ret = state("master_config", declare(master=settings), test=test)
            assert ret.changes == {"drop-in": "written"}

    @pytest.mark.usefixtures("offer")
    @pytest.mark.parametrize("role", ["minion", "master"])
    def test_of_a_secret_are_hashed_alike_in_both_modes(self, host, state, role):
        """The masters' pair is not there yet in the first test run, and is from then on."""
        secret = {"config": {"mysql.pass": WORD, "external_auth": {"x": {"token": WORD}}}}
        would = state(f"{role}_config", declare(**{role: secret}), test=True)
        host.call("install_keypair")
        did = state(f"{role}_config", declare(**{role: secret}))
        assert would.changes == did.changes
        assert did.changes["mysql.pass"]["new"].startswith("hash:")
        assert WORD not in repr((would, did))

    def test_of_a_reference_do_not_show_what_is_behind_it(self, host, state):
        profile = {"driver": "env"}
        config = {"vault": profile, "external_auth": {"pam": {"sdb://vault/HOME": ["x"]}}}
        config["peer"] = {"web1": ["sdb://vault/HOME"]}
        ret = state("master_config", declare(master={"config": config}))
        assert ret.changes["peer:web1:0"] == {"new": "sdb://vault/HOME"}

    def test_are_shown_if_the_present_drop_in_is_broken(self, host, state):
        host.write("etc/salt/master.d/multimaster.conf", "a: [1\nb: }")
        ret = state("master_config", declare(master={"config": {"worker_threads": 8}}))
        assert ret.changes["worker_threads"] == {"old": 5, "new": 8}

    @pytest.mark.parametrize("role", ["minion", "master"])
    def test_of_secrets_are_not_logged(self, host, state, role, caplog):
        caplog.set_level("DEBUG")
        bad = {"config": {"worker_threads": [WORD], "mysql.pass": WORD, "ping_interval": [WORD]}}
        assert state(f"{role}_config", declare(**{role: bad})).result is False
        assert state(f"{role}_config", declare(**{role: {"config": {"x": WORD}}})).result is True
        assert WORD not in caplog.text


# What Salt would complain about


class TestTypes:
    @both_modes
    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("worker_threads", "abc", "text; supported: a whole number"),
            ("worker_threads", True, "got True, true or false; supported: a whole number"),
            ("external_auth", ["pam"], "a list; supported: a mapping"),
            ("file_roots", "/srv/salt", "text; supported: a mapping"),
            ("gitfs_remotes", "https://a", "text; supported: a list"),
            ("nodegroups", 5, "supported: a mapping, a list"),
            ("auto_accept", "yes", "text; supported: true or false"),
            # Salt itself says nothing of these.
            ("timeout", "soon", "text; supported: a whole number, a number"),
            ("publish_timeout", True, "true or false; supported: a whole number, a number"),
        ],
    )
    def test_that_salt_complains_about_are_never_installed(
        self, host, state, test, option, value, words
    ):
        before = host.files()
        ret = state("master_config", declare(master={"config": {option: value}}), test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert f"master:config:{option}: got " in ret.comment
        assert words in ret.comment
        assert host.files() == before

    def test_of_a_minions_options_are_checked_too(self, host, state):
        ret = state("minion_config", declare(minion={"config": {"auth_timeout": "soon"}}))
        assert ret.result is False
        assert "minion:config:auth_timeout: got " in ret.comment

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("ping_interval", "8"),
            ("timeout", 7.5),
            ("timeout", "sdb://x/y"),
            ("publisher_acl", {}),
            ("nodegroups", [{"web": "web*"}]),
            ("hash_type", "sdb://vault/hash"),
            ("my_ext_pillar", {"any": 1}),
            ("mworker_niceness", None),
        ],
        ids=str,
    )
    def test_that_salt_takes_are_taken(self, host, option, value):
        found = {}
        host.call("check_config", "master", {option: value}, take=found.update)
        assert found[option] == value

    @both_modes
    @pytest.mark.parametrize(("option", "value"), [("worker_threads", "8"), ("autosign_file", {})])
    def test_that_salts_loader_fails_on_are_refused_in_words(
        self, host, state, test, option, value
    ):
        before = host.files()
        ret = state("master_config", declare(master={"config": {option: value}}), test=test)
        assert (ret.result, ret.changes) == (False, {})
        assert "Salt cannot parse the master configuration" in ret.comment
        assert host.files() == before

    def test_that_are_wrong_are_named_all_at_once(self, host):
        from salt.exceptions import CommandExecutionError

        with pytest.raises(CommandExecutionError) as caught:
            host.call("check_config", "master", {"auth_timeout": "x", "peer": 5})
        assert "auth_timeout" in str(caught.value)
        assert "peer" in str(caught.value)

    def test_that_are_wrong_hide_a_secret(self, host):
        from salt.exceptions import CommandExecutionError

        with pytest.raises(CommandExecutionError) as caught:
            host.call("check_config", "master", {"range_server": [WORD]})
        assert "hash:" in str(caught.value)
        assert WORD not in str(caught.value)


# Options that Salt does not know


def test_salt_knows_no_old_name_any_more_and_every_new_one(by_path):
    import salt.config

    topology = by_path("salt/_utils/multimaster_topology.py")
    # Its default is all that is left of it.
    defaults = set(salt.config.DEFAULT_MASTER_OPTS) - {"keep_jobs"}
    for old, new in topology.RENAMED.items():
        assert old not in salt.config.VALID_OPTS
        assert old not in defaults
        if new:
            assert new.partition(",")[0] in salt.config.VALID_OPTS


def test_no_old_name_is_read_by_salt(by_path):
    """Neither by its core nor by a module that is part of it."""
    import re
    from pathlib import Path

    import salt

    topology = by_path("salt/_utils/multimaster_topology.py")
    names = "|".join(set(topology.RENAMED) - {"external_nodes", "keep_jobs"})
    wanted = re.compile(f"[\"']({names})[\"']")
    for path in Path(salt.__file__).parent.rglob("*.py"):
        assert not wanted.search(path.read_text(errors="replace")), path


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ("worker_thread", "worker_threads"),
        ("fileroots", "file_roots"),
        ("external_auths", "external_auth"),
        ("peer_run", None),
        ("mysql.pass", None),
        ("ext_pillar", None),
        ("returner.redis.host", None),
    ],
)
def test_a_misspelt_option_is_warned_of_and_others_are_not(host, state, option, known):
    value = {"worker_thread": 1}.get(option, [] if option == "ext_pillar" else {})
    ret = state("master_config", declare(master={"config": {option: value}}))
    assert ret.result is True
    expected = f"master:config:{option}: Salt has no such option of its own; probably {known}"
    assert ret.warnings == ([expected] if known else [])


# Autosign files


LISTS = {
    "autosign": ["web*", "db1"],
    "autoreject": ["*.example.org"],
    "autosign_grains": {"room": ["b12", 7, True]},
}


class TestAutosign:
    @pytest.fixture
    def judge(self, host, state):
        """Have Salt's own judge of new keys look at them, as the master does."""
        from salt.daemons.masterapi import AutoKey

        declaration = declare(masters=PROVED, master=LISTS)
        for function in ("autosign", "master_config"):
            assert state(function, declaration).result is True
        return AutoKey(opts_of(host))

    def test_files_are_what_salt_goes_by(self, judge):
        assert judge.check_autosign("web1")
        assert judge.check_autosign("db1")
        assert not judge.check_autosign("db2")
        assert judge.check_autoreject("a.example.org")
        for value in ("b12", 7, True):
            assert judge.check_autosign("x", {"room": value})
        assert not judge.check_autosign("x", {"room": "b13"})

    def test_a_change_of_the_lists_needs_no_restart(self, host, state, judge):
        assert not judge.check_autosign("db2")
        changed = {"autosign": ["db2"], "autosign_grains": {"rack": ["7"]}}
        ret = state("autosign", declare(masters=PROVED, master=changed))
        assert ret.changes == {
            "autosign.conf": "written",
            "autosign_grains/rack": "written",
            "autosign_grains/room": "removed",
            "autoreject.conf": "removed",
        }
        assert judge.check_autosign("db2")
        assert not judge.check_autosign("web1")
        assert not judge.check_autoreject("a.example.org")
        assert judge.check_autosign("x", {"rack": "7"})
        assert not judge.check_autosign("x", {"room": "b12"})

    def test_files_are_for_the_master_to_read_and_for_nobody_to_write(self, host, state, judge):
        for path in (host.config_dir / "multimaster").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640)

    def test_nothing_is_written_unless_declared(self, host, state):
        ret = state("autosign", declare())
        assert (ret.result, ret.changes) == (True, {})
        assert not (host.config_dir / "multimaster").exists()
        state("master_config", declare())
        assert "autosign_grains_dir" not in opts_of(host)

    def test_what_is_there_predicts_and_repeats(self, host, state):
        declaration = declare(masters=PROVED, master=LISTS)
        before = host.files()
        would = state("autosign", declaration, test=True)
        assert would.result is None
        assert host.files() == before
        did = state("autosign", declaration)
        assert (did.result, did.changes) == (True, would.changes)
        for test in (True, False):
            again = state("autosign", declaration, test=test)
            assert (again.result, again.changes) == (True, {})
        gone = state("autosign", declare(), test=True)
        assert set(gone.changes.values()) == {"removed"}
        assert state("autosign", declare()).changes == gone.changes

    def test_an_option_that_another_file_sets_is_not_replaced(self, host, state):
        host.write("etc/salt/master.d/aa.conf", {"autosign_file": "/etc/salt/mine.conf"})
        ret = state("master_config", declare(master={"autosign": ["web*"]}))
        assert ret.result is False
        assert "autosign_file" in ret.comment

    def test_a_configuration_outside_the_root_directory_is_refused(self, host, state, tmp_path):
        host.write("etc/salt/master.d/root.conf", {"root_dir": str(tmp_path)})
        ret = state("master_config", declare(master={"autosign": ["web*"]}))
        assert ret.result is False
        assert "supported: a configuration below the master's root_dir" in ret.comment

    def test_a_root_directory_by_another_name_is_found(self, host, state, tmp_path):
        (tmp_path / "link").symlink_to(host.root)
        host.write("etc/salt/master.d/root.conf", {"root_dir": f"{tmp_path}/link"})
        assert state("master_config", declare(master={"autosign": ["web*"]})).result is True
        named = opts_of(host)["autosign_file"]
        assert named == f"{tmp_path}/link/etc/salt/multimaster/autosign.conf"
