"""The sealed session of a client with its server.

    key_share            in every HELLO that is sent from now on
    start(table)         the peer table of this time
    take(...)            a genuine WELCOME has the server's answer: the secrets of its connection, or why there are none
    use_datagrams(...)   where that WELCOME says that the server takes datagrams
    follow(settings)     all packets go to this session from now on, if it has begun
    tick(now)            epochs; private values that are used up are forgotten

The first answer to an offer uses it up, and the next HELLO has another one. The private value stays a minute longer,
for handshakes that are under way. So what this process holds does not open what was recorded long ago.

A server that was started again has another key share, and so other keys. A new peer handle ends the connections of
before, and no block of theirs goes to the new ones. A key share that was replaced is never taken again, or keys would
come back.

A client with several servers may have a session with two of them, each with a session number, a peer handle and keys of
its own. One of them is the present one: it has the peer table and the key table.
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
from pipeline.shm.datagram_secrets import DatagramSecretTable, DatagramServer
from pipeline.shm.key_table import KeyTable
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.shm.peer_table import PeerTable
from pipeline.supervisor.roles.only_peer import write_only_peer
from pipeline.system import cpu
from pipeline.wire import messages

NO_KEY_SHARE = "the server seals no blocks: it is older, or has another `encryption`"
FOREIGN_SESSION = "this client has gone to another server meanwhile"
FOREIGN_CERTIFICATE = "the server was shown another certificate than ours"
OLD_KEY_SHARE = "the server repeats a key share that it has replaced"
USED_OFFER = "the server begins a session with a key share of ours that is used up"

KEEP_USED_NS = 60_000_000_000
"""So long the private value of an offer is kept once it is used up: longer than any handshake takes."""


def preferred_suite() -> int:
    """The suite that this machine prefers."""
    return AES_256_GCM if cpu.has_aes() else CHACHA20_POLY1305


class _Kept:
    """A session with a server, its peer handle, and where the server takes datagrams; None: nowhere."""

    def __init__(self, session: SealedSession, peer_handle: int) -> None:
        self.session = session
        self.peer_handle = peer_handle
        self.server: DatagramServer | None = None


class ClientSealing:
    """`keys`: the table that tun workers read. `datagrams`: that of dgram workers; None where there are none."""

    def __init__(self, keys: KeyTable, datagrams: DatagramSecretTable | None = None) -> None:
        self._keys = keys
        self._datagrams = datagrams
        self._offer = Offer(preferred_suite())
        self._used: dict[Offer, int] = {}  # those that are used up, and until when they are kept
        self._seen: set[bytes] = set()  # hashes of the server's key shares
        self._present: _Kept | None = None
        self._peer_handle = FIRST_PEER_HANDLE
        self._last_handle = 0  # that a session has got
        self._kept: dict[int, _Kept] = {}  # by session number
        self._table: PeerTable
        self._sessions: SealedSessions

    @property
    def session(self) -> SealedSession | None:
        """The present one; None before the first answer."""
        return self._present.session if self._present is not None else None

    @property
    def has_dgram_workers(self) -> bool:
        return self._datagrams is not None

    @property
    def has_datagrams(self) -> bool:
        """Whether the present server takes datagrams, as its latest WELCOME says."""
        return self.datagram_server is not None

    @property
    def datagram_server(self) -> DatagramServer | None:
        """Where the present server takes them; None: nowhere."""
        return self._present.server if self._present is not None else None

    @property
    def hub(self) -> tuple[int, SealedSession] | None:
        """The peer handle of the present session, and the session."""
        return (self._peer_handle, self._present.session) if self._present is not None else None

    @property
    def sessions(self) -> SealedSessions:
        """Where those with partners have their keys as well."""
        return self._sessions

    @property
    def key_share(self) -> bytes:
        return self._offer.key_share.pack()

    def start(self, table: PeerTable, now: int) -> None:
        self._table = table
        self._sessions = SealedSessions(self._keys, table, self._datagrams)
        write_only_peer(table, self._peer_handle)
        if self._present is not None:
            self._sessions.begin(self._peer_handle, self._present.session, now)
            self._sessions.use_datagrams(self._peer_handle, self._present.server)

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
        hello = _hello_in(request)
        number = hello.session
        if number != settings.session and (settings.reserve is None or number != settings.reserve.session):
            return None, FOREIGN_SESSION
        kept = self._kept.get(number)
        if kept is None or kept.session.context.server_key_share != answer.public:
            digest = hashlib.sha256(answer.public).digest()
            if digest in self._seen:
                return None, OLD_KEY_SHARE
            offer = self._find(hello.key_share)
            if offer is None:
                return None, USED_OFFER
            try:
                session = offer.take_answer(answer, key, settings.client_id, number)
            except PeerError as error:
                return None, str(error)
            self._seen.add(digest)
            self._use_up(offer, now)
            self._last_handle = self._last_handle + FIRST_PEER_HANDLE if self._last_handle else self._peer_handle
            kept = self._kept[number] = _Kept(session, self._last_handle)
        if number == settings.session:
            self._begin(kept, now)
        frame, challenge, welcome, server_hash = (
            bytes.fromhex(request[name]) for name in ("hello", "challenge", "welcome", "hash")
        )
        suite, send, receive = kept.session.connection_secrets(frame, challenge, welcome, server_hash)
        return Seal(suite=suite, send=send.hex(), receive=receive.hex(), peer_handle=kept.peer_handle), ""

    def use_datagrams(self, number: int, server: DatagramServer | None) -> None:
        """The latest WELCOME of the session with this number says where the server takes datagrams; None: nowhere."""
        kept = self._kept[number]
        kept.server = server
        self._sessions.use_datagrams(kept.peer_handle, server)  # which knows the present one alone

    def follow(self, settings: WorkerSettings, now: int) -> None:
        """Let the session of this number be the present one. Sessions that no connection is made for are forgotten."""
        wanted = {settings.session, *([settings.reserve.session] if settings.reserve is not None else [])}
        self._kept = {number: kept for number, kept in self._kept.items() if number in wanted}
        if settings.session in self._kept:
            self._begin(self._kept[settings.session], now)

    def _use_up(self, offer: Offer, now: int) -> None:
        if offer is self._offer:
            self._offer = Offer(preferred_suite())
            self._used[offer] = now + KEEP_USED_NS

    def _begin(self, kept: _Kept, now: int) -> None:
        if kept is self._present:
            return
        before, self._peer_handle = self._peer_handle, kept.peer_handle
        self._present = kept
        self._sessions.begin(self._peer_handle, kept.session, now)
        self._sessions.use_datagrams(self._peer_handle, kept.server)
        if self._peer_handle != before:
            write_only_peer(self._table, self._peer_handle)


def _hello_in(request: WelcomeReport) -> messages.Hello:
    """Our HELLO."""
    hello = messages.decode(bytes.fromhex(request["hello"]))
    if not isinstance(hello, messages.Hello):
        raise PeerError("a handshake without HELLO")
    return hello


def _own_hash(settings: WorkerSettings) -> bytes:
    """Of the certificate that this client shows if it is asked for one."""
    pem = settings.tls.certificate_pem if settings.tls is not None else ""
    begin = pem.find(ssl.PEM_HEADER)
    end = pem.find(ssl.PEM_FOOTER)
    return hash_of(ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)]) if begin >= 0 else b"")
