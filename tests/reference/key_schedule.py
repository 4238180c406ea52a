"""Shares and secrets of sealed connections, written from docs/wire.md alone. The program's code is not used.

root(...), context(...), connection(...)     the three values from which all others are made
block_keys(...), header_keys(...)            the keys of a direction, one epoch or ratchet behind the other
datagram_keys(...)                           tokens and keys of the datagrams of a direction
aead(suite, key)                             AES-256-GCM or ChaCha20-Poly1305
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

AES_256_GCM, CHACHA20_POLY1305 = 1, 2
KEY_SHARE_BYTES, TAG_BYTES = 32, 16
TO_SERVER, TO_CLIENT = b"client to server", b"server to client"
NO_KEY = bytes(32)


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def root(key: bytes, private: bytes, other_key_share: bytes) -> bytes:
    """ValueError if the result of X25519 is zero."""
    shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other_key_share))
    return _mac(key or NO_KEY, shared)


def context(suite: int, client_key_share: bytes, server_key_share: bytes, client: int, session: int) -> bytes:
    fields = bytes([suite]) + client_key_share + server_key_share + struct.pack(">QQ", client, session)
    return hashlib.sha256(b"tunnel session 1" + fields).digest()


def connection(hello: bytes, challenge: bytes, welcome: bytes, certificate_hash: bytes) -> bytes:
    parts = hello, challenge, welcome, certificate_hash
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(b"tunnel connection 1" + text).digest()


def expand(secret: bytes, info: bytes) -> bytes:
    """HKDF-Expand (RFC 5869) of 32 bytes, which is one step of it."""
    return _mac(secret, info + b"\x01")


def block_secrets(root: bytes, context: bytes, direction: bytes) -> Iterator[bytes]:
    return _chain(expand(root, b"tunnel blocks " + direction + context), b"tunnel next epoch")


def block_keys(root: bytes, context: bytes, direction: bytes) -> Iterator[bytes]:
    """The key of epoch 0, of epoch 1 and so on."""
    return (expand(secret, b"tunnel block key") for secret in block_secrets(root, context, direction))


def header_root(root: bytes, context: bytes) -> bytes:
    return expand(root, b"tunnel headers" + context)


def header_secrets(root: bytes, context: bytes, direction: bytes, connection: bytes) -> Iterator[bytes]:
    first = expand(header_root(root, context), b"tunnel headers " + direction + connection)
    return _chain(first, b"tunnel next headers")


def header_keys(root: bytes, context: bytes, direction: bytes, connection: bytes) -> Iterator[bytes]:
    secrets = header_secrets(root, context, direction, connection)
    return (expand(secret, b"tunnel header key") for secret in secrets)


class DatagramKeys(NamedTuple):
    """Of one direction of a session."""

    secret: bytes
    data_token: bytes
    control_token: bytes
    mask_key: bytes

    def control_key(self, stretch: int) -> bytes:
        return expand(self.secret, b"tunnel control key" + stretch.to_bytes(8, "big"))


def datagram_keys(root: bytes, context: bytes, direction: bytes) -> DatagramKeys:
    secret = expand(header_root(root, context), b"tunnel datagrams " + direction)
    data, control = (expand(secret, b"tunnel %s token" % name)[:4] for name in (b"data", b"control"))
    return DatagramKeys(secret, data, control, expand(secret, b"tunnel mask key"))


def aead(suite: int, key: bytes) -> AESGCM | ChaCha20Poly1305:
    return AESGCM(key) if suite == AES_256_GCM else ChaCha20Poly1305(key)


def _chain(secret: bytes, info: bytes) -> Iterator[bytes]:
    return itertools.accumulate(itertools.repeat(info), expand, initial=secret)


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()
