"""A POSIX shared-memory segment: made and unlinked by the supervisor, attached by everybody else.

The memory is allocated at creation (posix_fallocate): a full /dev/shm is an error message at start
and never SIGBUS under load. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import errno
import mmap
import os

import posix_ipc

from pipeline.errors import LocalError

SHM_DIRECTORY = "/dev/shm"


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
    """Make a segment of zeroed memory, all of it allocated. Raises LocalError when it cannot be had."""
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
            raise LocalError(f"shared memory {name}: {size} bytes cannot be had: {error.strerror}") from None
        free = os.statvfs(SHM_DIRECTORY)
        raise LocalError(
            f"shared memory {name}: needs {size} bytes, {SHM_DIRECTORY} has {free.f_bavail * free.f_frsize} free; "
            f"enlarge it (mount -o remount,size=... {SHM_DIRECTORY}) or lower ring_slots or lanes"
        ) from None
    finally:
        shm.close_fd()


def attach(name: str, size: int) -> Segment:
    """Map an existing segment. Raises LocalError when it is gone or has another size."""
    try:
        shm = posix_ipc.SharedMemory(name)
    except posix_ipc.ExistentialError:
        raise LocalError(f"shared memory {name}: expected, not there; something removed it") from None
    except posix_ipc.PermissionsError:
        raise LocalError(f"shared memory {name}: belongs to another user; run as the supervisor's") from None
    try:
        actual = os.fstat(shm.fd).st_size
        if actual != size:
            raise LocalError(f"shared memory {name}: expected {size} bytes, has {actual}")
        return Segment(name, shm.fd, size)
    finally:
        shm.close_fd()


def unlink(name: str) -> None:
    """Remove a segment's name; mappings live on. No error when it is gone already."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass
