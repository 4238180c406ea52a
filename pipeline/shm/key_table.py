"""The key table: the block keys of each peer's session, which tun workers alone read."""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.shm.secret_table import VERSION_BYTES, SecretTable

KEY_BYTES = 32  # of the AEADs that there are
RECORD_BYTES = 256

_LAYOUT = struct.Struct(f"<QIII4x{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s")

assert VERSION_BYTES + _LAYOUT.size <= RECORD_BYTES


class BlockKeys(NamedTuple):
    """The keys of a session. `open_before` is zeros once the epoch before is over, and in epoch 0."""

    peer_handle: int
    suite: int
    send_epoch: int
    open_epoch: int  # of open_now
    send: bytes
    open_before: bytes
    open_now: bytes
    open_after: bytes


class KeyTable(SecretTable[BlockKeys]):
    NAME = "keys"
    LAYOUT = _LAYOUT
    RECORD_BYTES = RECORD_BYTES
    RECORD = BlockKeys
