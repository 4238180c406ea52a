"""A POSIX shared-memory segment: created and unlinked by the supervisor, attached by the workers.

    create, attach                             any bytes
    create_with_header, attach_with_header     a kind of segment, told by its header: magic, layout version, geometry

All memory is allocated at creation (posix_fallocate): a full /dev/shm is an error message at the start and never
SIGBUS under load. An attaching process refuses a segment of another kind, layout version or geometry.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

import posix_ipc

from pipeline.errors import LocalError
from pipeline.shm import layout

SHM_DIRECTORY = "/dev/shm"


def path(name: str) -> str:
    """The file of a segment; that of a semaphore has "sem." in front of its name (sem_overview(7))."""
    return SHM_DIRECTORY + name


class Field(NamedTuple):
    """One word of a header that creator and attacher have to agree about."""

    at: int
    value: int
    meaning: str


class Segment:
    """Mapped shared memory: `view` (bytes) and `words` (native u64, aligned: one store, never torn)."""

    def __init__(self, name: str, fd: int, size: int) -> None:
        self.name = name
        self.size = size
        self._map = mmap.mmap(fd, size)
        self.view = memoryview(self._map)
        self.words = self.view[: size // 8 * 8].cast("Q")

    def close(self) -> None:
        """Unmap. Views that others cut out of `view` must have been released before (BufferError)."""
        self.words.release()
        self.view.release()
        self._map.close()


def create(name: str, size: int) -> Segment:
    """Create a segment of zeroed memory, all of it allocated. LocalError if that is impossible."""
    try:
        shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        raise LocalError(
            f"shared memory {name}: expected to be free, exists already; remove {SHM_DIRECTORY}{name}"
        ) from None
    except (posix_ipc.Error, OSError) as error:
        raise LocalError(f"shared memory {name}: cannot be created: {error}") from None
    try:
        os.posix_fallocate(shm.fd, 0, size)
        return Segment(name, shm.fd, size)
    except OSError as error:
        unlink(name)
        if error.errno != errno.ENOSPC:
            raise LocalError(f"shared memory {name}: {size} bytes cannot be allocated: {error.strerror}") from None
        free = os.statvfs(SHM_DIRECTORY)
        raise LocalError(
            f"shared memory {name}: needs {size} bytes, {SHM_DIRECTORY} has {free.f_bavail * free.f_frsize} free; "
            f"enlarge it (mount -o remount,size=... {SHM_DIRECTORY}) or lower ring_slots or lanes"
        ) from None
    finally:
        shm.close_fd()


def attach(name: str, size: int) -> Segment:
    """Map an existing segment. LocalError if it is gone, has another size or another owner."""
    try:
        shm = posix_ipc.SharedMemory(name)
    except posix_ipc.ExistentialError:
        raise LocalError(f"shared memory {name}: expected, not found: it was removed") from None
    except posix_ipc.PermissionsError:
        raise LocalError(f"shared memory {name}: belongs to another user; run as the supervisor's user") from None
    try:
        found = os.fstat(shm.fd)
        if found.st_uid != os.geteuid():
            raise LocalError(f"shared memory {name}: expected ours, belongs to user {found.st_uid}: it was replaced")
        if found.st_size != size:
            raise LocalError(f"shared memory {name}: expected {size} bytes, has {found.st_size}")
        return Segment(name, shm.fd, size)
    finally:
        shm.close_fd()


def create_with_header(name: str, size: int, magic: int, fields: Sequence[Field]) -> Segment:
    """Create a segment of this kind and geometry. The magic is written last: a segment with it is complete."""
    memory = create(name, size)
    for field in reversed(_header(magic, fields)):
        memory.words[field.at // 8] = field.value
    return memory


def attach_with_header(name: str, size: int, magic: int, fields: Sequence[Field]) -> Segment:
    """Map an existing segment of this kind and geometry. LocalError if it is another."""
    memory = attach(name, size)
    for field in _header(magic, fields):
        found = memory.words[field.at // 8]
        if found != field.value:
            memory.close()
            raise LocalError(f"shared memory {name}: {field.meaning}: expected {field.value}, found {found}")
    return memory


def _header(magic: int, fields: Sequence[Field]) -> list[Field]:
    return [
        Field(layout.MAGIC_AT, magic, "magic"),
        Field(layout.VERSION_AT, layout.LAYOUT_VERSION, "layout version"),
        *fields,
    ]


def unlink(name: str) -> None:
    """Remove a segment's name; mappings live on. No error if it is gone already."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass
