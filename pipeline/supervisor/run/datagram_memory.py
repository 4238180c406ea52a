"""The memory of datagrams, which no name leads to: the table of their secrets, and what each lane knows of its peers.

Both are memfds of the supervisor, and outlive workers. Only dgram workers get their descriptors.
"""

from __future__ import annotations

import os

from pipeline.errors import LocalError
from pipeline.sealing.datagram_memory import DatagramMemory as LaneMemory
from pipeline.shm.datagram_secrets import DatagramSecretTable


class DatagramMemory:
    """`secrets`: the table, for its writer. LocalError if there is no memory."""

    secrets: DatagramSecretTable

    def __init__(self, capacity: int, lanes: int) -> None:
        self._fds: list[int] = []  # of the secrets, and of the memory of each lane
        try:
            self.secrets, fd = DatagramSecretTable.create(capacity)
            self._fds.append(fd)
            for _ in range(lanes):
                self._fds.append(os.memfd_create("datagrams", os.MFD_CLOEXEC))
                os.ftruncate(self._fds[-1], LaneMemory.bytes_of(capacity))
        except OSError as error:
            self.close()
            raise LocalError(f"memory for datagrams cannot be made: {error.strerror}") from None

    def fds(self, lane: int) -> dict[str, int]:
        """Those that the dgram worker of a lane gets."""
        return {"datagram_secrets": self._fds[0], "datagram_memory": self._fds[1 + lane]}

    def begin_anew(self) -> None:
        """Forget all secrets and windows: peer handles are given out from the first one on again. No worker may run."""
        self.secrets.erase_all()
        for fd in self._fds[1:]:
            size = os.fstat(fd).st_size
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
