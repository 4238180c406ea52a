"""An instance by its name: its lock, its control socket, its names in /dev/shm.

    /run/tunnel-supervisor/NAME.lock    flock held for life by the supervisor; holds its pid
    /run/tunnel-supervisor/NAME.sock    control socket, 0600
    /dev/shm/tunnel@NAME@RUN@...        segments;  /dev/shm/sem.tunnel@NAME@RUN@...  doorbells

The supervisor that holds the lock owns all other names of the instance. It removes what a dead predecessor left. The
kernel releases the lock when its holder ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

from pipeline.errors import LocalError, NotRunning, PermissionDenied
from pipeline.runtime import topology
from pipeline.shm.segment import SHM_DIRECTORY

OPEN_ATTEMPTS = 100
LOCK_SECONDS = 0.2  # supervisor_pid() in another process holds the lock for a moment
RUN_DIRECTORY = Path("/run/tunnel-supervisor")
_SHM_NAME = re.compile(r"(?:sem\.)?tunnel@(?P<name>[^@]+)@[0-9a-f]{8}@[^@]+")


class Instance:
    """Paths and names of one instance."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock_path = RUN_DIRECTORY / f"{name}.lock"
        self.socket_path = RUN_DIRECTORY / f"{name}.sock"
        self._lock_fd = -1

    def acquire(self) -> None:
        """Take the lock and remove what a dead supervisor left. LocalError if another supervisor is alive."""
        try:
            self._lock_fd = self._open_lock()
        except PermissionError as error:
            raise PermissionDenied(f"{error.filename}: {error.strerror}: run as root") from None
        except OSError as error:
            raise LocalError(f"{error.filename}: {error.strerror}") from None
        until = time.monotonic() + LOCK_SECONDS
        while not _lock(self._lock_fd):
            if time.monotonic() > until:
                raise LocalError(
                    f'instance "{self.name}" runs already (pid {_pid(self._lock_fd)}); stop it, or give '
                    f"this one another name (--set name=...)"
                )
            time.sleep(0.001)
        if not self._is_current():  # the predecessor removed the file between our open and our lock
            os.close(self._lock_fd)
            self.acquire()
            return
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)
        self.remove_leftovers()

    def _open_lock(self) -> int:
        """Another instance that ends may remove the directory between any two of these steps: try again then."""
        attempts = OPEN_ATTEMPTS
        while True:
            try:
                RUN_DIRECTORY.mkdir(mode=0o700, exist_ok=True)
                return os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except (FileExistsError, FileNotFoundError):
                attempts -= 1
                if not attempts:
                    raise

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._lock_fd), os.stat(self.lock_path))
        except FileNotFoundError:
            return False

    def remove_leftovers(self) -> list[str]:
        """Remove every name of this instance in /dev/shm, and a stale control socket. The lock must be held."""
        removed = [
            entry
            for entry in os.listdir(SHM_DIRECTORY)
            if (match := _SHM_NAME.fullmatch(entry)) and match["name"] == self.name
        ]
        for entry in removed:
            (Path(SHM_DIRECTORY) / entry).unlink(missing_ok=True)
        self.socket_path.unlink(missing_ok=True)
        return removed

    def release(self) -> None:
        """Remove every trace of the instance, and release the lock."""
        self.socket_path.unlink(missing_ok=True)
        self.lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)
        try:
            RUN_DIRECTORY.rmdir()
        except OSError:
            pass  # other instances run

    def supervisor_pid(self) -> int:
        """Pid of the supervisor. NotRunning if there is none."""
        try:
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotRunning(f'instance "{self.name}" does not run') from None
        except PermissionError as error:
            raise PermissionDenied(f"{error.filename}: {error.strerror}: run as root") from None
        try:
            if _lock(fd):
                raise NotRunning(f'instance "{self.name}" does not run (its last supervisor died)')
            return _pid(fd)
        finally:
            os.close(fd)


def list_names() -> list[str]:
    """Names of all instances on this machine that have a lock file."""
    return sorted(path.stem for path in RUN_DIRECTORY.glob("*.lock"))


def _pid(fd: int) -> int:
    return int(os.pread(fd, 32, 0) or b"0")


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


assert _SHM_NAME.fullmatch(topology.name_prefix("name") + "0123abcd@scoreboard")
