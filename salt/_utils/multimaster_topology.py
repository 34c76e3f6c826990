"""
The declaration ``multimaster:`` and everything that follows from it.

Pure: takes and returns plain data and frozen dataclasses, imports nothing of Salt, touches no
file.  The only way in is :func:`parse`, which refuses a declaration as a whole and names every
finding at once; the options of each node are derived from its result.
"""

# Annotations stay evaluated: Salt's loader keeps a module out of sys.modules while it runs, where
# dataclasses would look postponed ones up.
import fnmatch
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Of the formula: the one in FORMULA.
VERSION = "0.1.0"
MODES = ("hot", "failover")
METHODS = ("none", "pkg")
TRANSPORTS = ("zeromq", "tcp", "ws")
# What makes Salt work with git remotes.
GIT_PROVIDERS = ("gitcli", "pygit2", "gitpython")

# Salt's options for failover, each with the test that its value must pass.
FAILOVER = {
    "master_alive_interval": "interval",
    "random_master": "boolean",
    "master_failback": "boolean",
    "master_failback_interval": "interval",
    "master_tries": "tries",
}

# What one master is to bear, per second: questions of the liveness probe, and minions that come
# back after it was away.  Each question takes a worker some milliseconds; a connection, less.
QUESTIONS_PER_SECOND = 100
COMEBACKS_PER_SECOND = 500
# Minions that are reckoned with where nobody said how many there are.
SOME_MINIONS = 1000
# Seconds.
SHORTEST_INTERVAL = 10
LONGEST_SPREAD = 60
SHORTEST_SPREAD = 0.2
# Salt's own seconds for a sign-in, the least that there is here; and how many times slower than
# reckoned with above a master may be in letting all of its minions in.
SIGN_IN = 5
TIMES_SLOWER = 10

# Set by the formula: in ``config`` they would contradict the declaration.
SIGNING_MASTER = (
    "master_sign_pubkey",
    "master_sign_key_name",
    "master_use_pubkey_signature",
    "master_pubkey_signature",
    "signing_key_pass",
)
SIGNING_MINION = ("verify_master_pubkey_sign", "always_verify_signature", "master_sign_key_name")
DERIVED_MASTER = ("id", "multimaster", *SIGNING_MASTER)
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
    *SIGNING_MINION,
)
# Where minions meet masters: an option of the masters, the one of the minions that has to have the
# same value, and Salt's default.
EDGES: Mapping[str, tuple[str, Any]] = {
    "publish_port": ("publish_port", 4505),
    "ret_port": ("master_port", 4506),
    "transport": ("transport", "zeromq"),
    # Only with IPv6 addresses: names may lead anywhere.
    "ipv6": ("ipv6", None),
}
# Derived where ``minion:config`` does not say otherwise.
PREFERRED = (
    *(dials for dials, _ in EDGES.values()),
    "zmq_monitor",
    "auth_timeout",
    "return_retry_timer",
    "return_retry_timer_max",
    "return_retry_tries",
    "recon_default",
    "recon_max",
    "random_reauth_delay",
    "tcp_keepalive_idle",
    "tcp_keepalive_intvl",
    "tcp_keepalive_cnt",
)

# Of what minions have in one mode, what Salt takes for not set: the main file may say otherwise.
NEUTRAL: Mapping[str, Any] = {
    "auth_retries": 0,
    "master_alive_interval": 0,
    "random_master": False,
    "master_tries": -1,
    "master_failback": False,
    "master_failback_interval": 0,
}
# Derived options of minions that are named where they take the place of what a main file says: that
# the list of masters does is what the formula is for.
NAMED = tuple({*DERIVED_MINION, *PREFERRED} - {"id", "master", "multimaster", *SIGNING_MINION})
# Bits of a key that the masters' pair is sealed to, at least; and the latest protocol of sign-ins.
KEY_BITS = 2048
AUTH_VERSION = 3
# Salt's own, in minions.
SIGNED_WITH = "PKCS1v15-SHA1"

# Differ between hosts, or already say what the host's other files say: never in their way.
KEPT = ("id", "engines", "module_dirs", "multimaster")
# Names of master options that Salt 3008 does not know any more and ignores without a word.
RENAMED = {
    "client_acl": "publisher_acl",
    "client_acl_blacklist": "publisher_acl_blacklist",
    "event_publisher_pub_hwm": None,
    "external_nodes": "master_tops, with ext_nodes",
    "gitfs_env_blacklist": "gitfs_saltenv_blacklist",
    "gitfs_env_whitelist": "gitfs_saltenv_whitelist",
    "hgfs_env_blacklist": "hgfs_saltenv_blacklist",
    "hgfs_env_whitelist": "hgfs_saltenv_whitelist",
    "keep_jobs": "keep_jobs_seconds, in seconds and not in hours",
    "pillar_gitfs_ssl_verify": "git_pillar_ssl_verify",
    "salt_event_pub_hwm": None,
    "search_index_interval": None,
    "svnfs_env_blacklist": "svnfs_saltenv_blacklist",
    "svnfs_env_whitelist": "svnfs_saltenv_whitelist",
    "win_gitrepos": "winrepo_remotes",
    "win_repo": "winrepo_dir",
    "win_repo_mastercachefile": "winrepo_cachefile",
}
# Lists under ``master``, the options that name the files with them, and those files.
AUTOSIGN = {
    "autosign": ("autosign_file", "autosign.conf"),
    "autoreject": ("autoreject_file", "autoreject.conf"),
    "autosign_grains": ("autosign_grains_dir", "autosign_grains"),
}

# The files of the signing pair, and of its signature over the masters' public key.
SIGNING_KEY = "master_sign"
SIGNATURE = "master_pubkey_signature"

# SHA-256 of a minion's public key, as Salt prints it.
_FINGERPRINT = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){31}")
_ID = re.compile(r"(?!\.{1,2}$)[^\s/\\\0]+")
_NAME = re.compile(
    r"(?=.{1,253}$)(?!.*[^.]{64})[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*"
)

# An environment of file or pillar roots, and a directory of one.
_ENVIRONMENT = re.compile(r"(?!\.)[\w.-]+")
_ROOT = re.compile(r"/[^*?\[\]\0\n]*")

# Names and paths that stand in states as they are.
_WORD = re.compile(r"[\w./@+~-]+")


# As in multimaster_options.py: names that have a secret, ``user:password@`` and ``token=...``.
_SECRET = re.compile(r"pass|secret|token|credential|privkey|private|api_?key|bindpw|cert\b|pem\b")
_USERINFO = re.compile(r"(?<=://)(?:[^/\s'\"@:]*:(?!\d*/)[^\s'\"]*@|[^/\s'\"]*@)")
_PAIR = re.compile(r"([\w.-]*(?:pass|secret|token|key)[\w.-]*=)[^&,;\s'\"]+", re.IGNORECASE)
HIDDEN = "(not shown)"


class TopologyError(ValueError):
    """A declaration that cannot be carried out: one line for each finding."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


@dataclass(frozen=True)
class Master:
    """
    A host that runs salt-master: its minion id and the address that minions dial.

    ``fingerprint`` is that of its minion's public key, in lower case, or None: the masters' key
    pair is then for whoever's key was accepted under that id.
    """

    id: str
    address: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class Replicate:
    """Roots that one master has and the others follow: its id, and Salt's options of that name."""

    source: str
    file_roots: Mapping[str, list[str]] = field(default_factory=dict)
    pillar_roots: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """A checked declaration."""

    mode: str
    masters: tuple[Master, ...]
    minions: int = SOME_MINIONS
    failover: Mapping[str, Any] = field(default_factory=dict)
    cutover: Mapping[str, Any] = field(default_factory=dict)
    roots: Mapping[str, Any] = field(default_factory=dict)
    master_config: Mapping[str, Any] = field(default_factory=dict)
    minion_config: Mapping[str, Any] = field(default_factory=dict)
    master_override: tuple[str, ...] = ()
    minion_override: tuple[str, ...] = ()
    autosign: Mapping[str, Any] = field(default_factory=dict)
    replace_keypair: bool = False
    signing: bool = False
    minion_service: str = "salt-minion"
    restart_timeout: float = 600
    replicate: Replicate | None = None
    # Seconds between two looks for differences, ids that may be the sample then (none: any), and
    # seconds that clocks may differ.
    drift_interval: float = 60
    drift_sample: tuple[str, ...] = ()
    clocks: float = 5
    # Accepted keys that go on all masters at once, within so many seconds.
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> tuple[str, ...]:
        """The masters' minion ids, in the declared order."""
        return tuple(master.id for master in self.masters)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The masters' addresses, in the declared order."""
        return tuple(master.address for master in self.masters)

    @property
    def edges(self) -> dict[str, Any]:
        """What masters serve and minions dial, by the masters' option: see ``EDGES``."""
        served = {name: self.master_config.get(name, value) for name, (_, value) in EDGES.items()}
        if any(_is_ipv6(address) for address in self.addresses):
            served["ipv6"] = True
        elif "ipv6" not in self.master_config:
            del served["ipv6"]
        return served


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
        # Whoever applies states sees it, and every job cache has it.
        shown = _without_secrets(got, where.rpartition(":")[2])
        findings.append(_without_userinfo(f"{where}: got {shown!r}; supported: {supported}"))

    if not isinstance(declaration, Mapping):
        refuse("multimaster", declaration, "a mapping with at least 'masters'")
        raise TopologyError(findings)

    _check_keys(declaration, _SHAPE, "", refuse)
    for path, (supported, valid) in _VALUES.items():
        present, value = _lookup(declaration, path)
        if present and not valid(value):
            # What was to be options may hold secrets: only what it is, then.
            secret = path in ("master", "minion", "master:config", "minion:config") and value
            refuse(path, type(value).__name__ if secret else value, supported)

    masters = _parse_masters(declaration.get("masters"), refuse)
    mode = declaration.get("mode", "hot")
    failover = declaration.get("failover") or {}
    if isinstance(failover, Mapping):
        if failover and mode == "hot":
            refuse("failover", sorted(map(str, failover)), "no failover options with mode: hot")
        if "master_failback_interval" in failover and failover.get("master_failback") is not True:
            refuse(
                "failover:master_failback_interval",
                failover["master_failback_interval"],
                "an interval only with master_failback: true",
            )
    sample = _lookup(declaration, "drift:sample")[1] or ()
    required = _lookup(declaration, "cutover:masters")[1]
    if _is_positive(required) and required > len(masters) > 0:
        refuse("cutover:masters", required, f"at most the {len(masters)} masters that there are")
    for role, derived in (("master", DERIVED_MASTER), ("minion", DERIVED_MINION)):
        present, config = _lookup(declaration, f"{role}:config")
        if present and isinstance(config, Mapping):
            for option in sorted(set(config) & set(derived)):
                refuse(
                    f"{role}:config:{option}",
                    # A passphrase is not to be in the message.
                    option if option == "signing_key_pass" else config[option],
                    "nothing here; the formula derives this option",
                )

    _check_parity(declaration, refuse)
    _check_acceptance(declaration, masters, refuse)
    _check_edges(declaration, masters, refuse)
    if declaration.get("signing") is True:
        _check_algorithms(declaration, refuse)
    _check_roots(declaration, refuse)
    replicate = _parse_replicate(declaration, masters, refuse)

    if findings:
        raise TopologyError(findings)
    return Topology(
        mode=mode,
        masters=masters,
        minions=declaration.get("minions") or SOME_MINIONS,
        failover=dict(failover),
        cutover={"masters": 1} | dict(declaration.get("cutover") or {}),
        roots=dict(declaration.get("roots") or {}),
        master_config=dict(declaration.get("master", {}).get("config") or {}),
        minion_config=dict(declaration.get("minion", {}).get("config") or {}),
        master_override=tuple(_lookup(declaration, "master:override")[1] or ()),
        minion_override=tuple(_lookup(declaration, "minion:override")[1] or ()),
        autosign={
            name: _lookup(declaration, f"master:{name}")[1]
            for name in AUTOSIGN
            if _lookup(declaration, f"master:{name}")[1]
        },
        replace_keypair=declaration.get("replace_keypair", False),
        signing=declaration.get("signing", False),
        minion_service=declaration.get("minion", {}).get("service", "salt-minion"),
        restart_timeout=declaration.get("restart_timeout", 600),
        replicate=replicate,
        drift_interval=(declaration.get("drift") or {}).get("interval", 60),
        drift_sample=(sample,) if isinstance(sample, str) else tuple(sample),
        clocks=(declaration.get("deploy") or {}).get("clocks", 5),
        keys={"at_once": 5, "within": 60} | dict(declaration.get("keys") or {}),
    )


def _without_secrets(value: Any, name: str) -> Any:
    """Return what was declared under a name as a message may have it."""
    if isinstance(value, Mapping):
        return {inner: _without_secrets(one, str(inner)) for inner, one in value.items()}
    if _SECRET.search(name.lower()) and value != name and not isinstance(value, bool) and value:
        return HIDDEN
    if isinstance(value, (list, tuple)):
        return [_without_secrets(one, "") for one in value]
    return value


def _without_userinfo(text: str) -> str:
    return _PAIR.sub(rf"\1{HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))


@dataclass(frozen=True)
class Setting:
    """An option that follows from the declaration, and the reason for its value."""

    option: str
    value: Any
    reason: str


def minion_settings(topology: Topology, minion_id: str) -> list[Setting]:
    """
    Derive what a minion's configuration has to say, each option with its reason.

    Minions on master hosts are hot whatever the mode: they are the masters' channel to each other.
    """
    failover = topology.mode == "failover" and minion_id not in topology.ids
    number = topology.minions
    interval = topology.failover.get("master_alive_interval", probe_interval(number))
    settings = [
        Setting("master", list(topology.addresses), "the declared masters, in their order"),
        Setting(
            "master_type",
            "failover" if failover else "str",
            "mode: failover" if failover else "connected to all masters at once",
        ),
        Setting(
            "rejected_retry",
            True,
            "one master's rejection would end the whole minion, its other masters included",
        ),
        Setting(
            "acceptance_wait_time",
            1,
            "a new minion, or a new master, has its key accepted within seconds: ask again after "
            "1, 2, and then every 4 seconds rather than every 10",
        ),
        Setting("acceptance_wait_time_max", 4, "see acceptance_wait_time"),
    ]
    if failover:
        settings += _failover_settings(topology, interval)
    else:
        settings.append(
            Setting(
                "zmq_monitor",
                False,
                "at the end of a connection Salt 3008 would drop the channel to that master, and "
                "with it the returns of its jobs, until it has signed in again; ZeroMQ connects "
                "again by itself, and returns are sent again",
            )
        )
        settings.append(
            Setting(
                "retry_dns",
                5,
                "seconds between two look-ups of one name, for which all masters wait; not 0, "
                "which would silently turn the entry into 127.0.0.1",
            )
        )
    settings += _comeback_settings(number, interval, failover)
    settings += [
        Setting(EDGES[name][0], value, f"what the masters serve, their {name}")
        for name, value in topology.edges.items()
    ]
    there = {setting.option for setting in settings}
    settings += [
        Setting(option, value, "as if it were not set, whatever the main file says")
        for option, value in NEUTRAL.items()
        if option not in there
    ]
    config = topology.minion_config
    return [
        replace(setting, value=config[setting.option], reason="set under minion: config")
        if setting.option in config
        else setting
        for setting in settings
    ]


def _failover_settings(topology: Topology, interval: int) -> list[Setting]:
    declared = topology.failover

    def setting(option: str, value: Any, reason: str) -> Setting:
        if option in declared:
            return Setting(option, declared[option], "declared")
        return Setting(option, value, reason)

    settings = [
        Setting(
            "retry_dns",
            0,
            "a name that does not resolve must not keep the minion from the next master",
        ),
        Setting("auth_retries", 2, "a pending or rejected key would pin the minion to that master"),
        setting(
            "master_alive_interval",
            interval,
            f"{topology.minions} minions ask at most {QUESTIONS_PER_SECOND} questions a second in "
            f"all, and each asks every {SHORTEST_INTERVAL} seconds or less often",
        ),
        setting("random_master", False, "the declared order is the preference"),
        setting("master_tries", -1, "a minion that found no master goes on looking"),
        setting(
            "master_failback",
            False,
            "each return to the first master interrupts the minion once more",
        ),
    ]
    if declared.get("master_failback"):
        reason = "as often as the present master is asked"
        settings.append(setting("master_failback_interval", interval, reason))
    return settings


def _comeback_settings(number: int, interval: int, failover: bool) -> list[Setting]:
    spread = max(SHORTEST_SPREAD, min(LONGEST_SPREAD, number / COMEBACKS_PER_SECOND))
    least = 100
    # A minion does not leave a master before that has passed.
    patience = 1 if failover else 2
    sign_in = max(SIGN_IN, min(LONGEST_SPREAD, math.ceil(TIMES_SLOWER * spread)))
    return [
        Setting(
            "auth_timeout",
            sign_in,
            "seconds for a sign-in: a minion that gives it up has to begin again, and never gets "
            f"in where all take longer; {number} minions at once, {TIMES_SLOWER} times as slow as "
            f"{COMEBACKS_PER_SECOND} a second, and at least Salt's {SIGN_IN}",
        ),
        Setting(
            "return_retry_timer",
            patience,
            "seconds, at least: a return that waits for a master occupies the minion, and some "
            "twenty keep it from all else; the engine sends it again",
        ),
        Setting(
            "return_retry_timer_max",
            patience,
            "seconds, at most: after that Salt dials anew, which brings a lost master back "
            "sooner, or goes to the next one",
        ),
        Setting("return_retry_tries", 1, "see return_retry_timer"),
        Setting("recon_default", least, "milliseconds; a returning master is found at once"),
        Setting(
            "recon_max",
            round(spread * 1000) - least,
            f"milliseconds: {number} minions come back within {spread:g} s, at most "
            f"{COMEBACKS_PER_SECOND} a second",
        ),
        Setting(
            "random_reauth_delay",
            math.ceil(spread),
            "seconds that a minion whose sign-in failed waits at most before it starts again: "
            "spread like connections",
        ),
        Setting(
            "tcp_keepalive_idle",
            interval,
            "a master's host that vanished without a word closes no connection; Salt's 300 "
            "seconds would leave the minion deaf when the host is back",
        ),
        Setting("tcp_keepalive_intvl", max(1, interval // 3), "see tcp_keepalive_idle"),
        Setting("tcp_keepalive_cnt", 3, "see tcp_keepalive_idle"),
    ]


def probe_interval(minions: int) -> int:
    """Return the seconds between two questions of one minion to one master."""
    return max(SHORTEST_INTERVAL, math.ceil(minions / QUESTIONS_PER_SECOND))


def minion_options(
    topology: Topology,
    minion_id: str,
    existing: Mapping[str, Any] | None = None,
    verifies: bool = False,
) -> dict[str, Any]:
    """
    Derive the content of a minion's drop-in.

    existing
        The host's minion options without our drop-in: the engines found there are kept by naming
        them, since a list in a drop-in takes the place of the main file's.
    verifies
        Whether the minion asks for a signature at present.  Not what is declared: Salt refuses a
        signing master on a minion that does not verify, and the reverse, so that the minion's
        engine follows what the masters do.
    """
    options = {s.option: s.value for s in minion_settings(topology, minion_id)}
    config = topology.minion_config
    engine = {
        "masters": list(topology.addresses),
        "act": options["master_type"] == "failover",
        "interval": options["master_alive_interval"] or probe_interval(topology.minions),
        "service": topology.minion_service,
        "restart_timeout": topology.restart_timeout,
    }
    return {
        **config,
        **options,
        # Written when false, too: the main file may say otherwise.
        "verify_master_pubkey_sign": verifies,
        "engines": _with_engine(config, existing or {}, "multimaster_minion", engine),
    }


def master_options(
    topology: Topology,
    master_id: str,
    extensions: str,
    existing: Mapping[str, Any],
    signs: bool = False,
    autosign: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """
    Derive the content of a master's drop-in.

    extensions
        Directory of the formula's own engine, runner and outputter on that host.
    existing
        The host's master options without our drop-in: a list in a drop-in takes the place of the
        main file's, so the engines and module directories found there are kept by naming them.
    signs
        Whether the signing pair is there to sign with.
    autosign
        The options that name the files of :func:`autosign_files`, with their paths.
    """
    config = topology.master_config
    # Written when false, too: the main file may say otherwise.
    signing: dict[str, Any] = {"master_sign_pubkey": signs}
    if signs:
        signing |= {
            "master_sign_key_name": SIGNING_KEY,
            # Once and not for each minion that signs in; the name is the default until Salt 3007.
            "master_use_pubkey_signature": True,
            "master_pubkey_signature": SIGNATURE,
        }
    engines = _with_engine(config, existing, "multimaster", {})
    # Without an interval it only notes what the master has read.
    engines = _with_engine({"engines": engines}, {}, "multimaster_drift", {})
    directories = config.get("module_dirs", existing.get("module_dirs")) or []
    edges = topology.edges
    if edges.get("ipv6") and "interface" not in {**existing, **config}:
        # Both kinds of addresses; Salt's default is IPv4 alone.
        edges["interface"] = "::"
    options = {
        **config,
        **edges,
        **roots_options(topology),
        # The live key pair is named after the id; the default depends on the host's name.
        "id": master_id,
        "module_dirs": [*(path for path in directories if path != extensions), extensions],
        "engines": engines,
        **signing,
        **(autosign or {}),
        # For the engine and the runners, which have no pillar.
        "multimaster": {
            "mode": topology.mode,
            "masters": [{"id": m.id, "address": m.address} for m in topology.masters],
            "drift": {"interval": topology.drift_interval, "clocks": topology.clocks}
            | ({"sample": list(topology.drift_sample)} if topology.drift_sample else {}),
            "keys": dict(topology.keys),
        },
    }
    if topology.replicate:
        _replicate(options, topology.replicate, config, existing)
    return options


def _replicate(
    options: dict[str, Any],
    roots: Replicate,
    config: Mapping[str, Any],
    existing: Mapping[str, Any],
) -> None:
    """Have a master serve replicated roots, and no directories of its own."""
    others = config.get("fileserver_backend", existing.get("fileserver_backend")) or []
    if "fileserver_backend" not in config:
        # Salt's default; the directories that it would serve are this master's alone.
        others = [backend for backend in others if backend != "roots"]
    pillars = config.get("ext_pillar", existing.get("ext_pillar")) or []
    pillars = [entry for entry in pillars if "multimaster_roots" not in entry]
    ours: list[Any] = [{"multimaster_roots": []}]
    # As pillar_roots come before or after external pillars.
    last = config.get("ext_pillar_first", existing.get("ext_pillar_first", False))
    options |= {
        "file_roots": {"base": []},
        "pillar_roots": {"base": []},
        "fileserver_backend": ["multimaster", *(b for b in others if b != "multimaster")],
        "ext_pillar": [*pillars, *ours] if last else [*ours, *pillars],
        "engines": _with_engine({"engines": options["engines"]}, {}, "multimaster_roots", {}),
    }
    options["multimaster"]["roots"] = {
        "replicate": {
            "source": roots.source,
            "file_roots": {name: list(paths) for name, paths in roots.file_roots.items()},
            "pillar_roots": {name: list(paths) for name, paths in roots.pillar_roots.items()},
        }
    }


def roots_options(topology: Topology) -> dict[str, Any]:
    """Return the options that make masters serve what ``roots`` declares."""
    config, roots = topology.master_config, topology.roots
    shared, git = roots.get("shared", {}), roots.get("git", {})
    options = {option: shared[option] for option in SHARED_OPTIONS if option in shared}
    # Else Salt takes what there is: pygit2, or GitPython, which comes with it.
    provider = {"provider": git["provider"]} if "provider" in git else {}
    if git.get("remotes"):
        options |= {
            "fileserver_backend": config.get("fileserver_backend", ["gitfs"]),
            "gitfs_remotes": git["remotes"],
            **{f"gitfs_{name}": value for name, value in provider.items()},
        }
    if git.get("pillar"):
        options |= {
            "ext_pillar": [*config.get("ext_pillar", []), {"git": git["pillar"]}],
            **{f"git_pillar_{name}": value for name, value in provider.items()},
        }
    return options


@dataclass(frozen=True)
class Remote:
    """A git remote: its URL, and what its own options or the masters' say of it."""

    url: str
    # One that has to be there; None if nothing is known of it.
    branch: str | None
    privkey: str | None
    ssl_verify: bool


def git_remotes(topology: Topology) -> list[Remote]:
    """Return the remotes that ``roots`` declares, each once."""
    git = topology.roots.get("git", {})
    return _remotes(git.get("remotes", []), git.get("pillar", []), topology.master_config)


def configured_remotes(options: Mapping[str, Any]) -> list[Remote]:
    """Return the git remotes that a master with these effective options serves, each once."""
    backends = options.get("fileserver_backend") or []
    files = options.get("gitfs_remotes") or [] if {"git", "gitfs"} & set(backends) else []
    pillars = options.get("ext_pillar") or []
    named = (entry.get("git") for entry in pillars if isinstance(entry, Mapping))
    # Another kind of its argument is a question to Salt, not a list of remotes.
    pillar = [one for listed in named if isinstance(listed, list) for one in listed]
    return _remotes(files, pillar, options)


def _remotes(
    files: Iterable[Any], pillar: Iterable[Any], config: Mapping[str, Any]
) -> list[Remote]:
    found = []
    for role, entries in (("gitfs", files), ("git_pillar", pillar)):
        for entry in entries:
            text = next(iter(entry)) if isinstance(entry, Mapping) else entry
            options = _own_options(entry)

            def option(name: str, default: Any = None, own: Any = options, of: str = role) -> Any:
                return own.get(name, config.get(f"{of}_{name}", default))

            url, branch = text, None
            if role == "git_pillar":
                branch, _, url = text.partition(" ")
                branch = None if branch == "__env__" else branch
            found.append(
                Remote(url.strip(), branch, option("privkey"), bool(option("ssl_verify", True)))
            )
    return list(dict.fromkeys(found))


def unshareable(mounts: Iterable[str], options: Mapping[str, Any]) -> list[str]:
    """
    Return what must not be shared between masters and would be, or is shared without its lock.

    mounts
        Directories of one host that are on shared storage.
    options
        The master's effective options there, with ``pki_dir``, ``cachedir`` and the git locks.
    """
    findings = []
    for mount in mounts:
        for option, reason in (
            ("pki_dir", "it holds master.pem"),
            ("cachedir", "masters would overwrite each other's keys and jobs in it"),
        ):
            if _is_below(options[option], mount):
                findings.append(
                    f"{option}: got {options[option]!r}, on shared storage ({mount}); supported: "
                    f"a directory of the master's own, since {reason}"
                )
        for role in ("gitfs", "git_pillar"):
            cache, lock = f"{options['cachedir']}/{role}", f"{role}_global_lock"
            if _is_below(cache, mount) and not options.get(lock, True):
                findings.append(
                    f"{lock}: got False; supported: True, since {cache} is on shared storage"
                )
    return findings


def _is_below(path: str, directory: str) -> bool:
    return path.rstrip("/") == directory.rstrip("/") or path.startswith(directory.rstrip("/") + "/")


def replacing(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those options of a drop-in that would replace what a host's other files say."""
    return {option: value for option, value in options.items() if option not in KEPT}


def at_the_edge() -> set[str]:
    """Return the options, of either role, that are declared for both: see ``EDGES``."""
    return {option for serves, (dials, _) in EDGES.items() for option in (serves, dials)}


def minion_replacing(
    topology: Topology, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Return of a minion's drop-in what must not replace what its other files say, and what is named.

    The first is declared, or has to be what masters serve; the rest is what the formula is for.
    """
    edges = {dials for dials, _ in EDGES.values()}
    stated = {o: v for o, v in options.items() if o in edges or o in topology.minion_config}
    return stated, {o: v for o, v in options.items() if o in NAMED and o not in stated}


def autosign_files(topology: Topology) -> dict[str, str]:
    """Return path -> content of the files that say whose keys a master accepts, or rejects."""
    lists = {AUTOSIGN[name][1]: value for name, value in topology.autosign.items()}
    grains = lists.pop(AUTOSIGN["autosign_grains"][1], {})
    lists |= {f"{AUTOSIGN['autosign_grains'][1]}/{grain}": grains[grain] for grain in grains}
    note = "# Written by the formula; the lists are in pillar, under multimaster:master.\n"
    return {
        path: note + "".join(f"{entry}\n" for entry in entries) for path, entries in lists.items()
    }


def autosign_options(topology: Topology, directory: str) -> dict[str, str]:
    """Return the master options that name the files of :func:`autosign_files` in a directory."""
    return {AUTOSIGN[name][0]: f"{directory}/{AUTOSIGN[name][1]}" for name in topology.autosign}


def misfits(topology: Topology, role: str, effective: Mapping[str, Any]) -> list[str]:
    """
    Return in words what of a host's options the other role, as declared, would not understand.

    role, effective
        ``master`` or ``minion``, and what all of its files say together on that host.
    """
    lines: list[str] = []

    def refuse(where: str, got: Any, supported: str) -> None:
        lines.append(f"{where}: got {got!r}; supported: {supported}")

    config = {"master": topology.master_config, "minion": topology.minion_config}
    # Of what is the host's own, see `misplaced`, what is declared.
    own = ("interface", "ipv6")
    options = {name: value for name, value in effective.items() if name not in own}
    options |= {name: value for name, value in config[role].items() if name in own}
    config[role] = options
    for option in ("keysize", "minimum_auth_version"):
        supported, valid = _VALUES.get(f"{role}:config:{option}", ("", None))
        if valid and option in options and not valid(options[option]):
            refuse(f"{role}:config:{option}", options[option], supported)
    whole = {name: {"config": one} for name, one in config.items()}
    _check_edges(whole, topology.masters, refuse)
    return lines


def misplaced(topology: Topology, master_id: str, interface: str) -> str | None:
    """
    Return in words what a master's ``interface`` has to be; None if minions reach it there.

    interface
        The effective one.
    """
    addresses = (master.address for master in topology.masters if master.id == master_id)
    return next((_misplaced(address, interface) for address in addresses), None)


def _misplaced(address: str, interface: Any) -> str | None:
    interface = str(interface).strip("[]")
    # Names lead anywhere; and what is no address, Salt refuses.
    if is_name(address) or is_name(interface) or interface == "::":
        return None
    if _is_ipv6(address) == _is_ipv6(interface):
        return None
    kind = "IPv6" if _is_ipv6(address) else "IPv4"
    return f"'::' or an {kind} address, as minions dial {address}"


def version() -> str:
    """Return the version of the formula; a function, since Salt's loader shows no values."""
    return VERSION


def is_name(address: str) -> bool:
    """Tell whether an address is a name, which has to be resolved, and not an IP address."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return True
    return False


def _with_engine(
    config: Mapping[str, Any], existing: Mapping[str, Any], name: str, options: Mapping[str, Any]
) -> list[Any]:
    """Return the engines of the declaration, or else of the host, and one of ours."""
    engines = config.get("engines", existing.get("engines")) or []
    if isinstance(engines, Mapping):
        # Salt takes that form, too; the one with a list has room for ours.
        engines = [{other: settings} for other, settings in engines.items()]

    def is_ours(engine: Any) -> bool:
        return engine == name or (isinstance(engine, Mapping) and name in engine)

    return [*(engine for engine in engines if not is_ours(engine)), {name: dict(options)}]


Refuse = Callable[[str, Any, str], None]


def _check_edges(
    declaration: Mapping[str, Any], masters: tuple[Master, ...], refuse: Refuse
) -> None:
    """Refuse what would have minions dial what no master serves, or say what none understands."""

    def of(path: str, default: Any = None) -> Any:
        present, value = _lookup(declaration, path)
        return value if present else default

    six = next((master.address for master in masters if _is_ipv6(master.address)), None)
    for serves, (dials, default) in EDGES.items():
        served = of(f"master:config:{serves}", default)
        dialled = of(f"minion:config:{dials}", default)
        if serves == "ipv6" and six:
            for role in ("master", "minion"):
                if of(f"{role}:config:ipv6", True) is not True:
                    got = of(f"{role}:config:ipv6")
                    refuse(f"{role}:config:ipv6", got, f"true, as {six} is an IPv6 address")
        elif (served or None) != (dialled or None) and all(
            path not in _VALUES or _VALUES[path][1](value)
            for path, value in (
                (f"master:config:{serves}", served),
                (f"minion:config:{dials}", dialled),
            )
        ):
            supported = f"what the masters serve, {served!r} (master:config:{serves})"
            refuse(f"minion:config:{dials}", dialled, supported)
    publish = of("master:config:publish_port", EDGES["publish_port"][1])
    if publish == of("master:config:ret_port", EDGES["ret_port"][1]):
        refuse("master:config:publish_port", publish, "another port than ret_port")
    interface = of("master:config:interface")
    if interface is not None:
        for address in (master.address for master in masters):
            if fitting := _misplaced(address, interface):
                refuse("master:config:interface", interface, fitting)
    signs = of("minion:config:minion_sign_messages", False)
    if of("master:config:require_minion_sign_messages") is True and signs is not True:
        required = "true, as master:config:require_minion_sign_messages is"
        refuse("minion:config:minion_sign_messages", signs, required)
    if signs is True:
        # Salt has no default for masters, and fails (3008).
        made = of("minion:config:signing_algorithm", SIGNED_WITH)
        verified = of("master:config:signing_algorithm")
        if made != verified:
            supported = f"with minion_sign_messages what minions sign with, {made!r}"
            refuse("master:config:signing_algorithm", verified, supported)
    if of("minion:config:sign_pub_messages") is True:
        made = of("master:config:sign_pub_messages", True)
        if made is not True:
            supported = "true, as minion:config:sign_pub_messages is"
            refuse("master:config:sign_pub_messages", made, supported)


def _check_algorithms(declaration: Mapping[str, Any], refuse: Refuse) -> None:
    """Refuse what would make minions verify another kind of signature than the masters made."""
    made = _lookup(declaration, "master:config:publish_signing_algorithm")[1]
    expected = _lookup(declaration, "minion:config:signing_algorithm")[1]
    if made != expected:
        refuse(
            "minion:config:signing_algorithm",
            expected,
            f"with signing: true the same as master:config:publish_signing_algorithm, {made!r}",
        )


# Derived from ``roots``, and so not for ``master:config``.
SHARED_OPTIONS = ("file_roots", "pillar_roots")
_BY_ROOTS = {
    "git": ("gitfs_provider", "gitfs_remotes", "git_pillar_provider"),
    "shared": SHARED_OPTIONS,
}
# What ``roots`` says takes the place of what a host's other files say: that it does is declared.
# Not so with pillars from elsewhere, which may be somebody's.
_STATED = {
    "git": ("fileserver_backend", *_BY_ROOTS["git"]),
    "shared": SHARED_OPTIONS,
    "replicate": (*SHARED_OPTIONS, "fileserver_backend", "ext_pillar"),
}


def overrides(topology: Topology) -> list[str]:
    """Return the master options that may take the place of what a host's other files say."""
    stated = (option for way in topology.roots for option in _STATED[way])
    return [*topology.master_override, *stated]


def _check_roots(declaration: Mapping[str, Any], refuse: Refuse) -> None:
    """Check the one way of keeping roots equal that is declared, if any."""
    roots = declaration.get("roots")
    roots = roots if isinstance(roots, Mapping) else {}
    config = _lookup(declaration, "master:config")[1]
    config = config if isinstance(config, Mapping) else {}
    config_dir = _lookup(declaration, "master:config_dir")[1]
    for way, options in _BY_ROOTS.items():
        for option in set(options) & set(config) if way in roots else ():
            refuse(f"master:config:{option}", config[option], f"nothing here; see roots:{way}")
    git, shared = roots.get("git"), roots.get("shared")
    if isinstance(git, Mapping):
        if not (git.get("remotes") or git.get("pillar")):
            refuse("roots:git", dict(git), "a list of remotes, of pillar, or both")
        if git.get("provider") == "gitcli" and git.get("pillar"):
            refuse("roots:git:pillar", "gitcli", "pygit2, gitpython; gitcli gives an empty pillar")
        backends = config.get("fileserver_backend")
        if git.get("remotes") and backends is not None and not {"git", "gitfs"} & set(backends):
            refuse(
                "master:config:fileserver_backend", backends, "a list with gitfs, with roots:git"
            )
        for name in ("remotes", "pillar"):
            for place, entry in enumerate(git.get(name) or [], 1):
                where = f"roots:git:{name}: entry {place}"
                if not _is_remote(entry, name == "pillar"):
                    refuse(where, entry, _REMOTE_FORMS[name])
                elif git.get("provider") == "gitcli" and "root" in _own_options(entry):
                    refuse(f"{where}:root", "gitcli", "pygit2, gitpython; gitcli finds no states")
    paths: list[str] = []
    if isinstance(shared, Mapping):
        mounts = shared.get("mounts")
        for place, mount in enumerate(mounts if isinstance(mounts, list) else [], 1):
            where = f"roots:shared:mounts: entry {place}"
            needed = {"path": _is_path, "device": _is_text, "fstype": _is_word}
            if not isinstance(mount, Mapping) or not needed.keys() <= mount.keys():
                refuse(where, mount, "a mapping with path, device and fstype; opts may be added")
                continue
            for name in sorted(map(str, set(mount) - {*needed, "opts"})):
                refuse(f"{where}:{name}", name, "path, device, fstype, opts")
            for name, valid in needed.items():
                if mount[name] is None or not valid(mount[name]):
                    refuse(f"{where}:{name}", mount[name], "an absolute path, or a name for fstype")
            paths.append(str(mount["path"]))
        for option in SHARED_OPTIONS:
            given = shared.get(option)
            if given is None and (git or config_dir):
                # The storage is for something else, as for the cache of the remotes.
                continue
            if not isinstance(given, Mapping) or not _is_environments(given):
                refuse(f"roots:shared:{option}", given, "directories on the mounts, by environment")
                continue
            for directory in (one for listed in given.values() for one in listed):
                if not any(_is_below(directory, path) for path in paths):
                    refuse(f"roots:shared:{option}", directory, f"below one of {', '.join(paths)}")
    if _is_text(config_dir) and not any(_is_below(config_dir, path) for path in paths):
        where = ", ".join(paths) or "a mount that roots:shared:mounts declares"
        refuse("master:config_dir", config_dir, f"below one of {where}")


_REMOTE_FORMS = {
    "remotes": "a URL, or a mapping of one URL to a list of its options (gitfs_remotes)",
    "pillar": "'branch URL', or a mapping of that to a list of its options (git_pillar)",
}


def _own_options(entry: Any) -> dict[str, Any]:
    """Return the options of one remote, which Salt has as a list of mappings."""
    own = next(iter(entry.values())) if isinstance(entry, Mapping) else []
    return {name: value for one in own for name, value in one.items()}


def _is_remote(entry: Any, with_branch: bool) -> bool:
    text = entry
    if isinstance(entry, Mapping):
        if len(entry) != 1:
            return False
        text, own = next(iter(entry.items()))
        if not isinstance(own, list) or not all(isinstance(one, Mapping) for one in own):
            return False
    # A URL that begins like an option would be one for git.
    form = r"[^\s-]\S*[ ]+[^\s-]\S*" if with_branch else r"[^\s-]\S*"
    return isinstance(text, str) and bool(re.fullmatch(form, text))


def _is_environments(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(listed, list)
            and all(isinstance(one, str) and _is_path(one) for one in listed)
            for listed in value.values()
        )
    )


def _check_parity(declaration: Mapping[str, Any], refuse: Refuse) -> None:
    """Refuse options that Salt would ignore, two sources for one, and overrides of nothing."""
    config = _lookup(declaration, "master:config")[1]
    config = config if isinstance(config, Mapping) else {}
    for option in sorted(set(config) & set(RENAMED)):
        new = RENAMED[option]
        refuse(
            f"master:config:{option}",
            option,
            f"its new name, {new}" if new else "nothing; Salt has this option no longer",
        )
    roots = declaration.get("roots")
    derived = {"master_sign_pubkey", *EDGES, "interface"}
    for way in roots if isinstance(roots, Mapping) else ():
        derived |= {*_STATED.get(way, ()), "ext_pillar"}
    if declaration.get("signing") is True:
        derived |= {
            "master_sign_key_name",
            "master_use_pubkey_signature",
            "master_pubkey_signature",
        }
    for name, (option, _) in AUTOSIGN.items():
        if not _lookup(declaration, f"master:{name}")[1]:
            continue
        derived.add(option)
        if option in config:
            refuse(
                f"master:config:{option}",
                config[option],
                f"nothing here beside master:{name}, from which the formula derives it",
            )
    for role in ("master", "minion"):
        override = _lookup(declaration, f"{role}:override")[1]
        if not _is_names(override):
            continue
        options = _lookup(declaration, f"{role}:config")[1]
        there = {str(option) for option in options} if isinstance(options, Mapping) else set()
        known = sorted((there | (derived if role == "master" else set(NAMED))) - set(KEPT))
        for option in override:
            if option not in known:
                supported = ", ".join(known)
                refuse(f"{role}:override", option, f"options that the formula sets: {supported}")


def _check_acceptance(
    declaration: Mapping[str, Any], masters: tuple[Master, ...], refuse: Refuse
) -> None:
    """Refuse what would accept, of its own accord, whoever calls itself a master."""
    unproved = [master.id for master in masters if master.fingerprint is None]

    def refuse_for(where: str, got: Any, supported: str, ids: list[str]) -> None:
        if ids:
            refuse(where, got, f"{supported}, unless masters have a fingerprint: {', '.join(ids)}")

    for option in ("auto_accept", "open_mode"):
        # Salt takes nothing else for true.
        if _lookup(declaration, f"master:config:{option}")[1] is True:
            refuse_for(f"master:config:{option}", True, "false", unproved)
    entries = _lookup(declaration, "master:autosign")[1]
    for entry in entries if _is_globs(entries) else ():
        matched = [name for name in unproved if _is_match(name, entry)]
        refuse_for("master:autosign", entry, "what matches no master's id", matched)
    grains = _lookup(declaration, "master:autosign_grains")[1]
    if _is_grains(grains) and any(grains.values()):
        # Any host can say that it has a grain.
        refuse_for("master:autosign_grains", sorted(grains), "none", unproved)


def _is_match(minion_id: str, entry: str) -> bool:
    """Tell whether Salt takes an id for one that a line of an autosign file means."""
    try:
        return fnmatch.fnmatch(minion_id, entry) or bool(re.match(rf"\A{entry}\Z", minion_id))
    except re.error:
        return False


def _parse_replicate(
    declaration: Mapping[str, Any], masters: tuple[Master, ...], refuse: Refuse
) -> Replicate | None:
    """Check which master's roots the others follow, if the declaration says so."""
    declared = declaration.get("roots")
    if not isinstance(declared, Mapping) or not declared:
        return None
    replicate = declared.get("replicate")
    if not isinstance(replicate, Mapping):
        return None
    if len(declared) != 1:
        refuse("roots", sorted(map(str, declared)), "replicate alone, or git, or shared")
    source = replicate.get("source")
    if source not in [master.id for master in masters]:
        supported = ", ".join(master.id for master in masters) or "the id of a declared master"
        refuse("roots:replicate:source", source, supported)
    roots: dict[str, Mapping[str, list[str]]] = {}
    for kind in ("file_roots", "pillar_roots"):
        value = replicate.get(kind)
        if value is not None and not _is_roots(value):
            refuse(
                f"roots:replicate:{kind}",
                value,
                "a mapping of environments, named with letters, digits and ._-, to lists of "
                "absolute paths without wildcards",
            )
        elif value:
            roots[kind] = value
        present, other = _lookup(declaration, f"master:config:{kind}")
        if present:
            refuse(f"master:config:{kind}", other, "nothing here with roots: replicate")
    if not (replicate.get("file_roots") or replicate.get("pillar_roots")):
        refuse("roots:replicate", sorted(map(str, replicate)), "file_roots, pillar_roots or both")
    return Replicate(str(source), **roots)


def _is_roots(value: Any) -> bool:
    """Tell whether a value is one that file_roots may have, with directories to be copied."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and _ENVIRONMENT.fullmatch(name)
        and name != "__env__"
        and isinstance(paths, list)
        and all(isinstance(p, str) and _ROOT.fullmatch(p) and ".." not in p for p in paths)
        for name, paths in value.items()
    )


def _parse_masters(value: Any, refuse: Refuse) -> tuple[Master, ...]:
    """Check the list of masters entry by entry; duplicates of an id or address are refused."""
    supported = "a non-empty list of {id: MINION-ID, address: ADDRESS}"
    if not isinstance(value, list) or not value:
        refuse("masters", value, supported)
        return ()
    masters: list[Master] = []
    for number, entry in enumerate(value):
        where = f"masters:{number}"
        if not isinstance(entry, Mapping) or set(entry) - {"fingerprint"} != {"id", "address"}:
            refuse(where, dict(entry) if isinstance(entry, Mapping) else entry, supported)
            continue
        master_id, address = entry["id"], entry["address"]
        if not isinstance(master_id, str) or not _ID.fullmatch(master_id):
            refuse(f"{where}:id", master_id, "a minion id without spaces and slashes")
        elif master_id in (master.id for master in masters):
            refuse(f"{where}:id", master_id, "each id once")
        elif master_id.casefold() in (master.id.casefold() for master in masters):
            # One and the same to name servers, and to some file systems.
            refuse(f"{where}:id", master_id, "each id once, in upper or lower case")
        if not isinstance(address, str) or not _is_address(address):
            refuse(f"{where}:address", address, "an IP address or a host name, without a port")
        elif _canonical(address) in (_canonical(master.address) for master in masters):
            refuse(f"{where}:address", address, "each address once")
        fingerprint = entry.get("fingerprint")
        if "fingerprint" in entry:
            text = fingerprint.lower() if isinstance(fingerprint, str) else ""
            if not _FINGERPRINT.fullmatch(text):
                refuse(
                    f"{where}:fingerprint",
                    fingerprint,
                    "32 pairs of hexadecimal digits joined by colons, the SHA-256 that "
                    "'salt-call --local key.finger' prints on that host",
                )
            fingerprint = text
        masters.append(Master(str(master_id), str(address), fingerprint))
    return tuple(masters)


def _is_ipv6(address: str) -> bool:
    return not is_name(address) and ipaddress.ip_address(address).version == 6


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


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_port(value: Any) -> bool:
    return _is_positive(value) and value < 2**16


def _is_tries(value: Any) -> bool:
    return _is_positive(value) or (value == -1 and not isinstance(value, float))


def _is_batch(value: Any) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"[1-9]\d?%|100%", value))
    return _is_positive(value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(_WORD.fullmatch(value))


def _is_path(value: Any) -> bool:
    return value is None or (_is_word(value) and value.startswith("/"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _is_sample(value: Any) -> bool:
    if value is None:
        return True
    ids = [value] if isinstance(value, str) else value
    return isinstance(ids, list) and all(isinstance(i, str) and _ID.fullmatch(i) for i in ids)


def _is_entry(value: Any) -> bool:
    """Tell whether Salt would read a line of an autosign file as what it was meant to be."""
    text = str(value)
    if isinstance(value, str):
        return bool(text) and text == text.strip() and text[0] != "#" and len(text.split("\n")) == 1
    return isinstance(value, (bool, int, float))


def _is_globs(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(e, str) and _is_entry(e) for e in value)


def _is_grains(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(grain, str)
        and _ID.fullmatch(grain)
        and isinstance(entries, list)
        and all(map(_is_entry, entries))
        for grain, entries in value.items()
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seconds": ("a number of seconds, 0 or more", _is_seconds),
    "interval": ("a whole number of seconds, 1 or more", _is_positive),
    "tries": ("-1, for ever, or a whole number, 1 or more", _is_tries),
    "number": ("a whole number, 1 or more", _is_positive),
    "boolean": ("true or false", _is_boolean),
    "word": ("a name without spaces and quotes", _is_word),
    "mapping": ("a mapping", _is_mapping),
    "path": ("an absolute path without spaces and quotes", _is_path),
    "names": ("a list of option names", _is_names),
    "port": ("a port, 1 to 65535", _is_port),
    "transport": (
        ", ".join(TRANSPORTS),
        lambda value: isinstance(value, str) and value in TRANSPORTS,
    ),
    "bits": (f"{KEY_BITS} bits or more", lambda value: _is_positive(value) and value >= KEY_BITS),
    "globs": ("a list of minion ids, globs or regular expressions", _is_globs),
}

# The keys that a declaration may have, and what each value must be.
_SHAPE: dict[str, Any] = {
    "mode": None,
    "signing": None,
    "masters": None,
    "minions": None,
    "failover": dict.fromkeys(FAILOVER),
    "cutover": {"masters": None},
    "replace_keypair": None,
    "roots": {
        "git": {"provider": None, "package": None, "remotes": None, "pillar": None},
        "shared": {"mounts": None, "file_roots": None, "pillar_roots": None},
        "replicate": {"source": None, "file_roots": None, "pillar_roots": None},
    },
    "install": {"method": None, "add_repository": None, "repository": None},
    "master": {
        "package": None,
        "service": None,
        "config": None,
        "config_dir": None,
        "override": None,
        **dict.fromkeys(AUTOSIGN),
    },
    "minion": {"service": None, "config": None, "override": None},
    "deploy": {"batch": None, "clocks": None, "disk": None, "timeout": None},
    "drift": {"interval": None, "sample": None},
    "keys": {"at_once": None, "within": None},
    "restart_timeout": None,
    "config_dir": None,
    "extension_dir": None,
}
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "mode": (", ".join(MODES), lambda value: isinstance(value, str) and value in MODES),
    "signing": _KINDS["boolean"],
    "minions": ("a whole number, 1 or more", lambda value: value is None or _is_positive(value)),
    "failover": _KINDS["mapping"],
    "cutover": _KINDS["mapping"],
    "cutover:masters": _KINDS["number"],
    "replace_keypair": _KINDS["boolean"],
    "roots": _KINDS["mapping"],
    "roots:git": _KINDS["mapping"],
    "roots:git:provider": (
        ", ".join(GIT_PROVIDERS),
        lambda value: isinstance(value, str) and value in GIT_PROVIDERS,
    ),
    "roots:git:package": _KINDS["word"],
    "roots:git:remotes": ("a list, as of gitfs_remotes", lambda value: isinstance(value, list)),
    "roots:git:pillar": ("a list, as of git_pillar", lambda value: isinstance(value, list)),
    "roots:shared": _KINDS["mapping"],
    "roots:shared:mounts": (
        "a list of mounts",
        lambda value: bool(isinstance(value, list) and value),
    ),
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
    "master:config_dir": _KINDS["path"],
    "master:override": _KINDS["names"],
    "master:autosign": _KINDS["globs"],
    "master:autoreject": _KINDS["globs"],
    "master:autosign_grains": ("a mapping of grain -> list of values", _is_grains),
    # Extended by the formula.
    "master:config:engines": ("a list or a mapping", lambda value: isinstance(value, (list, dict))),
    "master:config:module_dirs": ("a list", lambda value: isinstance(value, list)),
    # See EDGES.
    "master:config:publish_port": _KINDS["port"],
    "master:config:ret_port": _KINDS["port"],
    "master:config:transport": _KINDS["transport"],
    "master:config:keysize": _KINDS["bits"],
    "master:config:minimum_auth_version": (
        f"0 to {AUTH_VERSION}, which is what minions of Salt 3008 speak",
        lambda value: value == 0 or (_is_positive(value) and value <= AUTH_VERSION),
    ),
    "minion:config:publish_port": _KINDS["port"],
    "minion:config:master_port": _KINDS["port"],
    "minion:config:transport": _KINDS["transport"],
    "minion:config:keysize": _KINDS["bits"],
    "minion": _KINDS["mapping"],
    "minion:service": _KINDS["word"],
    "minion:config": _KINDS["mapping"],
    "minion:override": _KINDS["names"],
    # Extended by the formula, like the master's.
    "minion:config:engines": ("a list or a mapping", lambda value: isinstance(value, (list, dict))),
    "master:config:ext_pillar": ("a list", lambda value: isinstance(value, list)),
    "master:config:fileserver_backend": ("a list", lambda value: isinstance(value, list)),
    "roots:replicate": _KINDS["mapping"],
    "deploy": _KINDS["mapping"],
    "deploy:batch": ("a number of minions, or a percentage like 25%", _is_batch),
    "deploy:clocks": _KINDS["seconds"],
    "deploy:disk": ("a number of MiB, 0 or more", _is_seconds),
    "deploy:timeout": _KINDS["seconds"],
    "drift": _KINDS["mapping"],
    "drift:interval": _KINDS["seconds"],
    "drift:sample": ("a minion id, or a list of minion ids", _is_sample),
    "keys": _KINDS["mapping"],
    "keys:at_once": ("a whole number, 1 or more", lambda value: _is_positive(value)),
    "keys:within": _KINDS["seconds"],
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
