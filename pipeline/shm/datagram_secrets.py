"""The secrets of datagrams of each peer's session, which dgram workers alone read (pipeline.sealing.key_schedule).

Blocks have keys of their own, which these do not lead to.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pipeline.shm.secret_table import VERSION_BYTES, SecretTable

_RECORD_BYTES = 128
_LAYOUT = struct.Struct("<QII32s32s")

assert VERSION_BYTES + _LAYOUT.size <= _RECORD_BYTES


class DatagramSecrets(NamedTuple):
    """`port`: of the server's datagrams, at a client."""

    peer_handle: int
    suite: int
    port: int
    send: bytes
    receive: bytes


class DatagramSecretTable(SecretTable[DatagramSecrets]):
    NAME = "datagram secrets"
    LAYOUT = _LAYOUT
    RECORD_BYTES = _RECORD_BYTES
    RECORD = DatagramSecrets
