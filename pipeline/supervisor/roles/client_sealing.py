"""The sealed session of a client with its server.

    key_share          in every HELLO that is sent from now on
    start(table)       the peer table of this time
    take(...)          a genuine WELCOME has the server's answer: the secrets of its connection, or why there are none
    tick(now)          epochs; private values that are used up are forgotten

The first answer to an offer uses it up, and the next HELLO has another one. The private value stays a minute longer,
for handshakes that are under way. So what this process holds does not open what was recorded long ago.

A server that was started again has another key share, and so other keys. A new peer handle ends the connections of
before, and no block of theirs goes to the new ones. A key share that was replaced is never taken again, or keys would
come back.
"""

from __future__ import annotations

import hashlib
import ssl

from pipeline.errors import PeerError
from pipeline.peers.sealed_sessions import SealedSessions
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import Seal, WelcomeReport
from pipeline.sealing.key_schedule import AES_256_GCM, CHACHA20_POLY1305
from pipeline.sealing.session import NO_HASH, KeyShare, Offer, SealedSession, hash_of
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.system import cpu
from pipeline.wire import messages

NO_KEY_SHARE = "the server seals no blocks: it is older, or has another `encryption`"
FOREIGN_CERTIFICATE = "the server was shown another certificate than ours"
OLD_KEY_SHARE = "the server repeats a key share that it has replaced"
USED_OFFER = "the server begins a session with a key share of ours that is used up"

KEEP_USED_NS = 60_000_000_000
"""So long the private value of an offer is kept once it is used up: longer than any handshake takes."""


def preferred_suite() -> int:
    """The suite that this machine prefers."""
    return AES_256_GCM if cpu.has_aes() else CHACHA20_POLY1305


class ClientSealing:
    """`keys`: the table that tun workers read."""

    def __init__(self, keys: KeyTable) -> None:
        self._keys = keys
        self._offer = Offer(preferred_suite())
        self._used: dict[Offer, int] = {}  # those that are used up, and until when they are kept
        self._seen: set[bytes] = set()  # hashes of the server's key shares
        self._session: SealedSession | None = None
        self._peer_handle = FIRST_PEER_HANDLE
        self._table: PeerTable
        self._sessions: SealedSessions

    @property
    def session(self) -> SealedSession | None:
        """The present one; None before the first answer."""
        return self._session

    @property
    def key_share(self) -> bytes:
        return self._offer.key_share.pack()

    def start(self, table: PeerTable, now: int) -> None:
        self._table = table
        self._sessions = SealedSessions(self._keys, table)
        write_only_peer(table, self._peer_handle)
        if self._session is not None:
            self._sessions.begin(self._peer_handle, self._session, now)

    def tick(self, now: int) -> None:
        self._sessions.tick(now)
        for offer in [offer for offer, until in self._used.items() if now >= until]:
            del self._used[offer]

    def is_offered(self, key_share: bytes) -> bool:
        """Whether a HELLO with this key share may be ours."""
        return self._find(key_share) is not None

    def _find(self, key_share: bytes) -> Offer | None:
        """The offer, unless its private value is forgotten."""
        return next((offer for offer in (self._offer, *self._used) if offer.key_share.pack() == key_share), None)

    def take(
        self, request: WelcomeReport, key_share: bytes, key: bytes, settings: WorkerSettings, now: int
    ) -> tuple[Seal | None, str]:
        """The secrets for the worker of the connection, and "", or None and why."""
        answer = KeyShare.of_server(key_share)
        if answer is None:
            return None, NO_KEY_SHARE
        if answer.client_hash != NO_HASH and answer.client_hash != _own_hash(settings):
            return None, FOREIGN_CERTIFICATE
        if self._session is None or self._session.context.server_key_share != answer.public:
            digest = hashlib.sha256(answer.public).digest()
            if digest in self._seen:
                return None, OLD_KEY_SHARE
            offer = self._find(_offered_in(request))
            if offer is None:
                return None, USED_OFFER
            try:
                session = offer.take_answer(answer, key, settings.client_id, settings.session)
            except PeerError as error:
                return None, str(error)
            self._seen.add(digest)
            self._use_up(offer, now)
            self._begin(session, now)
        assert self._session is not None
        hello, challenge, welcome, server_hash = (
            bytes.fromhex(request[name]) for name in ("hello", "challenge", "welcome", "hash")
        )
        suite, send, receive = self._session.connection_secrets(hello, challenge, welcome, server_hash)
        return Seal(suite=suite, send=send.hex(), receive=receive.hex()), ""

    def _use_up(self, offer: Offer, now: int) -> None:
        if offer is self._offer:
            self._offer = Offer(preferred_suite())
            self._used[offer] = now + KEEP_USED_NS

    def _begin(self, session: SealedSession, now: int) -> None:
        before = self._peer_handle
        if self._session is not None:
            self._peer_handle += FIRST_PEER_HANDLE  # the next number, of the same index
        self._session = session
        self._sessions.begin(self._peer_handle, session, now)
        if self._peer_handle != before:
            write_only_peer(self._table, self._peer_handle)


def _offered_in(request: WelcomeReport) -> bytes:
    """The key share in our HELLO."""
    hello = messages.decode(bytes.fromhex(request["hello"]))
    if not isinstance(hello, messages.Hello):
        raise PeerError("a handshake without HELLO")
    return hello.key_share


def _own_hash(settings: WorkerSettings) -> bytes:
    """Of the certificate that this client shows if it is asked for one."""
    pem = settings.tls.certificate_pem if settings.tls is not None else ""
    begin = pem.find(ssl.PEM_HEADER)
    end = pem.find(ssl.PEM_FOOTER)
    return hash_of(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)]) if begin >= 0 else b"")
