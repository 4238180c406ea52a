"""Looks whether the certificate of this end has been renewed, and lets a reload take it over.

Programs that renew certificates write several files, one after the other. So a change counts once two looks in a row
have seen it. If the new files cannot be used, the old certificate stays in use, and the event of the refused reload
says why. They are not tried again before they change again.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from pipeline.config import Config

LOOK_NS = 10_000_000_000

Seen = tuple[tuple[int, int, int, int] | None, ...]
"""Device, inode, size and time of change of each file; None for one that is not there."""


class CertificateWatch:
    """`config`: the one in force; `renew`: read the files that it names. Times are CLOCK_MONOTONIC ns."""

    def __init__(self, config: Callable[[], Config], renew: Callable[[], object]) -> None:
        self._config = config
        self._renew = renew
        self._paths: tuple[str, ...] = ()
        self._used: Seen = ()
        self._last: Seen = ()
        self._due = 0

    def tick(self, now: int) -> None:
        if now < self._due:
            return
        self._due = now + LOOK_NS
        config = self._config()
        paths = tuple(filter(None, (config.tls_cert_file, config.tls_key_file)))
        seen = tuple(map(_look_at, paths))
        if paths != self._paths:  # these have just been read
            self._paths, self._used = paths, seen
        elif seen != self._used and seen == self._last and None not in seen:
            self._used = seen
            self._renew()
        self._last = seen


def _look_at(path: str) -> tuple[int, int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
