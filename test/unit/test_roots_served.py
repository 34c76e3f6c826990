"""What a master serves of replicated roots, through Salt's own file server and pillar compiler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import multimaster_roots as roots

pytestmark = [
    pytest.mark.usefixtures("own_file_server"),
    # Salt's Pillar leaves sockets, and their loops, to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def opts(loaded_host, tmp_path):
    """The options of a master that serves replicated roots."""
    import salt.config

    loaded_host.reset()
    settings = {
        "root_dir": str(tmp_path),
        "id": "saltm2",
        "user": loaded_host.runtime.opts["user"],
        "module_dirs": [str(loaded_host.extension_modules)],
        "fileserver_backend": ["multimaster"],
        "file_roots": {"base": []},
        "pillar_roots": {"base": []},
        "ext_pillar": [{"multimaster_roots": []}],
    }
    path = loaded_host.write("etc/salt/master", settings)
    made = dict(salt.config.master_config(str(path)))
    return made | {"__role": "master", "grains": loaded_host.runtime.opts["grains"]}


@pytest.fixture
def live(tmp_path):
    made = tmp_path / "live"
    for path, text in {
        "salt/top.sls": "{}",
        "salt/web/init.sls": "version: 1",
        "salt/web/files/page": "page 1",
        "salt/web/files/old": "old",
        "salt/web/files/page.swp": "ignored",
        "more/web/init.sls": "hidden",
        "more/more.sls": "more",
        "dev/dev.sls": "dev 1",
        "pillar/top.sls": "base: {'*': [data, included]}\ndev: {'*': [only_dev]}",
        "pillar/data.sls": "{% from 'map.jinja' import value %}\ndata: {{ value }}",
        "pillar/map.jinja": "{% set value = 1 %}",
        "pillar/included.sls": "include: [deep.er]",
        "pillar/deep/er.sls": "deep: {{ opts.id }}",
        "devpillar/only_dev.sls": "dev: 1",
    }.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    (made / "salt/web/files/page").chmod(0o755)
    (made / "salt/nothing").mkdir()
    return made


@pytest.fixture
def store(opts):
    made = roots.Store(os.path.join(opts["cachedir"], "multimaster/roots"))
    made.prepare()
    return made


def publish(store, live):
    looked = roots.scan(
        {
            "file_roots": {
                "base": [str(live / "salt"), str(live / "more")],
                "dev": [str(live / "dev")],
            },
            "pillar_roots": {"base": [str(live / "pillar")], "dev": [str(live / "devpillar")]},
        }
    )
    store.switch(store.capture(looked))


@pytest.fixture
def server(opts, store, live):
    import salt.fileserver

    opts["file_ignore_glob"] = ["*.swp"]
    publish(store, live)
    made = salt.fileserver.Fileserver(opts)
    made.init()
    return made


class Minion:
    """A minion's requests, as Salt's file client makes them."""

    def __init__(self, server, name):
        self.server, self.name = server, name

    def ask(self, function, **load):
        return getattr(self.server, function)({"saltenv": "base", **load, "id": self.name})

    def list(self, **load):
        return self.ask("file_list", **{"prefix": "", **load})

    def hash(self, path, **load):
        return self.ask("file_hash", path=path, **load)

    def read(self, path, **load):
        self.hash(path, **load)
        got = b""
        while data := self.ask("serve_file", path=path, loc=len(got), **load)["data"]:
            got += data
        return got.decode()

    def run(self):
        """A state run: what it lists and reads."""
        return self.list(), self.read("web/init.sls"), self.read("web/files/page")


def test_salts_file_server_serves_what_the_directories_have(server):
    web1 = Minion(server, "web1")
    expected = ["more.sls", "top.sls", "web/files/old", "web/files/page", "web/init.sls"]
    assert web1.list() == expected
    assert web1.list(prefix="web/files") == ["web/files/old", "web/files/page"]
    assert web1.ask("dir_list") == ["nothing", "web", "web/files"]
    assert web1.ask("file_list_emptydirs") == ["nothing"]
    assert web1.ask("symlink_list") == {}
    assert web1.list(saltenv="dev") == ["dev.sls"]
    assert web1.list(saltenv="absent") == []
    assert sorted(server.envs()) == ["base", "dev"]
    assert web1.read("web/init.sls") == "version: 1"
    assert web1.read("more.sls") == "more"
    assert web1.read("dev.sls", saltenv="dev") == "dev 1"
    assert web1.read("dev.sls?saltenv=dev") == "dev 1"


def test_hashes_and_modes_are_those_of_the_files(server):
    import hashlib

    told, stat = Minion(server, "web1").ask("file_hash_and_stat", path="web/files/page")
    assert told == {"hash_type": "sha256", "hsum": hashlib.sha256(b"page 1").hexdigest()}
    assert stat[0] & 0o777 == 0o755
    server.opts["hash_type"] = "md5"
    server.update_opts()
    told = Minion(server, "web1").hash("web/files/page")
    assert told == {"hash_type": "md5", "hsum": hashlib.md5(b"page 1").hexdigest()}


@pytest.mark.parametrize(
    "path", ["absent", "../live/salt/top.sls", "/etc/passwd", "web", "web/files/page.swp", "", "."]
)
def test_nothing_else_is_served(server, path):
    web1 = Minion(server, "web1")
    assert not web1.hash(path)
    assert web1.ask("serve_file", path=path, loc=0) == {"data": "", "dest": ""}


def change(store, live):
    (live / "salt/web/init.sls").write_text("version: 2")
    (live / "salt/web/files/page").write_text("the second page")
    (live / "salt/web/files/new").write_text("new")
    (live / "salt/web/files/old").unlink()
    publish(store, live)


def test_a_run_goes_on_with_the_tree_that_it_began_with(server, store, live):
    web1, web2 = Minion(server, "web1"), Minion(server, "web2")
    web1.list()
    assert web1.read("web/init.sls") == "version: 1"
    change(store, live)
    assert web1.read("web/files/page") == "page 1"
    assert web1.read("web/files/old") == "old"
    assert not web1.hash("web/files/new")
    assert web1.ask("file_hash_and_stat", path="web/files/page")[1][6] == len("page 1")
    assert web1.list(prefix="web/files") == ["web/files/old", "web/files/page"]
    # Who begins later gets the new one.
    listed, sls, page = web2.run()
    assert (sls, page) == ("version: 2", "the second page")
    assert "web/files/new" in listed
    assert not web2.hash("web/files/old")


def test_workers_of_a_master_share_what_a_run_began_with(server, store, live, opts):
    import salt.fileserver

    Minion(server, "web1").list()
    Minion(server, "web1").read("web/init.sls")
    change(store, live)
    other = salt.fileserver.Fileserver(opts)
    assert Minion(other, "web1").read("web/files/page") == "page 1"


def test_requests_without_a_minion_have_a_tree_for_each_process(server, store, live, opts):
    import salt.fileserver

    def ask(path):
        # Any file client of a runner makes itself a file server.
        one = salt.fileserver.Fileserver(opts)
        one.file_hash({"path": path, "saltenv": "base"})
        return one.serve_file({"path": path, "saltenv": "base", "loc": 0})["data"]

    server.file_list({"saltenv": "base", "prefix": ""})
    assert ask("web/init.sls") == b"version: 1"
    change(store, live)
    assert ask("web/files/page") == b"page 1"
    child = os.fork()
    if not child:
        os._exit(ask("web/files/page") == b"the second page")
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 1
    assert not os.path.exists(os.path.join(store.directory, "pins"))


def test_an_id_leads_nowhere_else(server, store):
    for name in ("../../x", "a/b", "", 5, None, ["x"], "web\0"):
        assert Minion(server, name).list()
    assert not os.path.exists(os.path.join(store.directory, "pins"))


@pytest.mark.parametrize("loc", [-1, "0", None, [], 1.5, True, 2**70])
def test_a_request_for_no_place_in_a_file_gets_nothing(server, loc):
    web1 = Minion(server, "web1")
    web1.hash("web/init.sls")
    assert web1.ask("serve_file", path="web/init.sls", loc=loc) == {"data": "", "dest": ""}
    assert web1.read("web/init.sls") == "version: 1"


@pytest.mark.parametrize("damage", [b"5", b"\xff", b'{"tree": "../../etc"}', None])
def test_a_pin_that_is_damaged_or_cannot_be_noted_stops_no_file(server, store, damage):
    pins = Path(store.directory, "pins")
    if damage is None:
        pins.write_text("where the pins should be")
    else:
        Minion(server, "web1").list()
        for path in pins.iterdir():
            path.write_bytes(damage)
    assert Minion(server, "web1").read("web/init.sls") == "version: 1"


def test_what_is_no_snapshot_beside_them_stops_no_request(server, store):
    for name in ("lost+found", "x", "00000000"):
        Path(store.trees, name).mkdir()
    web1 = Minion(server, "web1")
    assert not web1.hash("absent")
    assert web1.read("web/init.sls") == "version: 1"


def test_what_somebody_has_edited_is_not_served(server, store, live, caplog):
    from salt.exceptions import FileserverConfigError

    path = Path(store.tree(store.current(), "file_roots/base/0/web/files/page"))
    path.write_text("edited")
    web1 = Minion(server, "web1")
    assert web1.read("web/files/page") == ""
    assert web1.read("web/init.sls") == "version: 1"
    assert "was edited in the served tree" in caplog.text
    # Nor is it cut off for who has begun to read it.
    with pytest.raises(FileserverConfigError, match="was edited"):
        web1.ask("serve_file", path="web/files/page", loc=3)
    # When it has been put right, also to who began before.
    publish(store, live)
    assert web1.read("web/files/page") == "page 1"


def test_without_a_snapshot_nothing_is_said_rather_than_that_there_is_nothing(opts):
    import salt.exceptions
    import salt.fileserver

    web1 = Minion(salt.fileserver.Fileserver(opts), "web1")
    for ask in (web1.list, lambda: web1.hash("top.sls"), lambda: web1.read("top.sls")):
        with pytest.raises(salt.exceptions.FileserverConfigError, match="no snapshot"):
            ask()


# Pillar


def compile_pillar(opts, **changes):
    import salt.pillar

    opts = {**opts, **changes}
    grains = {**opts["grains"], "id": "web1"}
    return salt.pillar.Pillar(opts, grains, "web1", "base").compile_pillar()


@pytest.fixture
def published(store, live):
    publish(store, live)
    return live


def test_a_pillar_is_compiled_from_the_snapshot(opts, published):
    (published / "pillar/data.sls").write_text("data: live")
    assert compile_pillar(opts) == {"data": 1, "deep": "web1", "dev": 1}


def test_an_environment_of_the_pillar_can_be_chosen(opts, published):
    (published / "devpillar/top.sls").write_text("dev: {'*': [only_dev]}")
    publish(roots.Store(os.path.join(opts["cachedir"], "multimaster/roots")), published)
    assert compile_pillar(opts, pillarenv="dev") == {"dev": 1}


def test_other_external_pillars_come_after_ours_and_win(opts, published):
    other = {"cmd_yaml": "echo 'data: 2'"}
    opts["ext_pillar"] = [*opts["ext_pillar"], other]
    assert compile_pillar(opts)["data"] == 2
    opts["ext_pillar"] = [other, {"multimaster_roots": []}]
    (published / "pillar/data.sls").write_text("data: 1\nseen: {{ pillar.data }}")
    publish(roots.Store(os.path.join(opts["cachedir"], "multimaster/roots")), published)
    found = compile_pillar(opts, ext_pillar_first=True)
    assert (found["data"], found["seen"]) == (1, 2)


def test_a_pillar_without_a_snapshot_is_an_error_and_not_empty(opts):
    found = compile_pillar(opts)
    assert "there is no snapshot of the pillar roots" in found["_errors"][0]


def test_an_edited_pillar_is_an_error(opts, store, published):
    path = Path(store.tree(store.current(), "pillar_roots/base/0/data.sls"))
    path.write_text("data: edited")
    found = compile_pillar(opts)
    assert "edited in the served tree: pillar_roots/base/0/data.sls" in found["_errors"][0]
    assert "edited" not in str(found.get("data"))


def test_the_formulas_key_pair_may_live_in_a_replicated_pillar(opts, store, published, tmp_path):
    checkout = Path(__file__).parents[2]
    directory = published / "pillar/multimaster"
    directory.mkdir()
    keypair = (checkout / "pillar/multimaster/keypair.sls").read_text()
    (directory / "keypair.sls").write_text(keypair)
    (directory / "init.sls").write_text("multimaster: {masters: [{id: saltm1, address: a}]}")
    (published / "pillar/top.sls").write_text("base: {'*': [multimaster, multimaster.keypair]}")
    publish(store, published)
    found = compile_pillar(opts)
    assert found["multimaster"]["minions"] == 100
    assert "_errors" not in found
