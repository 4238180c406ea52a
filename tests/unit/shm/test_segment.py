"""Shared-memory segments: allocated at creation, and refused in words if they are not as expected."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import LocalError
from pipeline.shm import layout, segment
from pipeline.shm.segment import Area, Field

SIZE = 3 * layout.MAP_PAGE + 100  # the last word is not whole

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user id")
NOBODY = 65534


@pytest.fixture
def name() -> Iterator[str]:
    fresh = f"/tunnel@segmenttest@{secrets.token_hex(4)}@x"
    yield fresh
    segment.unlink(fresh)


def path(name: str) -> Path:
    return Path(segment.SHM_DIRECTORY + name)


def test_a_new_segment_is_zeroed_private_and_wholly_allocated(name: str) -> None:
    made = segment.create(name, SIZE)
    found = path(name).stat()
    assert bytes(made.view) == bytes(SIZE)
    assert found.st_size == SIZE
    assert found.st_blocks * 512 >= SIZE
    assert found.st_mode & 0o777 == 0o600
    made.close()


def test_words_are_the_aligned_words_of_the_view(name: str) -> None:
    made = segment.create(name, SIZE)
    made.words[3] = 0x0123456789ABCDEF
    assert bytes(made.view[24:32]) == (0x0123456789ABCDEF).to_bytes(8, "little")
    assert len(made.words) == SIZE // 8
    made.close()


def test_creator_and_attacher_read_each_others_words(name: str) -> None:
    made = segment.create(name, SIZE)
    attached = segment.attach(name, SIZE)
    made.view[:3] = b"one"
    attached.view[-3:] = b"two"
    assert bytes(attached.view[:3]) == b"one"
    assert bytes(made.view[-3:]) == b"two"
    attached.close()
    made.close()


def test_a_mapping_outlives_its_name(name: str) -> None:
    made = segment.create(name, SIZE)
    segment.unlink(name)
    assert not path(name).exists()
    made.view[:3] = b"one"
    made.close()


@ROOT_ONLY
def test_a_segment_that_another_user_has_put_under_the_name_is_refused(name: str) -> None:
    segment.create(name, SIZE).close()
    os.chown(path(name), NOBODY, NOBODY)
    with pytest.raises(LocalError, match=f"{name}: expected ours, belongs to user {NOBODY}: it was replaced"):
        segment.attach(name, SIZE)


def test_a_name_that_is_in_use_is_refused_and_left_alone(name: str) -> None:
    made = segment.create(name, SIZE)
    made.view[:3] = b"one"
    with pytest.raises(LocalError, match=f"{name}: expected to be free, exists already; remove /dev/shm{name}"):
        segment.create(name, 2 * SIZE)
    assert bytes(made.view[:3]) == b"one"
    assert path(name).stat().st_size == SIZE
    made.close()


def test_a_segment_that_is_gone_is_refused(name: str) -> None:
    with pytest.raises(LocalError, match=f"{name}: expected, not found: it was removed"):
        segment.attach(name, SIZE)


def test_a_segment_of_another_size_is_refused_with_both_sizes(name: str) -> None:
    segment.create(name, SIZE).close()
    with pytest.raises(LocalError, match=f"{name}: expected {SIZE + 1} bytes, has {SIZE}"):
        segment.attach(name, SIZE + 1)


def test_more_than_there_is_gives_one_message_with_the_figures_and_leaves_nothing(name: str) -> None:
    whole = os.statvfs(segment.SHM_DIRECTORY)
    if not whole.f_blocks:
        pytest.skip("/dev/shm has no limit here")
    size = (whole.f_blocks + 1) * whole.f_frsize
    with pytest.raises(LocalError, match=rf"{name}: needs {size} bytes, /dev/shm has \d+ free; enlarge it"):
        segment.create(name, size)
    assert not path(name).exists()


def test_a_segment_with_a_header_is_attached_by_its_own_kind_and_geometry_alone(name: str) -> None:
    geometry = [Field(16, 4, "slots"), Field(24, 4096, "slot bytes")]
    made = segment.create_with_header(name, SIZE, layout.RING_MAGIC, geometry)
    assert made.words[:4].tolist() == [layout.RING_MAGIC, layout.LAYOUT_VERSION, 4, 4096]
    segment.attach_with_header(name, SIZE, layout.RING_MAGIC, geometry).close()
    with pytest.raises(LocalError, match=f"{name}: magic: expected {layout.SCOREBOARD_MAGIC}, found"):
        segment.attach_with_header(name, SIZE, layout.SCOREBOARD_MAGIC, geometry)
    with pytest.raises(LocalError, match=f"{name}: slots: expected 8, found 4"):
        segment.attach_with_header(name, SIZE, layout.RING_MAGIC, [Field(16, 8, "slots")])
    made.close()


def test_a_segment_that_is_attached_leaves_no_descriptor_that_can_write_to_it(name: str) -> None:
    made = segment.create(name, SIZE)
    made_by_itself = descriptors_of(name)
    page = layout.MAP_PAGE
    attached = segment.attach(name, SIZE, [Area(page, page)])
    attached.cut(page, 3)[:] = b"one"
    assert bytes(made.view[page : page + 3]) == b"one"
    with pytest.raises(TypeError, match="read-only"):
        attached.cut(0, 3)[:] = b"two"
    new = descriptors_of(name) - made_by_itself
    assert new and all(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY for fd in new)
    attached.close()
    made.close()


def descriptors_of(name: str) -> set[int]:
    """Those of this process that are open on the segment."""
    wanted = path(name).stat()
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.path.samestat(os.fstat(fd), wanted):
                found.add(fd)
        except OSError:
            continue  # that of the list itself
    return found


def test_a_segment_that_is_replaced_between_its_two_mappings_is_refused(name: str) -> None:
    segment.create(name, SIZE).close()
    with open(os.devnull, "rb") as other, pytest.raises(LocalError, match=f"{name}: was replaced while"):
        segment._map_writable(name, other.fileno(), Area(0, 4096))


def test_a_segment_without_a_magic_is_not_complete_and_refused(name: str) -> None:
    segment.create(name, SIZE).close()
    with pytest.raises(LocalError, match=f"{name}: magic: expected {layout.RING_MAGIC}, found 0"):
        segment.attach_with_header(name, SIZE, layout.RING_MAGIC, [])


def test_removing_a_name_twice_is_no_error(name: str) -> None:
    segment.create(name, SIZE).close()
    segment.unlink(name)
    segment.unlink(name)


def test_closing_under_a_live_view_is_refused_loudly(name: str) -> None:
    made = segment.create(name, SIZE)
    cut = made.view[:10]
    with pytest.raises(BufferError):
        made.close()
    cut.release()


@ROOT_ONLY
def test_a_segment_of_another_user_is_refused_in_words(name: str) -> None:
    segment.create(name, SIZE).close()
    os.seteuid(NOBODY)
    try:
        with pytest.raises(LocalError, match=name):
            segment.attach(name, SIZE)
    finally:
        os.seteuid(0)
