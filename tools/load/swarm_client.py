"""One light client of a swarm: its connections to the server, and the packets on them.

    SwarmConnection    one connection: connecting -> handshake -> established; step() does what can be done now
    SwarmSlot          a connection that the client keeps up, attempt after attempt, with backoff
    SwarmClient        a peer with its slots: answers every echo request for its addresses, counts

TLS, the handshake, and the pauses and number of attempts are those of the real client (pipeline.transport,
pipeline.wire, pipeline.policy). There is no device: a packet that is no echo request is only counted. The caller owns
the selector and the clock.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import NamedTuple

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.backoff import Backoff
from pipeline.policy.dialing import CONNECT_NS, DIALS_AT_ONCE, STABLE_NS
from pipeline.transport.connection import WOULD_BLOCK
from pipeline.transport.tls_channel import TlsChannel
from pipeline.transport.tls_context import TlsContext
from pipeline.wire import auth, framing, messages
from pipeline.wire.block import lengths
from pipeline.wire.handshake import AskProof, AskVerdict, ClientHandshake, Failed, Output, Send, Welcomed
from tools.load.icmp_echo import answer, block_of
from tools.load.swarm_seal import SealedRecords, SwarmSeal

CONNECTING, HANDSHAKE, ESTABLISHED = "connecting", "handshake", "established"

RECEIVE_BYTES = 65536


class SwarmSettings(NamedTuple):
    """Settings of all clients. Times in seconds."""

    context: TlsContext
    bulk_connections: int  # of each client
    light_connections: int  # of each client
    mtu: int
    keepalive: float
    timeout: float
    handshake_timeout: float
    reconnect_min: float
    reconnect_max: float


class Invited(NamedTuple):
    """The peer that a client is, and the server that it dials."""

    name: str
    host: str
    port: int
    key: bytes
    pin: bytes  # SHA-256 of the server's certificate
    source: str = ""  # the address that the client dials from; "": the kernel chooses
    deaf: bool = False  # the client reads nothing once it has been welcomed


class SwarmConnection:
    """One connection, from dialling to its end."""

    def __init__(self, slot: SwarmSlot, now: int) -> None:
        client = slot.client
        invited = client.invited
        self.slot = slot
        self.client = client
        self.state = CONNECTING
        self.dialled_ns = now
        self.established_ns = self.received_ns = self.sent_ns = 0
        self.socket = socket.socket(
            socket.AF_INET6 if ":" in invited.host else socket.AF_INET,
            socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        self._channel = TlsChannel(self.socket, client.settings.context, server=False, hostname=None)
        self._handshake = ClientHandshake(slot.hello(), invited.pin)
        self._records: SealedRecords | None = None  # once the server has proved itself
        self._unsent = b""  # bytes that the socket has not accepted yet
        self._received = bytearray()

    @property
    def wants_write(self) -> bool:
        in_tls = self.state is HANDSHAKE and self._records is None and self._channel.wants_write
        return self.state is CONNECTING or bool(self._unsent) or in_tls

    @property
    def reads_nothing(self) -> bool:
        return self.state is ESTABLISHED and self.client.invited.deaf

    def connect(self) -> None:
        """Begin to connect. OSError if that fails at once."""
        invited = self.client.invited
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if invited.source:
            self.socket.bind((invited.source, 0))
        result = self.socket.connect_ex((invited.host, invited.port))
        if result not in (0, *WOULD_BLOCK):
            raise OSError(result, os.strerror(result))

    def step(self, now: int) -> None:
        """Go on: the socket has bytes or room. OSError, EOFError or PeerError ends the connection."""
        try:
            if self.state is CONNECTING:
                error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                self.state = HANDSHAKE
            if not self._channel.ready:
                self._channel.handshake()
                self._carry_out(self._handshake.begin(self._channel.certificate()), now)
            self._flush()
            while True:
                data = self._receive()
                self.received_ns = now
                if self.state is HANDSHAKE:
                    self._carry_out(self._handshake.feed(data), now)
                else:
                    self._received += data
                self._handle_frames(now)
                if self.reads_nothing or self._records is not None or not self._channel.pending:
                    break
        except BlockingIOError:
            pass

    def _carry_out(self, outputs: list[Output], now: int) -> None:
        for output in outputs:
            match output:
                case Send(data):
                    self.send(data, now)
                case AskProof(hello, challenge, certificate_hash):
                    transcript = auth.transcript(hello, challenge, certificate_hash)
                    self._carry_out(self._handshake.prove(auth.client_proof(self.client.invited.key, transcript)), now)
                case AskVerdict(hello, challenge, certificate_hash, welcome):
                    transcript = auth.transcript(hello, challenge, certificate_hash)
                    if not auth.server_proved(self.client.invited.key, transcript, welcome):
                        raise PeerError("the server has not proved that it has our key")
                    key = self.client.invited.key
                    seal = self.client.seal
                    self._records = seal.open_connection(hello, challenge, welcome, certificate_hash, key)
                    self.client.welcomed(welcome, now - self.dialled_ns)
                    self._carry_out(self._handshake.judge(""), now)
                case Welcomed():
                    self.state, self.established_ns = ESTABLISHED, now
                    if output.rest:
                        raise PeerError("bytes in TLS behind the welcome")
                    self._received += self._channel.detach()
                case Failed():
                    raise PeerError(output.reason)

    def send(self, frame: bytes, now: int) -> None:
        """Send a frame, behind the bytes that the socket has not accepted yet."""
        self.sent_ns = now
        self._unsent += self.seal(frame)
        try:
            self._flush()
        except BlockingIOError:
            pass

    def seal(self, data: bytes) -> bytes:
        """The next records of the connection, to be sent by the caller. `data`: whole frames."""
        return self._channel.seal([data]) if self._records is None else self._records.seal(data)

    def _flush(self) -> None:
        if self._unsent:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def _receive(self) -> bytes:
        buffer = bytearray(RECEIVE_BYTES)
        with memoryview(buffer) as view:
            count = self._channel.receive(view, 1) if self._records is None else self.socket.recv_into(view)
        if not count:
            raise EOFError("closed by the server")
        return bytes(buffer[:count])

    def _handle_frames(self, now: int) -> None:
        if self._records is not None:
            for frame in self._records.take_frames(self._received):
                self.client.handle_frame(self, frame, now)

    def overdue(self, now: int) -> str:
        """Why the connection is to be closed now; "" if it is not."""
        settings = self.client.settings
        if self.state is ESTABLISHED:
            silent = now - self.received_ns >= settings.timeout * 1e9
            return "nothing received" if silent and not self.client.invited.deaf else ""
        limit = CONNECT_NS if self.state is CONNECTING else settings.handshake_timeout * 1e9
        return f"no answer while {self.state}" if now - self.dialled_ns >= limit else ""


class SwarmSlot:
    """A connection that a client keeps up. `index`: among those of the client."""

    def __init__(self, client: SwarmClient, index: int) -> None:
        self.client = client
        self.index = index
        self.due_ns = 0  # when the next attempt begins
        self.connection: SwarmConnection | None = None
        self._backoff = Backoff(client.settings.reconnect_min, client.settings.reconnect_max)

    def hello(self) -> messages.Hello:
        client, settings = self.client, self.client.settings
        return messages.Hello(
            version=messages.VERSION,
            offloads=0,
            connection_index=self.index,
            connections=settings.bulk_connections,
            mtu=settings.mtu,
            client_id=client.number,
            session=client.session,
            traffic_class=framing.LIGHT if self.index >= settings.bulk_connections else framing.BULK,
            features=messages.ACCEPTS_SHARDS,
            auth=messages.AUTH_KEY,
            key_id=auth.key_id(client.invited.key),
            nonce=secrets.token_bytes(messages.NONCE_BYTES),
            key_share=client.seal.key_share,
        )

    def ended(self, connection: SwarmConnection, now: int) -> None:
        """The connection has ended: close it, and decide when to dial again."""
        was_established = connection.state is ESTABLISHED
        self.client.established -= was_established
        connection.socket.close()
        self.connection = None
        if was_established and now - connection.established_ns >= STABLE_NS:
            self._backoff.reset()
            self.due_ns = now
        else:
            self.postpone(now)

    def postpone(self, now: int) -> None:
        """The next attempt begins after a pause."""
        self.due_ns = now + int(self._backoff.next_delay() * 1e9)


class SwarmClient:
    """`number` tells the client from the others; `session` is that of this run of the swarm."""

    def __init__(self, number: int, invited: Invited, settings: SwarmSettings, session: int) -> None:
        self.number = number
        self.invited = invited
        self.settings = settings
        self.session = session
        self.seal = SwarmSeal()
        self.addresses: list[str] = []
        self.slots = [SwarmSlot(self, index) for index in range(settings.bulk_connections + settings.light_connections)]
        self.established = 0
        self.echoes = 0  # echo requests answered
        self.other_packets = 0  # packets that are no echo requests
        self.handshakes_ns: list[int] = []
        """From dialling to the welcome, of each connection that was welcomed."""

    @property
    def is_complete(self) -> bool:
        """All of its connections are established."""
        return self.established == len(self.slots)

    def due_slots(self, now: int) -> list[SwarmSlot]:
        """The slots that begin an attempt now."""
        connections = [slot.connection for slot in self.slots if slot.connection is not None]
        under_way = sum(connection.state is not ESTABLISHED for connection in connections)
        due = [slot for slot in self.slots if slot.connection is None and slot.due_ns <= now]
        return due[: max(0, DIALS_AT_ONCE - under_way)]

    def welcomed(self, frame: bytes, took_ns: int) -> None:
        """The server has sent this WELCOME, and has proved to be ours."""
        welcome = messages.decode(frame)
        if isinstance(welcome, messages.Welcome):
            self.addresses = [str(each.ip) for each in welcome.addresses]
        self.established += 1
        self.handshakes_ns.append(took_ns)

    # -- packets

    def handle_frame(self, connection: SwarmConnection, frame: memoryview, now: int) -> None:
        """A frame on an established connection."""
        kind = frame[framing.LENGTH.size]
        if kind == framing.RUN:
            _, _, stream, number, n, _, _, _, _, _, _ = shard.SEALED_RUN.unpack_from(frame)
            if n != 1:
                self.other_packets += 1
                return
            if not self.seal.is_new(stream, number):
                return
            block = memoryview(self.seal.open(frame))
            at, sizes = lengths(block, 0, len(block))
            replies = []
            for size in sizes:
                reply = answer(bytes(block[at + VNET_HEADER_BYTES : at + size]))
                if reply:
                    replies.append(reply)
                at += size
            self.other_packets += len(sizes) - len(replies)
            self.echoes += len(replies)
            if replies:
                connection.send(block_of(replies), now)
