"""The handshake of a tcp worker's connections: it moves bytes and certificates between a connection, the state machine
of `pipeline.wire.handshake`, and the supervisor channel.

    ServerHandshaker    TLS -> HELLO -> [CHALLENGE, PROOF] -> the supervisor decides -> WELCOME, or REFUSED and the end
    ClientHandshaker    TLS -> HELLO -> [CHALLENGE, PROOF] -> WELCOME, or REFUSED

One object serves all connections of a worker. Each call does what can be done now and returns the outcome:

    None             more bytes of the other end are needed, or room in the socket
    AskSupervisor    the supervisor has been asked: nothing more is read until `answered`
    Welcomed         the handshake is over
    Failed           the connection is to be closed

An unauthenticated client learns nothing from a failure: the connection is closed at once, and nothing is sent.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from ipaddress import ip_address

from pipeline.errors import LocalError
from pipeline.log import LOG, printable
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import Decision, SupervisorChannel
from pipeline.transport import failure_words
from pipeline.transport.connection import Connection
from pipeline.transport.tls_channel import TlsChannel
from pipeline.transport.tls_context import TlsContext, context_of
from pipeline.wire import auth, framing, messages
from pipeline.wire.handshake import (
    NO_CERTIFICATE,
    AskSupervisor,
    Cause,
    ClientHandshake,
    CompatHandshake,
    Failed,
    Handshake,
    Output,
    Send,
    ServerHandshake,
    State,
    TellSupervisor,
    Welcomed,
)

UNASKED = "the supervisor answers nothing: too many requests wait for it"

Outcome = AskSupervisor | Welcomed | Failed | None


class _Handshaker:
    """The part of both sides."""

    _lane = 0

    def __init__(self, settings: WorkerSettings, supervisor: SupervisorChannel) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._context: TlsContext | None = None

    def step(self, connection: Connection) -> Outcome:
        """Go on: the socket has bytes or room."""
        return self._guarded(connection, self._advance)

    @staticmethod
    def awaits_decision(connection: Connection) -> bool:
        """Whether the supervisor has been asked about a connection, and has not answered yet."""
        return _handshake_of(connection).state is State.AWAIT_DECISION

    def _guarded(self, connection: Connection, act: Callable[[Connection, Handshake], Outcome]) -> Outcome:
        """Turn the exceptions of sockets and TLS into outcomes, and escape text of the other end."""
        handshake = _handshake_of(connection)
        try:
            outcome = act(connection, handshake)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            outcome = handshake.ended(Cause.BROKEN, self._ending(handshake, error))
        except OSError as error:
            outcome = Failed(Cause.BROKEN, failure_words.of_error(error))
        if isinstance(outcome, Failed):
            return outcome._replace(reason=printable(outcome.reason))
        return outcome

    def _ending(self, handshake: Handshake, error: OSError) -> str:
        """Why the other end may have ended the connection."""
        return failure_words.of_error(error)

    def _advance(self, connection: Connection, handshake: Handshake) -> Outcome:
        outcome: Outcome = None
        if self.awaits_decision(connection):  # nothing is read, and epoll tells of nothing but a reset
            error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return handshake.ended(Cause.CLOSED, os.strerror(error)) if error else None
        if handshake.state is State.CONNECTING:
            outcome = self._connected(connection, handshake)
        while outcome is None and handshake.state is not State.AWAIT_DECISION:
            data = connection.receive_bytes(handshake.limit)
            if not data:
                return handshake.ended(Cause.CLOSED, "closed by the peer")
            outcome = self._carry_out(connection, handshake.feed(data))
        return outcome

    def _connected(self, connection: Connection, handshake: Handshake) -> Outcome:
        """TCP is connected: TLS, and the first messages."""
        certificate = b""
        if self._context is not None and connection.channel is None:
            connection.channel = self._make_channel(connection, self._context)
        if connection.channel is not None:
            connection.channel.handshake()
            certificate = connection.channel.certificate()
        return self._carry_out(connection, handshake.begin(certificate))

    def _make_channel(self, connection: Connection, context: TlsContext) -> TlsChannel:
        raise NotImplementedError

    def _carry_out(self, connection: Connection, outputs: list[Output]) -> Outcome:
        for output in outputs:
            match output:
                case Send(data):
                    connection.send_frame(data)
                case AskSupervisor():
                    return output if self._ask(connection, output) else Failed(Cause.CLOSED, UNASKED)
                case TellSupervisor(welcome):
                    self._tell(connection, welcome)
                case Welcomed():
                    connection.dial_index = output.connection_index
                    connection.offloads = output.offloads
                    connection.traffic_class = output.traffic_class
                    connection.accepts_shards = output.accepts_shards
                    return output
                case Failed():
                    return output
        return None

    def _ask(self, connection: Connection, question: AskSupervisor) -> bool:
        """Ask the supervisor. False if it has too many questions to answer already."""
        return self._supervisor.ask(
            {
                "lane": self._lane,
                "serial": connection.serial,
                "hello": question.hello.hex(),
                "challenge": question.challenge.hex(),
                "proof": question.proof.hex(),
                "certificate": question.certificate.hex(),
                "hash": question.certificate_hash.hex(),
            }
        )

    def _tell(self, connection: Connection, welcome: bytes) -> None:
        if not self._supervisor.ask({"welcome": welcome.hex(), "server": connection.host}):
            LOG.warning("addresses and routes from the server were not applied: %s", UNASKED)

    def answered(self, connection: Connection, decision: Decision) -> Outcome:
        """The supervisor's decision about a connection for which it was asked."""
        handshake = _handshake_of(connection)
        if not isinstance(handshake, ServerHandshake | CompatHandshake):
            raise LocalError(f"connection {connection.serial}: a decision of the supervisor, which was not asked")
        frame = bytes.fromhex(decision["frame"])
        try:
            if "reason" in decision:
                return self._carry_out(connection, handshake.decide(False, frame, decision["reason"]))
            outcome = self._carry_out(connection, handshake.decide(True, frame))
        except OSError as error:  # the client has ended the connection while the supervisor decided
            return Failed(Cause.CLOSED, failure_words.of_error(error))
        connection.peer_handle = decision["peer_handle"]
        return outcome


class ServerHandshaker(_Handshaker):
    """The server's side. `lane`: of this worker."""

    def __init__(self, settings: WorkerSettings, supervisor: SupervisorChannel, lane: int = 0) -> None:
        super().__init__(settings, supervisor)
        self._lane = lane
        self._certificate_hash = NO_CERTIFICATE
        self.renew(settings)

    def renew(self, settings: WorkerSettings) -> None:
        """Other certificates, for connections that begin from now on. After an error the old ones stay in use."""
        if settings.tls is not None:
            context = context_of(settings.tls, server=True)
            self._context, self._certificate_hash = context, bytes.fromhex(settings.tls.fingerprint)

    def begin(self, connection: Connection) -> Outcome:
        """The connection has been accepted. Nothing is read before bytes of the client have arrived; with TLS there is
        no object of OpenSSL before that, either."""
        settings = self._settings
        connection.handshake = (
            CompatHandshake(connection.dial_index, settings.mtu, asks=bool(settings.client_subnets))
            if settings.compat
            else ServerHandshake(
                settings.verifies_keys, secrets.token_bytes(messages.NONCE_BYTES), self._certificate_hash
            )
        )
        return None if self._context is not None else self._guarded(connection, self._connected)

    def _make_channel(self, connection: Connection, context: TlsContext) -> TlsChannel:
        handshake = connection.handshake
        if isinstance(handshake, ServerHandshake):
            handshake.certificate_hash = self._certificate_hash  # a reload may have come since the connection
        return TlsChannel(connection.socket, context, server=True, hostname=None)


class ClientHandshaker(_Handshaker):
    """The client's side."""

    def __init__(self, settings: WorkerSettings, supervisor: SupervisorChannel) -> None:
        super().__init__(settings, supervisor)
        self._key = self._pin = b""
        self._server_name: str | None = None
        self.renew(settings)

    def renew(self, settings: WorkerSettings) -> None:
        """Other certificates, another key, for connections that begin from now on. After an error nothing changes."""
        tls, key = settings.tls, bytes.fromhex(settings.key)
        if tls is not None:
            context = context_of(tls, server=False)
            self._context, self._pin, self._server_name = context, bytes.fromhex(tls.fingerprint), tls.server_name
        self._key = key

    def _ending(self, handshake: Handshake, error: OSError) -> str:
        early = handshake.state is State.CONNECTING and self._context is not None
        return failure_words.ENDED_EARLY if early else super()._ending(handshake, error)

    def begin(self, connection: Connection) -> Outcome:
        """TCP is connected: the client speaks first."""
        settings = self._settings
        if settings.compat:
            connection.handshake = CompatHandshake(connection.dial_index, settings.mtu, self._pin)
        else:
            hello = self._hello(connection.dial_index)
            connection.traffic_class = hello.traffic_class
            connection.handshake = ClientHandshake(hello, self._key, self._pin)
        return self.step(connection)

    def _make_channel(self, connection: Connection, context: TlsContext) -> TlsChannel:
        return TlsChannel(connection.socket, context, server=False, hostname=self._server_name)

    def _hello(self, dial_index: int) -> messages.Hello:
        settings, key = self._settings, self._key
        return messages.Hello(
            version=messages.VERSION,
            offloads=settings.offloads_accepted,
            connection_index=dial_index,
            connections=settings.connections,
            mtu=settings.mtu,
            client_id=settings.client_id,
            session=settings.session,
            traffic_class=framing.LIGHT if dial_index >= settings.connections else framing.BULK,
            features=messages.ACCEPTS_SHARDS if settings.fec != "off" else 0,
            auth=messages.AUTH_KEY if key else messages.AUTH_NONE,
            key_id=auth.key_id(key) if key else bytes(messages.KEY_ID_BYTES),
            nonce=secrets.token_bytes(messages.NONCE_BYTES),
            requested_addresses=tuple(map(ip_address, settings.requested_addresses)),
        )


def _handshake_of(connection: Connection) -> Handshake:
    if connection.handshake is None:
        raise LocalError(f"connection {connection.serial}: no handshake has begun, or it is over")
    return connection.handshake
