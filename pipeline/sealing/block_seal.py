"""The seal of blocks: one call of AEAD for each.

    nonce    stream u32 | number u32 | copy u32, big-endian

A BlockSealer belongs to one duty of one process, which numbers its blocks. So no nonce repeats under a key;
docs/security.md has the argument. A BlockOpener says -1 to what is no block of its key.
"""

from __future__ import annotations

import struct

from pipeline.sealing.aead import NONCE_BYTES, TAG_BYTES, Aead, InvalidTag

_pack_nonce = struct.Struct(">III").pack_into


class BlockSealer:
    """Seals with one key."""

    __slots__ = ("_encrypt_into", "_nonce")

    def __init__(self, aead: Aead) -> None:
        self._encrypt_into = aead.encrypt_into
        self._nonce = bytearray(NONCE_BYTES)

    def seal(self, stream: int, number: int, copy: int, plaintext: memoryview, into: memoryview) -> None:
        """`into` has TAG_BYTES more than the plaintext, and shares no byte with it."""
        _pack_nonce(self._nonce, 0, stream, number, copy)
        self._encrypt_into(self._nonce, plaintext, None, into)


class BlockOpener:
    """Opens with one key."""

    __slots__ = ("_decrypt_into", "_nonce")

    def __init__(self, aead: Aead) -> None:
        self._decrypt_into = aead.decrypt_into
        self._nonce = bytearray(NONCE_BYTES)

    def open(self, stream: int, number: int, copy: int, sealed: memoryview, into: memoryview) -> int:
        """Bytes of the plaintext, at the start of `into`; -1 for what the tag does not prove."""
        size = len(sealed) - TAG_BYTES
        if size < 0 or size > len(into):
            return -1
        _pack_nonce(self._nonce, 0, stream, number, copy)
        try:
            self._decrypt_into(self._nonce, sealed, None, into[:size])
        except InvalidTag:
            return -1
        return size
