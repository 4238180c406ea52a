"""The key table: one writer, readers that read all or nothing, and nobody else."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.shm.key_table import RECORD_BYTES, BlockKeys, KeyTable
from tests.harness.sealed_lane import handle

CAPACITY = 3


@pytest.fixture
def ends() -> Iterator[tuple[KeyTable, KeyTable, int]]:
    """The table at its supervisor, at a tun worker, and its descriptor."""
    table, fd = KeyTable.create(CAPACITY)
    with closing(table), closing(KeyTable.attach(fd, CAPACITY)) as reader:
        try:
            yield table, reader, fd
        finally:
            os.close(fd)


def keys(number: int, peer: int = 0, epoch: int = 0) -> BlockKeys:
    secrets = [bytes([number, which]) * 16 for which in range(4)]
    return BlockKeys(handle(number, peer), 2, epoch, epoch + 1, *secrets)


def test_a_reader_has_the_keys_of_each_session_that_were_written(ends: tuple[KeyTable, KeyTable, int]) -> None:
    table, reader, _ = ends
    assert reader.read(handle(1)) is None
    for peer in range(CAPACITY):
        table.write(keys(1 + peer, peer, 7))
    for peer in range(CAPACITY):
        assert reader.read(handle(1 + peer, peer)) == keys(1 + peer, peer, 7)
        assert reader.read(handle(9, peer)) is None  # another session under the index


def test_the_keys_of_a_session_that_has_ended_are_gone_from_memory(ends: tuple[KeyTable, KeyTable, int]) -> None:
    table, reader, fd = ends
    table.write(keys(1))
    table.write(keys(2, 1))
    table.erase(handle(1))
    assert reader.read(handle(1)) is None and reader.read(handle(2, 1)) == keys(2, 1)
    memory = os.pread(fd, CAPACITY * RECORD_BYTES, 0)
    assert keys(1).send not in memory and keys(2, 1).send in memory
    table.erase_all()
    assert not any(os.pread(fd, CAPACITY * RECORD_BYTES, 0)[8:RECORD_BYTES])
    assert reader.read(handle(2, 1)) is None


def test_every_write_makes_another_version_of_its_record_alone(ends: tuple[KeyTable, KeyTable, int]) -> None:
    table, reader, _ = ends
    seen = [reader.version(handle(1))]
    for change in (lambda: table.write(keys(1)), lambda: table.write(keys(1)), lambda: table.erase(handle(1))):
        change()
        seen.append(reader.version(handle(1)))
    assert len(set(seen)) == 4 and not any(version & 1 for version in seen)
    assert reader.version(handle(1, 1)) == 0


class _Between:
    """The words of a reader, and what its supervisor does behind the first look at them."""

    def __init__(self, reader: KeyTable, act: object) -> None:
        self._words, self._act = reader.words, act

    def __getitem__(self, at: int) -> int:
        found = int(self._words[at])
        if callable(self._act):
            act, self._act = self._act, None
            act()
        return found

    def release(self) -> None:
        self._words.release()


@pytest.mark.parametrize("change", [lambda table: table.write(keys(1, epoch=5)), lambda table: table.erase(handle(1))])
def test_a_record_that_changes_while_it_is_read_is_not_read(
    ends: tuple[KeyTable, KeyTable, int], change: object
) -> None:
    table, reader, _ = ends
    table.write(keys(1))
    assert callable(change)
    reader.words = _Between(reader, lambda: change(table))  # type: ignore[assignment]
    assert reader.read(handle(1)) is None


def test_a_record_is_not_read_while_it_is_written_and_its_version_is_odd(ends: tuple[KeyTable, KeyTable, int]) -> None:
    table, reader, _ = ends
    table.write(keys(1))
    table.words[0] += 1
    assert reader.version(handle(1)) & 1 and reader.read(handle(1)) is None
    table.words[0] += 1
    assert reader.read(handle(1)) == keys(1)


def test_nobody_but_its_maker_can_write_the_table(ends: tuple[KeyTable, KeyTable, int]) -> None:
    table, reader, fd = ends
    table.write(keys(1))
    with pytest.raises(PermissionError):
        mmap.mmap(fd, CAPACITY * RECORD_BYTES)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    for size in (0, RECORD_BYTES * (CAPACITY + 1)):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    with pytest.raises(TypeError):
        reader.write(keys(2))
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        with pytest.raises(OSError) as refused:
            mmap.mmap(again, RECORD_BYTES)
        assert refused.value.errno == errno.EPERM
    finally:
        os.close(again)
    assert reader.read(handle(1)) == keys(1)
    table.write(keys(2))  # and its maker still can
    assert reader.read(handle(2)) == keys(2)
