"""The declaration: what is refused and in which words, what is accepted, what follows from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import multimaster_topology as topology

DEFAULTS = Path(__file__).parents[2] / "salt/multimaster/defaults.yaml"
MASTERS = [{"id": f"saltm{number}", "address": f"192.0.2.{number}"} for number in range(1, 6)]
TOP_KEYS = ", ".join(topology._SHAPE)
ONE_MASTER = "a non-empty list of {id: MINION-ID, address: ADDRESS}"
GLOBS = "a list of minion ids, globs or regular expressions"
GRAINS = "a mapping of grain -> list of values"
BATCH = "a number of minions, or a percentage like 25%"
SECONDS = "a number of seconds, 0 or more"
INTERVAL = "a whole number of seconds, 1 or more"
NAME = "a name without spaces and quotes"
PATH = "an absolute path without spaces and quotes"
FINGERPRINT = (
    "32 pairs of hexadecimal digits joined by colons, the SHA-256 that 'salt-call --local "
    "key.finger' prints on that host"
)
# Of five minion keys.
PRINTS = [":".join([f"{number:x}f"] * 32) for number in range(1, 6)]
PROVED = [{**master, "fingerprint": one} for master, one in zip(MASTERS, PRINTS, strict=True)]
ADDRESS = "an IP address or a host name, without a port"
# Options of a master that the formula always sets, but for the last one.
OF_A_MASTER = "interface, ipv6, master_sign_pubkey, publish_port, ret_port"
PORT = "a port, 1 to 65535"
PROTOCOL = "0 to 3, which is what minions of Salt 3008 speak"
SIX = {"id": "saltm2", "address": "2001:db8::2"}
# The formula's engines in a master.
OURS: list[dict[str, Any]] = [{"multimaster": {}}, {"multimaster_drift": {}}]


def declare(masters: int = 3, **changes: Any) -> dict[str, Any]:
    """A declaration of some masters, with changes at the top."""
    return {"masters": MASTERS[:masters], **changes}


def findings(declaration: Any) -> list[str]:
    with pytest.raises(topology.TopologyError) as refusal:
        topology.parse(declaration)
    assert str(refusal.value) == "\n".join(refusal.value.findings)
    return refusal.value.findings


def refused(claim: str, declaration: Any, where: str, received: Any, supported: str) -> Any:
    return pytest.param(declaration, f"{where}: got {received!r}; supported: {supported}", id=claim)


def fingerprint(claim: str, bad: Any) -> Any:
    masters = [MASTERS[0], {**MASTERS[1], "fingerprint": bad}]
    return refused(claim, {"masters": masters}, "masters:1:fingerprint", bad, FINGERPRINT)


def entry(claim: str, bad: Any, received: Any) -> Any:
    """A master's entry of the wrong shape."""
    return refused(
        claim, declare(masters=0) | {"masters": [bad]}, "masters:0", received, ONE_MASTER
    )


def identity(
    claim: str, bad: Any, supported: str = "a minion id without spaces and slashes"
) -> Any:
    masters = [MASTERS[0], {"id": bad, "address": "192.0.2.2"}]
    return refused(claim, {"masters": masters}, "masters:1:id", bad, supported)


def address(claim: str, bad: Any, supported: str = ADDRESS) -> Any:
    masters = [MASTERS[0], {"id": "saltm2", "address": bad}]
    return refused(claim, {"masters": masters}, "masters:1:address", bad, supported)


def twice(claim: str, one: str, same: str) -> Any:
    masters = [{"id": "saltm1", "address": one}, {"id": "saltm2", "address": same}]
    return refused(claim, {"masters": masters}, "masters:1:address", same, "each address once")


def option(claim: str, name: str, bad: Any, supported: str) -> Any:
    """An option of failover with a value that it cannot have."""
    declaration = declare(mode="failover", failover={name: bad})
    return refused(claim, declaration, f"failover:{name}", bad, supported)


def value(claim: str, path: str, bad: Any, supported: str) -> Any:
    """A setting with a value that it cannot have; the path has its keys, joined by colons."""
    inner = bad
    for key in reversed(path.split(":")):
        inner = {key: inner}
    return refused(claim, declare(**inner), path, bad, supported)


def edge(claim: str, where: str, dialled: Any, master: Any, minion: Any = None) -> Any:
    """What minions dial is not what masters serve; ``master`` and ``minion`` are options."""
    serving = {dials: serves for serves, (dials, _) in topology.EDGES.items()}
    option = serving[where.rpartition(":")[2]]
    served = master.get(option, topology.EDGES[option][1])
    declaration = declare(master={"config": master}, minion={"config": minion or {}})
    supported = f"what the masters serve, {served!r} (master:config:{option})"
    return refused(claim, declaration, where, dialled, supported)


REFUSED = [
    # The declaration as a whole
    refused("a string", "hot", "multimaster", "hot", "a mapping with at least 'masters'"),
    refused("a list", MASTERS, "multimaster", MASTERS, "a mapping with at least 'masters'"),
    refused("nothing", None, "multimaster", None, "a mapping with at least 'masters'"),
    # Keys
    refused("unknown key", declare(turbo=1), "turbo", "turbo", TOP_KEYS),
    refused("unknown key that is no string", declare() | {7: 1}, "7", 7, TOP_KEYS),
    refused(
        "unknown key in install",
        declare(install={"via": "pip"}),
        "install:via",
        "via",
        "method, add_repository, repository",
    ),
    refused(
        "unknown key in master",
        declare(master={"pkg": "x"}),
        "master:pkg",
        "pkg",
        "package, service, config, config_dir, override, autosign, autoreject, autosign_grains",
    ),
    refused(
        "unknown key in minion",
        declare(minion={"package": "x"}),
        "minion:package",
        "package",
        "service, config, override",
    ),
    refused(
        "unknown failover option",
        declare(mode="failover", failover={"interval": 5}),
        "failover:interval",
        "interval",
        ", ".join(topology.FAILOVER),
    ),
    # The list of masters
    refused("no masters", {}, "masters", None, ONE_MASTER),
    refused("empty list of masters", {"masters": []}, "masters", [], ONE_MASTER),
    refused("masters as a number", {"masters": 5}, "masters", 5, ONE_MASTER),
    refused("masters as a string", {"masters": "saltm1"}, "masters", "saltm1", ONE_MASTER),
    refused("masters as a mapping", {"masters": {"a": "b"}}, "masters", {"a": "b"}, ONE_MASTER),
    # Its entries
    fingerprint("empty fingerprint", ""),
    fingerprint("fingerprint that is nothing", None),
    fingerprint("fingerprint that is a number", 12),
    fingerprint("fingerprint of the formula's own form", "ab" * 32),
    fingerprint("fingerprint of another hash", ":".join(["ab"] * 64)),
    fingerprint("fingerprint cut short", PRINTS[0][:-1]),
    fingerprint("fingerprint with a newline", PRINTS[0] + "\n"),
    fingerprint("fingerprint with a letter that is no digit", PRINTS[0][:-1] + "g"),
    entry("entry that is no mapping", "saltm1", "saltm1"),
    entry("entry that is a list", ["saltm1", "192.0.2.1"], ["saltm1", "192.0.2.1"]),
    entry("entry without id", {"address": "192.0.2.1"}, {"address": "192.0.2.1"}),
    entry("entry without address", {"id": "saltm1"}, {"id": "saltm1"}),
    entry("entry with a further key", MASTERS[0] | {"port": 1}, MASTERS[0] | {"port": 1}),
    entry("empty entry", {}, {}),
    # Ids
    identity("id that is a number", 5),
    identity("id that is nothing", None),
    identity("id that is a list", ["saltm2"]),
    identity("empty id", ""),
    identity("id with a space", "salt m2"),
    identity("id with a slash", "salt/m2"),
    identity("id with a backslash", "salt\\m2"),
    identity("id with a null byte", "salt\0m2"),
    identity("id that is a directory", ".."),
    identity("duplicate id", "saltm1", "each id once"),
    # Addresses
    address("address that is a number", 3232248330),
    address("address that is nothing", None),
    address("address that is a mapping", {"ip": "192.0.2.2"}),
    address("empty address", ""),
    address("address beyond 255", "300.1.1.1"),
    address("address with three numbers", "192.0.2"),
    address("address with a port", "192.0.2.2:4506"),
    address("IPv6 address with a port", "[2001:db8::1]:4506"),
    address("name with a port", "salt2.example.com:4506"),
    address("name with a space", "salt 2"),
    address("name with a scheme", "tcp://salt2"),
    address("name that is too long", ".".join(["a" * 50] * 5)),
    address("name with too long a part", "a" * 64 + ".example.com"),
    address("name with an empty part", "salt..example.com"),
    address("duplicate address", "192.0.2.1", "each address once"),
    twice("IPv6 address in another spelling", "2001:db8::1", "2001:db8:0:0::1"),
    twice("name in another case", "salt.example.com", "Salt.Example.COM"),
    # Values
    value("unknown mode", "mode", "failsafe", "hot, failover"),
    value("mode that is a list", "mode", ["hot"], "hot, failover"),
    value("mode that is nothing", "mode", None, "hot, failover"),
    value("replace_keypair as a string", "replace_keypair", "yes", "true or false"),
    value("replace_keypair as a number", "replace_keypair", 1, "true or false"),
    value("unknown install method", "install:method", "pip", "none, pkg"),
    value("add_repository as a string", "install:add_repository", "no", "true or false"),
    value("repository as a string", "install:repository", "deb x", "a mapping"),
    value("install as a string", "install", "pkg", "a mapping"),
    value("master as a list", "master", [], "a mapping"),
    value("master's package that is nothing", "master:package", None, NAME),
    value("master's service as a list", "master:service", ["salt-master"], NAME),
    refused(
        "master's config as a list, which may hold a secret",
        declare(master={"config": [{"a": 1}]}),
        "master:config",
        "list",
        "a mapping",
    ),
    value("engines as a string", "master:config:engines", "reactor", "a list or a mapping"),
    value("module_dirs as a string", "master:config:module_dirs", "/srv", "a list"),
    value("minion as nothing", "minion", None, "a mapping"),
    value("minion's service without a name", "minion:service", "", NAME),
    value("minion's service that is YAML", "minion:service", "a: b", NAME),
    refused(
        "minion's config as a string, which may be a secret",
        declare(minion={"config": "x"}),
        "minion:config",
        "str",
        "a mapping",
    ),
    value("negative restart_timeout", "restart_timeout", -1, SECONDS),
    value("boolean where a number belongs", "restart_timeout", True, SECONDS),
    value("restart_timeout as a string", "restart_timeout", "60", SECONDS),
    value("restart_timeout without end", "restart_timeout", math.inf, SECONDS),
    *(
        value(f"batch {batch!r}", "deploy:batch", batch, BATCH)
        for batch in (0, -1, True, 2.5, "0%", "101%", "5", "x%", None, [5])
    ),
    value("clocks as a string", "deploy:clocks", "5s", SECONDS),
    value("negative disk", "deploy:disk", -1, "a number of MiB, 0 or more"),
    value("timeout without end", "deploy:timeout", math.inf, SECONDS),
    value("deploy as a number", "deploy", 5, "a mapping"),
    value("drift as a number", "drift", 60, "a mapping"),
    value("negative interval of drift", "drift:interval", -1, SECONDS),
    *(
        value(f"sample {sample!r}", "drift:sample", sample, "a minion id, or a list of minion ids")
        for sample in (5, 0, "", "a b", "../x", ["web1", 5], {}, {"id": "web1"})
    ),
    value("keys as a list", "keys", ["at_once"], "a mapping"),
    *(
        value(f"keys at once: {count!r}", "keys:at_once", count, "a whole number, 1 or more")
        for count in (0, -1, 2.5, True, "5", None)
    ),
    value("negative time for keys", "keys:within", -1, SECONDS),
    value("relative config_dir", "config_dir", "etc/salt", PATH),
    value("config_dir that is YAML", "config_dir", "/etc/salt: x", PATH),
    value("extension_dir as a number", "extension_dir", 5, PATH),
    value("failover as a list", "failover", ["master_alive_interval"], "a mapping"),
    option("negative interval", "master_alive_interval", -5, INTERVAL),
    option("no interval", "master_alive_interval", 0, INTERVAL),
    option("half a second as interval", "master_alive_interval", 0.5, INTERVAL),
    option("boolean as interval", "master_alive_interval", True, INTERVAL),
    option("interval as a string", "master_alive_interval", "10s", INTERVAL),
    option("no tries", "master_tries", 0, "-1, for ever, or a whole number, 1 or more"),
    value("no minions", "minions", 0, "a whole number, 1 or more"),
    value("some minions", "minions", "many", "a whole number, 1 or more"),
    option("number as random_master", "random_master", 1, "true or false"),
    option("string as random_master", "random_master", "on", "true or false"),
    *(
        value(f"override {bad!r}", "master:override", bad, "a list of option names")
        for bad in ("worker_threads", {"worker_threads": True}, [5], [""], None)
    ),
    *(
        value(f"{name} {bad!r}", f"master:{name}", bad, GLOBS)
        for name in ("autosign", "autoreject")
        for bad in ("web*", [5], [""], [" web*"], ["a\nb"], ["# all"], {"web*": 1}, None)
    ),
    *(
        value(f"grains {bad!r}", "master:autosign_grains", bad, GRAINS)
        for bad in (
            ["room"],
            {"room": "b12"},
            {"a/b": ["x"]},
            {"..": ["x"]},
            {5: ["x"]},
            {"room": [["x"]]},
            {"room": ["#x"]},
            None,
        )
    ),
    # Contradictions
    *(
        refused(
            f"master option {old} of former times",
            declare(master={"config": {old: {}}}),
            f"master:config:{old}",
            old,
            f"its new name, {new}" if new else "nothing; Salt has this option no longer",
        )
        for old, new in topology.RENAMED.items()
    ),
    *(
        refused(
            f"{option} by hand beside {name}",
            {"masters": PROVED, "master": {name: lists, "config": {option: "/x"}}},
            f"master:config:{option}",
            "/x",
            f"nothing here beside master:{name}, from which the formula derives it",
        )
        for name, option, lists in (
            ("autosign", "autosign_file", ["web*"]),
            ("autoreject", "autoreject_file", ["web*"]),
            ("autosign_grains", "autosign_grains_dir", {"room": ["x"]}),
        )
    ),
    *(
        refused(
            f"{option} without fingerprints",
            declare(2, master={"config": {option: True}}),
            f"master:config:{option}",
            True,
            "false, unless masters have a fingerprint: saltm1, saltm2",
        )
        for option in ("auto_accept", "open_mode")
    ),
    *(
        refused(
            f"autosign {pattern!r}, which a master matches",
            declare(3, master={"autosign": ["web*", pattern]}),
            "master:autosign",
            pattern,
            f"what matches no master's id, unless masters have a fingerprint: {matched}",
        )
        for pattern, matched in (
            ("*", "saltm1, saltm2, saltm3"),
            ("saltm[13]", "saltm1, saltm3"),
            (r"salt\w\d", "saltm1, saltm2, saltm3"),
            ("saltm2", "saltm2"),
        )
    ),
    refused(
        "grains without fingerprints",
        {"masters": [PROVED[0], MASTERS[1]], "master": {"autosign_grains": {"room": ["b12"]}}},
        "master:autosign_grains",
        ["room"],
        "none, unless masters have a fingerprint: saltm2",
    ),
    refused(
        "override of an option that is not set",
        declare(master={"config": {"timeout": 5}, "override": ["timeout", "peer"]}),
        "master:override",
        "peer",
        f"options that the formula sets: {OF_A_MASTER}, timeout, transport",
    ),
    refused(
        "override of an autosign file without a list",
        declare(master={"override": ["autosign_file"]}),
        "master:override",
        "autosign_file",
        f"options that the formula sets: {OF_A_MASTER}, transport",
    ),
    refused(
        "override of an option that is never in the way",
        declare(master={"config": {"engines": ["x"]}, "override": ["engines"]}),
        "master:override",
        "engines",
        f"options that the formula sets: {OF_A_MASTER}, transport",
    ),
    refused(
        "override of a minion's list",
        declare(minion={"override": ["master"]}),
        "minion:override",
        "master",
        "options that the formula sets: " + ", ".join(sorted(topology.NAMED)),
    ),
    refused(
        "failover options with mode hot",
        declare(mode="hot", failover={"random_master": True}),
        "failover",
        ["random_master"],
        "no failover options with mode: hot",
    ),
    refused(
        "failover options without a mode, which is hot",
        declare(failover={"random_master": True}),
        "failover",
        ["random_master"],
        "no failover options with mode: hot",
    ),
    refused(
        "failback interval without failback",
        declare(mode="failover", failover={"master_failback_interval": 5}),
        "failover:master_failback_interval",
        5,
        "an interval only with master_failback: true",
    ),
    # What minions dial and masters serve
    edge("ports of masters only", "minion:config:publish_port", 4505, {"publish_port": 14505}),
    edge("a port of minions only", "minion:config:master_port", 14506, {}, {"master_port": 14506}),
    edge("another transport", "minion:config:transport", "zeromq", {"transport": "tcp"}),
    edge("transport of minions only", "minion:config:transport", "ws", {}, {"transport": "ws"}),
    edge("IPv6 of masters only", "minion:config:ipv6", None, {"ipv6": True}),
    value("unknown transport", "master:config:transport", "udp", "zeromq, tcp, ws"),
    value("no port", "master:config:ret_port", "14506", PORT),
    value("port out of range", "minion:config:master_port", 65536, PORT),
    value("short keys", "minion:config:keysize", 1024, "2048 bits or more"),
    value("short master's key", "master:config:keysize", 1024, "2048 bits or more"),
    value("protocol to come", "master:config:minimum_auth_version", 4, PROTOCOL),
    refused(
        "one port for both",
        declare(
            master={"config": {"publish_port": 4506}}, minion={"config": {"publish_port": 4506}}
        ),
        "master:config:publish_port",
        4506,
        "another port than ret_port",
    ),
    refused(
        "unsigned messages where signed ones are required",
        declare(master={"config": {"require_minion_sign_messages": True}}),
        "minion:config:minion_sign_messages",
        False,
        "true, as master:config:require_minion_sign_messages is",
    ),
    refused(
        "signed messages that no master can verify",
        declare(minion={"config": {"minion_sign_messages": True}}),
        "master:config:signing_algorithm",
        None,
        "with minion_sign_messages what minions sign with, 'PKCS1v15-SHA1'",
    ),
    refused(
        "signatures that no master makes",
        declare(
            master={"config": {"sign_pub_messages": False}},
            minion={"config": {"sign_pub_messages": True}},
        ),
        "master:config:sign_pub_messages",
        False,
        "true, as minion:config:sign_pub_messages is",
    ),
    refused(
        "IPv6 addresses without IPv6",
        declare(minion={"config": {"ipv6": False}}) | {"masters": [MASTERS[0], SIX]},
        "minion:config:ipv6",
        False,
        "true, as 2001:db8::2 is an IPv6 address",
    ),
    refused(
        "an IPv4 interface for an IPv6 address",
        declare(master={"config": {"interface": "0.0.0.0"}}) | {"masters": [SIX]},
        "master:config:interface",
        "0.0.0.0",
        "'::' or an IPv6 address, as minions dial 2001:db8::2",
    ),
    identity("id in another case", "SALTM1", "each id once, in upper or lower case"),
    refused(
        "more masters for a cut-over than there are",
        declare(cutover={"masters": 4}),
        "cutover:masters",
        4,
        "at most the 3 masters that there are",
    ),
]


@pytest.mark.parametrize(("declaration", "finding"), REFUSED)
def test_refuses_and_says_what_was_received_and_what_is_supported(declaration, finding):
    assert finding in findings(declaration)


@pytest.mark.parametrize(("declaration", "finding"), REFUSED)
def test_one_mistake_is_reported_once(declaration, finding):
    assert len(findings(declaration)) == 1


@pytest.mark.parametrize(
    ("role", "name"),
    [
        *(("master", name) for name in topology.DERIVED_MASTER),
        *(("minion", name) for name in topology.DERIVED_MINION),
    ],
)
def test_refuses_a_derived_option_set_by_hand(role, name):
    declaration = declare(**{role: {"config": {name: "mine"}}})
    # A passphrase is a secret.
    got = name if name == "signing_key_pass" else "mine"
    assert findings(declaration) == [
        f"{role}:config:{name}: got {got!r}; "
        "supported: nothing here; the formula derives this option"
    ]


def test_an_override_is_one_of_an_option_that_is_set():
    settings = {
        "config": {"timeout": 9},
        "autosign": ["web*"],
        "override": ["timeout", "master_sign_pubkey", "autosign_file", "master_sign_key_name"],
    }
    parsed = topology.parse(declare(signing=True, master=settings))
    options = topology.master_options(
        parsed, "saltm1", "/ext", {}, True, topology.autosign_options(parsed, "/etc/salt/x")
    )
    assert set(parsed.master_override) <= set(topology.replacing(options))
    assert options["autosign_file"] == "/etc/salt/x/autosign.conf"


def test_every_option_that_may_be_in_the_way_can_be_overridden():
    settings = {
        "config": {"timeout": 9},
        "autosign": ["web*"],
        "autoreject": ["db*"],
        "autosign_grains": {"room": ["b12"]},
    }
    parsed = topology.parse(declare(signing=True, master=settings) | {"masters": PROVED})
    named = topology.autosign_options(parsed, "/etc/salt/x")
    options = topology.master_options(parsed, "saltm1", "/ext", {}, True, named)
    settings["override"] = sorted(topology.replacing(options))
    assert topology.parse(declare(signing=True, master=settings) | {"masters": PROVED})


@pytest.mark.parametrize(
    ("roots", "names"),
    [
        (
            {"git": {"remotes": ["https://a.example/x.git"], "pillar": ["main https://a.example"]}},
            ["gitfs_remotes", "fileserver_backend", "ext_pillar"],
        ),
        (
            {
                "shared": {
                    "mounts": [{"path": "/srv/s", "device": "nas:/s", "fstype": "nfs"}],
                    "file_roots": {"base": ["/srv/s/salt"]},
                    "pillar_roots": {"base": ["/srv/s/pillar"]},
                }
            },
            ["file_roots", "pillar_roots"],
        ),
    ],
    ids=["git", "shared"],
)
def test_an_option_that_follows_from_roots_can_be_overridden(roots, names):
    parsed = topology.parse(declare(roots=roots, master={"override": names}))
    options = topology.master_options(parsed, "saltm1", "/ext", {})
    assert set(names) <= set(topology.replacing(options))
    assert findings(declare(master={"override": names[:1]}))


def test_a_fingerprint_is_the_same_in_upper_case():
    masters = [{**PROVED[0], "fingerprint": PRINTS[0].upper()}, MASTERS[1]]
    parsed = topology.parse({"masters": masters})
    assert [master.fingerprint for master in parsed.masters] == [PRINTS[0], None]


@pytest.mark.parametrize(
    "settings",
    [
        {"config": {"auto_accept": True, "open_mode": True}},
        {"autosign": ["*"], "autosign_grains": {"room": ["b12"]}},
    ],
    ids=repr,
)
def test_whoever_may_be_accepted_where_masters_are_known_by_their_fingerprints(settings):
    assert topology.parse({"masters": PROVED, "master": settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"config": {"auto_accept": False, "open_mode": "yes"}},
        {"autosign": ["web*", "salt", "(", "saltm10"], "autosign_grains": {"room": []}},
        {"autoreject": ["*"]},
    ],
    ids=repr,
)
def test_no_fingerprint_is_needed_where_no_master_is_accepted_by_itself(settings):
    assert topology.parse(declare(master=settings))


@pytest.mark.parametrize(
    "entry", ["saltm?", "saltm[1]", r"salt.\d", "SALTM1", "salt", "(", "m1", "["]
)
def test_an_entry_matches_where_salt_says_so(entry):
    from salt.utils.stringutils import expr_match

    assert topology._is_match("saltm1", entry) == expr_match("saltm1", entry)


def test_autosign_files_have_an_entry_in_each_line():
    settings = {"autosign": ["web*", "db1"], "autosign_grains": {"room": ["b12", 7, False]}}
    declaration = {"masters": PROVED, "master": settings}
    files = topology.autosign_files(topology.parse(declaration))
    lines = {path: text.splitlines()[1:] for path, text in files.items()}
    assert lines == {
        "autosign.conf": ["web*", "db1"],
        "autosign_grains/room": ["b12", "7", "False"],
    }


@pytest.mark.parametrize("mode", topology.MODES)
def test_every_derived_minion_option_is_refused_in_config(mode):
    parsed = topology.parse(declare(mode=mode))
    derived = {setting.option for setting in topology.minion_settings(parsed, "web1")}
    assert derived - set(topology.PREFERRED) <= set(topology.DERIVED_MINION)


def test_every_derived_master_option_is_refused_in_config_or_extended():
    parsed = topology.parse(declare())
    derived = set(topology.master_options(parsed, "saltm1", "/ext", {}))
    assert derived <= {*topology.DERIVED_MASTER, *topology.EDGES, "engines", "module_dirs"}


def test_every_derived_option_of_a_signing_master_is_refused_in_config_or_extended():
    parsed = topology.parse(declare(signing=True))
    derived = set(topology.master_options(parsed, "saltm1", "/ext", {}, signs=True))
    assert derived <= {*topology.DERIVED_MASTER, *topology.EDGES, "engines", "module_dirs"}


@pytest.mark.parametrize("value", ["yes", 1, None, {}, "true"], ids=repr)
def test_signing_is_true_or_false(value):
    assert findings(declare(signing=value)) == [f"signing: got {value!r}; supported: true or false"]


@pytest.mark.parametrize(
    ("master", "minion", "refused"),
    [
        (None, None, False),
        ("PKCS1v15-SHA224", "PKCS1v15-SHA224", False),
        ("PKCS1v15-SHA224", None, True),
        (None, "PKCS1v15-SHA224", True),
    ],
)
def test_with_signing_masters_sign_with_what_minions_verify_with(master, minion, refused):
    config = {
        "master": {"config": {"publish_signing_algorithm": master} if master else {}},
        "minion": {"config": {"signing_algorithm": minion} if minion else {}},
    }
    assert topology.parse(declare(**config))
    if not refused:
        assert topology.parse(declare(signing=True, **config)).signing is True
        return
    assert findings(declare(signing=True, **config)) == [
        f"minion:config:signing_algorithm: got {minion!r}; supported: with signing: true the same "
        f"as master:config:publish_signing_algorithm, {master!r}"
    ]


def test_all_findings_come_at_once():
    declaration = {
        "turbo": True,
        "mode": "failsafe",
        "masters": [{"id": "a b", "address": "300.1.1.1"}, "saltm2"],
        "restart_timeout": -1,
        "minion": {"config": {"master": "x"}},
    }
    found = findings(declaration)
    assert [finding.partition(": got")[0] for finding in found] == [
        "turbo",
        "mode",
        "restart_timeout",
        "masters:0:id",
        "masters:0:address",
        "masters:1",
        "minion:config:master",
    ]


# Accepted


@pytest.mark.parametrize("number", [1, 3, 5])
def test_accepts_masters_in_the_declared_order(number):
    parsed = topology.parse(declare(masters=number))
    assert parsed.mode == "hot"
    assert parsed.ids == tuple(f"saltm{i}" for i in range(1, number + 1))
    assert parsed.addresses == tuple(f"192.0.2.{i}" for i in range(1, number + 1))


def test_accepts_the_defaults_with_masters():
    defaults = yaml.safe_load(DEFAULTS.read_text())
    parsed = topology.parse(defaults | {"masters": MASTERS[:3]})
    assert parsed == topology.parse(declare())


def test_the_defaults_alone_lack_only_masters():
    (finding,) = findings(yaml.safe_load(DEFAULTS.read_text()))
    assert finding.startswith("masters: got []")


def test_every_setting_has_a_default():
    def keys(shape, prefix=""):
        for key, inner in shape.items():
            yield f"{prefix}{key}"
            if isinstance(inner, dict) and key not in ("failover", "roots"):
                yield from keys(inner, f"{prefix}{key}:")

    defaults = yaml.safe_load(DEFAULTS.read_text())
    assert set(keys(topology._SHAPE)) == {
        path for path in keys(defaults) if topology._lookup(defaults, path)[0]
    }


@pytest.mark.parametrize(
    "good",
    ["192.0.2.1", "2001:db8::1", "salt", "salt-1.example.com", "10.example.com", "_salt._tcp.x"],
)
def test_accepts_an_address(good):
    parsed = topology.parse({"masters": [{"id": "saltm1", "address": good}]})
    assert parsed.addresses == (good,)


@pytest.mark.parametrize("good", ["saltm1", "salt.example.com", "salt_master", "münchen", "a@b"])
def test_accepts_a_minion_id(good):
    parsed = topology.parse({"masters": [{"id": good, "address": "192.0.2.1"}]})
    assert parsed.ids == (good,)


def test_accepts_failover_with_all_of_its_options():
    options = {
        "master_alive_interval": 5,
        "random_master": True,
        "master_failback": True,
        "master_failback_interval": 7,
        "master_tries": -1,
    }
    assert topology.parse(declare(mode="failover", failover=options)).failover == options


def test_keeps_free_options_and_the_operators_word():
    parsed = topology.parse(
        declare(
            replace_keypair=True,
            master={"config": {"worker_threads": 8}},
            minion={"config": {"log_level": "info"}},
        )
    )
    assert parsed.replace_keypair is True
    assert parsed.master_config == {"worker_threads": 8}
    assert parsed.minion_config == {"log_level": "info"}


# Derived options of minions


def test_a_hot_minion_is_connected_to_all_masters():
    options = topology.minion_options(topology.parse(declare()), "web1")
    assert options["master"] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert options["master_type"] == "str"


def test_a_failover_minion_has_the_whole_list_and_changes_masters_by_itself():
    options = topology.minion_options(topology.parse(declare(mode="failover")), "web1")
    assert options["master"] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert options["master_type"] == "failover"
    assert options["master_alive_interval"] > 0
    assert options["retry_dns"] == 0
    assert options["auth_retries"] > 0


def test_declared_failover_options_take_the_place_of_derived_ones():
    declaration = declare(
        mode="failover", failover={"master_alive_interval": 3, "random_master": True}
    )
    options = topology.minion_options(topology.parse(declaration), "web1")
    assert options["master_alive_interval"] == 3
    assert options["random_master"] is True


@pytest.mark.parametrize("master", ["saltm1", "saltm2", "saltm3"])
def test_a_masters_own_minion_is_hot_whatever_the_mode(master):
    hot = topology.minion_options(topology.parse(declare()), master)
    failover = topology.minion_options(topology.parse(declare(mode="failover")), master)
    assert failover == hot
    assert failover["master_type"] == "str"


@pytest.mark.parametrize("mode", topology.MODES)
@pytest.mark.parametrize("minion", ["saltm1", "web1"])
def test_one_masters_rejection_never_ends_a_minion(mode, minion):
    parsed = topology.parse(declare(mode=mode))
    assert topology.minion_options(parsed, minion)["rejected_retry"] is True


def test_a_hot_minion_never_takes_a_name_for_the_loopback_address():
    # What retry_dns: 0 does in hot mode.
    assert topology.minion_options(topology.parse(declare()), "web1")["retry_dns"] > 0


def test_free_minion_options_are_carried_over():
    parsed = topology.parse(declare(minion={"config": {"log_level": "info"}}))
    assert topology.minion_options(parsed, "web1")["log_level"] == "info"


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("verifies", [False, True])
def test_a_minion_goes_on_with_what_it_agrees_on_with_its_masters(declared, verifies):
    # Whatever is declared: the masters may not be there yet.
    parsed = topology.parse(declare(signing=declared))
    options = topology.minion_options(parsed, "web1", {}, verifies)
    assert options["verify_master_pubkey_sign"] is verifies


def test_a_minion_keeps_its_own_engines_and_gets_the_formulas():
    parsed = topology.parse(declare(minion={"service": "my-minion"}, restart_timeout=5))
    options = topology.minion_options(parsed, "web1", {"engines": ["one", "multimaster_minion"]})
    one, ours = options["engines"]
    assert one == "one"
    assert (
        ours["multimaster_minion"].items() >= {"service": "my-minion", "restart_timeout": 5}.items()
    )
    declared = topology.parse(declare(minion={"config": {"engines": {"two": None}}}))
    options = topology.minion_options(declared, "web1", {"engines": ["one"]})
    assert [next(iter(engine)) for engine in options["engines"]] == ["two", "multimaster_minion"]


@pytest.mark.parametrize("mode", topology.MODES)
@pytest.mark.parametrize("minion", ["saltm1", "web1"])
def test_every_option_that_is_derived_in_any_mode_is_written_in_each(mode, minion):
    # A main file may say otherwise.
    options = topology.minion_options(topology.parse(declare(mode=mode)), minion)
    assert {*topology.FAILOVER, "auth_retries"} <= set(options)


def test_in_hot_mode_salt_does_not_look_whether_masters_are_there():
    # What Salt takes for not set, in each series.
    options = topology.minion_options(topology.parse(declare()), "web1")
    assert (options["master_alive_interval"], options["auth_retries"]) == (0, 0)
    (ours,) = options["engines"]
    assert ours["multimaster_minion"]["interval"] > 0


# What minions dial is what masters serve


def both_roles(declaration, minion="web1", existing=None):
    """Return the drop-ins of a master and of a minion."""
    parsed = topology.parse(declaration)
    master = topology.master_options(parsed, parsed.ids[0], "/ext", existing or {})
    return master, topology.minion_options(parsed, minion)


@pytest.mark.parametrize(
    "config",
    [
        ({}, {}),
        ({"publish_port": 14505, "ret_port": 14506}, {"publish_port": 14505, "master_port": 14506}),
        ({"transport": "tcp"}, {"transport": "tcp"}),
        ({"ipv6": True}, {"ipv6": True}),
        # Their own on 3008, and on no other side.
        ({"sign_pub_messages": True, "keysize": 4096}, {"keysize": 3072}),
        ({"minimum_auth_version": 2}, {"sign_pub_messages": True}),
        (
            {"require_minion_sign_messages": True, "signing_algorithm": "PKCS1v15-SHA1"},
            {"minion_sign_messages": True},
        ),
    ],
    ids=repr,
)
def test_what_minions_dial_is_what_masters_serve(config):
    master, minion = both_roles(declare(master={"config": config[0]}, minion={"config": config[1]}))
    for serves, (dials, default) in topology.EDGES.items():
        if serves == "ipv6":
            assert master.get(serves) == minion.get(dials)
        else:
            # Written in each case: the main file may say otherwise.
            assert master[serves] == minion[dials] == config[0].get(serves, default)


@pytest.mark.parametrize("masters", [[SIX], [MASTERS[0], SIX]], ids=["IPv6", "dual stack"])
def test_ipv6_addresses_are_served_and_dialled(masters):
    for minion in ("web1", "saltm2"):
        master, dials = both_roles({"masters": masters}, minion)
        assert (master["ipv6"], master["interface"], dials["ipv6"]) == (True, "::", True)
        assert "interface" not in dials


def test_an_interface_of_the_hosts_own_stays():
    master, _ = both_roles({"masters": [SIX]}, existing={"interface": "2001:db8::2"})
    assert "interface" not in master
    config = {"interface": "2001:db8::9"}
    master, _ = both_roles({"masters": [SIX], "master": {"config": config}})
    assert master["interface"] == "2001:db8::9"


def test_without_ipv6_addresses_nothing_about_them_is_written():
    for options in both_roles(declare()):
        assert not {"ipv6", "interface"} & set(options)


@pytest.mark.parametrize(
    ("master", "interface", "fits"),
    [
        ("saltm1", "0.0.0.0", True),
        ("saltm1", "192.0.2.1", True),
        # Both.
        ("saltm1", "::", True),
        ("saltm1", "2001:db8::1", False),
        ("saltm2", "0.0.0.0", False),
        ("saltm2", "192.0.2.2", False),
        ("saltm2", "::", True),
        ("saltm2", "[::]", True),
        ("saltm2", "2001:db8::2", True),
        ("saltm3", "0.0.0.0", True),
        ("saltm3", "2001:db8::2", True),
        # Salt says what is wrong with that.
        ("saltm2", "eth0", True),
    ],
)
def test_a_master_listens_where_it_is_dialled(master, interface, fits):
    named = {"id": "saltm3", "address": "salt.example.com"}
    parsed = topology.parse({"masters": [MASTERS[0], SIX, named]})
    assert (topology.misplaced(parsed, master, interface) is None) is fits


@pytest.mark.parametrize("role", ["master", "minion"])
def test_what_is_at_the_edge_or_derived_can_be_overridden(role):
    names = {
        "master": ["ret_port", "publish_port", "transport"],
        "minion": ["master_port", "publish_port", "transport", "master_type", "retry_dns"],
    }[role]
    assert topology.parse(declare(**{role: {"override": names}}))


# Derived options of masters

# Derived options of masters


def master_options(existing=None, config=None):
    parsed = topology.parse(declare(master={"config": config or {}}))
    return topology.master_options(parsed, "saltm2", "/ext", existing or {})


def test_a_master_has_its_minions_id_and_the_whole_declaration():
    options = master_options()
    assert options["id"] == "saltm2"
    assert options["multimaster"] == {
        "mode": "hot",
        "masters": MASTERS[:3],
        "drift": {"interval": 60, "clocks": 5},
        "keys": {"at_once": 5, "within": 60},
    }


def test_the_drop_ins_of_two_masters_differ_in_the_id_only():
    parsed = topology.parse(declare(master={"config": {"worker_threads": 8}}))
    first, second = (
        topology.master_options(parsed, name, "/ext", {}) for name in ("saltm1", "saltm2")
    )
    assert first | {"id": None} == second | {"id": None}


@pytest.mark.parametrize("signs", [False, True])
def test_whether_a_master_signs_is_written_in_both_cases(signs):
    # Or the main file would decide.
    parsed = topology.parse(declare(signing=True))
    options = topology.master_options(parsed, "saltm2", "/ext", {}, signs)
    assert options["master_sign_pubkey"] is signs
    assert ("master_use_pubkey_signature" in options) is signs


def test_engines_and_module_dirs_of_the_host_are_kept():
    options = master_options({"engines": ["one", {"two": {"x": 1}}], "module_dirs": ["/srv/mods"]})
    assert options["engines"] == ["one", {"two": {"x": 1}}, *OURS]
    assert options["module_dirs"] == ["/srv/mods", "/ext"]


def test_engines_written_as_a_mapping_keep_their_options():
    # Salt takes that form too.
    options = master_options({"engines": {"one": {"x": 1}, "two": None}})
    assert options["engines"] == [{"one": {"x": 1}}, {"two": None}, *OURS]


@pytest.mark.parametrize(
    "ours", [["multimaster"], [{"multimaster": {}}], {"multimaster": {}}], ids=str
)
def test_our_own_engine_and_directory_are_named_once(ours):
    options = master_options({"engines": ours, "module_dirs": ["/ext"]})
    assert options["engines"] == OURS
    assert options["module_dirs"] == ["/ext"]


def test_declared_engines_take_the_place_of_the_hosts():
    options = master_options({"engines": ["one"]}, {"engines": ["two"], "module_dirs": ["/a"]})
    assert options["engines"] == ["two", *OURS]
    assert options["module_dirs"] == ["/a", "/ext"]


def test_how_many_keys_may_go_at_once_is_declared():
    parsed = topology.parse(declare(keys={"at_once": 100}))
    options = topology.master_options(parsed, "saltm2", "/ext", {})
    assert options["multimaster"]["keys"] == {"at_once": 100, "within": 60}


def test_masters_that_are_not_to_be_compared_note_all_the_same_what_they_have_read():
    parsed = topology.parse(declare(drift={"interval": 0}))
    options = topology.master_options(parsed, "saltm2", "/ext", {})
    assert options["engines"] == OURS
    assert options["multimaster"]["drift"]["interval"] == 0


@pytest.mark.parametrize(
    ("declared", "derived"),
    [("web1", ["web1"]), (["web1", "web2"], ["web1", "web2"]), ([], None), (None, None)],
)
def test_a_declared_sample_reaches_engine_and_runner(declared, derived):
    parsed = topology.parse(declare(drift={"sample": declared}))
    options = topology.master_options(parsed, "saltm2", "/ext", {})
    assert options["multimaster"]["drift"].get("sample") == derived


def test_the_version_is_that_of_the_formula():
    formula = yaml.safe_load((Path(__file__).parents[2] / "FORMULA").read_text())
    assert topology.version() == str(formula["version"])


@pytest.mark.parametrize("nothing", [{}, {"engines": None, "module_dirs": None}], ids=str)
def test_a_host_without_engines_gets_ours_only(nothing):
    options = master_options(nothing)
    assert options["engines"] == OURS
    assert options["module_dirs"] == ["/ext"]


@pytest.mark.parametrize(
    ("text", "name"),
    [("192.0.2.1", False), ("2001:db8::1", False), ("salt", True), ("300.1.1.1", True)],
)
def test_tells_names_from_addresses(text, name):
    assert topology.is_name(text) is name


# Properties

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=8),
    st.sampled_from(["hot", "failover", "pkg", "192.0.2.1", "saltm1", "/etc/salt"]),
)
KEYS = st.one_of(
    st.sampled_from(
        ["id", "address", "config", "method", "engines", "module_dirs", *topology.FAILOVER]
    ),
    st.text(max_size=8),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.tuples(st.integers(), st.text(max_size=3)),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
SEVERAL = [MASTERS[:1], MASTERS[:3], MASTERS]
# A declaration with the right keys and anything below them gets further than mere garbage.
ALMOST = st.fixed_dictionaries(
    {"masters": ANYTHING | st.sampled_from(SEVERAL)},
    optional={
        **{key: ANYTHING for key in topology._SHAPE if key != "masters"},
        "master": ANYTHING | st.fixed_dictionaries({"config": ANYTHING}),
    },
)
VALID = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(topology.MODES),
        "masters": st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True),
                    "address": st.one_of(
                        st.ip_addresses().map(str),
                        st.from_regex(r"[a-z]([a-z0-9-]{0,9}[a-z0-9])?", fullmatch=True),
                    ),
                }
            ),
            min_size=1,
            max_size=9,
            unique_by=(lambda master: master["id"], lambda master: master["address"]),
        ),
    }
)


def attempt(
    declaration: Any,
) -> tuple[topology.Topology | None, topology.TopologyError | None]:
    try:
        return topology.parse(declaration), None
    except topology.TopologyError as refusal:
        return None, refusal


# The machine's load must not decide about a property.
@settings(deadline=None, max_examples=300)
@given(ANYTHING | ALMOST)
def test_whatever_is_declared_it_is_accepted_or_refused_in_words(declaration):
    accepted, refusal = attempt(declaration)
    if refusal:
        assert all(": got " in finding for finding in refusal.findings)
        assert all("; supported: " in finding for finding in refusal.findings)
    else:
        # What is accepted can be carried out.
        topology.minion_options(accepted, "web1")
        topology.master_options(accepted, accepted.ids[0], "/ext", {})


@settings(deadline=None)
@given(VALID, st.text(max_size=10))
def test_every_minion_knows_every_address_in_the_declared_order(declaration, minion):
    parsed = topology.parse(declaration)
    addresses = [master["address"] for master in declaration["masters"]]
    for name in (minion, *parsed.ids):
        assert topology.minion_options(parsed, name)["master"] == addresses


@settings(deadline=None)
@given(VALID, st.data())
def test_a_repeated_master_is_refused_wherever_it_stands(declaration, data):
    masters = declaration["masters"]
    again = data.draw(st.sampled_from(masters))
    place = data.draw(st.integers(0, len(masters)))
    declaration = declaration | {"masters": [*masters[:place], again, *masters[place:]]}
    found = findings(declaration)
    assert len(found) == 2
    assert found[0].endswith("each id once")
    assert found[1].endswith("each address once")


@pytest.mark.parametrize(
    ("minions", "interval", "spread"),
    [(1, 10, 0.2), (150, 10, 0.3), (1_000, 10, 2), (5_000, 50, 10), (100_000, 1_000, 60)],
)
def test_what_one_master_has_to_bear_is_bounded(minions, interval, spread):
    parsed = topology.parse(declare(mode="failover", minions=minions))
    options = topology.minion_options(parsed, "web1")
    assert options["master_alive_interval"] == interval
    assert options["recon_default"] + options["recon_max"] == spread * 1000
    # Salt takes whole seconds, and not 0.
    assert options["random_reauth_delay"] == math.ceil(spread)


@pytest.mark.parametrize(
    ("mode", "minions", "patience", "timeout"),
    [
        ("hot", 100, 2, 5),
        ("failover", 1, 1, 5),
        ("failover", 250, 1, 5),
        ("failover", 1000, 1, 20),
        ("hot", 1000, 2, 20),
        ("failover", 100_000, 1, 60),
    ],
)
def test_how_long_a_dead_master_keeps_a_minion_and_a_sign_in_may_take(
    mode, minions, patience, timeout
):
    parsed = topology.parse(declare(mode=mode, minions=minions))
    options = topology.minion_options(parsed, "web1")
    assert options["return_retry_timer"] == options["return_retry_timer_max"] == patience
    # Never less than Salt's own, or minions would circle where sign-ins are slow.
    assert options["auth_timeout"] == timeout


def test_every_derived_option_has_a_reason_and_an_overridden_one_says_so():
    config = {"recon_max": 5, "log_level": "info"}
    parsed = topology.parse(declare(mode="failover", minion={"config": config}))
    settings = {s.option: s for s in topology.minion_settings(parsed, "web1")}
    assert all(setting.reason for setting in settings.values())
    assert (settings["recon_max"].value, settings["recon_max"].reason) == (
        5,
        "set under minion: config",
    )
    options = topology.minion_options(parsed, "web1")
    assert {name: s.value for name, s in settings.items()}.items() <= options.items()


def test_the_liveness_engine_acts_in_failover_mode_only_and_keeps_others_engines():
    def engines(mode, minion, existing=None):
        parsed = topology.parse(declare(mode=mode))
        return topology.minion_options(parsed, minion, existing)["engines"]

    existing = {"engines": {"reactor": {"port": 1}, "multimaster_minion": {"old": True}}}
    reactor, probe = engines("failover", "web1", existing)
    assert reactor == {"reactor": {"port": 1}}
    assert probe["multimaster_minion"]["act"] is True
    for mode, minion in (("hot", "web1"), ("failover", "saltm1")):
        ((name, settings),) = engines(mode, minion)[0].items()
        assert (name, settings["act"]) == ("multimaster_minion", False)
        assert settings["masters"] == [master["address"] for master in MASTERS[:3]]


# Replicated roots

ROOTS = {"base": ["/srv/salt"], "dev": ["/srv/dev/salt", "/srv/salt"]}


def replicate(config=None, **changes):
    """A declaration of three masters with replicated roots."""
    declared = {"source": "saltm2", "file_roots": ROOTS, "pillar_roots": {"base": ["/srv/pillar"]}}
    declared = {"replicate": declared | changes}
    return {**declare(), "roots": declared, "master": {"config": config or {}}}


@pytest.mark.parametrize(
    ("declaration", "received"),
    [
        (replicate(source="saltm9"), "roots:replicate:source: got 'saltm9'"),
        (replicate(source=["saltm1"]), "roots:replicate:source: got ['saltm1']"),
        (replicate(file_roots={"base": ["srv/salt"]}), "roots:replicate:file_roots: got"),
        (replicate(file_roots={"base": ["/srv/*"]}), "roots:replicate:file_roots: got"),
        (replicate(file_roots={"base": ["/srv/../x"]}), "roots:replicate:file_roots: got"),
        (replicate(file_roots={"base": "/srv/salt"}), "roots:replicate:file_roots: got"),
        (replicate(file_roots={"__env__": ["/srv"]}), "roots:replicate:file_roots: got"),
        (replicate(file_roots={"a/b": ["/srv"]}), "roots:replicate:file_roots: got"),
        (replicate(pillar_roots=["/srv/pillar"]), "roots:replicate:pillar_roots: got"),
        (replicate(file_roots={}, pillar_roots={}), "roots:replicate: got"),
        (replicate(other=1), "roots:replicate:other: got"),
        (replicate(config={"file_roots": ROOTS}), "master:config:file_roots: got"),
        (replicate(config={"pillar_roots": ROOTS}), "master:config:pillar_roots: got"),
        (replicate(config={"ext_pillar": {"git": []}}), "master:config:ext_pillar: got"),
        ({**declare(), "roots": {"nfs": {}}}, "roots:nfs: got"),
        ({**declare(), "roots": {"replicate": None}}, "roots:replicate: got None"),
        ({**declare(), "roots": ["replicate"]}, "roots: got ['replicate']"),
    ],
)
def test_replicated_roots_are_refused_with_what_was_received(declaration, received):
    assert any(finding.startswith(received) for finding in findings(declaration))


def test_without_roots_nothing_about_them_is_in_a_masters_drop_in():
    options = topology.master_options(topology.parse(declare()), "saltm1", "/ext", {})
    assert "roots" not in options["multimaster"]
    assert not {"file_roots", "pillar_roots", "ext_pillar", "fileserver_backend"} & set(options)


def replicated_options(existing=None, config=None):
    parsed = topology.parse(replicate(config))
    return topology.master_options(parsed, "saltm1", "/ext", existing or {})


def test_replicated_roots_take_the_place_of_a_masters_own():
    options = replicated_options({"file_roots": ROOTS, "fileserver_backend": ["roots"]})
    assert options["file_roots"] == options["pillar_roots"] == {"base": []}
    assert options["fileserver_backend"] == ["multimaster"]
    assert options["ext_pillar"] == [{"multimaster_roots": []}]
    assert [next(iter(engine)) for engine in options["engines"]] == [
        "multimaster",
        "multimaster_drift",
        "multimaster_roots",
    ]
    assert options["multimaster"]["roots"]["replicate"] == {
        "source": "saltm2",
        "file_roots": ROOTS,
        "pillar_roots": {"base": ["/srv/pillar"]},
    }


def test_other_file_servers_and_external_pillars_stay():
    pillars = [{"cmd_yaml": "x"}]
    existing = {"fileserver_backend": ["roots", "git"], "ext_pillar": pillars}
    options = replicated_options(existing)
    assert options["fileserver_backend"] == ["multimaster", "git"]
    assert options["ext_pillar"] == [{"multimaster_roots": []}, *pillars]
    options = replicated_options(config=existing | {"ext_pillar_first": True})
    # Whoever names it wants it.
    assert options["fileserver_backend"] == ["multimaster", "roots", "git"]
    assert options["ext_pillar"] == [*pillars, {"multimaster_roots": []}]
