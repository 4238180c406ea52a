"""From the key shares of a session to the keys of its blocks and headers: X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869).

    root             of a session, from both key shares and the key; it is forgotten once the secrets below are made
    EpochSecret      of a direction: the key of the blocks of one epoch, and the secret of the next one
    HeaderSecret     of a connection and direction: the key of 2^20 headers, and the secret of the next ones
    DatagramSecret   of a session and direction: the two tokens, the mask key and the control keys of its datagrams

Secrets lead forward only: nobody who has one of them can compute the one before it, or the root. docs/wire.md has all
of this as a table.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

AES_256_GCM, CHACHA20_POLY1305 = 1, 2  # suites: NIST SP 800-38D; RFC 8439
SUITES = {AES_256_GCM: "AES-256-GCM", CHACHA20_POLY1305: "ChaCha20-Poly1305"}

KEY_SHARE_BYTES = 32  # a public value of X25519
SECRET_BYTES = 32

CLIENT_TO_SERVER, SERVER_TO_CLIENT = b"client to server", b"server to client"

TOKEN_BYTES = 4

_LENGTH = struct.Struct(">I")
_STRETCH = struct.Struct(">Q")
_CONTEXT = struct.Struct(f">B{KEY_SHARE_BYTES}s{KEY_SHARE_BYTES}sQQ")


def root(shared: bytes, key: bytes) -> bytes:
    """The root of a session. `shared`: the result of X25519, not zero; `key`: the pre-shared key, b"" for none."""
    return _extract(key or bytes(SECRET_BYTES), shared)


class Session(NamedTuple):
    """The values that both ends of a session agree about. Any difference gives other keys."""

    suite: int
    client_key_share: bytes
    server_key_share: bytes
    client_id: int
    session: int

    def context(self) -> bytes:
        return hashlib.sha256(b"tunnel session 1" + _CONTEXT.pack(*self)).digest()


def connection(hello: bytes, challenge: bytes, welcome: bytes, server_hash: bytes) -> bytes:
    """The hash of a connection's handshake. Whole frames, b"" for a challenge that there was not; and the hash of the
    server's certificate."""
    digest = hashlib.sha256(b"tunnel connection 1")
    for part in (hello, challenge, welcome, server_hash):
        digest.update(_LENGTH.pack(len(part)) + part)
    return digest.digest()


class EpochSecret(NamedTuple):
    """The secret of one direction of a session in one epoch."""

    secret: bytes
    epoch: int = 0

    @classmethod
    def first(cls, root: bytes, direction: bytes, session: Session) -> EpochSecret:
        return cls(_expand(root, b"tunnel blocks " + direction + session.context()))

    def next(self) -> EpochSecret:
        return EpochSecret(_expand(self.secret, b"tunnel next epoch"), self.epoch + 1)

    def block_key(self) -> bytes:
        return _expand(self.secret, b"tunnel block key")


def header_root(root: bytes, session: Session) -> bytes:
    """The secret of a session from which those of its connections are made."""
    return _expand(root, b"tunnel headers" + session.context())


class HeaderSecret(NamedTuple):
    """The secret of one direction of a connection, for a stretch of its headers."""

    secret: bytes

    @classmethod
    def first(cls, header_root: bytes, direction: bytes, connection: bytes) -> HeaderSecret:
        return cls(_expand(header_root, b"tunnel headers " + direction + connection))

    def next(self) -> HeaderSecret:
        return HeaderSecret(_expand(self.secret, b"tunnel next headers"))

    def header_key(self) -> bytes:
        return _expand(self.secret, b"tunnel header key")


class DatagramSecret(NamedTuple):
    """The secret of the datagrams in one direction of a session.

    The tokens and the mask key last as long as the session. A mask hides numbers, and encrypts nothing else: two
    headers have one mask if the samples of ciphertext agree. Of 2^48 samples two agree with a chance of 2^-33. Keys of
    control datagrams belong to a stretch of counts (pipeline.sealing.datagram_seal): each process has its own ones.
    """

    secret: bytes

    @classmethod
    def of(cls, header_root: bytes, direction: bytes) -> DatagramSecret:
        return cls(_expand(header_root, b"tunnel datagrams " + direction))

    def data_token(self) -> int:
        return int.from_bytes(_expand(self.secret, b"tunnel data token")[:TOKEN_BYTES], "big")

    def control_token(self) -> int:
        return int.from_bytes(_expand(self.secret, b"tunnel control token")[:TOKEN_BYTES], "big")

    def mask_key(self) -> bytes:
        """Of AES-256, in either suite: it masks as RFC 9001, 5.4.3, does."""
        return _expand(self.secret, b"tunnel mask key")

    def control_key(self, stretch: int) -> bytes:
        return _expand(self.secret, b"tunnel control key" + _STRETCH.pack(stretch))


def note_key(header_root: bytes, direction: bytes) -> bytes:
    """Of the notes in one direction of a session."""
    return _expand(header_root, b"tunnel notes " + direction)


def _extract(salt: bytes, material: bytes) -> bytes:
    return hmac.digest(salt, material, "sha256")


def _expand(secret: bytes, info: bytes) -> bytes:
    """HKDF-Expand for as many bytes as one block of the hash has."""
    return hmac.digest(secret, info + b"\x01", "sha256")
