"""A pillar on the command line: the switches in it count, the rest is the master's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lab import keys
from render.compiler import Compiler, compile_in

if TYPE_CHECKING:
    import salt.state


def secrets(pair: tuple[str, str], signing: tuple[str, str]) -> dict[str, str]:
    return dict(zip(("pem", "pub", "sign_pem", "sign_pub"), (*pair, *signing), strict=True))


# Half of Salt's size: quickly made.
PAIR, SIGNING, THEIRS = (keys.make_pair(bits=1024) for _ in range(3))
MASTERS = [{"id": "saltm1", "address": "192.0.2.1"}, {"id": "saltm2", "address": "192.0.2.2"}]
OWN = {
    "masters": MASTERS,
    "install": {"method": "none"},
    "credentials": {"deploy": "own"},
    "keypair": secrets(PAIR, SIGNING),
}
HOSTILE = {
    "masters": [{"id": "saltm1", "address": "203.0.113.1"}],
    "mode": "x\n\nevil:\n  cmd.run:\n    - name: id\n",
    "master": {"config": {"ext_pillar": [{"cmd_yaml": "id"}]}, "service": "sshd"},
    "minion": {"config": {"file_client": "local"}, "service": "sshd"},
    "install": {"method": "pkg", "add_repository": True, "repository": {"unless": "id"}},
    "config_dir": "/etc",
    "extension_dir": "/srv",
    "restart_timeout": 1,
    "credentials": {"deploy": "hostile"},
    "keypair": secrets(THEIRS, THEIRS),
}
EVERY_SLS = [
    "multimaster",
    "multimaster.master",
    "multimaster.clean",
    "multimaster.orch.deploy",
    "multimaster.orch.restart",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a minion whose master's pillar is in a directory."""
    root = tmp_path_factory.mktemp("pillar")
    (root / "top.sls").write_text("base: {'*': [own]}\n")
    (root / "own.sls").write_text(yaml.safe_dump({"multimaster": OWN}))
    return {"pillar_roots": {"base": [str(root)]}, "__cli": "salt-minion"}


@contextlib.contextmanager
def commanded(compiler: Compiler, options: Any, said: Any) -> Iterator[salt.state.HighState]:
    """A run as ``state.apply`` starts it, with a pillar from the command line."""
    import salt.state

    grains = {"id": "saltm1", "os_family": "Debian", "os": "Debian", "kernel": "Linux"}
    opts = compiler.opts | {"id": "saltm1", "grains": grains, "test": False} | options
    compiler.exits.close()
    compiler.made = None
    with salt.state.HighState(opts, {"multimaster": said} if said else None) as run:
        run.push_active()
        try:
            yield run
        finally:
            run.pop_active()


def chunks(run: salt.state.HighState, sls: str) -> list[dict[str, Any]]:
    states = compile_in(run, sls)
    assert states.errors == []
    return [{k: v for k, v in c.items() if k not in ("order", "remarks")} for c in states.chunks]


@pytest.mark.parametrize("role", ["minion", "master"])
def test_nothing_but_the_switches_counts(compiler, files, role):
    options = files | {"__role": role}
    with commanded(compiler, options, None) as run:
        expected = {sls: chunks(run, sls) for sls in EVERY_SLS}
    assert "192.0.2.2" in repr(expected["multimaster"])
    with commanded(compiler, options, HOSTILE) as run:
        assert {sls: chunks(run, sls) for sls in EVERY_SLS} == expected


def test_a_switch_counts(compiler, files):
    with commanded(compiler, files, {"replace_keypair": True}) as run:
        found = {chunk["__id__"]: chunk for chunk in chunks(run, "multimaster")}
    assert found["multimaster-keypair"]["replace"] is True
    assert found["multimaster-declaration"]["declaration"]["masters"] == MASTERS


def test_what_does_not_count_is_named(compiler, files):
    with commanded(compiler, files, {**HOSTILE, "replace_keypair": True}) as run:
        declared = compile_in(run, "multimaster").get("multimaster-declaration")
        ret = run.state.call(declared)
    assert ret["result"] is True
    (warning,) = ret["warnings"]
    assert "replace_keypair counts" in warning
    assert warning.endswith(", ".join(sorted(HOSTILE)))


@pytest.mark.parametrize("sls", ["multimaster.orch.deploy", "multimaster.orch.restart"])
def test_an_orchestration_names_it_too(compiler, files, sls):
    with commanded(compiler, files | {"__role": "master"}, {"mode": "failover"}) as run:
        chunks = compile_in(run, sls).chunks
    (remark,) = chunks[1]["remarks"]
    assert remark.endswith("ignored: mode")


@pytest.mark.parametrize("said", ["text", ["a"], {"masters": None}], ids=repr)
def test_rubbish_does_not_count(compiler, files, said):
    with commanded(compiler, files, said) as run:
        found = compile_in(run, "multimaster").get("multimaster-declaration")
    assert found["declaration"]["masters"] == MASTERS


def test_secrets_are_the_masters_own(compiler, files):
    with commanded(compiler, files, HOSTILE) as run:
        functions = run.state.functions
        functions["multimaster.install_credentials"]()
        written = compiler.config_dir / "multimaster.credentials/deploy"
        assert written.read_text().strip() == "own"
        fingerprint = run.state.utils["multimaster_keypair.fingerprint"]
        plan = functions["multimaster.install_signing_pub"](test=True)
        assert plan["fingerprint"] == fingerprint(SIGNING[1])
        plan = functions["multimaster.install_keypair"](test=True)
        assert plan["fingerprint"] == fingerprint(PAIR[1])


def test_roots_own_command_without_a_master_counts_in_whole(compiler, files):
    with commanded(compiler, files | {"__cli": "salt-call"}, {"restart_timeout": 5}) as run:
        found = compile_in(run, "multimaster").get("multimaster-minion-restart")
    assert found["timeout"] == 5
