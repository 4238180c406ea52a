"""The connections of a server's tcp worker: accepted, admitted by the supervisor, closed.

The connections of unauthenticated clients wait in the HandshakeQueue. It is served at the end of each round of the
duty, when established connections have been read, and for as long as their traffic leaves time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import ClassVar

from pipeline.counters import ID
from pipeline.errors import PeerError
from pipeline.log import LOG
from pipeline.policy.churn_limit import ChurnLimit
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import Answer, ClaimDecision, Doubted, Replaced
from pipeline.transport.address_learner import AddressLearner
from pipeline.transport.connection import GIVEN_AWAY, HANDSHAKE, Connection
from pipeline.transport.failure_words import of_error
from pipeline.transport.socket_options import ask_other_end, configure
from pipeline.wire import messages
from pipeline.wire.handshake import Cause, Failed, ServerHandshake
from pipeline.wire.proxy_protocol import ProxyHeader
from workers.tcp.accept_share import AcceptShare
from workers.tcp.acceptor import Acceptor
from workers.tcp.connection_checks import RETRANSMITS_MAX
from workers.tcp.connection_log import ConnectionLog
from workers.tcp.connection_manager import READABLE, ConnectionManager, ManagerContext
from workers.tcp.counted_warning import CountedWarning
from workers.tcp.established import REPLACED
from workers.tcp.fallback import Fallback
from workers.tcp.handshake import ServerHandshaker
from workers.tcp.handshake_queue import HandshakeQueue

ENOUGH_NS = 2_000_000_000
"""After so long, a handshake makes room for another where all are in use: three round trips of a satellite."""

FALL_BACK = (Cause.INVALID, Cause.UNPROVED)
"""Failures after which a client that has got no answer is the web server's. After others its connection has ended, or
TLS itself has failed, as it would in the web server."""

HANDSHAKES_AT_ONCE = 40
HANDSHAKE_INTERVAL_NS = 250_000_000
"""Handshakes of one peer that succeed and are not counted: as many at once as it may have connections by default, and
then four a second. Further ones have their part of the time for unauthenticated clients."""

_BYTES_RECEIVED = ID["tcp.bytes_received"]
_BYTES_SENT = ID["tcp.bytes_sent"]
_HANDSHAKES_CHARGED = ID["tcp.handshakes_charged"]


class ServerConnections(ConnectionManager):
    """Adds the acceptor, which it tells of the end of each handshake, and the queue."""

    _handshaker: ServerHandshaker
    _failure_counters: ClassVar[Mapping[Cause, int]] = {
        Cause.INVALID: ID["tcp.closed_hello_invalid"],
        Cause.BROKEN: ID["tcp.closed_hello_invalid"],
        Cause.UNPROVED: ID["tcp.closed_proof_wrong"],
        Cause.REFUSED: ID["tcp.connections_refused"],
    }

    def __init__(self, context: ManagerContext) -> None:
        super().__init__(context)
        self._lane, lanes = context.attachment.worker.lane, context.attachment.plan.lanes
        self._queue = HandshakeQueue(self._epoll)
        self._handshake_epoll = self._queue.epoll
        self._share = AcceptShare(context.attachment)
        self._acceptor = Acceptor(
            context.fds.listener,
            self._settings,
            lanes,
            self._counters,
            self._queue.epoll,
            self._make_room,
            self._share.is_ours,
            context.fds.bridged,
        )
        self._handshaker = ServerHandshaker(self._settings, self._channel, self._lane)
        self._unauthenticated = CountedWarning(
            "client %s has not proved to be a peer (%d such clients since the last such line)"
        )
        self._headers: dict[Connection, ProxyHeader] = {}  # of proxies, under way: the limiter does not know them yet
        self._headless = CountedWarning(
            "%s is in proxy_protocol_from, and its connection does not begin with a header of the PROXY protocol: %s "
            "(%d such connections since the last such line)"
        )
        self._fallback: Fallback | None = None
        if self._settings.fallback is not None:
            self._shows_handshakes = False  # there may be more than there are rows
            self._fallback = Fallback(
                self._settings.fallback, self._queue.epoll, self._counters, self.close, self._on_fallback_ended
            )
        self._connection_log = ConnectionLog()
        self._churn = ChurnLimit(HANDSHAKES_AT_ONCE, HANDSHAKE_INTERVAL_NS)

    def close_descriptors(self) -> None:
        super().close_descriptors()
        if self._fallback is not None:
            self._fallback.close_all()
        self._acceptor.close()
        self._queue.close()

    # -- they begin

    def _on_source_event(self, fd: int) -> None:
        self._queue.has_work |= fd == self._queue.fd

    def tick(self, now: int, unread: bool) -> None:
        if self._acceptor.resume_at_ns and now >= self._acceptor.resume_at_ns:
            self._acceptor.resume()
        if self._queue.has_work or now >= self._queue.observe_at_ns:
            until = self._queue.begin_turn(self._counters[_BYTES_RECEIVED] + self._counters[_BYTES_SENT], now)
            if until:
                self._serve_queue(now, until)
        if now >= self._next_check_ns:
            self._connection_log.tick(now)
            if self._fallback is not None:
                self._fallback.check(now)
            super().tick(now, unread)

    def _serve_queue(self, now: int, until: int) -> None:
        """New connections have half of the time, handshakes under way the rest, and what they leave the fallback."""
        self._accept(now, (now + until) // 2)
        handshaking, others = self._queue.ready(self._handshaking.by_fd)
        for connection in handshaking:
            began = time.monotonic_ns()
            if began > until:
                break  # epoll reports the others again
            self._advance(connection)
            if connection.state is HANDSHAKE:
                self._queue.charge(connection, time.monotonic_ns() - began)
        if self._fallback is not None:
            self._fallback.serve(others, until)
        self._queue.end_turn(time.monotonic_ns() - now)

    def _accept(self, now: int, until: int) -> None:
        for sock, address, header in self._acceptor.accept(now, until):
            configure(sock, self._settings)
            connection = self._register(sock, address, HANDSHAKE, now, READABLE)
            self._note_count()
            if self._shows_handshakes and not self._has_row(connection):
                continue
            if header is None:
                self._begin(connection)
            else:
                self._headers[connection] = header

    def _has_row(self, connection: Connection) -> bool:
        """Whether the connection has a status row; else it is closed."""
        if connection.receive.status_row < 0:
            self._counters[ID["tcp.closed_row_full"]] += 1
            self.close(connection, "this worker has as many connections as it can have", logging.DEBUG)
            return False
        return True

    def _begin(self, connection: Connection) -> None:
        """The client's address is known, and has been admitted."""
        if self._fallback is not None:
            self._fallback.expect(connection)
        self._on_outcome(connection, self._handshaker.begin(connection))

    def _advance(self, connection: Connection) -> None:
        if connection not in self._headers or self._read_header(connection, self._headers[connection]):
            super()._advance(connection)

    def _read_header(self, connection: Connection, header: ProxyHeader) -> bool:
        """Read the header of a proxy, and no byte behind it. Whether the handshake has begun."""
        try:
            while header.needs:
                data = connection.socket.recv(header.needs)
                if not data:
                    self.close(connection, "closed by the proxy")
                    return False
                header.feed(data)
        except BlockingIOError:
            return False
        except PeerError as error:
            self._close_headless(connection, str(error))
            return False
        except OSError as error:
            self.close(connection, of_error(error))
            return False
        if header.client is not None:
            connection.set_end(*header.client)
        if not self._acceptor.admit(connection.host, time.monotonic_ns()):
            self.close(connection, "too many clients that have not proved to be a peer")
            return False
        del self._headers[connection]
        self._begin(connection)
        return connection.state is HANDSHAKE and connection.handshake is not None

    def _close_headless(self, connection: Connection, why: str) -> None:
        self._counters[ID["tcp.closed_proxy_header"]] += 1
        if not self._headers[connection].is_of_our_bridge:
            self._headless.record(time.monotonic_ns(), connection.host, why)
        self.close(connection, why)

    def _note_count(self) -> None:
        taken = len(self._fallback) if self._fallback is not None else 0
        self._share.note(len(self._handshaking.by_fd) + len(self._established.by_fd) + taken)

    def _make_room(self) -> bool:
        """End the oldest handshake that has had time enough, unless the supervisor is about to decide."""
        now = time.monotonic_ns()
        if self._fallback is not None and self._fallback.end_longest_idle(now - ENOUGH_NS):
            self._counters[ID["tcp.closed_for_another"]] += 1
            return True
        for connection in self._handshaking.by_fd.values():
            if now - connection.state_since_ns < ENOUGH_NS:
                return False
            if connection not in self._headers and not self._handshaker.awaits_supervisor(connection):
                self._counters[ID["tcp.closed_for_another"]] += 1
                self.close(connection, "another client needs its place", logging.DEBUG)
                return True
        return False

    # -- the handshake

    def _apply_settings(self, settings: WorkerSettings) -> None:
        super()._apply_settings(settings)
        self._acceptor.set_limits(settings)

    def _on_supervisor_message(self, message: Answer) -> None:
        if "name" in message and self._handshaking.find(message["serial"]) is not None:
            self._connection_log.identify(message["serial"], message["name"])
        if self._fallback is not None and "is_right" in message and message["is_right"]:
            knocking = self._handshaking.find(message["serial"])
            if knocking is not None:
                self._fallback.let_go(knocking)
        super()._on_supervisor_message(message)

    def _on_failed(self, connection: Connection, failed: Failed, level: int = logging.DEBUG) -> None:
        now = time.monotonic_ns()
        if self._fallback is not None and failed.cause in FALL_BACK and _is_unanswered(connection):
            self._fall_back(self._fallback, connection)
            return
        if failed.cause is Cause.UNPROVED:
            self._unauthenticated.record(now, connection.address)
        elif failed.cause is Cause.REFUSED:
            self._connection_log.refused(connection.serial, failed.reason, now)
        super()._on_failed(connection, failed, level)

    def _fall_back(self, fallback: Fallback, connection: Connection) -> None:
        """The client has proved nothing, and has got no answer: it is the web server's."""
        handshake = connection.handshake
        first = handshake.unanswered if isinstance(handshake, ServerHandshake) else None
        connection.state = GIVEN_AWAY
        self._handshaking.remove(connection)
        self._queue.forget(connection, free=False)
        self._connection_log.forget(connection.serial)
        fallback.take(connection, first or b"", time.monotonic_ns())

    def _on_fallback_ended(self, connection: Connection) -> None:
        self._acceptor.handshake_done(connection.host, proved=False)
        self._note_count()

    def _has_had_its_time(self, connection: Connection, now: int) -> bool:
        """With a fallback, the web server's patience counts until a client has got an answer of ours."""
        if self._fallback is not None and self._fallback.expects(connection):
            return False
        return super()._has_had_its_time(connection, now)

    def _handshake_expired(self, connection: Connection) -> None:
        if connection in self._headers:
            self._close_headless(connection, "it says too little")
            return
        self._counters[ID["tcp.closed_too_late"]] += 1
        super()._handshake_expired(connection)

    def _end_replaced(self, message: Replaced) -> None:
        """A client has dialed a slot again, and another worker has the new connection."""
        if message["lane"] == self._lane:
            return  # it replaces those of this worker when it is established
        for connection in list(self.established.values()):
            if (connection.peer_handle, connection.dial_index) == (message["peer_handle"], message["replaced"]):
                self.close(connection, REPLACED)

    # -- addresses that a hub of the original program learns

    def ask_about_claim(self, connection: Connection) -> None:
        """A question that the supervisor's queue has no room for is lost: the time limit of a handshake ends it."""
        learner = connection.receive.learner
        if learner is not None:
            learner.claimed_ns = time.monotonic_ns()
            self.watch(connection, False)
            self._channel.ask(
                {
                    "serial": connection.serial,
                    "claim": str(learner.claim),
                    "peer_handle": connection.peer_handle,
                }
            )

    def _doubt(self, message: Doubted) -> None:
        """The kernel asks the other ends of this peer's connections, unless it sends to them in vain already."""
        for connection in list(self.established.values()):
            if connection.peer_handle == message["doubted"]:
                if connection.tcp_info().retransmits >= RETRANSMITS_MAX:
                    self.close(connection, "it does not answer, and its address is claimed anew")
                else:
                    ask_other_end(connection.socket)

    def _on_claim_decided(self, decision: ClaimDecision) -> None:
        connection = next((c for c in self.established.values() if c.serial == decision["serial"]), None)
        learner = connection.receive.learner if connection is not None else None
        if connection is None or learner is None:
            return  # the connection has ended meanwhile
        if decision["refusal"]:
            self._on_failed(connection, Failed(Cause.REFUSED, f"refused: {decision['refusal']}"))
            return
        learner.settle()
        if learner.is_done:
            connection.receive.learner = None
        LOG.info("connection %d from %s has the address %s", connection.serial, connection.address, decision["claim"])
        self._observer.on_released(connection)

    # -- established, and the end

    def _check_peer_handle(self, connection: Connection) -> bool:
        if not self._shows_handshakes:
            self._rows.assign(connection)
            if not self._has_row(connection):
                return False
        if not connection.peer_handle:  # a handshake without identities (compat): there is one peer at most
            connection.peer_handle = self._established.sole_peer_handle()
            if self._established.is_connected(connection.peer):
                self._on_failed(connection, Failed(Cause.REFUSED, f"refused: {messages.REASONS[messages.BUSY]}"))
                return False
        elif not self._established.is_current(connection):
            self.close(connection, "its session has ended during the handshake", logging.DEBUG)
            return False
        return True

    def _begin_service(self, connection: Connection, now: int) -> None:
        if self._settings.client_subnets:
            connection.receive.learner = AddressLearner(self._settings.client_subnets)
        self._acceptor.handshake_done(connection.host, proved=True)
        if self._fallback is not None:
            self._fallback.let_go(connection)
        is_free = self._churn.has_room(connection.peer, now)
        self._churn.record(connection.peer, now)
        self._counters[_HANDSHAKES_CHARGED] += not is_free
        self._queue.forget(connection, free=is_free)
        self._connection_log.begun(connection.serial, connection.address, now)
        LOG.debug("connection %d from %s established", connection.serial, connection.address)

    def _check_established(self, connection: Connection, now: int, unread: bool) -> bool:
        if not super()._check_established(connection, now, unread):
            return False
        if connection.is_held and self._timeouts.claim_expired(connection, now):
            self.close(connection, "no decision about its address in time")
            return False
        return True

    def close(self, connection: Connection, why: str, level: int = logging.DEBUG) -> None:
        super().close(connection, why, level)

    def _end_service(self, connection: Connection, established: bool, why: str, now: int) -> None:
        self._note_count()
        if established:
            self._connection_log.ended(connection.serial, why, now)
            if not self._established.is_connected(connection.peer):
                self._channel.ask({"ended": connection.peer_handle, "reason": why})
        self._connection_log.forget(connection.serial)
        if not established:
            if self._fallback is not None:
                self._fallback.let_go(connection)
            if self._headers.pop(connection, None) is None:
                self._acceptor.handshake_done(connection.host, proved=False)
            self._queue.forget(connection, free=False)


def _is_unanswered(connection: Connection) -> bool:
    """Whether this end hides, and the client has got no answer that a web server would not give."""
    handshake = connection.handshake
    return isinstance(handshake, ServerHandshake) and handshake.hides and handshake.unanswered is not None
