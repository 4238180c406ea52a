"""From a TCP connection to one that carries packets: TLS, and the greeting of docs/wire.md.

    Host     server   TLS -> HELLO -> [CHALLENGE, PROOF] -> ask the supervisor -> WELCOME, or REFUSED and close
    Guest    client   TLS -> HELLO -> [CHALLENGE, PROOF] -> WELCOME, or REFUSED

step() does what can be done now. It answers True once the connection has been welcomed (with compat, which has no
greeting, once there is TLS), and raises what ends it: PeerError for nonsense, EOFError, OSError with a reason; and
BlockingIOError when it has to wait. A stranger learns nothing from how he is turned away: whatever is wrong
with a greeting or a proof, the connection is closed at once and without a word.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import secrets
from ipaddress import ip_address
from ssl import SSLContext

from pipeline.errors import PeerError
from pipeline.log import LOG
from pipeline.runtime.supervisor_channel import SupervisorChannel
from pipeline.transport.connection import Connection, HandshakeState
from pipeline.transport.tls_channel import TlsChannel
from pipeline.transport.tls_context import client_context, server_context
from pipeline.wire import auth, framing, messages
from workers.tcp.frame_reader import receive_greeting

NO_CERTIFICATE = bytes(32)


class Unauthenticated(OSError):
    """Whoever it is, the supervisor does not know him."""


class Host:
    """The server's side, for all connections of a worker."""

    def __init__(self, settings: dict, desk: SupervisorChannel) -> None:
        self._desk = desk
        self._compat = settings["compat"]
        self._with_keys = settings["keys"]
        self._context: SSLContext | None = None
        self._certificate_sha256 = NO_CERTIFICATE
        self.renew(settings["tls"])

    def renew(self, tls: dict | None) -> None:
        """Other certificates, for connections from now on."""
        if tls is not None:
            self._context = server_context(tls["certificate"], tls["key"], tls["ca"], tls["minimum"])
            self._certificate_sha256 = bytes.fromhex(tls["fingerprint"])

    def begin(self, connection: Connection) -> None:
        """It has been accepted."""
        connection.exchange = HandshakeState("hello")
        connection.exchange.certificate_sha256 = self._certificate_sha256
        if self._context is not None:
            connection.channel = TlsChannel(connection.socket, self._context, server=True, hostname=None)

    def step(self, connection: Connection) -> bool:
        """False, unless nothing is greeted (compat): it is answered() that welcomes."""
        if connection.channel is not None and not connection.channel.ready:
            connection.channel.handshake()
        exchange = connection.exchange
        while exchange.expects != "answer":
            if self._compat:
                return True
            frame = receive_greeting(connection, framing.HELLO_LENGTH_LIMIT)
            match messages.decode(frame), exchange.expects:
                case messages.Hello() as hello, "hello":
                    exchange.hello, exchange.hello_frame = hello, frame
                    if hello.auth == messages.AUTH_KEY and self._with_keys:
                        exchange.expects = "proof"
                        exchange.challenge_frame = messages.Challenge(secrets.token_bytes(messages.NONCE_BYTES)).frame()
                        connection.say(exchange.challenge_frame)
                    else:
                        self._ask(connection, b"")
                case messages.Proof(mac), "proof":
                    self._ask(connection, mac)
                case _:
                    raise PeerError("a greeting out of turn")
        return False

    def _ask(self, connection: Connection, mac: bytes) -> None:
        exchange = connection.exchange
        exchange.expects = "answer"
        certificate = b"" if connection.channel is None else connection.channel.certificate()
        if not self._desk.ask(
            serial=connection.serial,
            hello=exchange.hello_frame.hex(),
            challenge=exchange.challenge_frame.hex(),
            proof=mac.hex(),
            certificate=certificate.hex(),
            hash=exchange.certificate_sha256.hex(),
        ):
            raise OSError(errno.EAGAIN, "the supervisor has too many questions to answer")

    def answered(self, connection: Connection, answer: dict) -> None:
        """What the supervisor has decided. OSError if it is a refusal, a Stranger if nothing was proved."""
        frame = bytes.fromhex(answer["frame"])
        if frame:
            connection.say(frame)
        if "why" in answer:
            if not frame:
                raise Unauthenticated(errno.EACCES, answer["why"])
            raise OSError(errno.ECONNREFUSED, f"refused: {answer['why']}")
        hello = connection.exchange.hello
        connection.peer_handle = answer["seat"]
        connection.dial_index = hello.index
        connection.offloads = hello.offloads
        connection.traffic_class = framing.LIGHT if hello.traffic_class == framing.LIGHT else framing.BULK
        connection.accepts_shards = bool(hello.features & messages.ACCEPTS_SHARDS)
        connection.exchange.mtu, connection.exchange.connections = hello.mtu, hello.connections


class Guest:
    """The client's side."""

    def __init__(self, settings: dict, desk: SupervisorChannel, features: int) -> None:
        self._settings = settings
        self._desk = desk
        self._compat = settings["compat"]
        self._features = features
        self._key = bytes.fromhex(settings["key"])
        self._context: SSLContext | None = None
        self._pin = b""
        self._name: str | None = None
        self.renew(settings["tls"])

    def renew(self, tls: dict | None) -> None:
        """Other certificates, for connections from now on."""
        if tls is not None:
            self._context = client_context(
                tls["minimum"],
                tls["ca"],
                system_cas=tls["verify"] and not tls["ca"],
                verify=tls["verify"],
                certificate_pem=tls["certificate"],
                key_pem=tls["key"],
            )
            self._pin = bytes.fromhex(tls["fingerprint"])
            self._name = tls["server_name"]

    def begin(self, connection: Connection) -> None:
        """TCP is connected."""
        connection.exchange = HandshakeState("")
        if self._context is not None:
            connection.channel = TlsChannel(connection.socket, self._context, server=False, hostname=self._name)
        elif not self._compat:
            self._say_hello(connection)

    def step(self, connection: Connection) -> bool:
        """True once it is welcome."""
        exchange, channel = connection.exchange, connection.channel
        if channel is not None and not channel.ready:
            channel.handshake()
            exchange.certificate_sha256 = hashlib.sha256(channel.certificate()).digest()
            if self._pin and not hmac.compare_digest(self._pin, exchange.certificate_sha256):
                raise OSError(
                    errno.EPROTO,
                    f"the server's certificate has the fingerprint "
                    f"{exchange.certificate_sha256.hex()}, expected {self._pin.hex()}",
                )
            if not self._compat:
                self._say_hello(connection)
        while True:
            if self._compat:
                return True
            frame = receive_greeting(connection, framing.WELCOME_LENGTH_LIMIT)
            match messages.decode(frame), exchange.expects:
                case messages.Challenge(), "challenge":
                    exchange.transcript = auth.transcript(exchange.hello_frame, frame, exchange.certificate_sha256)
                    connection.say(messages.Proof(auth.client_proof(self._key, exchange.transcript)).frame())
                    exchange.expects = "welcome"
                case messages.Welcome() as welcome, "welcome":
                    if self._key and not auth.server_proved(self._key, exchange.transcript, frame):
                        raise OSError(errno.EPROTO, "the server has not proved that it has our key")
                    self._welcomed(connection, welcome, frame)
                    return True
                case messages.Welcome(), "challenge":
                    raise OSError(errno.EPROTO, "the server welcomes everybody and proves nothing; it has no keys")
                case messages.Refused() as refused, _:
                    raise OSError(errno.ECONNREFUSED, f"refused by the server: {refused.text}")
                case _:
                    raise PeerError("a greeting out of turn")

    def _say_hello(self, connection: Connection) -> None:
        settings, key = self._settings, self._key
        light = connection.dial_index >= settings["connections"]
        hello = messages.Hello(
            messages.VERSION,
            settings["offloads_accepted"],
            connection.dial_index,
            settings["connections"],
            settings["mtu"],
            settings["client"],
            settings["session"],
            framing.LIGHT if light else framing.BULK,
            self._features,
            messages.AUTH_KEY if key else messages.AUTH_NONE,
            auth.key_id(key) if key else bytes(messages.KEY_ID_BYTES),
            secrets.token_bytes(messages.NONCE_BYTES),
            tuple(map(ip_address, settings["wishes"])),
        )
        connection.exchange.hello_frame = hello.frame()
        connection.traffic_class = hello.traffic_class
        connection.say(connection.exchange.hello_frame)
        connection.exchange.expects = "challenge" if key else "welcome"

    def _welcomed(self, connection: Connection, welcome: messages.Welcome, frame: bytes) -> None:
        connection.offloads = welcome.offloads
        connection.accepts_shards = bool(welcome.features & messages.ACCEPTS_SHARDS)
        connection.exchange.mtu, connection.exchange.connections = welcome.mtu, self._settings["connections"]
        if not self._desk.ask(welcome=frame.hex(), server=connection.host):
            LOG.warning("the supervisor has too many questions to answer: addresses and routes may be old ones")
