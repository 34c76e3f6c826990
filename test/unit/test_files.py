"""What root writes in directories that are somebody else's, whatever that one puts in its way."""

from __future__ import annotations

import os
import stat

import pytest

import multimaster_files as files

# Somebody who is not root.
USER = 12345


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.fixture
def victim(tmp_path):
    """A file that is not to be touched."""
    path = tmp_path / "victim"
    path.write_text("kept")
    path.chmod(0o644)
    yield path
    assert (path.read_text(), mode(path), path.stat().st_uid) == ("kept", 0o644, os.geteuid())


def test_a_file_is_written_at_once_with_its_mode_and_replaces_a_link(tmp_path, victim):
    path = tmp_path / "file"
    path.symlink_to(victim)
    files.write(str(path), "new", 0o400)
    assert (path.read_text(), mode(path), path.is_symlink()) == ("new", 0o400, False)
    assert {one.name for one in tmp_path.iterdir()} == {"file", "victim"}


def test_a_link_that_takes_the_place_of_a_half_written_file_is_not_followed(
    tmp_path, victim, monkeypatch
):
    def swap(handle):
        (scratch,) = tmp_path.glob(".multimaster-*")
        scratch.unlink()
        scratch.symlink_to(victim)

    monkeypatch.setattr(os, "fsync", swap)
    files.write(str(tmp_path / "file"), "new", 0o600)


def test_a_failure_leaves_nothing_and_what_there_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(handle):
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        files.write(str(path), "new", 0o600)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


def test_a_directory_is_made_once_with_those_above_it(tmp_path):
    path = tmp_path / "a/b"
    files.make_directory(str(path), 0o700)
    assert mode(path) == 0o700
    path.chmod(0o755)
    files.make_directory(str(path), 0o700)
    assert mode(path) == 0o755


@pytest.mark.root
@pytest.mark.parametrize("kind", ["a link", "a full directory"])
def test_a_directory_that_takes_the_place_of_a_new_one_is_not_given_away(
    tmp_path, monkeypatch, kind
):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    os.chown(theirs, USER, USER)
    ours.mkdir()
    (ours / "secret").write_text("x")
    real = os.mkdir

    def mkdir(name, *arguments, dir_fd):
        real(name, *arguments, dir_fd=dir_fd)
        (theirs / name).rmdir()
        if kind == "a link":
            (theirs / name).symlink_to(ours)
        else:
            ours.rename(theirs / name)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(OSError, match=r"somebody else|[Nn]ot a directory"):
        files.make_directory(str(theirs / "new"), 0o700, (USER, USER))
    (found,) = (one for one in tmp_path.rglob("secret") if not one.parent.is_symlink())
    assert found.parent.stat().st_uid == 0


@pytest.mark.root
def test_a_directory_of_the_user_is_written_to_however_it_is_reached(tmp_path):
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.mkdir()
    link.symlink_to(theirs)
    os.chown(theirs, USER, USER)
    os.lchown(link, USER, USER)
    files.write(str(link / "file"), "x", 0o400, (USER, USER))
    about = (theirs / "file").stat()
    assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (USER, USER, 0o400)
    files.make_directory(str(link / "below"), 0o700, (USER, USER))
    assert (theirs / "below").stat().st_uid == USER


@pytest.mark.root
@pytest.mark.parametrize("where", ["the directory", "one above"])
def test_a_link_of_the_user_leads_to_no_directory_of_roots(tmp_path, where):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "pki").mkdir(parents=True)
    theirs.mkdir()
    os.chown(theirs, USER, USER)
    if where == "the directory":
        (theirs / "pki").symlink_to(ours / "pki")
        os.lchown(theirs / "pki", USER, USER)
        path = theirs / "pki"
    else:
        (theirs / "up").symlink_to(ours)
        os.lchown(theirs / "up", USER, USER)
        path = theirs / "up/pki"
    for act in (
        lambda: files.write(str(path / "file"), "x", 0o400, (USER, USER)),
        lambda: files.make_directory(str(path / "new"), 0o700, (USER, USER)),
    ):
        with pytest.raises(PermissionError, match="another user"):
            act()
    assert not list((ours / "pki").iterdir())
    # Root's own way there is good.
    files.write(str(ours / "pki/file"), "x", 0o400, (USER, USER))
    assert (ours / "pki/file").stat().st_uid == USER


def test_a_log_is_added_to_and_private(tmp_path):
    path = tmp_path / "log"
    for text in (b"a", b"b"):
        handle = files.open_log(str(path))
        os.write(handle, text)
        os.close(handle)
        # As an older release has left it.
        assert mode(path) == 0o600
        path.chmod(0o644)
    assert path.read_text() == "ab"


@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a second name", "a pipe"])
def test_a_log_is_nothing_that_somebody_else_has_put_there(tmp_path, victim, kind):
    path = tmp_path / "log"
    if kind == "a second name":
        path.hardlink_to(victim)
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(victim if kind == "a link" else tmp_path / "nowhere")
    handle = files.open_log(str(path))
    os.write(handle, b"x")
    os.close(handle)
    assert (path.read_text(), path.is_symlink(), mode(path)) == ("x", False, 0o600)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.root
def test_a_log_is_no_file_of_somebody_elses(tmp_path):
    path = tmp_path / "log"
    path.write_text("theirs")
    os.chown(path, USER, USER)
    os.close(files.open_log(str(path)))
    assert (path.read_text(), path.stat().st_uid) == ("", 0)
