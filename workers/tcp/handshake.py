"""The handshake of a tcp worker's connections: it moves bytes and certificates between a connection, the state machine
of `pipeline.wire.handshake`, and the supervisor channel.

    ServerHandshaker    TLS -> HELLO -> [CHALLENGE, PROOF] -> the supervisor decides -> WELCOME, or REFUSED and the end
    ClientHandshaker    TLS -> HELLO -> [CHALLENGE -> it proves -> PROOF] -> WELCOME -> [it judges], or REFUSED

One object serves all connections of a worker. Each call does what can be done now and returns the outcome:

    None        more bytes of the other end are needed, or room in the socket
    Question    the supervisor has been asked: nothing more is read until `answered`
    Welcomed    the handshake is over
    Failed      the connection is to be closed

No key is here: at both ends the supervisor makes the proofs, and checks those of the other end. An unauthenticated
client learns nothing from a failure: the connection is closed at once, and nothing is sent. With a fallback it is the
web server's instead (`workers.tcp.fallback`).
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable

from pipeline.errors import LocalError
from pipeline.log import LOG, printable
from pipeline.runtime.client_hello import client_hello
from pipeline.runtime.plan import WorkerSettings
from pipeline.runtime.supervisor_channel import HandshakeAnswer, Request, Seal, SupervisorChannel, WelcomeReport
from pipeline.sealing.header_seal import HeaderOpener, HeaderSealer
from pipeline.sealing.key_schedule import HeaderSecret
from pipeline.sealing.padding import PaddingSource
from pipeline.sealing.records import RecordScanner, RecordWriter
from pipeline.transport import failure_words
from pipeline.transport.connection import Connection
from pipeline.transport.offered_alpn import NO_APPLICATION_PROTOCOL, offered
from pipeline.transport.settings import ALPN
from pipeline.transport.tls_channel import FLIGHT_BYTES, TlsChannel
from pipeline.transport.tls_context import TlsContext, context_of
from pipeline.wire import messages, noise
from pipeline.wire.handshake import (
    NO_CERTIFICATE,
    AskKnock,
    AskProof,
    AskSupervisor,
    AskVerdict,
    Cause,
    ClientHandshake,
    CompatHandshake,
    Failed,
    Handshake,
    Output,
    Question,
    Send,
    ServerHandshake,
    State,
    TellSupervisor,
    Welcomed,
)

TLS_HANDSHAKE, SSL_2 = 0x16, 0x80
"""The first byte of TLS, as web servers tell it: a handshake record, or a bit of a hello of SSL 2."""

UNASKED = "the supervisor answers nothing: too many requests wait for it"

Outcome = Question | Welcomed | Failed | None


class _Handshaker:
    """The part of both sides."""

    _lane = 0

    def __init__(self, settings: WorkerSettings, supervisor: SupervisorChannel) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._context: TlsContext | None = None
        self._padding = PaddingSource() if settings.padding else None

    def step(self, connection: Connection) -> Outcome:
        """Go on: the socket has bytes or room."""
        return self._guarded(connection, self._advance)

    @staticmethod
    def awaits_supervisor(connection: Connection) -> bool:
        """Whether the supervisor has been asked about a connection, and has not answered yet."""
        return _handshake_of(connection).awaits_supervisor

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
        if handshake.awaits_supervisor:  # nothing is read, and epoll tells of nothing but a reset
            error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return handshake.ended(Cause.CLOSED, os.strerror(error)) if error else None
        if handshake.state is State.CONNECTING:
            outcome = self._connected(connection, handshake)
        while outcome is None and not handshake.awaits_supervisor:
            data = connection.receive_bytes(handshake.read_bytes)
            if not data:
                return handshake.ended(Cause.CLOSED, "closed by the peer")
            outcome = self._carry_out(connection, handshake.feed(data))
        return outcome

    def _connected(self, connection: Connection, handshake: Handshake) -> Outcome:
        """TCP is connected: TLS, and the first messages."""
        certificate = binding = b""
        if self._context is not None and connection.channel is None:
            connection.channel = self._make_channel(connection, self._context)
        if connection.channel is not None:
            connection.channel.handshake()
            certificate, binding = connection.channel.certificate(), connection.channel.binding()
            self._on_tls(connection)
        return self._carry_out(connection, handshake.begin(certificate, binding))

    def _on_tls(self, connection: Connection) -> None:
        """The handshake of TLS is over."""

    def _make_channel(self, connection: Connection, context: TlsContext) -> TlsChannel:
        raise NotImplementedError

    def _carry_out(self, connection: Connection, outputs: list[Output]) -> Outcome:
        for output in outputs:
            match output:
                case Send(data):
                    connection.send_frame(data)
                case AskSupervisor() | AskKnock() | AskProof() | AskVerdict():
                    asked = self._supervisor.ask(_request(connection, output, self._lane))
                    return output if asked else Failed(Cause.CLOSED, UNASKED)
                case TellSupervisor(welcome):
                    if not self._supervisor.ask(_report(connection, welcome)):
                        LOG.warning("addresses and routes from the server were not applied: %s", UNASKED)
                case Welcomed():
                    connection.dial_index = output.connection_index
                    connection.offloads = output.offloads
                    connection.traffic_class = output.traffic_class
                    connection.accepts_shards = output.accepts_shards
                    connection.uplink = output.uplink
                    connection.answers = output.answers
                    connection.takes_padding = output.takes_padding
                    return output
                case Failed():
                    return output
        return None

    def _seal(self, connection: Connection, outcome: Outcome, seal: Seal | None) -> Outcome:
        """The handshake is over: where blocks are sealed, TLS has done its part."""
        if seal is None or not isinstance(outcome, Welcomed):
            return outcome
        if outcome.rest:
            return Failed(Cause.INVALID, "bytes in TLS behind the handshake")
        connection.peer_handle = seal.get("peer_handle", connection.peer_handle)
        send, receive = (HeaderSecret(bytes.fromhex(each)) for each in (seal["send"], seal["receive"]))
        suite = seal["suite"]
        rest = connection.begin_sealing(
            RecordWriter(HeaderSealer(suite, send), self._padding if connection.takes_padding else None),
            RecordScanner(HeaderOpener(suite, receive)),
        )
        return outcome._replace(rest=rest)

    def answered(self, connection: Connection, answer: HandshakeAnswer) -> Outcome:
        """The supervisor's answer about a connection for which it was asked."""
        raise NotImplementedError


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
                settings.verifies_keys,
                secrets.token_bytes(messages.NONCE_BYTES),
                self._certificate_hash,
                hides=settings.fallback is not None,
                padding=_padding(settings),
            )
        )
        return None if self._context is not None else self._guarded(connection, self._connected)

    def answered(self, connection: Connection, answer: HandshakeAnswer) -> Outcome:
        if "is_right" in answer:
            return self._guarded(connection, lambda *_: self._judge_knock(connection, answer["is_right"]))
        handshake = _handshake_of(connection)
        if not isinstance(handshake, ServerHandshake | CompatHandshake) or "frame" not in answer:
            raise _unasked(connection)
        frame = bytes.fromhex(answer["frame"])
        try:
            if "reason" in answer:
                return self._carry_out(connection, handshake.decide(False, frame, answer["reason"]))
            outcome = self._carry_out(connection, handshake.decide(True, frame))
        except OSError as error:  # the client has ended the connection while the supervisor decided
            return Failed(Cause.CLOSED, failure_words.of_error(error))
        connection.peer_handle = answer["peer_handle"]
        return self._seal(connection, outcome, answer.get("seal"))

    def _judge_knock(self, connection: Connection, is_right: bool) -> Outcome:
        handshake = connection.handshake
        if not isinstance(handshake, ServerHandshake):
            raise _unasked(connection)
        outcome = self._carry_out(connection, handshake.judge_knock(is_right))
        return outcome or self._advance(connection, handshake)

    def _connected(self, connection: Connection, handshake: Handshake) -> Outcome:
        if connection.channel is None and isinstance(handshake, ServerHandshake) and handshake.hides:
            first = connection.socket.recv(FLIGHT_BYTES, socket.MSG_PEEK)
            if not first:
                return handshake.ended(Cause.CLOSED, "closed by the peer")
            if not (first[0] == TLS_HANDSHAKE or first[0] & SSL_2):
                return Failed(Cause.INVALID, "the first byte is none of TLS")
            if self._context is not None and not self._shares_a_name(self._context, first):
                connection.socket.send(NO_APPLICATION_PROTOCOL)
                return Failed(Cause.BROKEN, "the client offers other ALPN names than ours")
        return super()._connected(connection, handshake)

    @staticmethod
    def _shares_a_name(context: TlsContext, first: bytes) -> bool:
        """Whether a web server would go on: the client offers no ALPN name, or one that we have."""
        names = offered(first)
        return not names or not set(names).isdisjoint(context.alpn)

    def _on_tls(self, connection: Connection) -> None:
        """A client that has got our own ALPN name knows what this server is: nothing is hidden from it."""
        if isinstance(connection.handshake, ServerHandshake) and connection.channel is not None:
            connection.handshake.hides &= connection.channel.selected_alpn != ALPN
            if connection.handshake.hides:
                connection.records_at_once = 1

    def _make_channel(self, connection: Connection, context: TlsContext) -> TlsChannel:
        handshake = connection.handshake
        if isinstance(handshake, ServerHandshake):
            handshake.certificate_hash = self._certificate_hash  # a reload may have come since the connection
        return TlsChannel(connection.socket, context, server=True, hostname=None)


class ClientHandshaker(_Handshaker):
    """The client's side."""

    def __init__(self, settings: WorkerSettings, supervisor: SupervisorChannel) -> None:
        super().__init__(settings, supervisor)
        self._key_id = self._pin = b""
        self._server_name: str | None = None
        self.renew(settings)

    def renew(self, settings: WorkerSettings) -> None:
        """Other certificates, another key, for connections that begin from now on. After an error nothing changes."""
        tls, key_id = settings.tls, bytes.fromhex(settings.key_id)
        if tls is not None:
            context = context_of(tls, server=False)
            self._context, self._pin, self._server_name = context, bytes.fromhex(tls.fingerprint), tls.server_name
        self._key_id, self._settings = key_id, settings

    def _ending(self, handshake: Handshake, error: OSError) -> str:
        early = handshake.state is State.CONNECTING and self._context is not None
        return failure_words.ENDED_EARLY if early else super()._ending(handshake, error)

    def begin(self, connection: Connection, session: int | None = None, server_name: str = "") -> Outcome:
        """TCP is connected: the client speaks first. `session`: of this visit; `server_name`: for the certificate of
        this server, where no name is configured."""
        settings = self._settings if session is None else self._settings._replace(session=session)
        connection.server_name = server_name
        if settings.compat:
            connection.handshake = CompatHandshake(connection.dial_index, settings.mtu, self._pin)
        else:
            nonce = secrets.token_bytes(messages.NONCE_BYTES)
            hello = client_hello(settings, self._key_id, connection.dial_index, nonce)
            connection.traffic_class = hello.traffic_class
            connection.handshake = ClientHandshake(
                hello, self._pin, bytes.fromhex(settings.knock_key), _padding(settings)
            )
            connection.records_at_once = 1
        return self.step(connection)

    def answered(self, connection: Connection, answer: HandshakeAnswer) -> Outcome:
        def act(connection: Connection, handshake: Handshake) -> Outcome:
            if not isinstance(handshake, ClientHandshake):
                raise _unasked(connection)
            if "distrust" in answer:
                outcome = self._carry_out(connection, handshake.judge(answer["distrust"]))
                return self._seal(connection, outcome, answer.get("seal"))
            if "proof" not in answer:
                raise _unasked(connection)
            if answer["refusal"]:
                return handshake.ended(Cause.CLOSED, answer["refusal"])
            outcome = self._carry_out(connection, handshake.prove(bytes.fromhex(answer["proof"])))
            return outcome or self._advance(connection, handshake)

        return self._guarded(connection, act)

    def _make_channel(self, connection: Connection, context: TlsContext) -> TlsChannel:
        return TlsChannel(
            connection.socket, context, server=False, hostname=self._server_name or connection.server_name
        )


def _request(connection: Connection, question: Question, lane: int) -> Request:
    """The question as the supervisor gets it."""
    match question:
        case AskSupervisor():
            return {
                "lane": lane,
                "serial": connection.serial,
                "hello": question.hello.hex(),
                "challenge": question.challenge.hex(),
                "proof": question.proof.hex(),
                "certificate": question.certificate.hex(),
                "hash": question.certificate_hash.hex(),
                "address": connection.host,
            }
        case AskKnock():
            return {
                "serial": connection.serial,
                "knock": question.hello.hex(),
                "binding": question.binding.hex(),
            }
        case AskProof():
            return {
                "serial": connection.serial,
                "hello": question.hello.hex(),
                "challenge": question.challenge.hex(),
                "hash": question.certificate_hash.hex(),
            }
        case AskVerdict():
            return {
                **_report(connection, question.welcome),
                "hello": question.hello.hex(),
                "challenge": question.challenge.hex(),
                "hash": question.certificate_hash.hex(),
            }


def _report(connection: Connection, welcome: bytes) -> WelcomeReport:
    """A report to which no answer comes, unless it has a handshake with a key besides."""
    return {
        "serial": connection.serial,
        "hello": "",
        "challenge": "",
        "hash": "",
        "welcome": welcome.hex(),
        "server": connection.host,
    }


def _padding(settings: WorkerSettings) -> bytes:
    return noise.padding(noise.IN_OTHERS) if settings.noise else b""


def _handshake_of(connection: Connection) -> Handshake:
    if connection.handshake is None:
        raise LocalError(f"connection {connection.serial}: no handshake has begun, or it is over")
    return connection.handshake


def _unasked(connection: Connection) -> LocalError:
    return LocalError(f"connection {connection.serial}: an answer of the supervisor, which was not asked for it")
