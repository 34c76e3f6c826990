"""What the minion on a master's host reports of that master."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

WORD = "hunter2hunter2"
GRAINS = {"id": "web1", "os": "Debian"}


@pytest.fixture
def report(host, shared):
    """Report on a master that has its key pair, a file root and a pillar root."""
    import salt.cache
    import salt.config

    import multimaster_drift
    import multimaster_ledger

    host.write("etc/salt/pki/master/saltm2.pem", shared.pem)
    host.write("etc/salt/pki/master/saltm2.pub", shared.pub)
    host.accept({"web1": "a key", "saltm2": "another"})
    host.write("srv/salt/top.sls", {"base": {"*": ["web"]}})
    host.write("srv/salt/web.sls", "")
    host.write("srv/pillar/top.sls", {"base": {"web*": ["web"]}})
    host.write("srv/pillar/web.sls", "port: {{ 80 + 1 }}\nword: " + WORD)
    main = {
        **json_safe(host, "etc/salt/master"),
        "id": "saltm2",
        "file_roots": {"base": [f"{host.root}/srv/salt"]},
        "pillar_roots": {"base": [f"{host.root}/srv/pillar"]},
        "minion_data_cache": True,
    }
    host.write("etc/salt/master", main)

    def report(sample=None, wanted=None, **flags):
        """
        Have a report.

        sample
            Grains of web1, which serves as the sample, as this master has them.
        wanted
            The grains that it is to have, unless they are these.
        """
        if sample is not None:
            master_opts = salt.config.master_config(str(host.config_dir / "master"))
            salt.cache.factory(master_opts).store("grains", "web1", sample)
            _, print_, _ = multimaster_drift.sample_grains(wanted or sample)
            flags["sample"] = ["web1", print_]
        told = host.modules["multimaster_drift.report"](**flags)
        # As Salt brings it to the master that asks.
        told = json.loads(json.dumps(told))
        if "details" in told:
            told["details"] = multimaster_ledger.unsqueeze(told["details"])
        return told

    return report


def json_safe(host, path):
    import yaml

    return yaml.safe_load((host.root / path).read_text())


ALL = ["config", "access", "files:base", "pillar:base", "modules", "keys", "formula", "content"]


def together(host, made_since, questions):
    """Have questions come in while a report is made; return the answers, and those made."""
    path, made, begun, go = host.root / "reports.json", [], threading.Event(), threading.Event()
    one_at_a_time, arrived = threading.Lock(), threading.Barrier(len(questions) + 1)

    def make(what):
        def make():
            made.append(what)
            begun.set()
            assert go.wait(60)
            return f"report {len(made)}"

        return make

    def ask(what):
        at = time.monotonic()
        arrived.wait(60)
        with one_at_a_time:
            return made_since(at, path, what, make(what))

    with ThreadPoolExecutor() as pool:
        with one_at_a_time:
            first = pool.submit(made_since, time.monotonic(), path, ["first"], make(["first"]))
            assert begun.wait(60)
            rest = [pool.submit(ask, what) for what in questions]
            arrived.wait(60)
            go.set()
            first.result(60)
        return [one.result(60) for one in rest], made


def test_who_wants_to_know_the_same_meanwhile_shares_the_next_report(host, by_path):
    module = by_path("salt/_modules/multimaster_drift.py")
    module.__utils__ = UTILS()
    questions = [["first"], ["second"], ["first"], ["first"]]
    told, made = together(host, module._made_since, questions)
    # The one that was under way may not have what the others ask for.
    assert sorted(made[1:]) == [["first"], ["second"]]
    assert "report 1" not in told
    assert told[0] == told[2] == told[3] != told[1]


@pytest.mark.parametrize("left", ["", "[]", '{"x": 1}', "no JSON", "before the reboot"])
def test_a_report_is_made_whatever_is_left_of_others(host, by_path, left):
    module = by_path("salt/_modules/multimaster_drift.py")
    module.__utils__ = UTILS()
    path = host.root / "reports.json"
    since = time.monotonic()
    if left == "before the reboot":
        module._made_since(since, path, [], lambda: "old")
        left = path.read_text().replace('"begun": ', '"begun": 9')
    path.write_text(left)
    assert module._made_since(since, path, [], lambda: "new") == "new"
    assert module._made_since(since, path, [], lambda: "newer") == "new"


def test_a_report_is_made_where_no_file_can_be_written(report, host, monkeypatch):
    monkeypatch.setitem(
        host.modules.pack["__opts__"], "cachedir", str(host.root / "etc/salt/minion/none")
    )
    assert report()["subjects"]


@pytest.mark.parametrize("name", ["../web1", "/etc/x", "..", 5])
def test_a_report_compiles_nothing_for_what_is_no_id(host, report, name):
    from salt.exceptions import CommandExecutionError

    with pytest.raises(CommandExecutionError, match=r"sample: got .*supported: a minion id"):
        host.modules["multimaster_drift.report"](sample=[name, ""])


def test_a_report_has_digests_and_no_lists(report, host):
    told = report()
    assert {"config", "access", "files:base", "pillar:base", "keys", "modules"} <= set(
        told["subjects"]
    )
    assert (told["master"]["accepted"], told["master"]["running"]) == (2, False)
    assert told["master"]["answers"] is False
    host.accept({f"web{number}": "a key" for number in range(2000)})
    assert len(json.dumps(report())) < 4000


def test_without_a_key_pair_of_the_masters_no_hash_can_be_tried_out(report, host):
    host.write("etc/salt/master.d/x.conf", {"mysql.pass": WORD})
    for name in ("pem", "pub"):
        (host.pki / f"saltm2.{name}").unlink()
    first, second = (report(detail=ALL)["details"]["config"]["mysql.pass"] for _ in range(2))
    assert first != second


def test_a_key_decision_changes_nothing_that_was_compiled(report, host):
    import multimaster_ledger

    first = report(sample=GRAINS)
    path = host.root / "var/cache/salt/master/multimaster/ledger.db"
    path.parent.mkdir(parents=True)
    with multimaster_ledger.open_ledger(str(path)) as book, book.transaction():
        book.decide("web2", "f" * 64, "accepted", "saltm2", "a key", "here")
    second = report(sample=GRAINS, compiles=False)
    assert second["subjects"]["keys"] != first["subjects"]["keys"]
    assert second["proof"]["at"] == first["proof"]["at"]


def test_a_key_that_is_otherwise_than_decided_is_a_leaf_of_the_keys(report, host):
    import multimaster_ledger

    path = host.root / "var/cache/salt/master/multimaster/ledger.db"
    path.parent.mkdir(parents=True)
    for name in ("web1", "saltm2"):
        (host.pki / "minions" / name).unlink()
    with multimaster_ledger.open_ledger(str(path)) as book:
        book.completed()
        assert set(report(detail=ALL)["details"]["keys"]) == {"ledger"}
        book.decide("web2", "f" * 64, "accepted", "saltm1", "a key", "saltm1")
    told = report(detail=ALL)
    how = "missing, and decided: accepted"
    assert told["details"]["keys"]["stored:web2"] == how
    assert told["master"]["astray"] == {"web2": how}


def test_a_second_report_is_the_same(report):
    assert report()["subjects"] == report()["subjects"]


@pytest.mark.parametrize(
    ("option", "value", "subject", "path"),
    [
        ("worker_threads", 9, "config", "worker_threads"),
        ("nodegroups", {"web": "web*"}, "config", "nodegroups:web"),
        ("external_auth", {"pam": {"bob": [".*"]}}, "access", "external_auth:pam:bob:0"),
        ("publisher_acl", {"bob": [".*"]}, "access", "publisher_acl:bob:0"),
        ("peer", {".*": ["test.ping"]}, "access", "peer:.*:0"),
        ("mysql.pass", WORD, "config", "mysql.pass"),
        ("ext_pillar", [{"cmd_yaml": WORD}], "config", "ext_pillar:0:cmd_yaml"),
    ],
)
def test_a_drop_in_changes_the_subject_of_its_option(report, host, option, value, subject, path):
    before = report()
    host.write("etc/salt/master.d/x.conf", {option: value})
    after = report(detail=ALL)
    changed = {n for n, v in after["subjects"].items() if before["subjects"].get(n) != v}
    assert changed == {subject}
    assert path in after["details"][subject]
    assert after["sources"][option] == [f"{host.config_dir}/master.d/x.conf"]
    assert WORD not in json.dumps(after)


@pytest.mark.parametrize(
    ("file", "subject", "path"),
    [
        ("srv/salt/new.sls", "files:base", "new.sls"),
        ("srv/pillar/new.sls", "pillar:base", "new.sls"),
        (
            "var/cache/salt/master/extmods/runners/x.py",
            "modules",
            "extension_modules/runners/x.py",
        ),
        ("etc/salt/autosign.conf", "access", "autosign_file:content:web9"),
        ("etc/salt/autoreject.conf", "access", "autoreject_file:content:web9"),
    ],
)
def test_a_file_changes_the_subject_that_it_belongs_to(report, host, file, subject, path):
    for option in ("autosign", "autoreject"):
        host.write(
            f"etc/salt/master.d/{option}.conf",
            {f"{option}_file": f"{host.root}/etc/salt/{option}.conf"},
        )
    before = report()
    host.write(file, "web9\n")
    after = report(detail=[subject])
    assert {n for n, v in after["subjects"].items() if before["subjects"].get(n) != v} == {subject}
    assert path in after["details"][subject]


def test_what_an_orchestration_brings_to_one_master_makes_it_no_other_one(report, host):
    host.write("var/cache/salt/master/extmods/runners/mine.py", "x")
    before = report()["subjects"]["modules"]
    host.write("var/cache/salt/master/extmods/states/multimaster_orch.py", "x")
    assert report()["subjects"]["modules"] == before


def test_grains_that_sign_a_minion_in_are_not_shown(report, host):
    host.write("etc/salt/master.d/a.conf", {"autosign_grains_dir": f"{host.root}/etc/salt/grains"})
    before = report()
    host.write("etc/salt/grains/token", f"{WORD}\n")
    after = report(detail=ALL)
    assert after["subjects"]["access"] != before["subjects"]["access"]
    assert WORD not in json.dumps(after)


def test_hosts_with_other_places_report_the_same(report, host):
    # What else is a place of this host.
    before = report(detail=ALL)["details"]
    assert str(host.root) not in json.dumps([before["config"], before["access"]])


# What a minion would be given


def test_pillar_and_top_file_of_a_sample_are_compiled_and_not_shown(report):
    told = report(sample=GRAINS, detail=ALL)
    assert told["proof"]["sample"] == "web1", told["proof"]
    leaves = told["details"]["content"]
    assert set(leaves) == {"pillar:port", "pillar:word", "top:base:0"}
    assert leaves["top:base:0"] == "web"
    assert WORD not in json.dumps(told)


def test_what_was_compiled_holds_until_something_changes(report, host):
    first = report(sample=GRAINS)
    again = report(sample=GRAINS, compiles=False)
    assert again["proof"]["at"] == first["proof"]["at"]
    assert again["subjects"]["content"] == first["subjects"]["content"]
    assert "problem" in report(sample=GRAINS, compiles=False, max_age=0)["proof"]
    other = {**GRAINS, "os": "Plan9"}
    assert "problem" in report(sample=other, compiles=False)["proof"]
    assert report(sample=other)["proof"]["grains"] != first["proof"]["grains"]
    host.write("srv/pillar/web.sls", "port: 82")
    assert "content" not in (stale := report(sample=other, compiles=False))["subjects"]
    assert "problem" in stale["proof"]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({**GRAINS, "os": "Plan9"}, "its grains of it are others"),
        ({}, "there are no grains of it"),
        ({**GRAINS, "more": "x" * 2**18}, "its grains are larger than 256 KiB"),
    ],
    ids=["others", "none", "too many"],
)
def test_a_master_with_other_grains_of_the_sample_says_so_and_compiles_nothing(report, own, why):
    told = report(sample=own, wanted=GRAINS)
    assert told["proof"]["skipped"] == why
    assert "content" not in told["subjects"]


def test_a_pillar_is_compiled_with_what_the_master_itself_has_of_the_sample(report, host):
    host.write("srv/pillar/web.sls", "{{ grains.os }}{{ grains.master }}: 1")
    first = report(sample={**GRAINS, "master": "192.0.2.1"}, detail=ALL)
    assert set(first["details"]["content"]) == {"pillar:Debian", "top:base:0"}
    # Which master the minion is connected to is no difference between masters.
    other = {**GRAINS, "master": "192.0.2.2"}
    assert report(sample=other, max_age=0)["subjects"]["content"] == first["subjects"]["content"]


def test_what_is_asked_for_again_meanwhile_is_compiled_once(host, report):
    # Takes so long that the others ask meanwhile; each compilation leaves a line.
    command = f"sleep 1; echo compiled >> {host.root}/times"
    pillar = f"port: {{{{ salt['cmd.run']('{command}', python_shell=True) }}}} 80"
    host.write("srv/pillar/web.sls", pillar)
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(lambda _: report(sample=GRAINS), range(3)))
    assert (host.root / "times").read_text() == "compiled\n"
    assert len({one["proof"]["at"] for one in told}) == 1


def test_that_minions_are_given_what_was_cached_is_told(report, host):
    assert "cached" not in report(sample=GRAINS)["proof"]
    main = json_safe(host, "etc/salt/master")
    host.write("etc/salt/master", {**main, "pillar_cache": True, "pillar_cache_ttl": 77})
    assert report(sample=GRAINS)["proof"]["cached"] == 77


def test_a_pillar_that_does_not_render_is_told(report, host):
    host.write("srv/pillar/web.sls", "{{ no }")
    told = report(sample=GRAINS, detail=ALL)
    assert "pillar:_errors" in told["details"]["content"]


def test_what_the_watching_engine_has_told_is_kept_for_the_next_one(report, host):
    state = host.root / "var/cache/salt/master/multimaster"
    report(watch={"by": "saltm1", "known": []})
    assert not state.exists()
    state.mkdir(parents=True)
    report(watch={"by": "saltm1", "known": ["x"]})
    assert json.loads((state / "watch.json").read_text())["known"] == ["x"]


# Whether the running master has read what its files say


@pytest.fixture
def running(host, report, by_path, monkeypatch):
    """Have this process be the master: ``start`` has it read its files, then its engine note it."""
    import salt.config

    host.write("var/run/salt-master.pid", str(os.getpid()))
    engine = by_path("salt/_engines/multimaster_drift.py")
    monkeypatch.setattr(engine, "__utils__", UTILS(), raising=False)

    def start():
        opts = salt.config.master_config(str(host.config_dir / "master"))
        monkeypatch.setattr(engine, "__opts__", {**opts, "daemon": False}, raising=False)
        return lambda: engine._note(os.getpid())

    return start


class UTILS(dict):
    """The formula's utility modules, as Salt's loader has them."""

    def __missing__(self, name):
        module, _, function = name.partition(".")
        return getattr(importlib.import_module(module), function)


def test_a_file_that_is_newer_than_the_running_master_and_says_the_same_is_no_difference(
    report, running, host
):
    running()()
    host.write("etc/salt/master.d/a.conf", {"timeout": 5})
    (host.config_dir / "master").touch()
    assert report(ask=False)["stale"] == {}


def test_an_option_that_the_running_master_has_not_read_is_told_and_no_secret(
    report, running, host
):
    host.write("etc/salt/master.d/a.conf", {"timeout": 7, "mysql.pass": WORD})
    running()()
    assert report(ask=False)["stale"] == {}
    host.write("etc/salt/master.d/a.conf", {"mysql.pass": WORD * 2, "ext_job_cache": "redis"})
    told = report(ask=False)["stale"]
    assert (told["timeout"], told["ext_job_cache"]) == ([7, 5], ["", "redis"])
    assert set(told) == {"timeout", "ext_job_cache", "mysql.pass"}
    assert WORD not in json.dumps(told)
    note = host.root / "var/cache/salt/master/multimaster/running.json"
    assert WORD not in note.read_text()
    assert note.stat().st_mode & 0o777 == 0o600


def test_what_is_changed_between_the_start_of_a_master_and_of_its_engine_is_told(
    report, running, host
):
    note = running()
    host.write("etc/salt/master.d/a.conf", {"timeout": 7})
    assert report(ask=False)["stale"] is None
    note()
    assert report(ask=False)["stale"] == {"timeout": [5, 7]}


def test_the_note_of_a_former_master_says_nothing_of_this_one(report, running, host):
    running()()
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            host.write("var/run/salt-master.pid", str(other.pid))
            told = report(ask=False)
        finally:
            other.kill()
    assert told["stale"] is None
    assert told["up"] < 60


QUESTIONS = {
    "multimaster.daemons": [],
    "multimaster.key_digest": [],
    "multimaster.key_page": ["*", "", 10],
    "multimaster.key_states": [],
    "multimaster.masters": [],
    "multimaster.outstanding": ["salt-master"],
    "multimaster.report": [],
    "multimaster_orch.connections": [],
    "multimaster_orch.facts": [True],
    "multimaster_orch.reach": [["127.0.0.1"], [1]],
    "multimaster_roots.status": [],
    "saltutil.running": [],
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_a_host_answers_passes_the_check_as_it_is(host, report, question):
    import multimaster_said

    answer = json.loads(json.dumps(host.modules[question](*QUESTIONS[question])))
    found, why = multimaster_said.check(question, answer)
    assert why is None
    if question != "multimaster.report":
        assert found == answer


@pytest.mark.parametrize("minions", [False, True])
def test_a_report_passes_the_check_as_it_is(host, report, minions):
    import multimaster_said

    told = report(detail=ALL, sample=GRAINS, minions=minions)
    details, why = multimaster_said.check("details", told.pop("details"))
    assert (why, details["config"]["worker_threads"]) == (None, 5)
    found, why = multimaster_said.check("multimaster_drift.report", told)
    assert why is None
    # What may be absent is left out where it is None.
    assert found | dict.fromkeys(("minions", "unknown", "grainless")) == told
