"""The seal of notes: supervisors alone have its keys.

    count u64 | ciphertext and tag      the nonce is four zeros and the count

Each note that an end seals in a session has a count of its own, and the key is of this session and direction. An end
opens a count once: of counts below the latest WINDOW ones it opens none.
"""

from __future__ import annotations

import struct

from pipeline.errors import PeerError
from pipeline.sealing.aead import TAG_BYTES, InvalidTag, aead

WINDOW = 64
_COUNT = struct.Struct(">Q")
OVERHEAD = _COUNT.size + TAG_BYTES


class NoteSeal:
    """Of one session, at one end. `send`, `receive`: keys."""

    def __init__(self, suite: int, send: bytes, receive: bytes) -> None:
        self._send, self._receive = aead(suite, send), aead(suite, receive)
        self._count = 0
        self._latest = 0
        self._opened: set[int] = set()  # of the latest WINDOW counts

    def seal(self, note: bytes) -> bytes:
        self._count += 1
        count = _COUNT.pack(self._count)
        return count + self._send.encrypt(bytes(4) + count, note, count)

    def open(self, sealed: bytes) -> bytes | None:
        """The note; None if it has been opened before, or is too old. PeerError if it is not the other end's."""
        if len(sealed) < OVERHEAD:
            raise PeerError(f"a sealed note of {len(sealed)} bytes")
        head = sealed[: _COUNT.size]
        (count,) = _COUNT.unpack(head)
        if count in self._opened or count + WINDOW <= self._latest:
            return None
        try:
            note = self._receive.decrypt(bytes(4) + head, sealed[_COUNT.size :], head)
        except InvalidTag:
            raise PeerError("a note that the other end has not sealed") from None
        self._latest = max(self._latest, count)
        self._opened = {each for each in self._opened | {count} if each + WINDOW > self._latest}
        return note
