"""
Gives the masters and minions of Salt's own tests what the formula derives for such ones.

A pytest plugin: beside each configuration that pytest-salt-factories writes for a test it puts the
drop-in that the formula would write there, from the same functions, with the formula's engines.
The declaration follows from what the test itself says: its masters, their ports, the mode.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).parents[2]
FORMULA = CHECKOUT / "salt"
sys.path.append(str(FORMULA / "_utils"))

import multimaster_topology as topology  # noqa: E402

# Salt's tests call the two masters of a pair so, and have them at these addresses.
PAIR = re.compile(r"(.*master)-[12]")
ADDRESSES = ("127.0.0.1", "127.0.0.2")
# Those of such a test, all of them together.
MINIONS = 10
# What a state makes from the signing pair; Salt's tests copy that pair about by themselves.
SIGNATURE = ("master_use_pubkey_signature", "master_pubkey_signature")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-engine", action="store_true", help="leave the formula's engine of minions out"
    )


def pytest_configure(config: pytest.Config) -> None:
    from saltfactories.daemons.master import SaltMaster
    from saltfactories.daemons.minion import SaltMinion

    written = _DropIns(engine=not config.getoption("--without-engine"))
    for factory, write in ((SaltMaster, written.master), (SaltMinion, written.minion)):
        factory.load_config = _with_drop_in(factory.load_config, write)


def _with_drop_in(load: Any, write: Any) -> Any:
    """Return what loads a test's configuration, with our drop-in written before."""

    def load_config(config_file: str, config: dict[str, Any]) -> Any:
        existing = load(config_file, config)
        options = write(existing)
        path = Path(f"{config_file}.d", "multimaster.conf")
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(options))
        loaded = load(config_file, config)
        # As the formula's states do: what is derived has to be what counts.
        lost = {name for name, value in options.items() if loaded.get(name) != value}
        assert not lost, f"{config_file}: not in force: {sorted(lost)}"
        return loaded

    return staticmethod(load_config)


class _DropIns:
    """What the formula derives for the masters and minions of one test run."""

    def __init__(self, engine: bool) -> None:
        self.engine = engine
        # Address and port of a master that there is, or was -> its options.
        self.masters: dict[tuple[str, int], Any] = {}

    def master(self, existing: dict[str, Any]) -> dict[str, Any]:
        """Return a master's drop-in."""
        pair = PAIR.fullmatch(existing["id"])
        masters = {existing["id"]: existing["interface"]}
        if pair:
            masters = {f"{pair[1]}-{n}": one for n, one in enumerate(ADDRESSES, 1)}
        self.masters[existing["interface"], existing["ret_port"]] = existing
        declared = _declared(masters, existing)
        signs = existing["master_sign_pubkey"]
        options = topology.master_options(
            declared, existing["id"], str(FORMULA), existing, signs=signs
        )
        return {name: value for name, value in options.items() if name not in SIGNATURE}

    def minion(self, existing: dict[str, Any]) -> dict[str, Any]:
        """Return a minion's drop-in; its masters are configured before it."""
        dialled = existing["master"]
        dialled = dialled if isinstance(dialled, list) else [dialled]
        served = []
        for one in dialled:
            address, _, port = one.partition(":")
            served.append(self.masters[address, int(port or existing["master_port"])])
        masters = {one["id"]: one["interface"] for one in served}
        failover = {}
        if existing["master_type"] == "failover":
            names = ("master_alive_interval", "master_tries")
            failover = {name: existing[name] for name in names}
        declared = _declared(masters, served[0], failover)
        verifies = existing["verify_master_pubkey_sign"]
        options = topology.minion_options(declared, existing["id"], existing, verifies)
        if not self.engine:
            options["engines"] = existing["engines"]
        # A minion has synced these; Salt's tests would have them removed again.
        return {
            **options,
            "module_dirs": [str(FORMULA)],
            "utils_dirs": [str(FORMULA / "_utils")],
        }


def _declared(
    masters: dict[str, str], served: dict[str, Any], failover: dict[str, Any] | None = None
) -> topology.Topology:
    """Return the topology of a test: masters by id, what one of them serves, and its failover."""
    declaration = yaml.safe_load((FORMULA / "multimaster/defaults.yaml").read_text())
    ports = {"publish_port": served["publish_port"], "transport": served["transport"]}
    declaration |= {
        "mode": "failover" if failover else "hot",
        "failover": failover or {},
        "masters": [{"id": name, "address": address} for name, address in masters.items()],
        "minions": MINIONS,
    }
    declaration["master"]["config"] = {**ports, "ret_port": served["ret_port"]}
    # Nothing of this machine is restarted.
    declaration["minion"] |= {
        "config": {**ports, "master_port": served["ret_port"]},
        "service": "none-of-this-machine",
    }
    return topology.parse(declaration)
