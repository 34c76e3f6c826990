"""Roots from git remotes and on shared storage: what is refused, and what is asked before."""

from __future__ import annotations

import os
import subprocess

import pytest

import multimaster_topology as topology

MASTERS = [{"id": f"saltm{n}", "address": f"192.0.2.{n}"} for n in (1, 2)]
MOUNT = {"path": "/srv/shared", "device": "nfs.example.com:/salt", "fstype": "nfs4"}
SHARED = {
    "mounts": [MOUNT],
    "file_roots": {"base": ["/srv/shared/states"]},
    "pillar_roots": {"base": ["/srv/shared/pillar"]},
}
REMOTE = "https://git.example.com/salt.git"


def parse(roots, config=None):
    return topology.parse({"masters": MASTERS, "roots": roots, "master": {"config": config or {}}})


def derived(roots, config=None):
    return topology.master_options(parse(roots, config), "saltm1", "/ext", {})


SECRETS = [
    ({"git": {"remotes": [{REMOTE: {"password": "hunter2"}}]}}, {}),
    ({"git": {"remotes": ["--x https://me:hunter2@git.example.com/a"]}}, {}),
    ({"git": {"remotes": [{"https://me:hunter2@h/a": "root", "b": 1}]}}, {}),
    ({"git": {"pillar": ["https://me:hunter2@git.example.com/a.git"]}}, {}),
    ({"git": {"pillar": [["token", {"private_token": ["hunter2"]}]]}}, {}),
    ({"git": {"https://me:hunter2@git.example.com/a.git": {}}}, {}),
    ({"git": {"password": "hunter2"}}, {}),
    ({"git": {"remotes": "https://me:hunter2@git.example.com/a.git"}}, {}),
    ({"git": {"remotes": "https://git.example.com/a?access_token=hunter2"}}, {}),
    ({"git": "https://me:hunter2@git.example.com/a.git"}, {}),
    (["https://me:hunter2@git.example.com/a.git"], {}),
    ({"git": {"remotes": [REMOTE]}}, {"gitfs_remotes": ["https://me:hunter2@h/a"]}),
    (
        {"git": {"remotes": [REMOTE]}},
        {"gitfs_remotes": [{"https://h/a": [{"password": "hunter2"}]}]},
    ),
    ({"shared": {"mounts": [{**MOUNT, "path": "x", "opts": "username=me,password=hunter2"}]}}, {}),
    ({"shared": {"mounts": [{"path": "x", "opts": "user=me,password=hunter2"}]}}, {}),
    ({"shared": {**SHARED, "mounts": "pass=hunter2"}}, {}),
]


@pytest.mark.parametrize(("roots", "config"), SECRETS, ids=range(len(SECRETS)))
def test_a_refusal_quotes_no_secret(roots, config):
    with pytest.raises(topology.TopologyError) as refused:
        parse(roots, config)
    assert "roots" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "declared",
    [
        {"gitfs_password": "hunter2"},
        {"master": {"config": {"master_sign_pubkey": {"token": "hunter2"}}}},
        {"master": {"gitfs_password": "hunter2"}},
        {"master": {"config": {"engines": "https://me:hunter2@h"}}},
        {"masters": [{"id": "a", "address": "a", "password": "hunter2"}]},
        {"masters": "https://me:hunter2@git.example.com"},
        {"failover": {"master_tries": "token=hunter2"}},
        ["https://me:hunter2@h", {"api_key": "hunter2"}],
    ],
    ids=str,
)
def test_no_refusal_of_anything_quotes_a_secret(declared):
    if isinstance(declared, dict):
        declared = {"masters": MASTERS} | declared
    with pytest.raises(topology.TopologyError) as refused:
        topology.parse(declared)
    assert "hunter2" not in str(refused.value)


def test_what_names_a_secret_is_the_same_wherever_something_is_shown(by_path):
    options = by_path("salt/_utils/multimaster_options.py")
    assert topology._SECRET.pattern == options._SECRET.pattern
    assert topology._USERINFO.pattern == options._USERINFO.pattern
    assert topology._PAIR.pattern == options._PAIR.pattern


@pytest.mark.parametrize(
    ("roots", "config", "said"),
    [
        ({"rsync": {}}, {}, "roots:rsync: got 'rsync'"),
        ({"git": {}}, {}, "roots:git: got {}; supported: a list of remotes, of pillar, or both"),
        ({"git": {"remotes": [REMOTE], "provider": "libgit"}}, {}, "gitcli, pygit2, gitpython"),
        ({"git": {"remotes": ["--upload-pack=x"]}}, {}, "roots:git:remotes: entry 1"),
        ({"git": {"remotes": [{REMOTE: "root"}]}}, {}, "roots:git:remotes: entry 1"),
        (
            {"git": {"remotes": [{REMOTE: [{"root": "x"}]}], "provider": "gitcli"}},
            {},
            "roots:git:remotes: entry 1:root: got 'gitcli'; supported: pygit2, gitpython",
        ),
        (
            {"git": {"pillar": [f"main {REMOTE}"], "provider": "gitcli"}},
            {},
            "roots:git:pillar: got 'gitcli'; supported: pygit2, gitpython",
        ),
        ({"git": {"pillar": [REMOTE]}}, {}, "roots:git:pillar: entry 1"),
        ({"git": {"pillar": ["main --upload-pack=x"]}}, {}, "roots:git:pillar: entry 1"),
        ({"git": {"remotes": [REMOTE]}}, {"gitfs_remotes": []}, "nothing here; see roots:git"),
        (
            {"git": {"remotes": [REMOTE]}},
            {"fileserver_backend": ["roots"]},
            "a list with gitfs, with roots:git",
        ),
        ({"shared": {**SHARED, "mounts": []}}, {}, "roots:shared:mounts: got []"),
        ({"shared": {**SHARED, "mounts": [{"path": "/x"}]}}, {}, "path, device and fstype"),
        ({"shared": {**SHARED, "mounts": [{**MOUNT, "path": "x"}]}}, {}, "entry 1:path"),
        ({"shared": {**SHARED, "mounts": [{**MOUNT, "dump": 1}]}}, {}, "entry 1:dump"),
        (
            {"shared": {**SHARED, "file_roots": {"base": ["/srv/sharedother"]}}},
            {},
            "roots:shared:file_roots: got '/srv/sharedother'; supported: below one of /srv/shared",
        ),
        ({"shared": {**SHARED, "pillar_roots": None}}, {}, "roots:shared:pillar_roots: got None"),
        ({"shared": SHARED}, {"file_roots": {}}, "nothing here; see roots:shared"),
    ],
)
def test_a_bad_declaration_is_refused_and_the_finding_named(roots, config, said):
    with pytest.raises(topology.TopologyError, match=r"supported:") as refusal:
        parse(roots, config)
    assert said in str(refusal.value)


def test_masters_serve_the_remotes_and_keep_what_else_is_declared():
    pillar = ["main https://git.example.com/pillar.git"]
    options = derived(
        {"git": {"remotes": [REMOTE], "pillar": pillar, "provider": "pygit2"}},
        {"ext_pillar": [{"cmd_json": "x"}], "fileserver_backend": ["roots", "gitfs"]},
    )
    assert options["gitfs_remotes"] == [REMOTE]
    assert options["ext_pillar"] == [{"cmd_json": "x"}, {"git": pillar}]
    assert options["gitfs_provider"] == options["git_pillar_provider"] == "pygit2"
    assert options["fileserver_backend"] == ["roots", "gitfs"]
    usual = derived({"git": {"remotes": [REMOTE]}})
    assert usual["fileserver_backend"] == ["gitfs"]
    assert not [name for name in usual if name.endswith("_provider")]


def test_masters_serve_the_shared_directories():
    options = derived({"shared": SHARED})
    assert {name: options[name] for name in ("file_roots", "pillar_roots")} == {
        name: SHARED[name] for name in ("file_roots", "pillar_roots")
    }


def test_a_remote_is_asked_with_its_own_options_or_else_those_of_all():
    found = topology.git_remotes(
        parse(
            {
                "git": {
                    "remotes": [REMOTE, {"ssh://git@h/a": [{"privkey": "/k"}]}],
                    "pillar": ["__env__ ssh://git@h/b", {"v1 ssh://git@h/c": [{"env": "base"}]}],
                }
            },
            {"git_pillar_privkey": "/p", "gitfs_ssl_verify": False},
        )
    )
    assert found == [
        topology.Remote(REMOTE, None, None, False),
        topology.Remote("ssh://git@h/a", None, "/k", False),
        topology.Remote("ssh://git@h/b", None, "/p", True),
        topology.Remote("ssh://git@h/c", "v1", "/p", True),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, []),
        ({"pki_dir": "/srv/shared/pki"}, ["pki_dir: got '/srv/shared/pki'"]),
        ({"pki_dir": "/srv/shared"}, ["it holds master.pem"]),
        ({"cachedir": "/srv/shared/cache"}, ["cachedir: got '/srv/shared/cache'"]),
        ({"pki_dir": "/srv/sharedother"}, []),
    ],
)
def test_what_masters_must_not_share_is_found(options, said):
    usual = {"pki_dir": "/etc/salt/pki/master", "cachedir": "/var/cache/salt/master"}
    found = topology.unshareable(["/srv/shared"], usual | options)
    assert len(found) == len(said)
    assert all(part in one for part, one in zip(said, found, strict=True))


@pytest.mark.parametrize("role", ["gitfs", "git_pillar"])
@pytest.mark.parametrize("locked", [True, False])
def test_a_shared_cache_of_remotes_keeps_its_lock(role, locked):
    options = {"pki_dir": "/p", "cachedir": "/c", f"{role}_global_lock": locked}
    found = topology.unshareable([f"/c/{role}"], options)
    assert bool(found) is not locked
    assert locked or found[0].startswith(f"{role}_global_lock: got False; supported: True")


@pytest.fixture
def remote(tmp_path):
    """A bare repository with the branch main."""
    bare, work = tmp_path / "a.git", tmp_path / "work"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    for argv in (
        ["init", "--quiet", "--initial-branch=main", str(work)],
        ["-C", str(work), "commit", "--quiet", "--allow-empty", "--message=x"],
        ["clone", "--quiet", "--bare", str(work), str(bare)],
    ):
        subprocess.run([*git, *argv], check=True, env=environment)
    return f"file://{bare}"


def check(host, remotes=(), pillar=(), test=False):
    git = {"remotes": list(remotes), "pillar": list(pillar)}
    return host.state(
        "git_remotes",
        test=test,
        name="multimaster",
        declaration={"masters": MASTERS, "roots": {"git": git}},
        config_dir=str(host.config_dir),
    )


class TestRemotes:
    def test_that_answer_are_good(self, host, remote):
        found = check(host, [remote], [f"main {remote}"])
        assert (found.result, found.comment) == (True, "All remotes answer")

    def test_that_do_not_answer_are_all_named_and_nothing_is_changed(self, host, remote):
        gone = [f"{remote}-gone", "file:///nowhere"]
        found = check(host, [*gone, remote])
        assert found.result is False
        assert all(url in found.comment for url in gone)
        assert f"{remote}: " not in found.comment

    def test_without_the_branch_of_the_pillar_are_refused(self, host, remote):
        found = check(host, [remote], [f"master {remote}"])
        assert found.result is False
        assert "no branch master; it has main" in found.comment

    def test_that_this_master_serves_already_may_be_down(self, host, remote):
        gone = [f"{remote}-gone"]
        declared = parse({"git": {"remotes": gone, "pillar": []}})
        options = topology.master_options(declared, "saltm2", "/ext", {})
        host.write("etc/salt/master.d/multimaster.conf", options)
        found = check(host, gone)
        assert found.result is True
        assert "its last content is served" in found.warnings[0]

    def test_show_no_password(self, host):
        found = check(host, ["http://me:hunter2@127.0.0.1:1/a.git"])
        assert found.result is False
        assert "hunter2" not in found.comment

    @pytest.mark.parametrize("word", ["hunter2", "hunt@er2", "hu/nter2", "a:hunter2@b"])
    def test_show_no_password_whatever_is_in_it(self, host, word):
        found = check(host, [f"http://me:{word}@127.0.0.1:1/a.git"])
        assert found.result is False
        assert not any(part in found.comment for part in ("hunt", "nter2", "er2"))
        assert "127.0.0.1:1/a.git" in found.comment

    def test_prove_who_they_are_and_leave_nothing_behind(self, host, tmp_path, monkeypatch):
        told = tmp_path / "told"
        program = tmp_path / "bin/ssh"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {told}\n'
            "echo 'Host key verification failed.' >&2\nexit 255\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        found = check(host, ["ssh://git@git.example.com/a.git"])
        assert found.result is False
        assert "known_hosts" in found.comment
        # A file of the user's, in which whoever stands in between would be from then on.
        said = told.read_text()
        assert "StrictHostKeyChecking=yes" in said
        assert "UpdateHostKeys=no" in said

    def test_that_salt_would_not_start_with_are_refused(self, host):
        found = check(host, ["git://127.0.0.1:1/a.git"])
        assert found.result is False
        assert "takes http, https, ssh, ftp, sftp and file" in found.comment

    def test_need_git_on_the_host(self, host, remote, monkeypatch):
        monkeypatch.setattr("shutil.which", lambda _: None)
        assert "no program git" in check(host, [remote]).comment


def test_a_master_asks_the_remotes_that_it_serves_and_tells_of_those_that_are_down(host, remote):
    secret = "http://me:hunter2@127.0.0.1:1/a.git"
    options = {
        "fileserver_backend": ["roots", "gitfs"],
        "gitfs_remotes": [remote, {f"{remote}-gone": [{"root": "salt"}]}],
        "ext_pillar": [{"git": [f"main {remote}", f"nowhere {secret}"]}, {"cmd_json": "x"}],
    }
    host.write("etc/salt/master.d/roots.conf", options)

    def reported():
        return host.modules["multimaster_drift.report"]()["remotes"]

    found = reported()
    assert len(found) == 2
    assert f"{remote}-gone" in found
    assert "hunter2" not in repr(found)
    options["fileserver_backend"] = ["roots"]
    host.write("etc/salt/master.d/roots.conf", options)
    # Not served: the master does not fetch it.
    assert f"{remote}-gone" not in reported()


class TestCredentials:
    def write(self, host, given, test=False):
        host.pillar = {"multimaster": {"credentials": given}}
        return host.state(
            "credentials", test=test, name="credentials", config_dir=str(host.config_dir)
        )

    def test_are_for_the_master_alone_and_written_once(self, host):
        path = host.config_dir / "multimaster.credentials/deploy"
        would = self.write(host, {"deploy": "WORD"}, test=True)
        assert (would.result, path.exists()) == (None, False)
        did = self.write(host, {"deploy": "WORD"})
        assert (did.result, did.changes) == (True, would.changes)
        assert (path.stat().st_mode & 0o777, path.read_text()) == (0o600, "WORD\n")
        assert self.write(host, {"deploy": "WORD"}).changes == {}
        assert "WORD" not in repr((would, did))

    def test_are_written_through_no_link_put_in_their_way(self, host, tmp_path, monkeypatch):
        victim = tmp_path / "victim"
        victim.write_text("kept")
        victim.chmod(0o644)
        directory = host.config_dir / "multimaster.credentials"

        def swap(handle):
            (scratch,) = directory.glob(".multimaster-*")
            scratch.unlink()
            scratch.symlink_to(victim)

        monkeypatch.setattr(os, "fsync", swap)
        self.write(host, {"deploy": "WORD"})
        assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("kept", 0o644)

    def test_that_others_can_read_are_written_again(self, host):
        self.write(host, {"deploy": "WORD"})
        path = host.config_dir / "multimaster.credentials/deploy"
        path.chmod(0o644)
        assert self.write(host, {"deploy": "WORD"}).changes == {"deploy": "written"}
        assert path.stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("name", ["../master.pem", "a/b", ".hidden", ""])
    def test_do_not_leave_their_directory(self, host, name):
        found = self.write(host, {name: "x"})
        assert found.result is False
        assert "supported: names of letters" in found.comment


def test_shared_storage_with_the_masters_key_is_refused_whatever_link_leads_there(host):
    shared = host.root / "shared"
    (shared / "pki").mkdir(parents=True)
    (host.root / "etc/salt/pki").symlink_to(shared / "pki")
    mounts = [{"path": str(shared), "device": "x", "fstype": "nfs"}]
    roots = {"base": [str(shared / "s")]}
    found = host.state(
        "shareable",
        name="multimaster",
        declaration={
            "masters": MASTERS,
            "roots": {"shared": {"mounts": mounts, "file_roots": roots, "pillar_roots": roots}},
        },
        config_dir=str(host.config_dir),
        extension_dir="/ext",
    )
    assert found.result is False
    assert "it holds master.pem" in found.comment


class TestSharedConfig:
    @pytest.fixture(autouse=True)
    def storage(self, host, monkeypatch, tmp_path):
        """Options on a mount; and a host that says it has systemd, as no unit is looked at here."""
        import salt.utils.systemd

        monkeypatch.setattr(salt.utils.systemd, "booted", lambda context=None: True)
        self.directory = tmp_path / "shared/config"
        (self.directory / "master.d").mkdir(parents=True)
        self.drop_in = host.config_dir / "master.d/multimaster-shared.conf"
        ours = host.config_dir / "master.d/multimaster.conf"
        self.say("master", f"include: {ours}\n")
        root = (host.config_dir / "master").read_text()
        self.say("master.d/site.conf", f"{root}\nworker_threads: 7\n")

    def say(self, name, text):
        (self.directory / name).write_text(text)
        (self.directory / name).chmod(0o644)

    def read(self, host, test=False):
        mount = {"path": str(self.directory.parent), "device": "x", "fstype": "nfs"}
        return host.state(
            "shared_config",
            test=test,
            name=str(self.drop_in),
            directory=str(self.directory),
            declaration={"masters": MASTERS, "roots": {"shared": {"mounts": [mount]}}},
            config_dir=str(host.config_dir),
        )

    def refused(self, host):
        found = self.read(host)
        assert found.result is False
        assert not self.drop_in.exists()
        return found.comment

    def test_is_included_and_then_left_alone(self, host):
        would = self.read(host, test=True)
        assert would.result is None
        assert not self.drop_in.exists()
        assert self.read(host).result is True
        assert host.call("check_config", "master", {})["worker_threads"] == 7
        assert self.read(host).changes == {}

    def test_with_a_file_of_the_hosts_own_that_says_otherwise_is_refused(self, host):
        host.write("etc/salt/master.d/own.conf", "worker_threads: 3\nid: other\ntimeout: 9\n")
        said = self.refused(host)
        assert "timeout is 9 with this host's own files and 5 without" in said
        assert f"move it to {self.directory}/master.d" in said

    def test_does_not_show_the_secret_that_differs(self, host):
        host.write("etc/salt/master.d/own.conf", "ext_pillar: [{vault: {token: WORD-OF-MOUTH}}]\n")
        assert "WORD-OF-MOUTH" not in self.refused(host)

    @pytest.mark.parametrize(
        ("text", "got"),
        [
            ("", "got no options"),
            ("[", "got no options"),
            ("include: /elsewhere\n", "got include"),
            ("worker_threads: 3\n", "got worker_threads"),
        ],
    )
    def test_that_is_not_where_all_would_find_it_is_refused(self, host, text, got):
        self.say("master", text)
        assert got in (said := self.refused(host))
        assert f"the line 'include: {host.config_dir}/master.d/multimaster.conf' alone" in said

    @pytest.mark.parametrize("name", [".", "master", "master.d", "master.d/site.conf"])
    def test_that_others_can_write_is_refused(self, host, name):
        (self.directory / name).chmod(0o777)
        path = self.directory / name
        assert f"{path}: others than its owner can write to it" in self.refused(host)

    def test_that_salt_cannot_parse_is_refused(self, host):
        self.say("master.d/site.conf", "a: [")
        assert "cannot parse" in self.refused(host)

    def test_that_puts_the_masters_key_on_the_storage_is_refused(self, host):
        # Whatever link leads there.
        (host.root / "etc/storage").symlink_to(self.directory.parent)
        site = (self.directory / "master.d/site.conf").read_text()
        self.say("master.d/site.conf", f"{site}pki_dir: /etc/storage/pki\n")
        assert "it holds master.pem" in self.refused(host)

    def test_needs_systemd(self, host, monkeypatch):
        import salt.utils.systemd

        monkeypatch.setattr(salt.utils.systemd, "booted", lambda context=None: False)
        assert "no systemd" in self.refused(host)

    @pytest.mark.parametrize("shared", [{}, {"mounts": [MOUNT]}])
    def test_outside_of_every_declared_mount_is_refused(self, shared):
        declared = {"masters": MASTERS, "roots": {"shared": shared} if shared else {}}
        with pytest.raises(topology.TopologyError, match="master:config_dir: got '/etc/shared'"):
            topology.parse({**declared, "master": {"config_dir": "/etc/shared"}})

    def test_needs_no_roots_there(self):
        declared = {"masters": MASTERS, "roots": {"shared": {"mounts": [MOUNT]}}}
        topology.parse({**declared, "master": {"config_dir": "/srv/shared/config"}})
