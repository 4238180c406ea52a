"""The memory of sealed blocks, which no name leads to: the key table, and the replay windows of each lane.

Both are memfds of the supervisor, and outlive workers. Only tun workers get their descriptors.
"""

from __future__ import annotations

import os

from pipeline.errors import LocalError
from pipeline.sealing.replay_window import ReplayWindows
from pipeline.shm.key_table import KeyTable


class SealMemory:
    """`keys`: the table, for its writer. LocalError if there is no memory."""

    keys: KeyTable

    def __init__(self, capacity: int, lanes: int) -> None:
        self._fds: list[int] = []  # of the keys, and of the windows of each lane
        try:
            self.keys, fd = KeyTable.create(capacity)
            self._fds.append(fd)
            for _ in range(lanes):
                self._fds.append(os.memfd_create("windows", os.MFD_CLOEXEC))
                os.ftruncate(self._fds[-1], ReplayWindows.bytes_of(capacity))
        except OSError as error:
            self.close()
            raise LocalError(f"memory for keys cannot be made: {error.strerror}") from None

    def fds(self, lane: int) -> dict[str, int]:
        """Those that the tun worker of a lane gets."""
        return {"keys": self._fds[0], "windows": self._fds[1 + lane]}

    def begin_anew(self) -> None:
        """Forget all keys and windows: peer handles are given out from the first one on again. No worker may run."""
        self.keys.erase_all()
        for fd in self._fds[1:]:
            size = os.fstat(fd).st_size
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
