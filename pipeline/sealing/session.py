"""A sealed session at one end: its key shares, the secrets that follow, the keys of its blocks and connections.

    Offer           a client's pair of X25519 for the next session that a server begins
    answer_offer    a server's session for the key share of a client: with a pair of its own
    take_answer     the client's, for the key share of the server

The root and a server's private value are forgotten at once, and an offer soon after its first answer. The secrets of
epochs lead forward only, and those of epochs that are over are forgotten. So the memory of an end does not open what
was recorded before.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from pipeline.errors import PeerError
from pipeline.sealing import key_schedule
from pipeline.sealing.key_schedule import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    CLIENT_TO_SERVER,
    KEY_SHARE_BYTES,
    SECRET_BYTES,
    SERVER_TO_CLIENT,
    SUITES,
    DatagramSecret,
    EpochSecret,
    HeaderSecret,
    Session,
)
from pipeline.sealing.note_seal import NoteSeal

NO_KEY = bytes(SECRET_BYTES)
CONNECTION_NONCE_BYTES = 32
HASH_BYTES = 32
NO_HASH = bytes(HASH_BYTES)

_SERVER_KEY_SHARE = struct.Struct(f">B{KEY_SHARE_BYTES}s{CONNECTION_NONCE_BYTES}s{HASH_BYTES}s")


class KeyShare(NamedTuple):
    """The key share of an end as it travels: with the suite that a client prefers, or that a server has chosen."""

    suite: int
    public: bytes
    nonce: bytes = b""  # of the server, for the connection
    client_hash: bytes = b""  # of the certificate that the server was shown; zeros for none

    def pack(self) -> bytes:
        return bytes([self.suite]) + self.public + self.nonce + self.client_hash

    @classmethod
    def of_client(cls, data: bytes) -> KeyShare | None:
        """None for anything that is no key share of a client."""
        return cls(data[0], data[1:]) if len(data) == 1 + KEY_SHARE_BYTES else None

    @classmethod
    def of_server(cls, data: bytes) -> KeyShare | None:
        """None for anything that is no key share of a server."""
        if len(data) != 1 + KEY_SHARE_BYTES + CONNECTION_NONCE_BYTES + HASH_BYTES or data[0] not in SUITES:
            return None
        suite, public, nonce, client_hash = _SERVER_KEY_SHARE.unpack(data)
        return cls(suite, public, nonce, client_hash)


class ConnectionSecrets(NamedTuple):
    """The secrets of the headers of one connection, as its tcp worker gets them."""

    suite: int
    send: bytes
    receive: bytes


class DatagramSecrets(NamedTuple):
    """The secrets of the datagrams of a session, as its dgram workers get them."""

    suite: int
    send: bytes
    receive: bytes


class BlockKeysNow(NamedTuple):
    """The keys that tun workers need at this time: see pipeline.shm.key_table."""

    suite: int
    send_epoch: int
    open_epoch: int
    send: bytes
    open_before: bytes
    open_now: bytes
    open_after: bytes


class SealedSession:
    """`context`: what both ends agree about; `is_server`: which of them this one is."""

    def __init__(self, context: Session, shared: bytes, key: bytes, is_server: bool) -> None:
        root = key_schedule.root(shared, key)
        own, others = CLIENT_TO_SERVER, SERVER_TO_CLIENT
        if is_server:
            own, others = others, own
        self.context = context
        self._directions = own, others
        self._send = EpochSecret.first(root, own, context)
        self._open = EpochSecret.first(root, others, context)
        self._before = NO_KEY
        self._header_root = key_schedule.header_root(root, context)
        self.notes = NoteSeal(
            context.suite, *(key_schedule.note_key(self._header_root, each) for each in self._directions)
        )

    # -- connections

    def connection_secrets(
        self, hello: bytes, challenge: bytes, welcome: bytes, server_hash: bytes
    ) -> ConnectionSecrets:
        """Of the connection with this handshake: see key_schedule.connection."""
        connection = key_schedule.connection(hello, challenge, welcome, server_hash)
        send, receive = (
            HeaderSecret.first(self._header_root, direction, connection).secret for direction in self._directions
        )
        return ConnectionSecrets(self.context.suite, send, receive)

    # -- datagrams

    def datagram_secrets(self) -> DatagramSecrets:
        send, receive = (DatagramSecret.of(self._header_root, each).secret for each in self._directions)
        return DatagramSecrets(self.context.suite, send, receive)

    # -- epochs

    @property
    def send_epoch(self) -> int:
        return self._send.epoch

    @property
    def open_epoch(self) -> int:
        return self._open.epoch

    def keys(self) -> BlockKeysNow:
        return BlockKeysNow(
            self.context.suite,
            self._send.epoch,
            self._open.epoch,
            self._send.block_key(),
            self._before,
            self._open.block_key(),
            self._open.next().block_key(),
        )

    def send_next(self) -> None:
        """Seal with the key of the next epoch from now on."""
        self._send = self._send.next()

    def open_next(self) -> None:
        """The other end has begun the next epoch."""
        self._before = self._open.block_key()
        self._open = self._open.next()

    @property
    def has_before(self) -> bool:
        """Whether blocks of the epoch before are still opened."""
        return self._before != NO_KEY

    def forget_before(self) -> None:
        """Blocks of the epoch before are opened no more."""
        self._before = NO_KEY


def session_of_pair(suite: int, number: int, secret: bytes, side: int) -> SealedSession:
    """The session of two clients of a hub, which has made the secret: side 0 stands where a client does."""
    context = Session(suite, bytes(KEY_SHARE_BYTES), bytes(KEY_SHARE_BYTES), number, 0)
    return SealedSession(context, secret, b"", is_server=side == 1)


class Offer:
    """A pair of a client."""

    def __init__(self, suite: int) -> None:
        self._private = X25519PrivateKey.generate()
        self.key_share = KeyShare(suite, self._private.public_key().public_bytes_raw())

    def take_answer(self, answer: KeyShare, key: bytes, client_id: int, session: int) -> SealedSession:
        """The session with the server that has answered. PeerError if the key share is none to agree with."""
        context = Session(answer.suite, self.key_share.public, answer.public, client_id, session)
        return SealedSession(context, _agree(self._private, answer.public), key, is_server=False)


def answer_offer(offer: KeyShare, suite: int, key: bytes, client_id: int, session: int) -> SealedSession:
    """A server's session for a client. `suite`: that it prefers itself. PeerError if the key share is of no use."""
    private = X25519PrivateKey.generate()
    chosen = AES_256_GCM if offer.suite == suite == AES_256_GCM else CHACHA20_POLY1305
    context = Session(chosen, offer.public, private.public_key().public_bytes_raw(), client_id, session)
    return SealedSession(context, _agree(private, offer.public), key, is_server=True)


def answer_key_share(session: SealedSession, certificate: bytes) -> KeyShare:
    """The key share of a server for a WELCOME, with a new nonce for its connection.

    `certificate`: of the client, DER; b"" for none.
    """
    nonce = secrets.token_bytes(CONNECTION_NONCE_BYTES)
    return KeyShare(session.context.suite, session.context.server_key_share, nonce, hash_of(certificate))


def hash_of(certificate: bytes) -> bytes:
    return hashlib.sha256(certificate).digest() if certificate else NO_HASH


def _agree(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PeerError("key share of low order: X25519 gives zero") from None
