"""Masters that differ: what is found in which subject, by what it is measured, and what to do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import multimaster_drift as drift
import multimaster_options

IDS = ("saltm1", "saltm2", "saltm3")
ALERTS = Path(__file__).parents[2] / "docs/alerts.yml"
ALL: dict[str, dict[str, Any]] = {
    "config": {"worker_threads": 5, "file_roots:base:0": "/srv/salt"},
    "access": {"external_auth:pam:bob:0": "test.*", "autosign_file:content:web*": True},
    "files:base": {"top.sls": "aa", "web/init.sls": "bb"},
    "pillar:base": {"top.sls": "cc"},
    "gitfs": {"https://git.example.com/a.git refs/remotes/origin/main": "1" * 40},
    "git_pillar": {"https://git.example.com/p.git refs/remotes/origin/main": "2" * 40},
    "roots": {"base": "3" * 16},
    "keys": {"ledger": "4" * 64},
    "modules": {"extension_modules/runners/mine.py": "dd", "formula/runners/multimaster.py": "ee"},
    "formula": {"version": "0.1.0"},
    "salt": {"version": "3008.3"},
    "content": {"pillar:web:port": "hash:1", "top:base:0": "web"},
}


def report(**changed: dict[str, Any]) -> dict[str, Any]:
    """What a master reports, with the leaves of some subjects replaced; None removes one."""
    leaves = {name: {**found, **changed.get(name, {})} for name, found in ALL.items()}
    leaves = {n: {p: v for p, v in found.items() if v is not None} for n, found in leaves.items()}
    return {
        "subjects": {name: drift.digest(found) for name, found in leaves.items()},
        "details": leaves,
        "stale": [],
        "offset": 0.0,
        "sources": {},
        "declared": {},
        "places": {"files:base": "/srv/salt", "extension_modules": "/cache/extmods"},
    }


def found_on(third: dict[str, Any], others: dict[str, Any] | None = None) -> list[drift.Difference]:
    return drift.differences(
        {"saltm1": others or report(), "saltm2": others or report(), "saltm3": third}
    )


def test_masters_that_agree_have_no_difference():
    assert found_on(report()) == []
    assert not any(row["differs"] for row in drift.table(dict.fromkeys(IDS, report())).values())


@pytest.mark.parametrize(
    ("subject", "path", "value", "remedy"),
    [
        ("config", "worker_threads", 9, "multimaster:master:config"),
        ("config", "mysql.pass", "hash:00", "multimaster:master:config"),
        ("access", "external_auth:pam:bob:0", ".*", "multimaster:master:config"),
        ("access", "autosign_file:content:web*", None, "make the content of autosign_file"),
        ("access", "autosign_file:content:db*", True, "make the content of autosign_file"),
        ("files:base", "web/init.sls", "b2", "overwrite web/init.sls on saltm3 (below /srv/salt)"),
        ("files:base", "web/init.sls", None, "copy web/init.sls on saltm3"),
        ("files:base", "web/more.sls", "ff", "remove web/more.sls on saltm3"),
        ("pillar:base", "top.sls", "c2", "overwrite top.sls"),
        ("gitfs", next(iter(ALL["gitfs"])), "9" * 40, "salt-run fileserver.update"),
        ("git_pillar", next(iter(ALL["git_pillar"])), "9" * 40, "salt-run git_pillar.update"),
        ("roots", "base", "9" * 16, "wait until saltm3 has followed"),
        ("keys", "ledger", "9" * 64, "salt-run multimaster.keys_repair"),
        ("modules", "extension_modules/runners/mine.py", "d2", "salt-run saltutil.sync_all"),
        ("modules", "extension_modules/runners/mine.py", None, "salt-run saltutil.sync_all"),
        ("modules", "extension_modules/runners/x.py", "00", "remove /cache/extmods/runners/x.py"),
        ("modules", "formula/runners/multimaster.py", "e2", "state.apply multimaster"),
        ("modules", "/srv/mods/x.py", "00", "remove /srv/mods/x.py on saltm3"),
        ("formula", "version", "0.0.9", "salt saltm3 state.apply multimaster"),
        ("salt", "version", "3007.1", "install Salt 3008.3 on saltm3"),
        ("content", "pillar:web:port", "hash:2", "external pillars"),
        ("content", "top:base:1", "db", "external pillars"),
    ],
)
def test_what_differs_on_one_of_three_is_found_and_named(subject, path, value, remedy):
    (one,) = found_on(report(**{subject: {path: value}}))
    assert (one.subject, one.path, one.side) == (subject, path, "most masters")
    assert one.values == {"saltm1": one.expected, "saltm2": one.expected, "saltm3": value}
    assert list(one.remedies) == ["saltm3"]
    told = one.remedies["saltm3"]
    assert remedy in f"{told.text} {told.command}"
    assert drift.problems([one]) == [f"{subject} differs on saltm3; see salt-run multimaster.drift"]


def test_every_subject_has_a_test_above_and_a_remedy():
    tested = {
        subject
        for subject, *_ in test_what_differs_on_one_of_three_is_found_and_named.pytestmark[0].args[
            1
        ]
    }
    assert tested == set(ALL)
    assert set(drift._REMEDIES) == {subject.partition(":")[0] for subject in ALL}


def test_what_was_not_told_leaf_by_leaf_is_a_difference_all_the_same():
    third = report(config={"worker_threads": 9})
    reports = dict(zip(IDS, (report(), report(), third), strict=True))
    for each in reports.values():
        del each["details"]
    (one,) = drift.differences(reports)
    assert (one.subject, list(one.remedies)) == ("config", ["saltm3"])


def test_a_master_without_a_report_differs_from_nobody():
    reports = {"saltm1": report(), "saltm2": None, "saltm3": report()}
    assert drift.differences(reports) == []
    assert drift.table(reports)["config"]["digests"]["saltm2"] is None
    assert drift.table(reports)["config"]["differs"] is False


def test_a_key_store_is_measured_by_the_decisions_and_not_by_most_masters():
    """All ledgers were equal, and so the masters were said to agree."""
    path, how = "stored:web1", "missing, and decided: accepted"
    astray = report(keys={"ledger": "4" * 64, path: how})
    for reports in (
        {"saltm1": astray, "saltm2": report()},
        {"saltm1": astray, "saltm2": astray, "saltm3": report()},
    ):
        (one,) = drift.differences(reports)
        assert (one.subject, one.path, one.side) == ("keys", path, "the masters' decisions")
        assert one.values["saltm1"] == how
        assert list(reports)[-1] not in one.remedies
        assert one.values[list(reports)[-1]] == one.expected == "as decided"
        assert one.remedies["saltm1"].command == "salt-run multimaster.keys_repair"


def test_of_two_masters_the_first_is_right_unless_something_is_declared():
    two = {"saltm1": report(), "saltm2": report(config={"worker_threads": 9})}
    (one,) = drift.differences(two)
    assert (one.expected, one.side) == (5, "saltm1, the first master")
    for each in two.values():
        each["declared"] = {"worker_threads": 9}
    (one,) = drift.differences(two)
    assert (one.expected, one.side, list(one.remedies)) == (9, "the declaration", ["saltm1"])


def test_the_declaration_outvotes_most_masters():
    reports = {name: report(config={"worker_threads": 9}) for name in IDS}
    reports["saltm1"] = report()
    for each in reports.values():
        each["declared"] = {"worker_threads": 5}
    (one,) = drift.differences(reports)
    assert list(one.remedies) == ["saltm2", "saltm3"]


def test_what_a_drop_in_adds_to_a_declared_option_is_to_be_removed():
    third = report(access={"external_auth:pam:eve:0": ".*"})
    third["sources"] = {
        "external_auth": ["/etc/salt/master.d/multimaster.conf", "/etc/salt/master.d/x.conf"]
    }
    third["declared"] = {"external_auth:pam:bob:0": "test.*"}
    (one,) = found_on(third)
    assert (one.expected, one.side) == (None, "the declaration")
    told = one.remedies["saltm3"]
    assert told.text.startswith("remove external_auth from /etc/salt/master.d/x.conf on saltm3")
    assert told.command == "salt saltm3 multimaster.restart salt-master"


def test_a_drop_in_of_the_formula_that_is_not_the_declared_one_is_applied_again():
    third = report(config={"worker_threads": 9})
    for each in (third, common := report()):
        each["sources"] = {
            "worker_threads": ["/etc/salt/master", "/etc/salt/master.d/multimaster.conf"]
        }
    common["declared"], third["declared"] = {"worker_threads": 5}, {"worker_threads": 9}
    (one,) = found_on(third, common)
    assert one.remedies["saltm3"].command == "salt saltm3 state.apply multimaster"


def test_an_option_that_one_master_lacks_names_the_file_that_others_have_it_in():
    common = report(config={"timeout": 9})
    common["sources"] = {"timeout": ["/etc/salt/master"]}
    (one,) = found_on(report(), common)
    assert "timeout is set on saltm1 in /etc/salt/master and not on saltm3" in (
        one.remedies["saltm3"].text
    )


def test_an_option_that_salt_makes_from_another_is_told_apart():
    third = report(config={"worker_threads": 9, "worker_pools:default:worker_count": "hash:1"})
    third["sources"] = {"worker_threads": ["/etc/salt/master", "/etc/salt/master.d/x.conf"]}
    made, set_there = found_on(third)
    assert made.remedies["saltm3"].text.startswith("no file sets worker_pools")
    # What is in the main file, too, comes into effect when the drop-in has it no more.
    assert "from /etc/salt/master.d/x.conf on" in set_there.remedies["saltm3"].text


def test_a_number_is_not_a_boolean():
    (one,) = found_on(report(config={"worker_threads": True}), report(config={"worker_threads": 1}))
    assert one.values["saltm3"] is True


@pytest.mark.parametrize(("offset", "late"), [(5.0, False), (-5.1, True), (70, True)])
def test_a_clock_may_be_off_by_so_much(offset, late):
    third = report() | {"offset": offset}
    found = found_on(third)
    assert [one.subject for one in found] == ["clock"] * late
    if late:
        assert "set the clock of saltm3" in found[0].remedies["saltm3"].text


def test_a_master_that_runs_with_another_configuration_than_its_files_have_is_named():
    third = report() | {"stale": {"worker_threads": [5, 3], "mysql.pass": [None, "hash:1"]}}
    added, other = found_on(third)
    assert (other.subject, other.path) == ("running", "worker_threads")
    assert other.values["saltm3"] == "5 in use, 3 in its files"
    assert other.values["saltm1"] == "in use"
    assert other.remedies["saltm3"].command == "salt saltm3 multimaster.restart salt-master"
    assert added.values["saltm3"] == "nothing in use, hash:1 in its files"


def test_files_that_an_older_version_of_the_formula_tells_of_are_named():
    third = report() | {"stale": ["/etc/salt/master.d/x.conf"]}
    (one,) = found_on(third)
    assert (one.path, one.values["saltm3"]) == (
        "/etc/salt/master.d/x.conf",
        "newer than the running master",
    )


@pytest.mark.parametrize(("up", "named"), [(1, False), (drift.UNKNOWN, True)])
def test_what_is_not_known_is_no_difference_while_a_master_starts_and_is_told_later(up, named):
    third = report() | {"stale": None, "up": up}
    found = found_on(third)
    assert [(one.subject, list(one.remedies)) for one in found] == [("running", ["saltm3"])] * named
    reports = {"saltm1": report(), "saltm2": None, "saltm3": third}
    assert drift.unknown(reports) == ["saltm3"]


# What a running master has read

KEY = multimaster_options.hash_key("a key")
DAEMON = [4711, 12345, "a boot"]
READ = {"worker_threads": 5, "mysql.pass": "hash:1"}


def test_a_master_that_has_read_what_its_files_have_is_not_stale():
    note = json.loads(json.dumps(drift.note_of(DAEMON, KEY, READ)))
    assert drift.stale(note, DAEMON, KEY, READ) == {}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({**READ, "worker_threads": 3}, {"worker_threads": [5, 3]}),
        ({**READ, "peer": {}}, {"peer": [None, {}]}),
        ({"worker_threads": 5}, {"mysql.pass": ["hash:1", None]}),
        ({**READ, "worker_threads": True}, {"worker_threads": [5, True]}),
    ],
)
def test_an_option_that_the_running_master_has_otherwise_is_named(files, told):
    assert drift.stale(drift.note_of(DAEMON, KEY, READ), DAEMON, KEY, files) == told


def test_another_key_pair_than_at_the_start_is_named_and_its_hashes_are_not_compared():
    other = multimaster_options.hash_key("another key")
    note = drift.note_of(DAEMON, other, {"mysql.pass": "hash:2"})
    assert list(drift.stale(note, DAEMON, KEY, READ)) == ["key pair"]


@pytest.mark.parametrize(
    ("note", "process", "key"),
    [
        (None, DAEMON, KEY),
        ("rubbish", DAEMON, KEY),
        (drift.note_of([4711, 12344, "a boot"], KEY, READ), DAEMON, KEY),
        (drift.note_of(DAEMON, None, READ), DAEMON, KEY),
        (drift.note_of(DAEMON, KEY, READ), DAEMON, None),
        (drift.note_of(None, KEY, READ), None, KEY),
    ],
)
def test_without_a_note_of_this_very_process_nothing_is_known(note, process, key):
    assert drift.stale(note, process, key, READ) is None


def test_what_a_daemon_has_made_of_its_options_is_not_compared_with_its_files():
    files = {"timeout": 5, "engines": [{"multimaster": {}}], "log_level": "warning", "user": "root"}
    daemon = {
        **files,
        "engines": [{"multimaster": {}}, {"reactor": {}}],
        "log_level": "debug",
        "user": "salt",
        "daemon": True,
        "__role": "master",
        "include": "/etc/salt/master.d/multimaster.conf",
    }
    files["include"] = "/srv/shared/config/master.d/*.conf"
    assert drift.read_from_files(daemon, files) == drift.read_from_files(files)


# What is compared


def test_what_is_a_masters_own_is_left_out_and_places_are_compared_without_their_beginning():
    leaves = {
        "id": "saltm3",
        "interface": "192.0.2.3",
        "cachedir": "/srv/m3/var/cache/salt/master",
        "extension_modules": "/srv/m3/var/cache/salt/master/extmods",
        "module_dirs:0": "/srv/m3/var/lib/multimaster",
        "file_roots:base:0": "/srv/m3x/salt",
        "timeout": 5,
    }
    prefixes = [("/srv/m3/var/cache/salt/master", "CACHEDIR"), ("/srv/m3", "")]
    assert drift.comparable(leaves, prefixes) == {
        "extension_modules": "CACHEDIR/extmods",
        "module_dirs:0": "/var/lib/multimaster",
        "file_roots:base:0": "/srv/m3x/salt",
        "timeout": 5,
    }


def test_a_secret_is_compared_by_its_hash():
    key = multimaster_options.hash_key("a key")
    values = [
        multimaster_options.shown("mysql.pass", word, key) for word in ("hunter2", "swordfish")
    ]
    reports = [report(config={"mysql.pass": value}) for value in values]
    found = drift.differences(dict(zip(IDS, [reports[0], *reports], strict=True)))
    text = json.dumps([one.plain() for one in found])
    assert [one.path for one in found] == ["mysql.pass"]
    assert "hunter2" not in text
    assert "swordfish" not in text
    assert all(value.startswith("hash:") for value in found[0].values.values())


# The sample


@pytest.mark.parametrize(
    ("accepted", "known", "samples"),
    [
        (["saltm1", "web1"], ["saltm1", "web1", "web2"], ["web1", "saltm1"]),
        (["saltm2", "saltm1"], ["saltm2", "saltm1", "gone"], ["saltm1", "saltm2"]),
        (["web1"], [], []),
    ],
)
def test_an_ordinary_minion_is_the_sample_where_there_is_one(accepted, known, samples):
    assert drift.samples(accepted, IDS, known, "a key") == samples


def test_in_failover_mode_a_master_is_the_sample_since_all_have_its_grains():
    ids = ["web1", "saltm3", "saltm2"]
    assert drift.samples(ids, IDS, ids, "a key", "failover") == ["saltm2", "saltm3", "web1"]


def test_no_id_makes_a_minion_the_sample():
    ids = ["0", "!", *(f"web{number}" for number in range(50))]
    first = [drift.samples(ids, IDS, ids, f"key {number}")[0] for number in range(20)]
    assert len(set(first)) > 10
    # All masters have one key, and so does each look.
    assert drift.samples(ids, IDS, ids, "key 0") == drift.samples(ids[::-1], IDS, ids, "key 0")


def test_many_that_serve_as_no_sample_do_not_keep_the_masters_from_being_compared():
    ids = [f"web{number}" for number in range(1000)]
    found = drift.samples([*ids, "saltm2"], IDS, [*ids, "saltm2"], "a key")
    assert (len(found), found[-1]) == (drift.TRIED + 1, "saltm2")


GRAINS = {
    "id": "web1",
    "os": "Debian",
    "roles": ["web", "db"],
    "fqdn_ip4": ["192.0.2.2", "192.0.2.1"],
    "ip_interfaces": {"eth0": ["192.0.2.7"]},
    "master": "192.0.2.1",
    "pid": 1234,
    "systempath": ["/usr/bin"],
}
# The same minion, by another process and through another master, after a container has started.
AGAIN = GRAINS | {
    "fqdn_ip4": ["192.0.2.1", "192.0.2.2"],
    "ip_interfaces": {"eth0": ["192.0.2.7"], "veth1": []},
    "locale_info": {"timezone": "CEST"},
    "master": ["192.0.2.2"],
    "multimaster_keys": {"nonce": "n"},
    "opts": {"id": "web1"},
    "pid": 4321,
    "systempath": ["/bin", "/usr/bin"],
}


def test_what_another_process_of_a_minion_has_otherwise_changes_no_digest():
    first, second = drift.sample_grains(GRAINS), drift.sample_grains(AGAIN)
    assert (first[1], first[2]) == (second[1], None)
    # Nor what follows from that: an address to compile with is of the minion and no master's.
    for name in ("fqdn_ip4", "master", "pid", "systempath"):
        assert first[0][name] == second[0][name]
    assert second[0]["ip_interfaces"] == AGAIN["ip_interfaces"]
    assert "multimaster_keys" not in second[0]


@pytest.mark.parametrize("other", [{"os": "Plan9"}, {"roles": ["db", "web"]}, {"more": None}])
def test_other_grains_have_another_digest(other):
    assert drift.sample_grains(GRAINS | other)[1] != drift.sample_grains(GRAINS)[1]


def nested(deep: int) -> Any:
    found: Any = "x"
    for _ in range(deep):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("grains", "why"),
    [
        ({}, "there are no grains of it"),
        ({1: "x", "id": "web1"}, "its grains are of no use (TypeError)"),
        ({"x": {b"x": 1}}, "its grains are of no use (TypeError)"),
        ({"x": nested(50_000)}, "its grains are nested more than 32 deep"),
        ({"ip_interfaces": nested(500)}, "its grains are nested more than 32 deep"),
        ({"fqdn_ip4": nested(500)}, "its grains are nested more than 32 deep"),
        ({"x": "x" * 2**18}, "its grains are larger than 256 KiB"),
        ({"ipv6": ["x" * 2**18]}, "its grains are larger than 256 KiB"),
    ],
    ids=range(8),
)
def test_nothing_is_compiled_with_odd_grains(grains, why):
    assert drift.sample_grains(grains) == ({}, None, why)


def test_what_is_never_compared_may_be_of_any_size():
    assert drift.sample_grains(GRAINS | {"path": "x" * 2**20, "opts": nested(500)})[2] is None


grains = st.dictionaries(
    st.text() | st.integers() | st.binary() | st.none() | st.sampled_from(list(AGAIN)),
    st.recursive(
        st.none() | st.floats() | st.text() | st.binary() | st.just(msgpack.ExtType(1, b"x")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    ),
)


@given(grains)
def test_whatever_grains_there_are_they_are_read_or_set_aside(grains):
    found, printed, why = drift.sample_grains(grains)
    assert (printed is None) is (why is not None)
    json.dumps(found, default=str)


def proved(**proof: str) -> dict[str, Any]:
    """A report of a master that has compiled nothing."""
    made = report()
    del made["subjects"]["content"], made["details"]["content"]
    return {**made, "proof": proof}


def test_a_master_that_compiled_nothing_on_purpose_is_not_compared():
    third = proved(sample="web1", skipped="there are no grains of it")
    assert found_on(third) == []
    assert not drift.table({"saltm1": report(), "saltm3": third})["content"]["differs"]


def test_a_master_that_could_not_compile_is_a_difference_with_the_reason():
    (one,) = found_on(proved(sample="web1", problem="its grains of it are others"))
    assert (one.subject, list(one.remedies)) == ("content", ["saltm3"])
    assert "its grains of it are others" in one.remedies["saltm3"].text


# Events


def test_a_change_is_told_once_and_so_is_its_end():
    found = found_on(report(config={"worker_threads": 9}))
    first = drift.change([], found)
    assert (first["count"], len(first["new"]), first["over"], first["clean"]) == (1, 1, 0, False)
    names = [one.name for one in found]
    assert drift.change(names, found) is None
    last = drift.change(names, [])
    assert (last["count"], last["over"], last["clean"]) == (0, 1, True)
    assert drift.change([], []) is None


def test_another_value_is_another_difference():
    names = [one.name for one in found_on(report(config={"worker_threads": 9}))]
    other = found_on(report(config={"worker_threads": 8}))
    assert drift.change(names, other)["over"] == 1


# Prometheus


def row(**changed: Any) -> dict[str, Any]:
    states = {"accepted": 3, "pending": 1, "denied": 0, "rejected": 0, "conflicts": 0}
    more = {
        "connections": 4,
        "offset": -0.5,
        "formula": "0.1.0",
        "version": "3008.3",
        "remotes_down": 0,
    }
    return {"reachable": True, "reported": True, **states, **more, **changed}


def status(**masters: dict[str, Any]) -> dict[str, Any]:
    found = found_on(report(config={"worker_threads": 9}))
    return {
        "masters": masters,
        "subjects": drift.table(dict.fromkeys(IDS, report())),
        "differences": [one.plain() for one in found],
        "troubled": 2,
    }


def test_metrics_say_what_the_status_says():
    nothing = dict.fromkeys(row())
    text = drift.metrics(status(saltm1=row(), saltm3=row(), saltm4=nothing), 1700000000.5)
    lines = text.splitlines()
    for line in (
        'multimaster_up{master="saltm1"} 1',
        'multimaster_keys{master="saltm1",state="pending"} 1',
        'multimaster_clock_offset_seconds{master="saltm1"} -0.5',
        'multimaster_connected_minions{master="saltm1"} 4',
        'multimaster_differences{master="saltm3",subject="config"} 1',
        'multimaster_differences{master="saltm1",subject="config"} 0',
        'multimaster_master_info{master="saltm1",salt="3008.3",formula="0.1.0"} 1',
        "multimaster_minions_in_trouble 2",
        "multimaster_check_complete 0",
        "multimaster_last_check_timestamp_seconds 1700000000.5",
    ):
        assert line in lines
    # Of a master that told nothing there is nothing but that.
    assert not any("saltm4" in line and "keys{" in line for line in lines)


def test_labels_are_escaped():
    text = drift.metrics(status(**{'a"b\\c\nd': row()}), 0.0)
    assert r'{master="a\"b\\c\nd"} 1' in text


@pytest.mark.promtool
def test_promtool_accepts_the_metrics():
    text = drift.metrics(status(saltm1=row(), saltm2=dict.fromkeys(row())), 1700000000.5)
    done = promtool("metrics", input=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.promtool
def test_promtool_accepts_the_alert_rules():
    done = promtool("rules", str(ALERTS))
    assert done.returncode == 0, done.stderr
    assert "SUCCESS: 8 rules found" in done.stdout


def test_the_alert_rules_are_over_metrics_that_there_are():
    text = drift.metrics(status(saltm1=row()), 0.0)
    told = set(re.findall(r"^(multimaster_\w+)", text, re.MULTILINE))
    for rule in yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]:
        used = set(re.findall(r"multimaster_\w+", rule["expr"]))
        assert used, rule
        assert used <= told


def promtool(what: str, *argv: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", "check", what, *argv], capture_output=True, text=True, check=False, **kwargs
    )
