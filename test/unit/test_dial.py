"""
Which channel a question goes through.

The channels are made up here, to answer when a test wants it; the laboratory has masters.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar
from unittest.mock import Mock

import pytest

import multimaster_dial as dial

ADDRESS = "192.0.2.1"


class Channel:
    """A channel that answers at once, or when it is told to, with what it is told to."""

    FIRST: ClassVar[Any] = ["base"]

    def __init__(self):
        self.answer = self.FIRST
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.asked = self.closed = 0
        self.loads = []
        self.auth = Mock(gen_token=lambda text: text + b", signed", creds={"publish_port": 14505})

    def send(self, load, tries, timeout):
        self.asked += 1
        self.loads.append(load)
        assert self.goes_on.wait(timeout)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def close(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch):
    monkeypatch.setattr(dial, "_TOLD", {})


@pytest.fixture
def late():
    """What Salt says when no answer came in time."""
    from salt.exceptions import SaltReqTimeoutError

    return SaltReqTimeoutError("late")


@pytest.fixture
def channels(monkeypatch):
    """All channels that were made."""
    made = []

    def make(opts, address, timeout, **kwargs):
        made.append(Channel())
        return made[-1]

    monkeypatch.setattr(dial, "_channel", make)
    return made


def test_a_channel_is_kept_for_the_next_question(channels):
    kept = []
    assert [dial.ask({}, ADDRESS, 5, kept) for _ in range(3)] == [True] * 3
    assert [(one.asked, one.closed) for one in channels] == [(3, 0)]
    assert kept == channels


def test_no_channel_is_kept_by_who_does_not_ask_again(channels):
    assert [dial.ask({}, ADDRESS, 5) for _ in range(2)] == [True] * 2
    assert [(one.asked, one.closed) for one in channels] == [(1, 1)] * 2


@pytest.mark.parametrize("answer", [None, OSError("gone"), SystemExit(1)], ids=repr)
def test_a_channel_without_an_answer_is_not_used_again(channels, answer):
    kept = []
    dial.ask({}, ADDRESS, 5, kept)
    channels[0].answer = answer
    assert not dial.ask({}, ADDRESS, 5, kept)
    assert (channels[0].closed, kept) == (1, [])
    assert dial.ask({}, ADDRESS, 5, kept)
    assert kept == channels[1:]


def test_a_channel_that_was_good_is_kept_when_an_answer_is_late(channels, late):
    kept = []
    dial.ask({}, ADDRESS, 5, kept)
    channels[0].answer = late
    assert not dial.ask({}, ADDRESS, 5, kept)
    channels[0].answer = ["base"]
    assert dial.ask({}, ADDRESS, 5, kept)
    assert [(one.asked, one.closed) for one in channels] == [(3, 0)]


def test_a_channel_that_was_never_good_is_not_kept(channels, late, monkeypatch):
    monkeypatch.setattr(Channel, "send", Mock(side_effect=late))
    kept = []
    assert not dial.ask({}, ADDRESS, 5, kept)
    assert (channels[0].closed, kept) == (1, [])


def test_two_questions_at_once_have_a_channel_each(channels):
    kept = []
    dial.ask({}, ADDRESS, 5, kept)
    first = channels[0]
    first.goes_on.clear()
    heard = threading.Event()
    dial.put({}, ADDRESS, 5, heard, "ask", kept)
    while kept:
        assert not heard.wait(0.01)
    assert dial.ask({}, ADDRESS, 5, kept)
    first.goes_on.set()
    assert heard.wait(5)
    assert [one.asked for one in channels] == [2, 1]
    # One is enough for the next.
    assert kept == channels[1:]


def test_to_sign_in_once_more_takes_another_channel(channels):
    kept = []
    dial.ask({}, ADDRESS, 5, kept)
    assert dial.ask_afresh({}, ADDRESS, 5, kept)
    assert [(one.asked, one.closed) for one in channels] == [(1, 1), (1, 0)]
    assert kept == channels[1:]


def test_an_event_goes_to_a_master_in_this_minions_name(channels, monkeypatch):
    monkeypatch.setattr(Channel, "FIRST", None)
    assert dial.tell({"id": "web1"}, ADDRESS, 5, "tag", {"step": "kept"})
    load = {"cmd": "_minion_event", "id": "web1", "tag": "tag", "data": {"step": "kept"}}
    assert [one.loads for one in channels] == [[{**load, "tok": b"salt, signed"}]]
    assert channels[0].closed == 1


@pytest.mark.parametrize("answer", ["", False, {}], ids=repr)
def test_an_event_that_a_master_failed_to_take_or_refused_is_not_taken(
    channels, monkeypatch, answer
):
    monkeypatch.setattr(Channel, "FIRST", answer)
    assert not dial.tell({"id": "web1"}, ADDRESS, 5, "tag", {})


def test_a_return_keeps_the_token_that_may_be_part_of_its_signature(channels):
    dial.give({}, ADDRESS, 5, {"cmd": "_return", "tok": b"signed"})
    assert channels[0].loads == [{"cmd": "_return", "tok": b"signed"}]


def test_an_event_that_no_master_takes_is_not_taken(channels, late, monkeypatch):
    monkeypatch.setattr(Channel, "send", Mock(side_effect=late))
    assert not dial.tell({"id": "web1"}, ADDRESS, 5, "tag", {})
    assert channels[0].closed == 1


@pytest.mark.parametrize(
    ("opts", "asked", "port"),
    [
        ({"publish_port": 24505}, True, 24505),
        ({}, True, 14505),
        ({"publish_port": 4506}, True, 14505),
        ({}, False, 4505),
    ],
    ids=["option", "told", "option that Salt takes for none", "not told yet"],
)
def test_a_subscription_is_at_the_port_that_salt_dials(channels, opts, asked, port):
    if asked:
        dial.ask(opts, ADDRESS, 5)
    links = {(ADDRESS, number, 40000 + number) for number in (4505, 4506, 5044, 14505, 24505)}
    assert dial.publish_port(opts, ADDRESS) == port
    assert dial.subscriptions(links, ADDRESS, opts) == {(ADDRESS, port, 40000 + port)}
    assert dial.publishers(links, [ADDRESS], opts) == dial.among(links, [ADDRESS], opts)[ADDRESS]
    other = links - {(ADDRESS, port, 40000 + port)}
    assert dial.among(other, [ADDRESS], opts) == {}


def test_what_is_said_without_a_sign_in_is_no_port(channels, monkeypatch):
    def send(channel, *_, **__):
        channel.auth = None
        return "pong"

    monkeypatch.setattr(Channel, "send", send)
    assert dial.is_there({}, ADDRESS, 5)
    assert dial.publish_port({}, ADDRESS) == 4505


class Masters:
    """Masters, and what each does with what comes; no order of theirs is the order asked in."""

    def __init__(self, monkeypatch, **by_address):
        self.loads = {}
        self.asked = threading.Event()
        self.by_address = by_address
        monkeypatch.setattr(dial, "_channel", self.channel)

    def channel(self, opts, address, timeout, **kwargs):
        made = Channel()
        made.answer = self.by_address[address]
        # Nobody waits for the others: each answers when all of them have been asked.
        made.goes_on = self.asked
        self.loads[address] = made.loads
        if len(self.loads) == len(self.by_address):
            self.asked.set()
        return made


def test_an_event_goes_to_each_master_once_and_to_all_at_the_same_time(monkeypatch, late):
    masters = Masters(monkeypatch, m1=None, m2=late, m3=None)
    assert dial.tell_each({"id": "web1"}, ["m1", "m2", "m3"], 5, "tag", {"a": 1}) == ["m1", "m3"]
    assert {address: len(loads) for address, loads in masters.loads.items()} == dict.fromkeys(
        ("m1", "m2", "m3"), 1
    )


def test_the_masters_that_answer_are_told_in_the_order_given(monkeypatch, late):
    Masters(monkeypatch, m3=["base"], m1=late, m2=["base"])
    assert dial.answering({}, ["m3", "m1", "m2"], 5) == ["m3", "m2"]


@pytest.mark.parametrize("there", [[], ["minion.pem"], ["minion.pub"]], ids=["none", "pem", "pub"])
@pytest.mark.parametrize("way", ["ask", "ask_afresh", "tell", "classify", "lets_in"])
def test_nobody_is_asked_for_a_minion_without_a_key_pair_and_none_is_made(
    tmp_path, monkeypatch, minion_keys, way, there
):
    import salt.channel.client
    import salt.config

    for name in there:
        (tmp_path / name).write_text(getattr(minion_keys["web1"], name.removeprefix("minion.")))
    opts = dict(salt.config.DEFAULT_MINION_OPTS)
    opts |= {"id": "web1", "pki_dir": str(tmp_path), "grains": {}, "__role": "minion"}
    opts |= {"keys.cache_driver": "localfs_key", "cachedir": str(tmp_path / "cache")}
    monkeypatch.setattr(dial.socket, "create_connection", lambda *_: Mock())
    # Salt's channel makes a pair before it sends anything.
    monkeypatch.setattr(salt.channel.client.AsyncReqChannel, "send", Mock(side_effect=OSError))
    more = ("tag", {}) if way == "tell" else ()
    assert getattr(dial, way)(opts, "127.0.0.1", 0.1, *more) in (False, "silent")
    assert sorted(path.name for path in tmp_path.iterdir()) == there
