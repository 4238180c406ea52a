"""What is left of instances that were killed goes, and nothing else does."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from pipeline.service import instances, remains
from pipeline.supervisor import instance

RUN = "0123abcd"


class Places:
    """/run and /dev/shm of a machine."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.shm = root / "run", root / "shm"
        self.run.mkdir(0o700)
        self.shm.mkdir(0o700)
        monkeypatch.setattr(instance, "RUN_DIRECTORY", self.run)
        monkeypatch.setattr(instance, "SHM_DIRECTORY", str(self.shm))

    def segments(self, name: str) -> list[Path]:
        paths = [self.shm / f"tunnel@{name}@{RUN}@overview", self.shm / f"sem.tunnel@{name}@{RUN}@tun-0"]
        for path in paths:
            path.write_bytes(bytes(4096))
        return paths

    def lock(self, name: str) -> Path:
        path = self.run / f"{name}.lock"
        path.write_text("1\n")
        path.with_suffix(".sock").touch()
        return path

    @property
    def names(self) -> set[str]:
        return {path.name for place in (self.run, self.shm) if place.exists() for path in place.iterdir()}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(tmp_path, monkeypatch)


def test_a_killed_instance_leaves_nothing_with_or_without_its_lock_file(places: Places) -> None:
    places.segments("killed")
    places.lock("killed")
    places.segments("lockless")
    assert remains.find_dead() == ["killed", "lockless"]
    said = list(instances.remove_remains())
    assert len(said) == 2 and all("what was left of it is removed" in sentence for sentence in said)
    assert not places.names and not remains.remove("killed") and list(instances.remove_remains()) == []


def test_what_runs_or_is_not_ours_stays(places: Places) -> None:
    places.segments("runs")
    lock = os.open(places.lock("runs"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (places.shm / f"tunnel@link@{RUN}@overview").symlink_to("/etc/passwd")
    (places.shm / "tunnel@odd@nonsense").touch()
    other, *_ = places.segments("others")
    os.chown(other, 1, 1)
    os.chown(places.shm / f"sem.tunnel@others@{RUN}@tun-0", 1, 1)
    before = places.names
    try:
        assert remains.find_dead() == [] and list(instances.remove_remains()) == [] and places.names == before
    finally:
        os.close(lock)


def test_what_a_process_still_maps_stays(places: Places) -> None:
    """An instance in a container shares /dev/shm with the host, and not /run."""
    path, _ = places.segments("contained")
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        assert remains.find_dead() == [] and memory[0] == 0
    assert remains.find_dead() == ["contained"]
