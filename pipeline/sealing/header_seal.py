"""The seal of the headers of one direction of a connection: AEAD under a count, with a new key every 2^20 headers.

Neither end sends the count. So a header that was changed, repeated, dropped or moved is not opened, and that ends the
connection. The sealer counts a header when the socket has taken a byte of it. Until then nobody has seen it, and its
count may serve for another one.
"""

from __future__ import annotations

from pipeline.errors import PeerError
from pipeline.sealing.aead import NONCE_BYTES, TAG_BYTES, Aead, InvalidTag, aead
from pipeline.sealing.key_schedule import HeaderSecret

STRETCH_BITS = 20
"""2^20 headers under one key: far below the limits of AES-GCM (RFC 8446, 5.5), and not many if a key is stolen."""


class _Stretches:
    """The AEAD of each header, by its count: that of the present stretch, or of the next one."""

    def __init__(self, suite: int, secret: HeaderSecret) -> None:
        self._suite = suite
        self._secret = secret
        self._stretch = 0
        self._aead = aead(suite, secret.header_key())
        self._next: Aead | None = None

    def _next_aead(self) -> Aead:
        if self._next is None:
            self._next = aead(self._suite, self._secret.next().header_key())
        return self._next

    def _begin_next(self) -> None:
        """All headers of the present stretch are done with."""
        self._aead = self._next_aead()
        self._secret = self._secret.next()
        self._next = None
        self._stretch += 1


class HeaderSealer(_Stretches):
    """The outbound direction. `count`: headers of which the socket has taken a byte."""

    count = 0

    def seal(self, ahead: int, header: bytes | memoryview) -> bytes:
        """A sealed header, TAG_BYTES longer, that goes out behind `ahead` others which do not count yet."""
        count = self.count + ahead
        sealing = self._aead if count >> STRETCH_BITS == self._stretch else self._next_aead()
        return sealing.encrypt(count.to_bytes(NONCE_BYTES, "big"), header, None)

    def advance(self, headers: int) -> None:
        """So many headers are on their way."""
        self.count += headers
        if self.count >> STRETCH_BITS != self._stretch:
            self._begin_next()


class HeaderOpener(_Stretches):
    """The inbound direction. `count`: headers that were opened."""

    count = 0

    def open(self, sealed: memoryview) -> bytes:
        """The next header. PeerError if its tag does not prove it."""
        try:
            header = self._aead.decrypt(self.count.to_bytes(NONCE_BYTES, "big"), sealed, None)
        except InvalidTag:
            raise PeerError(f"sealed header of {len(sealed) - TAG_BYTES} bytes that its tag does not prove") from None
        self.count += 1
        if self.count >> STRETCH_BITS != self._stretch:
            self._begin_next()
        return header
