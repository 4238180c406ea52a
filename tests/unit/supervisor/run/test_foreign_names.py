"""The names of an instance: others may have made names like ours, and nothing of theirs is touched or in the way."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.shm.segment import SHM_DIRECTORY
from pipeline.supervisor import instance
from pipeline.supervisor.instance import Instance

SOMEBODY = 4242

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "run")
    monkeypatch.setattr(LOG, "propagate", True)
    return Instance(f"i{secrets.token_hex(4)}")


@pytest.fixture
def theirs(named: Instance) -> Iterator[list[Path]]:
    """Names like those of the instance that are not ours: a directory, a link, a file of another user, a FIFO."""
    paths = [Path(SHM_DIRECTORY, f"tunnel@{named.name}@00000000@{what}") for what in ("dir", "link", "file", "fifo")]
    paths[0].mkdir()
    paths[1].symlink_to("/etc/passwd")
    paths[2].write_bytes(b"x")
    os.chown(paths[2], SOMEBODY, SOMEBODY)
    os.mkfifo(paths[3])
    yield paths
    paths[0].rmdir()
    for path in paths[1:]:
        path.unlink()


def test_a_start_removes_our_leftovers_and_leaves_alone_what_is_anothers(
    named: Instance, theirs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    ours = [Path(SHM_DIRECTORY, f"{kind}tunnel@{named.name}@00000000@left") for kind in ("", "sem.")]
    for path in ours:
        path.write_bytes(b"")
    with caplog.at_level(logging.WARNING, "tunnel"):
        named.acquire()
    named.release()
    assert not any(path.exists() for path in ours)
    assert all(os.path.lexists(path) for path in theirs)
    assert [record.getMessage() for record in caplog.records if "4 names like ours" in record.getMessage()]
    assert len(caplog.records) == 1


def test_a_run_directory_that_another_user_has_made_is_refused(named: Instance) -> None:
    instance.RUN_DIRECTORY.mkdir()
    os.chown(instance.RUN_DIRECTORY, SOMEBODY, 0)
    with pytest.raises(LocalError, match=f"belongs to user {SOMEBODY}"):
        named.acquire()
    os.chown(instance.RUN_DIRECTORY, 0, 0)
    instance.RUN_DIRECTORY.chmod(0o777)
    with pytest.raises(LocalError, match="other users can write"):
        named.acquire()


def test_a_lock_is_no_link(named: Instance, tmp_path: Path) -> None:
    instance.RUN_DIRECTORY.mkdir(0o700)
    target = tmp_path / "precious"
    target.write_text("precious")
    named.lock_path = instance.RUN_DIRECTORY / "x.lock"
    named.lock_path.symlink_to(target)
    with pytest.raises(LocalError, match="symbolic link"):
        named.acquire()
    assert target.read_text() == "precious"


def test_a_control_socket_that_cannot_be_removed_is_an_error_that_leaves_no_lock(named: Instance) -> None:
    instance.RUN_DIRECTORY.mkdir(0o700)
    named.lock_path, named.socket_path = (instance.RUN_DIRECTORY / f"x.{what}" for what in ("lock", "sock"))
    named.socket_path.mkdir()
    with pytest.raises(LocalError, match=r"x\.sock: Is a directory"):
        named.acquire()
    assert not named.lock_path.exists()
    named.socket_path.rmdir()
    named.acquire()
    named.release()


def test_a_machine_without_shared_memory_is_told_what_to_mount(
    named: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "SHM_DIRECTORY", str(tmp_path / "none"))
    with pytest.raises(LocalError, match="is missing: mount -t tmpfs"):
        named.acquire()
