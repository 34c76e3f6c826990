"""
The declaration ``multimaster:`` and everything that follows from it.

Pure: takes and returns plain data and frozen dataclasses, imports nothing of Salt, touches no
file.  The only way in is :func:`parse`, which refuses a declaration as a whole and names every
finding at once; the options of each node are derived from its result.
"""

# Annotations stay evaluated: Salt's loader keeps a module out of sys.modules while it runs, where
# dataclasses would look postponed ones up.
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MODES = ("hot", "failover")
METHODS = ("none", "pkg")

# Salt's options for failover, each with the test that its value must pass.
FAILOVER = {
    "master_alive_interval": "seconds",
    "random_master": "boolean",
    "master_failback": "boolean",
    "master_failback_interval": "seconds",
}

# Set by the formula: in ``config`` they would contradict the declaration.
DERIVED_MASTER = ("id", "master_sign_pubkey", "multimaster")
DERIVED_MINION = (
    "id",
    "master",
    "master_type",
    "rejected_retry",
    "acceptance_wait_time",
    "acceptance_wait_time_max",
    "retry_dns",
    "auth_retries",
    "multimaster",
    *FAILOVER,
)

_ID = re.compile(r"(?!\.{1,2}$)[^\s/\\\0]+")
_NAME = re.compile(
    r"(?=.{1,253}$)(?!.*[^.]{64})[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*"
)

# Names and paths that stand in states as they are.
_WORD = re.compile(r"[\w./@+~-]+")


class TopologyError(ValueError):
    """A declaration that cannot be carried out: one line for each finding."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


@dataclass(frozen=True)
class Master:
    """A host that runs salt-master: its minion id and the address that minions dial."""

    id: str
    address: str


@dataclass(frozen=True)
class Topology:
    """A checked declaration."""

    mode: str
    masters: tuple[Master, ...]
    failover: Mapping[str, Any] = field(default_factory=dict)
    master_config: Mapping[str, Any] = field(default_factory=dict)
    minion_config: Mapping[str, Any] = field(default_factory=dict)
    replace_keypair: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """The masters' minion ids, in the declared order."""
        return tuple(master.id for master in self.masters)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The masters' addresses, in the declared order."""
        return tuple(master.address for master in self.masters)


def parse(declaration: Any) -> Topology:
    """
    Check a declaration and return it as a :class:`Topology`.

    declaration
        The mapping under ``multimaster`` in pillar, merged over the defaults.

    Raises :class:`TopologyError` with every finding; each says what was received and what is
    supported.
    """
    findings: list[str] = []

    def refuse(where: str, got: Any, supported: str) -> None:
        findings.append(f"{where}: got {got!r}; supported: {supported}")

    if not isinstance(declaration, Mapping):
        refuse("multimaster", declaration, "a mapping with at least 'masters'")
        raise TopologyError(findings)

    _check_keys(declaration, _SHAPE, "", refuse)
    for path, (supported, valid) in _VALUES.items():
        present, value = _lookup(declaration, path)
        if present and not valid(value):
            refuse(path, value, supported)

    masters = _parse_masters(declaration.get("masters"), refuse)
    mode = declaration.get("mode", "hot")
    failover = declaration.get("failover") or {}
    if isinstance(failover, Mapping):
        if failover and mode == "hot":
            refuse("failover", sorted(map(str, failover)), "no failover options with mode: hot")
        if failover.get("master_failback") and not failover.get("master_alive_interval"):
            refuse(
                "failover:master_alive_interval",
                failover.get("master_alive_interval", 0),
                "a positive number of seconds with master_failback: true",
            )
    for role, derived in (("master", DERIVED_MASTER), ("minion", DERIVED_MINION)):
        present, config = _lookup(declaration, f"{role}:config")
        if present and isinstance(config, Mapping):
            for option in sorted(set(config) & set(derived)):
                refuse(
                    f"{role}:config:{option}",
                    config[option],
                    "nothing here; the formula derives this option",
                )

    if findings:
        raise TopologyError(findings)
    return Topology(
        mode=mode,
        masters=masters,
        failover=dict(failover),
        master_config=dict(declaration.get("master", {}).get("config") or {}),
        minion_config=dict(declaration.get("minion", {}).get("config") or {}),
        replace_keypair=declaration.get("replace_keypair", False),
    )


def minion_options(topology: Topology, minion_id: str) -> dict[str, Any]:
    """
    Derive the content of a minion's drop-in.

    Minions on master hosts are hot whatever the mode: they are the masters' channel to each other.
    """
    options: dict[str, Any] = {
        "master": list(topology.addresses),
        # One master's rejection would end the whole minion, its other masters included.
        "rejected_retry": True,
        # A new minion, or a new master, has its key accepted within seconds: ask again after
        # 1, 2, and then every 4 seconds rather than every 10.
        "acceptance_wait_time": 1,
        "acceptance_wait_time_max": 4,
    }
    if topology.mode == "failover" and minion_id not in topology.ids:
        options |= {
            "master_type": "failover",
            # A name that does not resolve must not keep the minion from trying the next master.
            "retry_dns": 0,
            # A pending or rejected key would pin the minion to that master for ever.
            "auth_retries": 2,
            "master_alive_interval": 10,
            **topology.failover,
        }
    else:
        options |= {
            "master_type": "str",
            # Seconds between two look-ups of one name: short, since all masters wait meanwhile.
            # Not 0: then the entry would silently become 127.0.0.1.
            "retry_dns": 5,
        }
    return options | dict(topology.minion_config)


def master_options(
    topology: Topology, master_id: str, extensions: str, existing: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Derive the content of a master's drop-in.

    extensions
        Directory of the formula's own engine, runner and outputter on that host.
    existing
        The host's master options without our drop-in: a list in a drop-in takes the place of the
        main file's, so the engines and module directories found there are kept by naming them.
    """
    config = topology.master_config
    engines = config.get("engines", existing.get("engines")) or []
    if isinstance(engines, Mapping):
        # Salt takes that form, too; the one with a list has room for ours.
        engines = [{name: options} for name, options in engines.items()]
    directories = config.get("module_dirs", existing.get("module_dirs")) or []
    return {
        **config,
        # The live key pair is named after the id; the default depends on the host's name.
        "id": master_id,
        "module_dirs": [*(path for path in directories if path != extensions), extensions],
        "engines": [*(engine for engine in engines if not _is_ours(engine)), {"multimaster": {}}],
        # For the engine and the runners, which have no pillar.
        "multimaster": {
            "mode": topology.mode,
            "masters": [{"id": m.id, "address": m.address} for m in topology.masters],
        },
    }


def is_name(address: str) -> bool:
    """Tell whether an address is a name, which has to be resolved, and not an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return True
    return False


def _is_ours(engine: Any) -> bool:
    return engine == "multimaster" or (isinstance(engine, Mapping) and "multimaster" in engine)


Refuse = Callable[[str, Any, str], None]


def _parse_masters(value: Any, refuse: Refuse) -> tuple[Master, ...]:
    """Check the list of masters entry by entry; duplicates of an id or address are refused."""
    supported = "a non-empty list of {id: MINION-ID, address: ADDRESS}"
    if not isinstance(value, list) or not value:
        refuse("masters", value, supported)
        return ()
    masters: list[Master] = []
    for number, entry in enumerate(value):
        where = f"masters:{number}"
        if not isinstance(entry, Mapping) or set(entry) != {"id", "address"}:
            refuse(where, dict(entry) if isinstance(entry, Mapping) else entry, supported)
            continue
        master_id, address = entry["id"], entry["address"]
        if not isinstance(master_id, str) or not _ID.fullmatch(master_id):
            refuse(f"{where}:id", master_id, "a minion id without spaces and slashes")
        elif master_id in (master.id for master in masters):
            refuse(f"{where}:id", master_id, "each id once")
        if not isinstance(address, str) or not _is_address(address):
            refuse(f"{where}:address", address, "an IP address or a host name, without a port")
        elif _canonical(address) in (_canonical(master.address) for master in masters):
            refuse(f"{where}:address", address, "each address once")
        masters.append(Master(id=str(master_id), address=str(address)))
    return tuple(masters)


def _is_address(value: str) -> bool:
    if not is_name(value):
        return True
    # Four numbers that are no address are a slip of the finger, not a host name.
    return bool(_NAME.fullmatch(value)) and not re.fullmatch(r"[\d.]+", value)


def _canonical(address: str) -> str:
    """Return one spelling of an address: IPv6 has many, and names come in either case."""
    return address.lower() if is_name(address) else str(ipaddress.ip_address(address))


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_batch(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"[1-9]\d?%|100%", value))
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(_WORD.fullmatch(value))


def _is_path(value: Any) -> bool:
    return value is None or (_is_word(value) and value.startswith("/"))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seconds": ("a number of seconds, 0 or more", _is_seconds),
    "boolean": ("true or false", _is_boolean),
    "word": ("a name without spaces and quotes", _is_word),
    "mapping": ("a mapping", _is_mapping),
    "path": ("an absolute path without spaces and quotes", _is_path),
}

# The keys that a declaration may have, and what each value must be.
_SHAPE: dict[str, Any] = {
    "mode": None,
    "signing": None,
    "masters": None,
    "failover": dict.fromkeys(FAILOVER),
    "replace_keypair": None,
    "install": {"method": None, "add_repository": None, "repository": None},
    "master": {"package": None, "service": None, "config": None},
    "minion": {"service": None, "config": None},
    "deploy": {"batch": None, "clocks": None, "disk": None, "timeout": None},
    "restart_timeout": None,
    "config_dir": None,
    "extension_dir": None,
}
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mode": (", ".join(MODES), lambda value: isinstance(value, str) and value in MODES),
    "signing": ("false", lambda value: value is False),
    "failover": _KINDS["mapping"],
    "replace_keypair": _KINDS["boolean"],
    "install": _KINDS["mapping"],
    "install:method": (
        ", ".join(METHODS),
        lambda value: isinstance(value, str) and value in METHODS,
    ),
    "install:add_repository": _KINDS["boolean"],
    "install:repository": _KINDS["mapping"],
    "master": _KINDS["mapping"],
    "master:package": _KINDS["word"],
    "master:service": _KINDS["word"],
    "master:config": _KINDS["mapping"],
    # Extended by the formula.
    "master:config:engines": ("a list or a mapping", lambda value: isinstance(value, (list, dict))),
    "master:config:module_dirs": ("a list", lambda value: isinstance(value, list)),
    "minion": _KINDS["mapping"],
    "minion:service": _KINDS["word"],
    "minion:config": _KINDS["mapping"],
    "deploy": _KINDS["mapping"],
    "deploy:batch": ("a number of minions, or a percentage like 25%", _is_batch),
    "deploy:clocks": _KINDS["seconds"],
    "deploy:disk": ("a number of MiB, 0 or more", _is_seconds),
    "deploy:timeout": _KINDS["seconds"],
    "restart_timeout": _KINDS["seconds"],
    "config_dir": _KINDS["path"],
    "extension_dir": _KINDS["path"],
} | {f"failover:{option}": _KINDS[kind] for option, kind in FAILOVER.items()}


def _check_keys(
    received: Mapping[str, Any], shape: Mapping[str, Any], where: str, refuse: Refuse
) -> None:
    """Refuse every key that the shape does not have, at any depth."""
    for key, value in received.items():
        if key not in shape:
            refuse(f"{where}{key}", key, ", ".join(shape))
        elif shape[key] is not None and isinstance(value, Mapping):
            _check_keys(value, shape[key], f"{where}{key}:", refuse)


def _lookup(declaration: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """Follow a path of keys joined by colons; tell whether it leads anywhere."""
    value: Any = declaration
    for key in path.split(":"):
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value
