"""The counts of a server's bridge, as its process reports them to the supervisor."""

from __future__ import annotations

import struct
from typing import NamedTuple

_FORM = struct.Struct("=9Q")


class Counts(NamedTuple):
    """Since the process was started, but for `open`."""

    open: int = 0  # WebSockets that are open now
    opened: int = 0  # WebSockets that were opened
    not_ours: int = 0  # requests for something else
    without_upgrade: int = 0  # requests at the path that are none for a WebSocket
    late: int = 0  # requests that did not come in time, or were too long
    full: int = 0  # connections that found no place
    bad_frames: int = 0  # WebSockets that ended for frames that RFC 6455 or this server forbids
    bare_frames: int = 0  # WebSockets that ended for too many frames without contents
    failed: int = 0  # connections to the tcp workers, or to the web server, that failed

    def packed(self) -> bytes:
        return _FORM.pack(*self)

    @classmethod
    def latest(cls, reports: bytes) -> Counts | None:
        """Of some reports, the last one. None if there is not a whole one."""
        return cls(*_FORM.unpack(reports[-_FORM.size :])) if len(reports) >= _FORM.size else None
