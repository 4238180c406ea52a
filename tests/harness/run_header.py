"""The header of a run, decoded as docs/wire.md defines it, with every check: tests compare the receiver with it."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.errors import PeerError
from pipeline.fec.shard import BLOCK_BYTES_MAX, RUN, RUN_BYTES, prime, shard_bytes


class Run(NamedTuple):
    """A run's header. `first`, `shards`: which of the block's n + m shards; `size`: bytes of the block."""

    stream: int
    block: int
    n: int
    m: int
    first: int
    shards: int
    size: int
    checksum: int


def decode(view: memoryview, at: int, length: int) -> Run:
    """The header of the run frame at `at`, whose length field is `length`. PeerError if it contradicts itself."""
    if length + 4 < RUN_BYTES:
        raise PeerError(f"run of {length} bytes, at least {RUN_BYTES - 4} expected")
    run = Run(*RUN.unpack_from(view, at)[2:])
    _, _, n, m, first, count, size, _ = run
    if not prime(n, m):
        raise PeerError(f"code of {n} + {m} shards, outside the code's domain")
    if not count or first + count > n + m:
        raise PeerError(f"shards {first} to {first + count - 1} of {n} + {m}")
    if not 0 < size <= BLOCK_BYTES_MAX:
        raise PeerError(f"block of {size} bytes, 1 to {BLOCK_BYTES_MAX} allowed")
    if length + 4 != RUN_BYTES + count * shard_bytes(size, n, m):
        raise PeerError(f"run of {length} bytes for {count} shards of {shard_bytes(size, n, m)}")
    return run
