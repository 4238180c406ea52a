"""An instance by its name: its lock, its control socket, its names in /dev/shm.

    /run/tunnel-supervisor/NAME.lock    flock held for life by the supervisor; holds its pid
    /run/tunnel-supervisor/NAME.sock    control socket, 0600
    /run/tunnel-names/NAME.hosts        names of a server's peers, for a DNS server (roles.hosts_file)
    /dev/shm/tunnel@NAME@RUN@...        segments;  /dev/shm/sem.tunnel@NAME@RUN@...  doorbells

The supervisor that holds the lock owns all other names of the instance. It removes what a dead predecessor left. The
kernel releases the lock when its holder ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.credentials.ownership import find_exposure
from pipeline.errors import LocalError, NotRunning, PermissionDenied
from pipeline.log import LOG, printable
from pipeline.runtime import topology
from pipeline.shm.segment import SHM_DIRECTORY

OPEN_ATTEMPTS = 100
LOCK_SECONDS = 0.2  # supervisor_pid() in another process holds the lock for a moment
RUN_DIRECTORY = Path("/run/tunnel-supervisor")
NAMES_DIRECTORY = Path("/run/tunnel-names")
_SHM_NAME = re.compile(r"(?:sem\.)?tunnel@(?P<name>[^@]+)@[0-9a-f]{8}@[^@]+")


def hosts_path(name: str) -> Path:
    """The hosts file of an instance."""
    return NAMES_DIRECTORY / f"{name}.hosts"


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
            advice = ": mount a tmpfs on /run" if error.errno == errno.EROFS else ""
            raise LocalError(f"{error.filename}: {error.strerror}{advice}") from None
        if not _lock_soon(self._lock_fd):
            pid = _pid(self._lock_fd)
            os.close(self._lock_fd)
            raise LocalError(
                f'instance "{self.name}" runs already (pid {pid}); stop it, or give this one another name '
                "(--set name=...)"
            )
        if not self._is_current():  # the predecessor removed the file between our open and our lock
            os.close(self._lock_fd)
            self.acquire()
            return
        try:
            self._write_pid()
            self.remove_leftovers()
        except (OSError, LocalError) as error:
            self.release()
            if isinstance(error, LocalError):
                raise
            raise LocalError(f"{error.filename or self.lock_path}: {error.strerror}") from None

    def _write_pid(self) -> None:
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def _open_lock(self) -> int:
        """Another instance that ends may remove the directory between any two of these steps: try again then."""
        attempts = OPEN_ATTEMPTS
        while True:
            try:
                RUN_DIRECTORY.mkdir(mode=0o700, exist_ok=True)
                if exposure := find_exposure(RUN_DIRECTORY):
                    raise LocalError(exposure)
                return os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
        """Remove our names of this instance in /dev/shm, and its stale files in /run. The lock must be held.

        Everybody may make names in /dev/shm. A name that is not a file of ours is left alone.
        """
        if not os.path.isdir(SHM_DIRECTORY):
            raise LocalError(f"{SHM_DIRECTORY} is missing: mount -t tmpfs -o mode=1777 tmpfs {SHM_DIRECTORY}")
        if exposure := find_exposure(Path(SHM_DIRECTORY)):
            LOG.warning("%s", exposure)
        removed, others = [], []
        for entry in os.listdir(SHM_DIRECTORY):
            if (match := _SHM_NAME.fullmatch(entry)) and match["name"] == self.name:
                path = Path(SHM_DIRECTORY, entry)
                if _is_our_file(path):
                    path.unlink(missing_ok=True)
                    removed.append(entry)
                else:
                    others.append(entry)
        if others:
            LOG.warning(
                "%s has %d names like ours that are not ours, such as %s: they are left alone",
                *(SHM_DIRECTORY, len(others), printable(others[0])),
            )
        for path in (self.socket_path, hosts_path(self.name)):
            path.unlink(missing_ok=True)
        return removed

    def hold_place(self) -> bool:
        """Make the lock file again if somebody has removed it. Whether it had to be made.

        Without it, a second supervisor of this name would take what belongs to this one. LocalError if there is a
        second one already.
        """
        if self._is_current():
            return False
        fd = self._open_lock()
        if not _lock_soon(fd):
            pid = _pid(fd)
            os.close(fd)
            raise LocalError(f'another supervisor has taken the name "{self.name}" (pid {pid}): stop one of the two')
        os.close(self._lock_fd)
        self._lock_fd = fd
        self._write_pid()
        return True

    def release(self) -> None:
        """Remove every trace of the instance, and release the lock. Files of another supervisor stay."""
        for path in (hosts_path(self.name), self.socket_path, self.lock_path) if self._is_current() else ():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                LOG.warning("%s cannot be removed: %s", path, error.strerror)
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


class Found(NamedTuple):
    """The instances on this machine that have a lock file, by name."""

    running: list[str]
    dead: list[str]  # nobody holds the lock: the supervisor was killed

    @property
    def note(self) -> str:
        """A sentence about the dead ones; empty if there are none."""
        if not self.dead:
            return ""
        names = ", ".join(f'"{name}"' for name in self.dead)
        return f"dead, since the supervisor was killed: {names} (its next start removes what is left)"


def find_instances() -> Found:
    """PermissionDenied without the right to look."""
    found = Found([], [])
    try:
        names = sorted(entry[:-5] for entry in os.listdir(RUN_DIRECTORY) if entry.endswith(".lock"))
    except FileNotFoundError:
        return found
    except PermissionError as error:
        raise PermissionDenied(f"{error.filename}: {error.strerror}: run as root") from None
    for name in names:
        try:
            Instance(name).supervisor_pid()
        except NotRunning:
            if Instance(name).lock_path.exists():  # else it has just ended
                found.dead.append(name)
        else:
            found.running.append(name)
    return found


def names_in_shared_memory() -> set[str]:
    """Of all instances that have a file of ours in /dev/shm, dead or alive."""
    try:
        matches = [(entry, _SHM_NAME.fullmatch(entry)) for entry in os.listdir(SHM_DIRECTORY)]
    except OSError:
        return set()
    return {match["name"] for entry, match in matches if match and _is_our_file(Path(SHM_DIRECTORY, entry))}


def _is_our_file(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _pid(fd: int) -> int:
    """The pid in a lock file; 0 while there is none, or something else."""
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def _lock_soon(fd: int) -> bool:
    """Take the lock, unless a supervisor holds it."""
    until = time.monotonic() + LOCK_SECONDS
    while not _lock(fd):
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


assert _SHM_NAME.fullmatch(topology.name_prefix("name") + "0123abcd@scoreboard")
