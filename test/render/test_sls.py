"""What the formula's states are, for every kind of node, before any of them is applied."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from render.compiler import SLS, Node, compile_in, read_topology

TOPOLOGIES = sorted(path.stem for path in Path(__file__).parent.glob("topologies/*.yaml"))
FAMILIES = ["Debian", "RedHat"]
MASTER, MINION = "saltm1", "web1"
DROP_IN = "etc/salt/master.d/multimaster.conf"
# Runs in the minion, which gets it with the other modules.
MINIONS_ENGINE = "engines/multimaster_minion.py"
MADE_BY_US = "var/cache/salt/master/multimaster/keypair-installed"

every_topology = pytest.mark.parametrize("topology", TOPOLOGIES)
every_family = pytest.mark.parametrize("family", FAMILIES)
every_role = pytest.mark.parametrize("node", [MASTER, MINION], ids=["master", "minion"])


@every_topology
@every_family
@every_role
@pytest.mark.parametrize("sls", SLS)
class TestEverySls:
    @pytest.fixture
    def states(self, compiled, topology, family, node, sls):
        return compiled(topology, family, node, sls=sls)

    def test_compiles(self, states):
        assert states.errors == []
        assert states.chunks

    def test_has_unique_kebab_case_ids_with_the_formulas_prefix(self, states):
        for state_id in states.ids():
            assert re.fullmatch(r"multimaster(-[a-z]+)+", state_id)
        identities = [(chunk["__id__"], chunk["name"]) for chunk in states.chunks]
        assert len(identities) == len(set(identities))

    def test_requires_the_checked_declaration_for_every_state(self, states, sls):
        # To be cleaned a node needs no declaration any more, but the modules.
        kinds = ("multimaster.clean", "multimaster.modules")
        first = "multimaster-modules" if sls in kinds else "multimaster-declaration"
        for state_id in set(states.ids()) - {"multimaster-modules", first}:
            assert first in states.required(state_id), state_id

    def test_shows_nothing_of_the_key_pair(self, states):
        assert "KEY-MATERIAL" not in json.dumps(states.chunks)
        for chunk in states.chunks:
            assert "keypair" not in chunk.get("declaration", {})


@every_topology
@every_role
def test_every_state_of_ours_exists_and_has_its_arguments(compiler, compiled, topology, node):
    runtime = compiler.runtime(Node(read_topology(topology), node))
    for sls in ("multimaster", "multimaster.clean"):
        for chunk in compiled(topology, "Debian", node, sls=sls).chunks:
            # Others belong to the machine: this one may lack its package manager.
            if chunk["state"] == "multimaster":
                assert runtime.state.verify_data(chunk) == []


@every_topology
@every_family
class TestRoles:
    def test_a_minion_becomes_no_master(self, compiled, topology, family):
        assert compiled(topology, family, MINION).ids() == [
            "multimaster-modules",
            "multimaster-declaration",
            "multimaster-minion-signing",
            "multimaster-minion-config",
            "multimaster-minion-modules",
            "multimaster-minion-keypair",
            "multimaster-minion-service",
            "multimaster-minion-restart",
        ]

    def test_a_master_is_a_minion_too(self, compiled, topology, family):
        assert set(compiled(topology, family, MASTER).ids()) > set(
            compiled(topology, family, MINION).ids()
        )

    @every_role
    def test_the_minions_restart_comes_last(self, compiled, topology, family, node):
        assert compiled(topology, family, node).ids()[-1] == "multimaster-minion-restart"

    @every_role
    def test_the_minions_daemon_starts_with_its_configuration(
        self, compiled, topology, family, node
    ):
        states = compiled(topology, family, node)
        assert "multimaster-minion-config" in states.required("multimaster-minion-service")
        assert "multimaster-minion-config" in states.required("multimaster-minion-restart")

    @every_role
    def test_masters_are_asked_for_a_minion_only_once_it_has_its_key_pair(
        self, compiled, topology, family, node
    ):
        states = compiled(topology, family, node)
        # The program that asks them is started by this state.
        assert "multimaster-minion-keypair" in states.required("multimaster-minion-restart")
        service = states.get("multimaster-minion-service")["name"]
        assert states.get("multimaster-minion-keypair")["name"] == service

    @every_role
    def test_nothing_that_may_be_refused_leaves_a_minion_stopped(
        self, compiled, topology, family, node
    ):
        # The key pair is made while the daemon is stopped.
        states = compiled(topology, family, node)
        assert "multimaster-minion-config" in states.required("multimaster-minion-keypair")

    @every_role
    def test_states_get_the_whole_declaration(self, compiled, topology, family, node):
        declared = read_topology(topology)["multimaster"]
        del declared["keypair"]
        states = compiled(topology, family, node)
        for state_id in ("multimaster-declaration", "multimaster-minion-config"):
            given = states.get(state_id)["declaration"]
            for key, value in declared.items():
                # Mappings are merged over the defaults.
                assert given[key] == (given[key] | value if isinstance(value, dict) else value)


@pytest.fixture
def elsewhere(compiler):
    """Compile the formula for a minion of another kind: a kernel, and options of its own."""

    def compile_elsewhere(kernel, minion_id=MINION, **opts):
        node = Node(read_topology("three"), minion_id)
        runtime = compiler.runtime(node)
        state = runtime.state
        for loader in (state.utils, state.functions, state.states, state.rend._dict):
            loader.opts["grains"]["kernel"] = kernel
            loader.opts.update(opts)
            for name in ("__grains__", "__opts__"):
                if (pack := loader.pack.get(name)) is not None:
                    grains = pack if name == "__grains__" else pack["grains"]
                    grains["kernel"] = kernel
                    if name == "__opts__":
                        pack.update(opts)
        return compile_in(runtime, "multimaster")

    yield compile_elsewhere
    compiler.forget()


@pytest.mark.parametrize(
    ("kernel", "opts", "kind"),
    [
        ("Windows", {}, "Windows"),
        ("proxy", {}, "proxy"),
        # Whose grains are those of its device.
        ("Linux", {"proxy": {"proxytype": "ssh"}}, "proxy"),
    ],
)
@every_role
def test_a_minion_of_an_unsupported_kind_is_refused_by_name(elsewhere, kernel, opts, kind, node):
    states = elsewhere(kernel, node, **opts)
    assert states.errors == []
    (only,) = states.chunks
    assert (only["__id__"], only["state"], only["fun"]) == (
        "multimaster-supported",
        "test",
        "fail_without_changes",
    )
    assert only["name"].startswith(f"{node}: kind of minion: got {kind}; supported: Linux; ")
    assert "master: [192.0.2.1, 192.0.2.2, 192.0.2.3]" in only["name"]


@every_topology
@every_family
class TestOrderOnAMaster:
    @pytest.fixture
    def states(self, compiled, topology, family):
        return compiled(topology, family, MASTER)

    @pytest.fixture
    def package(self, topology):
        return read_topology(topology)["multimaster"].get("install", {}).get("method") != "none"

    @pytest.mark.parametrize(
        "first",
        [
            "multimaster-keypair",
            # A master that is to sign ends at once if there is no signature.
            "multimaster-signing",
            "multimaster-keys-seeded",
            "multimaster-master-config",
            "multimaster-extensions",
        ],
    )
    def test_the_daemon_starts_after(self, states, first):
        assert first in states.required("multimaster-master-service")
        order = states.ids()
        assert order.index(first) < order.index("multimaster-master-service")

    def test_everything_waits_for_the_key_pair(self, states):
        for state_id in ("keys-seeded", "extensions", "master-config", "master-restart"):
            assert "multimaster-keypair" in states.required(f"multimaster-{state_id}")

    def test_the_service_is_held_while_the_package_is_installed(self, states, package):
        masked = [chunk for chunk in states.chunks if chunk["fun"] in ("masked", "unmasked")]
        if not package:
            assert masked == []
            return
        held, installed, released = (
            f"multimaster-master-{name}" for name in ("held", "package", "released")
        )
        assert [chunk["fun"] for chunk in masked] == ["masked", "unmasked"]
        assert held in states.required(installed)
        assert installed in states.required("multimaster-keypair")
        assert "multimaster-keypair" in states.required(released)
        assert "multimaster-master-config" in states.required(released)
        assert released in states.required("multimaster-master-service")
        order = states.ids()
        assert order.index(held) < order.index(installed) < order.index(released)

    def test_a_master_that_runs_is_not_held(self, states, package):
        if package:
            # Or the first master would be masked.
            held = states.get("multimaster-master-held")
            assert held["unless"] == [{"fun": "pkg.version", "args": ["salt-master"]}]

    def test_packages_are_left_alone_where_salt_is_there(self, states, package):
        kinds = {chunk["state"] for chunk in states.chunks}
        assert ("pkg" in kinds) == package

    def test_remotes_and_mounts_are_checked_before_anything_else(self, states, package, topology):
        checks = {"git": "multimaster-git-remotes", "shared": "multimaster-shareable"}
        checks["config"] = checks["shared"]
        there = {state_id for state_id in checks.values() if state_id in states.ids()}
        assert there == ({checks[topology]} if topology in checks else set())
        for check in there:
            assert check in states.required("multimaster-keypair")
            if package:
                assert check in states.required("multimaster-master-held")

    def test_what_serves_roots_is_there_before_the_configuration_names_it(self, states, topology):
        needed = {"git": {"git", "git-provider"}, "shared": {"mounts"}, "config": {"mounts"}}
        needed = needed.get(topology, set())
        found = states.required("multimaster-master-config")
        assert {f"multimaster-{name}" for name in needed} <= found
        mounts = [chunk for chunk in states.chunks if chunk["state"] == "mount"]
        assert len(mounts) == {"shared": 2, "config": 1}.get(topology, 0)

    def test_options_on_shared_storage_are_checked_before_the_unit_names_them(
        self, states, topology
    ):
        names = ("shared-config", "master-unit", "own-config")
        there = {name for name in names if f"multimaster-{name}" in states.ids()}
        if topology != "config":
            assert there == {"own-config"}
            return
        assert there == {"shared-config", "master-unit"}
        assert "multimaster-mounts" in states.required("multimaster-shared-config")
        assert "multimaster-shared-config" in states.required("multimaster-keypair")
        assert "multimaster-shared-config" in states.required("multimaster-master-unit")
        assert "multimaster-master-unit" in states.required("multimaster-master-service")
        unit = states.get("multimaster-master-unit")["contents"]
        assert "RequiresMountsFor=/srv/shared/config" in unit
        assert unit[-1].endswith("salt-master -c /srv/shared/config")

    def test_a_repository_is_there_before_the_package(self, states, topology, family):
        if topology != "repository":
            assert "multimaster-repository" not in states.ids()
            return
        assert "multimaster-repository" in states.required("multimaster-master-package")
        repository = states.get("multimaster-repository")
        assert repository["fun"] == "managed"
        needed = {"Debian": {"name", "file", "key_url"}, "RedHat": {"name", "baseurl", "gpgkey"}}
        assert needed[family] <= set(repository)

    def test_all_states_of_a_service_name_the_same(self, states, topology):
        prefix = "my-" if topology == "installed" else ""
        for chunk in states.chunks:
            role = "master" if chunk["__id__"].startswith("multimaster-master-") else "minion"
            if chunk["state"] == "service" or chunk["__id__"].endswith("-restart"):
                assert chunk["name"] == f"{prefix}salt-{role}"

    def test_the_master_restarts_for_what_it_reads_at_its_start(self, states, topology):
        restart = states.get("multimaster-master-restart")
        written = states.get("multimaster-master-config")["name"]
        extensions = states.get("multimaster-extensions")
        paths = [f"{extensions['name']}/{path}" for path in extensions["files"]]
        service = states.get("multimaster-master-service")["name"]
        units = next(path for path in restart["files"] if path.endswith(f"{service}.service.d"))
        shared = [
            "/srv/shared/config/" + name for name in ("master", "master.d", "master.d/*.conf")
        ]
        assert restart["files"] == [
            written,
            units,
            *(shared if topology == "config" else []),
            *paths,
        ]
        written = {"multimaster-master-config", "multimaster-extensions"}
        assert written <= states.required("multimaster-master-restart")

    def test_the_master_gets_every_file_that_runs_in_it(self, states):
        files = set(states.get("multimaster-extensions")["files"])
        tree = Path(__file__).parents[2] / "salt"
        for kind in ("engines", "fileserver", "output", "pillar", "runners", "utils"):
            there = {f"{kind}/{path.name}" for path in tree.glob(f"_{kind}/*.py")}
            assert there - {MINIONS_ENGINE} <= files
        assert MINIONS_ENGINE not in files
        assert all((tree / f"_{path}").is_file() for path in files)


@every_family
class TestClean:
    def clean(self, compiler, family, node=MASTER):
        return compiler.compile(Node(read_topology("three"), node, family), "multimaster.clean")

    def test_of_a_minion_leaves_services_and_keys_alone(self, compiler, family):
        states = self.clean(compiler, family, MINION)
        assert states.errors == []
        assert states.ids() == [
            "multimaster-modules",
            "multimaster-clean-minion-requests",
            "multimaster-clean-minion-config",
            "multimaster-clean-minion-restart",
        ]

    def test_of_a_minion_that_verifies_leaves_it_able_to_sign_in(self, compiler, family):
        drop_in = "etc/salt/minion.d/multimaster.conf"
        with compiler.files(drop_in):
            (compiler.root / drop_in).write_text("verify_master_pubkey_sign: true\n")
            states = self.clean(compiler, family, MINION)
        assert states.errors == []
        left = states.get("multimaster-clean-minion-config")
        assert left["fun"] == "serialize"
        assert left["dataset"]["verify_master_pubkey_sign"] is True
        # Or it could never stop.
        assert left["dataset"]["engines"] == [{"multimaster_minion": {"service": "salt-minion"}}]

    def test_of_a_first_master_keeps_it_running(self, compiler, family):
        with compiler.files(DROP_IN):
            states = self.clean(compiler, family)
        assert states.errors == []
        assert "multimaster-clean-master-restart" in states.ids()
        assert not {"service", "pkg"} & {chunk["state"] for chunk in states.chunks}
        assert "left" not in {chunk["fun"] for chunk in states.chunks}

    def test_of_a_made_master_asks_stops_and_removes_in_that_order(self, compiler, family):
        with compiler.files(DROP_IN, MADE_BY_US):
            states = self.clean(compiler, family)
        assert states.errors == []
        guard, requests, service, keypair, files, minion = (
            f"multimaster-clean-{name}"
            for name in ("guard", "requests", "service", "keypair", "master-files", "minion-config")
        )
        assert guard in states.required(requests)
        # Or it would be started again by who waits to restart it.
        assert requests in states.required(service)
        assert service in states.required(keypair)
        assert keypair in states.required(files)
        # The guard reads that list: without it there would be no other master to find.
        assert guard in states.required(minion)
        assert "multimaster-clean-minion-requests" in states.required(minion)
        assert states.get(service)["fun"] == "dead"

    def test_of_a_master_that_lost_the_modules_only_brings_them(self, compiler, family):
        node = Node(read_topology("three"), MASTER, family, synced=False)
        with compiler.files(DROP_IN, MADE_BY_US):
            states = compiler.compile(node, "multimaster.clean")
        assert states.errors == []
        assert states.ids()[:5] == [
            "multimaster-modules",
            "multimaster-states",
            "multimaster-utils",
            "multimaster-engines",
            "multimaster-clean-again",
        ]
        assert states.get("multimaster-clean-again")["failhard"] is True

    def test_works_without_any_declaration(self, compiler, family):
        with compiler.files(DROP_IN, MADE_BY_US):
            states = compiler.compile(Node({"other": 1}, MASTER, family), "multimaster.clean")
        assert states.errors == []
        assert "multimaster-clean-keypair" in states.ids()


class TestOrchestrations:
    """What ``salt-run state.orchestrate`` runs on a master, whose pillar is that of its own id."""

    STEPS = ("deploy-preflight", "deploy-masters", "deploy-minions", "restart-masters")

    @pytest.fixture(scope="class")
    @classmethod
    def states(cls, compiler):
        node = Node(read_topology("three"), f"{MASTER}_master", synced=False)
        names = ["multimaster.orch.deploy", "multimaster.orch.restart"]
        compiled = compiler.compile_all(node, names)
        return {name.rpartition(".")[2]: states for name, states in compiled.items()}

    def test_each_step_needs_the_one_before(self, states):
        assert states["deploy"].errors == states["restart"].errors == []
        steps = [f"multimaster-{step}" for step in self.STEPS]
        assert states["deploy"].ids() == ["multimaster-orch-modules", *steps[:3]]
        assert states["restart"].ids() == ["multimaster-orch-modules", steps[3]]
        assert set(states["deploy"].ids()[:3]) <= states["deploy"].required(steps[2])
        assert "multimaster-orch-modules" in states["restart"].required(steps[3])

    def test_each_step_gets_the_whole_declaration_without_the_key_pair(self, states):
        declared = read_topology("three")["multimaster"]
        for chunk in states["deploy"].chunks[1:] + states["restart"].chunks[1:]:
            assert chunk["declaration"]["masters"] == declared["masters"]
            assert chunk["declaration"]["deploy"]["batch"] == "25%"
            assert "keypair" not in chunk["declaration"]
        assert "KEY-MATERIAL" not in json.dumps([s.chunks for s in states.values()])

    def test_each_step_exists_and_has_its_arguments(self, compiler, states):
        runtime = compiler.runtime(Node(read_topology("three")))
        for chunk in states["deploy"].chunks[1:] + states["restart"].chunks[1:]:
            assert runtime.state.verify_data(chunk) == []

    def test_the_states_are_loaded_after_they_are_brought(self, states):
        assert states["deploy"].get("multimaster-orch-modules")["force_reload_modules"] is True


class TestModules:
    """``state.apply`` does not sync: the formula does, but only when there is something new."""

    def states(self, compiler, **changes):
        return compiler.compile(Node(read_topology("three"), **changes), "multimaster")

    def test_are_synced_first_on_a_new_minion(self, compiler):
        states = self.states(compiler, synced=False)
        assert states.errors == []
        kinds = ["modules", "states", "utils", "engines"]
        assert states.ids()[:4] == [f"multimaster-{kind}" for kind in kinds]
        syncs = [states.get(f"multimaster-{kind}") for kind in kinds]
        assert [sync["fun"] for sync in syncs] == [f"sync_{kind}" for kind in kinds]
        # Once, when all are there: it takes Salt most of a second.
        assert [sync["reload_modules"] for sync in syncs] == [False, False, False, True]
        assert set(states.ids()[:4]) <= states.required("multimaster-declaration")

    def test_are_not_synced_again(self, compiler):
        chunk = self.states(compiler).get("multimaster-modules")
        assert (chunk["state"], chunk["fun"]) == ("test", "nop")

    def test_are_there_for_a_first_test_run(self, compiler):
        states = self.states(compiler, synced=False, test=True)
        assert states.errors == []
        assert (compiler.root / "unsynced/states/multimaster.py").is_file()


GARBAGE = [
    "rubbish",
    "",
    ["a", "b"],
    5,
    True,
    None,
    {},
    {"masters": 5},
    {"masters": None},
    {"masters": "saltm1"},
    {"masters": ["saltm1", "saltm2"]},
    {"masters": {"saltm1": "192.0.2.1"}},
    {"masters": [{"id": ["saltm1"], "address": {}}]},
    {"masters": [None, 5, {}]},
    {"mode": ["hot"]},
    {"failover": "x"},
    {"replace_keypair": {"a": 1}},
    {"install": "pkg"},
    {"install": None},
    {"install": {"method": ["pkg"]}},
    {"install": {"add_repository": True, "repository": "deb x"}},
    {"install": {"add_repository": True, "repository": None}},
    {"install": {"add_repository": True, "repository": ["deb x"]}},
    {"master": 5},
    {"master": {"service": None, "package": None}},
    {"master": {"service": ["a"], "package": {"b": 1}}},
    {"minion": ["x"]},
    {"minion": {"service": 5}},
    {"config_dir": 5},
    {"config_dir": "relative"},
    {"config_dir": ["x"]},
    {"extension_dir": {"a": 1}},
    {"roots": "git"},
    {"roots": {"git": 5}},
    {"roots": {"git": {"package": {}, "provider": [1]}}},
    {"roots": {"shared": {"mounts": "x"}}},
    {"roots": {"shared": {"mounts": [5, {"path": ["/x"]}, None]}}},
    {"restart_timeout": "soon"},
    {"restart_timeout": [1]},
    {"turbo": {"{{ 1 / 0 }}": "{% raw %}"}},
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_garbage_gets_as_far_as_the_state_that_refuses_it(compiler, garbage):
    declaration = garbage
    if isinstance(garbage, dict):
        # On a master, which has most of the states.
        declaration = {"masters": [{"id": MASTER, "address": "192.0.2.1"}]} | garbage
    runtime = compiler.runtime(Node({"multimaster": declaration, "other": 1}))
    for sls in ("multimaster.clean", "multimaster.master", "multimaster"):
        states = compile_in(runtime, sls)
        assert states.errors == []
    ret = runtime.state.call(states.get("multimaster-declaration"))
    assert ret["result"] is (garbage == {})
    assert "An exception" not in ret["comment"]
    assert garbage == {} or "supported:" in ret["comment"]


def test_any_text_in_the_declaration_survives_rendering(compiler):
    words = {
        "quotes": "a \"b\" 'c' \\ d",
        "yaml": "- {a: [b, #c]} & *d !e | f > g % h @ i ` j",
        "jinja": "{{ 1 / 0 }} {% raw %} {# x #}",
        "lines": "one\ntwo\n\n  three\t\n",
        "unicode": "München 漢字 \U0001f980",
        "numbers": ["010", "1e3", "yes", "null", "~", "12:30:45", "0x1f"],
        "kinds": [1, 1.5, True, None, {}, [], ""],
    }
    pillar = read_topology("three")
    pillar["multimaster"]["master"]["config"] = words
    states = compiler.compile(Node(pillar), "multimaster")
    assert states.errors == []
    for state_id in ("declaration", "master-config", "minion-config"):
        declaration = states.get(f"multimaster-{state_id}")["declaration"]
        assert declaration["master"]["config"] == words


def test_rendering_takes_nothing_out_of_the_pillar(compiler):
    pillar = read_topology("three")
    compiler.compile(Node(pillar), "multimaster")
    assert pillar == read_topology("three")
