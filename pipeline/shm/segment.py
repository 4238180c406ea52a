"""A POSIX shared-memory segment: created and unlinked by the supervisor, attached by the workers.

    create, attach                             any bytes
    create_with_header, attach_with_header     a kind of segment, told by its header: magic, layout version, geometry

An attaching worker says which areas it writes. It maps the whole segment read-only, and these areas once more. All
descriptors that it keeps are read-only, and once it has dropped its rights it cannot open others. So not even a worker
that has been taken over can write to the rest (mprotect(2), EACCES).

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
from pipeline.shm.memory_order import fence

SHM_DIRECTORY = "/dev/shm"


def path(name: str) -> str:
    """The file of a segment; that of a semaphore has "sem." in front of its name (sem_overview(7))."""
    return SHM_DIRECTORY + name


def size_of(name: str) -> int:
    """Size of an existing segment. LocalError if it is gone."""
    try:
        return os.stat(path(name), follow_symlinks=False).st_size
    except OSError:
        raise LocalError(f"shared memory {name}: expected, not found: it was removed") from None


def layout_version(name: str) -> int:
    """The layout version of an existing segment, 0 while it is being made. FileNotFoundError if it is gone."""
    with open(os.open(path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        return int.from_bytes(file.read(layout.VERSION_AT + 8)[layout.VERSION_AT :], "little")


class Field(NamedTuple):
    """One word of a header that creator and attacher have to agree about."""

    at: int
    value: int
    meaning: str


class Area(NamedTuple):
    """Whole pages of a segment (layout.MAP_PAGE); the last may end with the segment."""

    at: int
    size: int


class Segment:
    """Mapped shared memory: `view` (bytes) and `words` (native u64, aligned: one store, never torn).

    `areas`: those that can be written; None for all of it. Then `view` and `words` can be written as well.
    """

    def __init__(self, name: str, fd: int, size: int, areas: Sequence[Area] | None = None) -> None:
        self.name = name
        self.size = size
        whole = Area(0, size)
        self._maps = {whole: mmap.mmap(fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if areas is None else 0))}
        for area in areas or ():
            self._maps[area] = _map_writable(name, fd, area)
        self._views = {area: memoryview(each) for area, each in self._maps.items()}
        self.view = self._views[whole]
        self.words = self.view[: size // 8 * 8].cast("Q")

    def cut(self, at: int, size: int) -> memoryview:
        """A view of these bytes, which can be written if they lie in one of the areas."""
        for area, view in reversed(self._views.items()):
            if area.at <= at and at + size <= area.at + area.size:
                return view[at - area.at : at - area.at + size]
        raise LocalError(f"shared memory {self.name}: has {self.size} bytes, none at {at} to {at + size}")

    def cut_words(self, at: int, count: int) -> memoryview:
        """The same of so many words."""
        return self.cut(at, 8 * count).cast("Q")

    def close(self) -> None:
        """Unmap. Views that others cut out must have been released before (BufferError)."""
        self.words.release()
        for view in self._views.values():
            view.release()
        for each in self._maps.values():
            each.close()


def _map_writable(name: str, read_only: int, area: Area) -> mmap.mmap:
    """Map an area to write to, and leave no descriptor that can write.

    A mapping of Python's keeps a copy of its descriptor, which has the lowest free number: that number becomes a copy
    of the read-only one.
    """
    shm = posix_ipc.SharedMemory(name)
    try:
        if not os.path.samestat(os.fstat(shm.fd), os.fstat(read_only)):
            raise LocalError(f"shared memory {name}: was replaced while it was being attached")
        number = os.dup(shm.fd)
        os.close(number)
        made = mmap.mmap(shm.fd, area.size, offset=area.at)
        os.dup2(read_only, number, inheritable=False)
        return made
    finally:
        shm.close_fd()


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


def attach(name: str, size: int, areas: Sequence[Area] | None = None, owner: int | None = None) -> Segment:
    """Map an existing segment, to write to these areas alone. LocalError if it is gone, has another size or owner.

    `owner`: the user whose segment it has to be; None for our own.
    """
    try:
        shm = posix_ipc.SharedMemory(name, read_only=areas is not None)
    except posix_ipc.ExistentialError:
        raise LocalError(f"shared memory {name}: expected, not found: it was removed") from None
    except posix_ipc.PermissionsError:
        raise LocalError(f"shared memory {name}: belongs to another user; run as the supervisor's user") from None
    try:
        found = os.fstat(shm.fd)
        expected = os.geteuid() if owner is None else owner
        if found.st_uid != expected:
            whose = "ours" if owner is None else f"that of user {owner}"
            raise LocalError(f"shared memory {name}: expected {whose}, belongs to user {found.st_uid}: it was replaced")
        if found.st_size != size:
            raise LocalError(f"shared memory {name}: expected {size} bytes, has {found.st_size}")
        return Segment(name, shm.fd, size, areas)
    finally:
        shm.close_fd()


def create_with_header(name: str, size: int, magic: int, fields: Sequence[Field]) -> Segment:
    """Create a segment of this kind and geometry. The magic is written last: a segment with it is complete."""
    memory = create(name, size)
    first, *others = _header(magic, fields)
    for field in reversed(others):
        memory.words[field.at // 8] = field.value
    fence()
    memory.words[first.at // 8] = first.value
    return memory


def attach_with_header(
    name: str,
    size: int,
    magic: int,
    fields: Sequence[Field],
    areas: Sequence[Area] | None = None,
    owner: int | None = None,
) -> Segment:
    """Map an existing segment of this kind and geometry. LocalError if it is another."""
    memory = attach(name, size, areas, owner)
    for field in _header(magic, fields):
        found = memory.words[field.at // 8]
        fence()
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
