"""The sessions whose datagrams this worker sends and receives, as the table of secrets has them.

    look(now)       follow the table, unless that was done a moment ago; true if a session has come or gone
    of_token        which session a datagram that has come is of, and whether it is data or control
    of_handle       the session of a peer handle

The inbound duty alone follows the table. The outbound duty reads what it needs from the session of a path.

Tokens have 32 bits, so two sessions may have a token in common, with a chance of 2^-30 for each pair. The later session
is not served then, which is counted: its blocks go by TCP. It is served once the other one has ended.
"""

from __future__ import annotations

from pipeline.counters import ID
from pipeline.datagram.segment import Mask
from pipeline.sealing.datagram_seal import ControlOpener, ControlSealer, ControlWindows
from pipeline.sealing.key_schedule import DatagramSecret
from pipeline.shm.datagram_secrets import DatagramSecrets, DatagramSecretTable, DatagramServer
from pipeline.shm.layout import PEER_INDEX_MASK

LOOK_NS = 100_000_000
"""Between two looks at the table."""

EAGER_NS = 1_000_000
"""Between two looks while datagrams come with tokens that are not known: a new session may be waiting, or a flood."""

_REFUSED = ID["dgram.sessions_refused"]

DATA, CONTROL = range(2)


class Session:
    """The tokens and keys of one session. A mask, a sealer and an opener belong to the duty that makes them."""

    __slots__ = (
        "_receive", "_send", "control_token", "peer", "peer_handle", "receive_token", "secrets", "send_token", "server",
        "suite",
    )  # fmt: skip

    def __init__(self, secrets: DatagramSecrets) -> None:
        self.secrets = secrets
        self.peer_handle = secrets.peer_handle
        self.peer = secrets.peer_handle & PEER_INDEX_MASK
        self.suite = secrets.suite
        self.server = DatagramServer(secrets.host, secrets.port, secrets.scope, secrets.fake_tcp_port)
        self._send, self._receive = DatagramSecret(secrets.send), DatagramSecret(secrets.receive)
        self.send_token = self._send.data_token()
        self.receive_token = self._receive.data_token()
        self.control_token = self._receive.control_token()  # of what comes; a sealer has that of what goes

    def send_mask(self, most: int) -> Mask:
        """For segments that go out, so many of them in one call."""
        return Mask(self._send.mask_key(), most)

    def receive_mask(self, most: int) -> Mask:
        return Mask(self._receive.mask_key(), most)

    def sealer(self, process: int, lane: int) -> ControlSealer:
        return ControlSealer(self.suite, self._send, process, lane)

    def opener(self, windows: ControlWindows) -> ControlOpener:
        return ControlOpener(self.suite, self._receive, windows)


class Sessions:
    """`present`: those that are served, by peer handle."""

    def __init__(self, table: DatagramSecretTable, capacity: int, counters: memoryview) -> None:
        self._table = table
        self._stride = table.RECORD_BYTES // 8
        self._words = table.words[: capacity * self._stride]
        self._counters = counters
        self._seen = [-1] * capacity  # version of each record
        self._of_peer: dict[int, Session] = {}
        self._refused: set[int] = set()  # peers whose tokens are those of another session
        self._tokens: dict[int, tuple[Session, int]] = {}
        self._looked_at = -LOOK_NS
        self.present: dict[int, Session] = {}

    def of_token(self, token: int) -> tuple[Session, int] | None:
        """The session of a datagram with this token, and DATA or CONTROL."""
        return self._tokens.get(token)

    def of_handle(self, peer_handle: int) -> Session | None:
        return self.present.get(peer_handle)

    def look(self, now: int, pause_ns: int = LOOK_NS) -> bool:
        """Follow the table if so much time has passed. Whether any session has come or gone."""
        if now - self._looked_at < pause_ns:
            return False
        self._looked_at = now
        versions = self._words[:: self._stride].tolist()
        if versions == self._seen:
            return False
        changed = [peer for peer, version in enumerate(versions) if version != self._seen[peer]]
        return sum(self._follow(peer, versions[peer]) for peer in changed) > 0

    def _follow(self, peer: int, version: int) -> bool:
        if version & 1:
            return False  # it is written just now; the next look sees the rest
        secrets = self._table.read_index(peer)
        if self._table.words[peer * self._stride] != version:
            return False
        self._seen[peer] = version
        before = self._of_peer.get(peer)
        if before is not None:
            if before.secrets == secrets:
                return False
            self._end(before)
        return (secrets is not None and self._begin(Session(secrets))) or before is not None

    def _begin(self, session: Session) -> bool:
        tokens = (session.receive_token, DATA), (session.control_token, CONTROL)
        if any(token in self._tokens for token, _ in tokens):
            if session.peer not in self._refused:
                self._refused.add(session.peer)
                self._counters[_REFUSED] += 1
            return False
        self._refused.discard(session.peer)
        self._of_peer[session.peer] = self.present[session.peer_handle] = session
        self._tokens.update((token, (session, kind)) for token, kind in tokens)
        return True

    def _end(self, session: Session) -> None:
        del self._of_peer[session.peer], self.present[session.peer_handle]
        del self._tokens[session.receive_token], self._tokens[session.control_token]
        for peer in self._refused:
            self._seen[peer] = -1  # it may be served now
