"""Whose pillar the formula goes by, and how its master is asked for it."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

OWN = {"multimaster": {"mode": "hot", "keypair": {"sealed": "own"}}}
SAID = {"multimaster": {"mode": "failover", "replace_keypair": True}}
MERGED = {"multimaster": {**OWN["multimaster"], **SAID["multimaster"]}}
OPTS = {
    "id": "saltm1",
    "__role": "minion",
    "__cli": "salt-minion",
    "file_client": "remote",
    "grains": {"id": "saltm1"},
    "saltenv": None,
    "pillarenv": None,
    "pillar": MERGED,
}


class Master:
    """Answers as a channel does that Salt has opened."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.pillar: Any = OWN

    def __enter__(self) -> Master:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def crypted_transfer_decode_dictentry(self, load: dict[str, Any], *, dictkey: str) -> Any:
        assert (load["cmd"], load["id"], dictkey) == ("_pillar", "saltm1", "pillar")
        self.asked.append(load)
        return self.pillar


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Master:
    import salt.channel.client

    made = Master()
    monkeypatch.setattr(salt.channel.client.ReqChannel, "factory", lambda opts: made)
    return made


@pytest.fixture
def found(by_path: Any) -> ModuleType:
    made = by_path("salt/multimaster/own_pillar.py")
    vars(made).update(__opts__=dict(OPTS), given=MERGED)
    return made


def running(found: ModuleType, monkeypatch: pytest.MonkeyPatch, override: Any) -> None:
    """Let Salt know of a run with a pillar from the command line, or of none."""
    state = SimpleNamespace(_pillar_override=override, state_con={})
    active = None if override is ... else SimpleNamespace(state=state)
    monkeypatch.setattr(found, "HighState", SimpleNamespace(get_active=lambda: active))


def test_a_run_without_a_pillar_of_its_own_asks_nobody(found, master, monkeypatch):
    running(found, monkeypatch, None)
    assert found.run() == {"multimaster": MERGED["multimaster"], "warnings": []}
    assert master.asked == []


def test_the_master_is_asked_once_in_a_run_past_what_it_has_cached(found, master, monkeypatch):
    running(found, monkeypatch, SAID)
    expected = {**OWN["multimaster"], "replace_keypair": True}
    for _ in range(2):
        made = found.run()
        assert made["multimaster"] == expected
        assert [text.endswith("; ignored: mode") for text in made["warnings"]] == [True]
    (asked,) = master.asked
    assert (asked["pillar_override"], asked["clean_cache"]) == ({}, True)


def test_where_nobody_can_tell_the_master_is_asked(found, master, monkeypatch):
    running(found, monkeypatch, ...)
    assert found.run()["multimaster"]["mode"] == "hot"
    assert len(master.asked) == 1


def test_salt_call_with_a_master_goes_by_its_pillar(found, master, monkeypatch):
    running(found, monkeypatch, SAID)
    found.__opts__["__cli"] = "salt-call"
    assert found.run()["multimaster"]["mode"] == "hot"


def test_a_daemon_with_local_files_is_not_roots_own_command(found, monkeypatch):
    running(found, monkeypatch, SAID)
    found.__opts__["file_client"] = "local"
    monkeypatch.setattr(found, "_compiled", lambda: OWN)
    assert found.run()["multimaster"]["mode"] == "hot"
    found.__opts__["__cli"] = "salt-call"
    assert found.run()["multimaster"]["mode"] == "failover"


@pytest.mark.parametrize("answer", [{"_errors": ["x"], **OWN}, "", None])
def test_without_the_masters_answer_nothing_goes_on(found, master, monkeypatch, answer):
    running(found, monkeypatch, SAID)
    master.pillar = answer
    with pytest.raises(Exception, match="no pillar without that of the command line"):
        found.run()


def test_where_masters_cache_pillars_the_declaration_of_today_counts(found, master, monkeypatch):
    running(found, monkeypatch, None)
    # As cached, with what somebody once said on a command line.
    found.given = {"multimaster": {**MERGED["multimaster"], "keypair": {"cached": True}}}
    for _ in range(2):
        assert found.run() == {"multimaster": OWN["multimaster"], "warnings": []}
    (asked,) = master.asked
    assert asked["clean_cache"] is True


@pytest.mark.parametrize("odd", [None, "x", {"keypair": "x"}, {"keypair": {"cached": "x"}}])
def test_a_pillar_that_does_not_say_so_is_not_cached(found, master, monkeypatch, odd):
    running(found, monkeypatch, None)
    found.given = {"multimaster": odd}
    assert found.run()["multimaster"] == odd
    assert master.asked == []
