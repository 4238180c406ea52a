"""A directory on a file system that never answers: FUSE without a daemon, as a network mount without its server."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MNT_DETACH = 2  # sys/mount.h


@contextmanager
def hanging(directory: Path) -> Iterator[Path]:
    """Any look at a name below the directory hangs until the block ends; it fails then."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/fuse: {error.strerror}")
    try:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        if libc.mount(b"hang", bytes(directory), b"fuse", 0, options.encode()):
            pytest.skip(f"mount: {os.strerror(ctypes.get_errno())}")
        try:
            yield directory
        finally:
            libc.umount2(bytes(directory), MNT_DETACH)
    finally:
        os.close(device)
