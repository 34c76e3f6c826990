"""What Salt's reactor believes of an event that any minion can fire, as the documentation says."""

from __future__ import annotations

import contextlib

import pytest


@pytest.fixture
def after(host, monkeypatch):
    """Have the reactor of a master go through an event; return whether it goes on reacting."""
    import salt.config
    import salt.utils.event
    import salt.utils.reactor

    host.write("etc/salt/master", {"root_dir": str(host.root), "id": "saltm2", "reactor": []})
    opts = dict(salt.config.master_config(str(host.config_dir / "master")))
    opts["__role"] = "master"
    host.write(f"var/cache/salt/master/.{opts['user']}_key", "the key of the master's user")

    def after(**data):
        class Bus:
            def iter_events(self, full):
                yield {"tag": "salt/reactors/manage/set_leader", "data": data}

            def fire_event(self, *_):
                pass

        monkeypatch.setattr(
            salt.utils.event, "get_event", lambda *_, **__: contextlib.nullcontext(Bus())
        )
        monkeypatch.setattr(salt.utils.reactor, "ReactWrap", lambda opts: Wrap())
        reactor = object.__new__(salt.utils.reactor.Reactor)
        reactor.opts, reactor.is_leader = opts, True
        reactor.run()
        return reactor.is_leader

    return after


class Wrap:
    event_user = "Reactor"


@pytest.mark.parametrize("key", [{}, {"key": ""}, {"key": None}, {"key": "another"}], ids=repr)
def test_a_minion_switches_no_masters_reactor_off(after, key):
    assert after(id="saltm2", value=False, **key) is True


def test_who_has_the_key_of_the_masters_user_switches_it_off(after):
    assert after(id="saltm2", value=False, key="the key of the master's user") is False
