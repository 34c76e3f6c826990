"""The truth table on disk: what happens to the files of a master's key pair."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

import pytest

ID = "saltm2"
HOSTNAME = "oldhost"
GARBAGE = "-----BEGIN {0}-----\nnonsense\n-----END {0}-----\n".format("RSA PRIVATE KEY")


@pytest.fixture
def offer(host, shared):
    """The pillar gives this host the shared pair."""
    host.pillar = {"multimaster": {"keypair": {"pem": shared.pem, "pub": shared.pub}}}


@pytest.fixture(params=["3008", "older"])
def stem(request, monkeypatch):
    """The name of the live pair, where this Salt keeps it."""
    if request.param == "3008":
        return ID
    # Only one Salt is installed here; what tells the releases apart is this one option.
    import salt.config
    import salt.key

    real_config, real_key = salt.config.master_config, salt.key.get_key

    def master_config(*args, **kwargs):
        opts = dict(real_config(*args, **kwargs))
        del opts["keys.cache_driver"]
        return opts

    monkeypatch.setattr(salt.config, "master_config", master_config)
    # The key API of the installed Salt cannot do without it.
    monkeypatch.setattr(
        salt.key, "get_key", lambda opts: real_key({**opts, "keys.cache_driver": "localfs_key"})
    )
    return "master"


def have(host, pem, pub, stem=ID):
    """Put a pair there as Salt does; None for a file that is missing."""
    for suffix, text in (("pem", pem), ("pub", pub)):
        if text is None:
            continue
        path = host.write(f"etc/salt/pki/master/{stem}.{suffix}", text)
        path.chmod(0o400)
        if stem != "master":
            path.with_name(f"master.{suffix}").symlink_to(path)


def in_place(host, pair, stem=ID):
    """Assert that the master on this host would run with a pair, and that its files are right."""
    for suffix, text in zip(("pem", "pub"), pair, strict=True):
        path = host.pki / f"{stem}.{suffix}"
        assert path.read_text().strip() == text.strip()
        assert stat.S_ISREG(path.lstat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        assert path.stat().st_uid == os.getuid()
        assert (host.pki / f"master.{suffix}").resolve() == path.resolve()
    assert not list(host.pki.glob(".multimaster-*"))


def unchanged(host, before):
    assert host.files() == before


def install(host, **kwargs):
    """Install; what a dry run said before must be what is done, and must have changed nothing."""
    before = host.files()
    plan = host.call("install_keypair", test=True, **kwargs)
    unchanged(host, before)
    done = host.call("install_keypair", **kwargs)
    assert plan == {key: value for key, value in done.items() if key != "backup"}
    return done


@pytest.mark.usefixtures("offer")
class TestTruthTable:
    def test_an_absent_pair_is_written(self, host, shared, stem):
        done = install(host)
        assert done["action"] == "write"
        in_place(host, shared, stem)

    def test_the_alias_is_a_link_since_3008_and_the_file_itself_before(self, host, stem):
        install(host)
        alias = host.pki / "master.pem"
        assert alias.is_symlink() == (stem == ID)
        names = {path.name for path in host.pki.glob("*.pem")}
        assert names == {"master.pem", f"{stem}.pem"}

    def test_what_was_written_is_left_alone(self, host, stem):
        install(host)
        before = host.files()
        assert install(host)["action"] == "none"
        unchanged(host, before)

    def test_the_same_pair_is_left_alone(self, host, shared, stem):
        have(host, *shared, stem)
        before = host.files()
        assert install(host)["action"] == "none"
        unchanged(host, before)

    @pytest.mark.parametrize("end", ["\n", "\n\n"], ids=["one", "two"])
    def test_trailing_newlines_make_no_difference(self, host, shared, stem, end):
        have(host, shared.pem.rstrip() + end, shared.pub.rstrip() + end, stem)
        before = host.files()
        assert install(host)["action"] == "none"
        unchanged(host, before)

    @pytest.mark.parametrize("mode", [0o600, 0o440, 0o644], ids=oct)
    def test_a_wrong_mode_is_repaired(self, host, shared, stem, mode):
        have(host, *shared, stem)
        (host.pki / f"{stem}.pem").chmod(mode)
        done = install(host)
        assert done["action"] == "repair"
        assert f"had mode {mode:04o}" in done["reason"]
        in_place(host, shared, stem)

    def test_a_wrong_owner_is_noticed(self, host, shared, stem):
        have(host, *shared, stem)
        # Instead of giving the files to somebody else, which only root can.
        host.write("etc/salt/master", {"root_dir": str(host.root), "user": "nobody"})
        plan = host.call("install_keypair", test=True)
        assert plan["action"] == "repair"
        assert plan["reason"] == f"{stem}.pem did not belong to nobody"

    @pytest.mark.parametrize("suffix", ["pem", "pub"])
    def test_a_link_in_place_of_a_key_is_repaired(self, host, shared, stem, suffix):
        have(host, *shared, stem)
        elsewhere = host.root / "var/elsewhere"
        elsewhere.parent.mkdir(exist_ok=True)
        (host.pki / f"{stem}.{suffix}").rename(elsewhere)
        (host.pki / f"{stem}.{suffix}").symlink_to(elsewhere)
        done = install(host)
        assert done["action"] == "repair"
        assert done["reason"] == f"{stem}.{suffix} was not a regular file"
        in_place(host, shared, stem)
        assert elsewhere.exists()

    @pytest.mark.parametrize("minions", [0, 1], ids=["no minions", "minions"])
    def test_a_missing_public_key_is_repaired(self, host, shared, stem, minions):
        have(host, shared.pem, None, stem)
        host.accept({"web1": shared.pub} if minions else {})
        assert install(host)["action"] == "repair"
        in_place(host, shared, stem)

    @pytest.mark.parametrize("pem", [None, GARBAGE, ""], ids=["missing", "garbage", "empty"])
    def test_a_lost_private_key_is_repaired_beside_the_right_public_key(
        self, host, shared, stem, pem
    ):
        have(host, pem, shared.pub, stem)
        host.accept({"web1": shared.pub})
        assert install(host)["action"] == "repair"
        in_place(host, shared, stem)

    def test_bytes_that_are_no_text_count_as_unreadable(self, host, shared, stem):
        have(host, GARBAGE, shared.pub, stem)
        path = host.pki / f"{stem}.pem"
        path.chmod(0o600)
        path.write_bytes(b"\x80\xff\x00")
        assert install(host)["action"] == "repair"
        in_place(host, shared, stem)

    def test_an_unreadable_private_key_of_unknown_worth_is_refused(self, host, other, stem):
        have(host, GARBAGE, other.pub, stem)
        before = host.files()
        done = install(host)
        assert done["action"] == "refuse"
        assert "not a readable PEM" in done["reason"]
        unchanged(host, before)

    def test_a_different_pair_with_accepted_minions_is_refused(self, host, other, stem):
        have(host, *other, stem)
        host.accept({"web1": other.pub, "web2": other.pub})
        before = host.files()
        done = install(host)
        assert done["action"] == "refuse"
        assert "2 accepted minions (web1, web2)" in done["reason"]
        unchanged(host, before)

    def test_a_denied_key_takes_nothing_from_what_accepted_minions_protect(self, host, other, stem):
        have(host, *other, stem)
        host.accept({"web1": other.pub})
        # A sign-in with a wrong key under that id, which anybody can try.
        host.accept({"web1": GARBAGE}, "minions_denied")
        before = host.files()
        done = install(host)
        assert (done["action"], "1 accepted minions (web1)" in done["reason"]) == ("refuse", True)
        unchanged(host, before)

    @pytest.mark.parametrize("where", ["minions_pre", "minions_rejected", "minions_denied"])
    def test_only_accepted_minions_protect_a_different_pair(self, host, shared, other, stem, where):
        have(host, *other, stem)
        host.accept({"web1": other.pub}, where)
        assert install(host)["action"] == "replace"
        in_place(host, shared, stem)

    def test_a_hosts_own_minion_does_not_protect_a_different_pair(self, host, shared, other, stem):
        have(host, *other, stem)
        host.accept({ID: other.pub})
        assert install(host)["action"] == "replace"
        in_place(host, shared, stem)

    def test_a_different_pair_is_replaced_at_the_operators_word(self, host, shared, other, stem):
        have(host, *other, stem)
        host.accept({"web1": other.pub})
        assert install(host, replace=True)["action"] == "replace"
        in_place(host, shared, stem)
        assert host.accepted() == {"web1"}

    @pytest.mark.parametrize("replace", [False, True], ids=["", "replace"])
    def test_what_is_replaced_is_kept_in_a_private_place(self, host, other, stem, replace):
        have(host, *other, stem)
        backup = Path(install(host, replace=replace)["backup"])
        assert backup.parent == host.pki
        assert stat.S_IMODE(backup.stat().st_mode) == 0o700
        assert (backup / f"{stem}.pem").read_text() == other.pem
        assert (backup / f"{stem}.pub").read_text() == other.pub
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o400 for path in backup.iterdir())

    def test_a_lone_different_public_key_with_accepted_minions_is_refused(self, host, other, stem):
        have(host, None, other.pub, stem)
        host.accept({"web1": other.pub})
        before = host.files()
        assert install(host)["action"] == "refuse"
        unchanged(host, before)

    def test_a_disk_that_fails_leaves_the_old_pair_and_no_scratch(
        self, host, other, stem, monkeypatch
    ):
        have(host, *other, stem)

        def fail(*args, **named):
            raise OSError("disk full")

        # No disk to fill.
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="disk full"):
                host.call("install_keypair")
        in_place(host, other, stem)


@pytest.mark.usefixtures("offer")
class TestLayoutOf3008:
    def test_a_master_pem_replaced_beside_the_live_pair_is_repaired(self, host, shared, other):
        # Salt ignores it without a word, and whoever put it there expects otherwise.
        have(host, *shared)
        for suffix, text in zip(("pem", "pub"), other, strict=True):
            (host.pki / f"master.{suffix}").unlink()
            host.write(f"etc/salt/pki/master/master.{suffix}", text)
        done = install(host)
        assert done["action"] == "repair"
        assert done["reason"] == "master.pem was not a link to saltm2.pem"
        in_place(host, shared)
        assert (Path(done["backup"]) / "master.pem").read_text() == other.pem

    def test_the_shared_pair_placed_in_master_pem_beside_a_different_live_pair_is_no_answer(
        self, host, shared, other
    ):
        have(host, *other)
        for suffix, text in zip(("pem", "pub"), shared, strict=True):
            (host.pki / f"master.{suffix}").unlink()
            host.write(f"etc/salt/pki/master/master.{suffix}", text)
        assert install(host)["action"] == "replace"
        in_place(host, shared)

    def test_a_missing_alias_is_repaired(self, host, shared):
        have(host, *shared)
        (host.pki / "master.pub").unlink()
        assert install(host)["action"] == "repair"
        in_place(host, shared)

    def test_a_pair_of_an_older_release_is_taken_over(self, host, shared):
        # Salt does the same at its first start; the state comes before it.
        have(host, *shared, stem="master")
        host.accept({"web1": shared.pub})
        assert install(host)["action"] == "repair"
        in_place(host, shared)


@pytest.mark.usefixtures("offer")
class TestFirstMaster:
    """A master that ran before the formula; its pair is named after the host, not the minion."""

    def test_keeps_its_identity(self, host, shared):
        # The formula sets the master's id, and Salt then looks for a pair of that name: without
        # one it would make itself a new identity, and lose all its minions.
        have(host, *shared, stem=HOSTNAME)
        host.accept({"web1": shared.pub, "web2": shared.pub})
        done = install(host)
        assert done["action"] == "repair"
        in_place(host, shared, ID)
        assert (host.pki / f"{HOSTNAME}.pem").read_text() == shared.pem
        assert host.accepted() == {"web1", "web2"}

    def test_is_not_taken_for_one_that_joins(self, host, shared):
        have(host, *shared, stem=HOSTNAME)
        install(host)
        assert host.call("joined_by_us") is False

    def test_is_found_without_the_alias(self, host, shared):
        have(host, *shared, stem=HOSTNAME)
        (host.pki / "master.pem").unlink()
        (host.pki / "master.pub").unlink()
        done = install(host)
        assert done["action"] == "repair"
        in_place(host, shared, ID)

    @pytest.mark.parametrize("alias", [True, False], ids=["", "no alias"])
    def test_is_protected_by_its_minions(self, host, other, alias):
        have(host, *other, stem=HOSTNAME)
        if not alias:
            (host.pki / "master.pem").unlink()
            (host.pki / "master.pub").unlink()
        host.accept({"web1": other.pub})
        before = host.files()
        assert install(host)["action"] == "refuse"
        unchanged(host, before)


@pytest.mark.usefixtures("offer")
class TestMarks:
    """``left`` removes the pair only where the formula put it."""

    def test_a_new_master_is_marked(self, host):
        install(host)
        assert host.call("joined_by_us") is True

    def test_a_replaced_master_is_marked(self, host, other):
        have(host, *other)
        install(host)
        assert host.call("joined_by_us") is True

    def test_a_repaired_master_is_not_marked(self, host, shared):
        have(host, shared.pem, None)
        install(host)
        assert host.call("joined_by_us") is False


class TestPillar:
    def test_a_sealed_pair_is_opened_with_the_minions_key(
        self, host, shared, minion_keys, pillar_file
    ):
        host.write("etc/salt/pki/minion/minion.pem", minion_keys[ID].pem)
        content = {"pem": shared.pem, "pub": shared.pub}
        sealed = pillar_file.seal(content, ID, minion_keys[ID].pub)
        host.pillar = {"multimaster": {"keypair": {"sealed": sealed}}}
        assert install(host)["action"] == "write"
        in_place(host, shared)

    def test_the_masters_own_minions_do_not_protect_a_different_pair(
        self, host, shared, other, minion_keys, pillar_file
    ):
        host.write("etc/salt/pki/minion/minion.pem", minion_keys[ID].pem)
        content = {"pem": shared.pem, "pub": shared.pub}
        sealed = pillar_file.seal(content, ID, minion_keys[ID].pub)
        host.pillar = {"multimaster": {"keypair": {"sealed": sealed}}}
        have(host, *other)
        host.accept(dict.fromkeys((ID, "saltm1"), other.pub))
        masters = [{"id": "saltm1", "address": "192.0.2.1"}]
        options = {"id": ID, "multimaster": {"masters": masters}}
        assert install(host)["action"] == "refuse"
        assert install(host, options=options)["action"] == "replace"

    def refused(self, host, words):
        from salt.exceptions import CommandExecutionError

        before = host.files()
        # The states translate both.
        with pytest.raises((CommandExecutionError, OSError), match=words) as refusal:
            host.call("install_keypair")
        unchanged(host, before)
        return str(refusal.value)

    def test_what_is_sealed_for_another_host_is_refused(
        self, host, shared, minion_keys, pillar_file
    ):
        host.write("etc/salt/pki/minion/minion.pem", minion_keys[ID].pem)
        content = {"pem": shared.pem, "pub": shared.pub}
        sealed = pillar_file.seal(content, "saltm1", minion_keys["saltm1"].pub)
        host.pillar = {"multimaster": {"keypair": {"sealed": sealed}}}
        message = self.refused(host, "does not open with the minion key of saltm2")
        assert not shared.shows_in(message)

    @pytest.mark.parametrize(
        "pillar",
        [
            {},
            {"multimaster": None},
            {"multimaster": {"keypair": None}},
            # Says something of the pillar.
            {"multimaster": {"keypair": {"cached": False}}},
        ],
        ids=repr,
    )
    def test_a_pillar_without_a_pair_is_refused_with_what_to_do(self, host, pillar):
        host.pillar = pillar
        message = self.refused(host, "the pillar gives saltm2 no key pair")
        assert "assign it the pillar multimaster.keypair" in message

    @pytest.mark.parametrize("pair", [{"pem": "x"}, "x", ["x"], {"sealed": 5}], ids=repr)
    def test_a_pillar_with_something_else_is_refused(self, host, pair, minion_keys):
        host.write("etc/salt/pki/minion/minion.pem", minion_keys[ID].pem)
        host.pillar = {"multimaster": {"keypair": pair}}
        self.refused(host, "key ?pair")

    def test_a_minion_without_its_own_key_is_refused_in_words(self, host):
        host.pillar = {"multimaster": {"keypair": {"sealed": "x"}}}
        self.refused(host, "minion.pem")

    def refuse(self, host, shared, **more):
        """The pillar tells why it gives nothing, and which pair it would be."""
        reason = "the key of saltm2 on saltm1 has fingerprint ab, declared is cd"
        given = {"refused": reason, "pub": shared.pub, **more}
        host.pillar = {"multimaster": {"keypair": given}}
        return reason

    def test_why_the_pillar_gives_no_pair_is_told(self, host, shared, other):
        reason = self.refuse(host, shared)
        message = self.refused(host, "saltm2 is not given the key pair")
        assert message == f"saltm2 is not given the key pair: {reason}"
        # Nor is another pair taken for the one that there should be.
        have(host, *other)
        assert reason in self.refused(host, "is not given")
        for path in host.pki.glob("*.p*"):
            path.unlink()
        have(host, shared.pem[:300], shared.pub)
        assert reason in self.refused(host, "is not given")

    def test_who_has_the_pair_needs_none_to_be_given(self, host, shared):
        have(host, *shared)
        reason = self.refuse(host, shared)
        done = install(host)
        warning = f"{ID} is not given the key pair, and keeps it: {reason}"
        assert (done["action"], done["warning"]) == ("none", warning)
        in_place(host, shared)

    def test_a_signing_pair_that_is_here_need_not_be_given_either(self, host, shared, other):
        have(host, *shared)
        self.refuse(host, shared)
        assert host.call("signing_offered") is False
        assert host.call("install_signing", test=True)["action"] == "create"
        assert host.call("install_signing", "saltm1", test=True)["action"] == "wait"
        for suffix, text in zip(("pem", "pub"), other, strict=True):
            host.write(f"etc/salt/pki/master/master_sign.{suffix}", text)
        self.refuse(host, shared, sign_pub=other.pub)
        assert host.call("signing_offered") is True
        self.refuse(host, shared, sign_pub=shared.pub)
        assert host.call("signing_offered") is False

    def test_two_halves_are_refused(self, host, shared, other):
        host.pillar = {"multimaster": {"keypair": {"pem": shared.pem, "pub": other.pub}}}
        before = host.files()
        assert install(host)["reason"].endswith("do not belong together")
        unchanged(host, before)


@pytest.mark.usefixtures("offer")
def test_keys_that_would_stay_behind_in_another_key_store_are_refused(host, minion_keys):
    from salt.exceptions import CommandExecutionError

    host.accept({"web1": minion_keys["web1"].pub})
    before = host.files()
    with pytest.raises(CommandExecutionError, match="'mmap_key'; supported: 'localfs_key'"):
        host.call("install_keypair", options={"keys.cache_driver": "mmap_key"})
    assert host.files() == before


@pytest.mark.usefixtures("offer")
def test_neither_result_nor_log_shows_a_private_key(host, shared, other, caplog):
    have(host, *other)
    host.accept({"web1": other.pub})
    with caplog.at_level(0):
        for replace in (False, True, True):
            done = repr(install(host, replace=replace))
            assert not shared.shows_in(done)
            assert not other.shows_in(done)
    assert not shared.shows_in(caplog.text)
    assert not other.shows_in(caplog.text)


@pytest.mark.usefixtures("offer")
def test_what_tells_where_the_pair_came_from_is_written_through_no_link(host):
    victim = host.root / "var/victim"
    host.write("var/cache/salt/master/multimaster/x", "")
    mark = host.root / "var/cache/salt/master/multimaster/keypair-installed"
    mark.symlink_to(victim)
    assert host.call("install_keypair")["action"] == "write"
    assert not victim.exists()
    assert (mark.is_symlink(), mark.read_text()) == (False, "")


@pytest.mark.root
@pytest.mark.usefixtures("offer")
def test_no_link_of_the_masters_user_leads_root_into_its_own_directories(host, monkeypatch):
    import pwd

    real, ours = pwd.getpwnam, host.root / "var/ours"
    nobody = real("nobody")
    monkeypatch.setattr(pwd, "getpwnam", lambda name: nobody)
    ours.mkdir(parents=True)
    host.pki.mkdir(parents=True)
    os.chown(host.pki, nobody.pw_uid, nobody.pw_gid)
    assert host.call("install_keypair")["action"] == "write"
    assert (host.pki / f"{ID}.pem").stat().st_uid == nobody.pw_uid
    shutil.rmtree(host.pki)
    host.pki.symlink_to(ours)
    os.lchown(host.pki, nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(PermissionError):
        host.call("install_keypair")
    assert [path for path in ours.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("offer")
def test_a_backup_goes_where_it_was_begun_though_a_link_takes_its_place(host, other, monkeypatch):
    have(host, other.pem, other.pub)
    elsewhere = host.root / "var/elsewhere"
    elsewhere.mkdir(parents=True)
    real = os.mkdir

    def mkdir(name, *arguments, **named):
        real(name, *arguments, **named)
        if "multimaster-backup-" in str(name):
            (made,) = host.pki.glob("multimaster-backup-*")
            made.rename(host.pki / "moved")
            made.symlink_to(elsewhere)

    monkeypatch.setattr(os, "mkdir", mkdir)
    # Refused, or in the directory that was made.
    with contextlib.suppress(OSError):
        host.call("install_keypair", replace=True)
    assert list(elsewhere.iterdir()) == []
