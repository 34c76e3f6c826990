"""The status runner and its outputter: what is wrong, in words and as a table."""

from __future__ import annotations

import contextlib
import textwrap

import pytest

MASTERS = ("saltm1", "saltm2", "saltm3")
ADDRESSES = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
DECLARED = [{"id": name, "address": at} for name, at in zip(MASTERS, ADDRESSES, strict=True)]


@pytest.fixture(scope="module")
def runner(by_path):
    return by_path("salt/_runners/multimaster.py")


@pytest.fixture(scope="module")
def output(by_path):
    return by_path("salt/_output/multimaster.py").output


def master(address, **changes):
    """The row of a master that is well."""
    numbers = {"accepted": 4, "pending": 0, "denied": 0, "rejected": 0}
    row = {"address": address, "reachable": True, "version": "3008.3", "fingerprint": "ab" * 32}
    return row | numbers | changes


def minion(**changes):
    """The row of a minion that is well."""
    return {"answers": dict.fromkeys(MASTERS, True), "configured": list(ADDRESSES)} | changes


def masters(**changes):
    rows = {name: master(at) for name, at in zip(MASTERS, ADDRESSES, strict=True)}
    return {name: row | changes.get(name, {}) for name, row in rows.items()}


def problems(runner, masters_=None, mode="hot", **minions):
    return runner._problems(masters_ or masters(), minions, ADDRESSES, mode)


class TestProblems:
    @pytest.mark.parametrize("mode", ["hot", "failover"])
    def test_are_none_when_all_is_well(self, runner, mode):
        assert problems(runner, mode=mode, saltm1=minion(), web1=minion()) == []

    def test_name_a_master_that_is_away(self, runner):
        gone = {"reachable": False, "version": None, "fingerprint": None, "pending": None}
        found = problems(runner, masters(saltm2=gone))
        assert found == ["master saltm2 (192.0.2.2) does not answer"]

    def test_count_pending_keys(self, runner):
        found = problems(runner, masters(saltm3={"pending": 2}))
        assert found == ["master saltm3 has 2 pending keys"]

    def test_tell_of_masters_with_different_keys(self, runner):
        found = problems(runner, masters(saltm3={"fingerprint": "cd" * 32}))
        assert found == ["the masters have different keys"]

    def test_do_not_compare_the_key_of_a_master_that_is_away(self, runner):
        found = problems(runner, masters(saltm3={"reachable": False, "fingerprint": None}))
        assert found == ["master saltm3 (192.0.2.3) does not answer"]

    def test_name_the_masters_that_a_hot_minion_does_not_answer(self, runner):
        answers = {"saltm1": True, "saltm2": False, "saltm3": False}
        found = problems(runner, web1=minion(answers=answers))
        assert found == ["minion web1 does not answer to saltm2, saltm3"]

    @pytest.mark.parametrize("current", MASTERS)
    def test_let_a_failover_minion_have_one_master(self, runner, current):
        answers = {name: name == current for name in MASTERS}
        assert problems(runner, mode="failover", web1=minion(answers=answers)) == []

    def test_name_a_failover_minion_without_any_master(self, runner):
        answers = dict.fromkeys(MASTERS, False)
        found = problems(runner, mode="failover", web1=minion(answers=answers))
        assert found == ["minion web1 does not answer to saltm1, saltm2, saltm3"]

    def test_expect_a_masters_own_minion_everywhere_even_with_failover(self, runner):
        answers = {"saltm1": True, "saltm2": True, "saltm3": False}
        found = problems(runner, mode="failover", saltm1=minion(answers=answers))
        assert found == ["minion saltm1 does not answer to saltm3"]

    def test_name_a_minion_with_another_list(self, runner):
        found = problems(runner, web1=minion(configured=["192.0.2.1"]))
        assert found == ["minion web1 is configured for 192.0.2.1"]

    def test_do_not_guess_the_list_of_a_minion_that_is_away(self, runner):
        assert problems(runner, web1=minion(configured=None)) == []


class TestStatus:
    """Data and exit status, from the answers that the minions would give."""

    @pytest.fixture
    def ask(self, runner, monkeypatch):
        def ask(reports, configured, declared=DECLARED):
            class Client:
                def cmd(self, target, function, *args, **kwargs):
                    return reports if function == "multimaster.report" else configured

            # No master runs here that the real client could ask.
            monkeypatch.setattr(
                "salt.client.get_local_client", lambda **kwargs: contextlib.nullcontext(Client())
            )
            monkeypatch.setattr(
                runner, "__opts__", {"multimaster": {"masters": declared}}, raising=False
            )
            return runner.status()["data"]

        return ask

    def report(self, **changes):
        return {
            "running": True,
            "version": "3008.3",
            "fingerprint": "ab" * 32,
            "accepted": ["web1"],
            "pending": [],
            "denied": [],
            "rejected": [],
            "answering": ["web1"],
        } | changes

    def test_is_0_when_all_is_well(self, ask):
        reports = {name: self.report() for name in MASTERS}
        data = ask(reports, {"web1": {"configured": ADDRESSES, "connected": ADDRESSES}})
        assert data["problems"] == []
        assert data["retcode"] == 0
        assert data["minions"]["web1"] == minion()
        assert data["masters"]["saltm1"]["accepted"] == 1

    @pytest.mark.parametrize(
        "bad", [None, "Minion did not return", False, {"running": False}], ids=repr
    )
    def test_is_1_with_a_master_that_gives_no_report_or_does_not_run(self, ask, bad):
        bad = self.report(**bad) if isinstance(bad, dict) else bad
        reports = {name: self.report() for name in MASTERS} | {"saltm2": bad}
        data = ask(reports, {})
        assert data["retcode"] == 1
        assert "master saltm2 (192.0.2.2) does not answer" in data["problems"]

    def test_includes_a_minion_that_one_master_only_knows(self, ask):
        reports = {name: self.report(accepted=[], answering=[]) for name in MASTERS}
        reports["saltm3"] = self.report()
        data = ask(reports, {})
        assert data["problems"] == ["minion web1 does not answer to saltm1, saltm2"]

    def test_is_1_on_a_master_without_a_declaration(self, ask):
        data = ask({}, {}, declared=[])
        assert data["retcode"] == 1
        assert data["problems"] == ["this master declares no topology; apply the formula first"]


class TestOutput:
    def test_is_two_tables(self, output):
        data = {"masters": masters(), "minions": {"web1": minion()}, "problems": []}
        assert output(data) == textwrap.dedent(
            """\
            MASTER  ADDRESS    UP   VERSION  KEY               ACCEPTED  PENDING  DENIED  REJECTED
            saltm1  192.0.2.1  yes  3008.3   abababababababab  4         0        0       0
            saltm2  192.0.2.2  yes  3008.3   abababababababab  4         0        0       0
            saltm3  192.0.2.3  yes  3008.3   abababababababab  4         0        0       0

            MINION  saltm1  saltm2  saltm3
            web1    yes     yes     yes

            Everything is connected."""
        )

    def test_shows_what_is_wrong_and_what_is_unknown(self, output):
        nothing = dict.fromkeys(["version", "fingerprint", "accepted", "pending"])
        gone = nothing | {"reachable": False, "denied": None, "rejected": None}
        answers = {"saltm1": True, "saltm2": False, "saltm3": True}
        lines = output(
            {
                "masters": masters(saltm2=gone),
                "minions": {"web1": minion(answers=answers)},
                "problems": ["master saltm2 is away", "minion web1 too"],
            }
        ).splitlines()
        assert lines[2].split() == ["saltm2", "192.0.2.2", "NO", *"------"]
        assert lines[6].split() == ["web1", "yes", "NO", "yes"]
        assert lines[-2:] == ["! master saltm2 is away", "! minion web1 too"]

    def test_of_nothing_is_headings_and_problems(self, output):
        lines = output({"masters": {}, "minions": {}, "problems": ["no topology"]}).splitlines()
        assert lines[0].startswith("MASTER")
        assert lines[-1] == "! no topology"


@pytest.mark.parametrize("kind", ["runner", "output"])
def test_salts_loader_finds_it(kind, host, tmp_path):
    import salt.loader

    # As on a master that the formula has configured.
    for name in ("runners", "output"):
        (tmp_path / name).symlink_to(host.checkout / "salt" / f"_{name}")
    opts = {**host.runtime.opts, "module_dirs": [str(tmp_path)], "extension_modules": ""}
    if kind == "runner":
        assert "multimaster.status" in salt.loader.runner(opts)
    else:
        assert "multimaster" in salt.loader.outputters(opts)
