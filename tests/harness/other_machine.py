"""A plugin of pytest that lets a process take this machine for arm64 with larger pages, before it imports pipeline.

    python -m pytest -p tests.harness.other_machine tests/unit/shm

Pages have 64 KiB, or as many bytes as OTHER_MACHINE_PAGE_BYTES says. So fences are called where arm64 needs them, and
each mapping is at a place where it can be there. The processor keeps its own order: whether fences suffice is no matter
of these tests.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Any

PAGE_BYTES = int(os.environ.get("OTHER_MACHINE_PAGE_BYTES", 1 << 16))
NAME = "aarch64"


class _Mapping(mmap.mmap):
    def __new__(cls, *arguments: Any, **named: Any) -> _Mapping:
        if named.get("offset", 0) % PAGE_BYTES:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # mmap(2)
        return super().__new__(cls, *arguments, **named)


_uname = os.uname()

os.uname = lambda: os.uname_result((*_uname[:4], NAME))
mmap.PAGESIZE = mmap.ALLOCATIONGRANULARITY = PAGE_BYTES  # type: ignore[misc]
mmap.mmap = _Mapping  # type: ignore[misc]
