"""One light client of a crowd: its connections to the server, and the packets on them.

    Link      connecting -> securing -> greeting -> established, and again; step() does what can be done now
    Member    a peer with its links: dials what is due, answers every echo request for its addresses, counts

The greeting, TLS, the pauses between attempts and how many of them are made at a time are the real client's
(pipeline.wire.messages, proof, tls, backoff, dialer). There is no device: a packet that is no echo request is
counted, and that is all. The caller owns the selector and the clock.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import socket
from typing import NamedTuple

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.policy.backoff import Backoff
from pipeline.transport.connection import WOULD_BLOCK
from pipeline.transport.dialer import CONNECT_NS, DIALS_AT_ONCE, SETTLED_NS
from pipeline.transport.tls_channel import TlsChannel
from pipeline.transport.tls_context import TlsContext
from pipeline.wire import auth, framing, messages
from pipeline.wire.block import lengths
from tools.load.icmp_echo import answer, block_of

IDLE, CONNECTING, SECURING, GREETING, ESTABLISHED = "idle", "connecting", "securing", "greeting", "established"

RECEIVE_BYTES = 65536
COPIES_REMEMBERED = 64  # blocks of a stream; copies of one come within a round trip of each other


class Settings(NamedTuple):
    """Of all members. `bulk` and `light`: connections of a member; times in seconds."""

    context: TlsContext
    bulk: int
    light: int
    mtu: int
    keepalive: float
    timeout: float
    greeting: float
    reconnect_min: float
    reconnect_max: float


class Peer(NamedTuple):
    """Who a member is, and whom it dials. `source`: the address that it dials from, "" for the kernel's choice."""

    name: str
    host: str
    port: int
    key: bytes
    pin: bytes
    source: str = ""
    deaf: bool = False
    """It reads nothing once it has been welcomed."""


class Link:
    """One connection of a member, through all its lives."""

    def __init__(self, member: Member, index: int) -> None:
        self.member = member
        self.index = index
        settings = member.settings
        self.traffic_class = framing.LIGHT if index >= settings.bulk else framing.BULK
        self.backoff = Backoff(settings.reconnect_min, settings.reconnect_max)
        self.state = IDLE
        self.due = self.began = self.since = self.heard = self.spoke = 0
        self.socket: socket.socket | None = None
        self.unsent = b""  # what the socket did not take
        self._channel: TlsChannel | None = None
        self._buffer = bytearray()
        self._hello = self._transcript = self._pin = b""

    @property
    def wants_write(self) -> bool:
        return self.state is CONNECTING or bool(self.unsent) or (self.state is SECURING and self._channel.wants_write)

    @property
    def deaf(self) -> bool:
        return self.state is ESTABLISHED and self.member.peer.deaf

    # -- what can be done now

    def dial(self, now: int) -> None:
        """Begin an attempt; OSError if that alone is too much."""
        peer = self.member.peer
        sock = socket.socket(
            socket.AF_INET6 if ":" in peer.host else socket.AF_INET,
            socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        self.socket, self.state, self.began = sock, CONNECTING, now
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if peer.source:
            sock.bind((peer.source, 0))
        result = sock.connect_ex((peer.host, peer.port))
        if result not in (0, *WOULD_BLOCK):
            raise OSError(result, os.strerror(result))

    def step(self, now: int) -> None:
        """The socket has something to say. OSError, EOFError or PeerError is the connection's end."""
        try:
            if self.state is CONNECTING:
                error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                self._channel = TlsChannel(self.socket, self.member.settings.context, server=False, hostname=None)
                self.state = SECURING
            if self.state is SECURING:
                self._channel.handshake()
                self.state = GREETING
                self._say_hello()
            self._flush()
            while self._receive():
                self.heard = now
                self._take_frames(now)
                if self.deaf or not self._channel.pending:
                    break
        except BlockingIOError:
            pass

    def send(self, frame: bytes, now: int) -> None:
        """A frame, behind what the socket did not take before."""
        self.spoke = now
        self.unsent += self._channel.seal([frame])
        try:
            self._flush()
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = self._channel = None
        self.state = IDLE
        self.unsent = self._transcript = b""
        self._buffer.clear()

    def _flush(self) -> None:
        if self.unsent:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def _receive(self) -> int:
        buffer = bytearray(RECEIVE_BYTES)
        with memoryview(buffer) as view:
            count = self._channel.receive(view)
        if not count:
            raise EOFError("closed by the server")
        self._buffer += memoryview(buffer)[:count]
        return count

    def _take_frames(self, now: int) -> None:
        buffer = self._buffer
        at = 0
        while len(buffer) - at >= framing.LENGTH.size:
            (length,) = framing.LENGTH.unpack_from(buffer, at)
            if length > framing.LENGTH_LIMIT:
                raise PeerError(f"frame of {length} bytes, at most {framing.LENGTH_LIMIT} allowed")
            end = at + framing.LENGTH.size + length
            if len(buffer) < end:
                break
            if length and self.state is ESTABLISHED:
                self.member.take(self, memoryview(bytes(buffer[at:end])), now)
            elif length:
                self._take_greeting(bytes(buffer[at:end]), now)
            at = end
        del buffer[:at]

    # -- the greeting

    def _say_hello(self) -> None:
        settings, peer = self.member.settings, self.member.peer
        certificate = hashlib.sha256(self._channel.certificate()).digest()
        if not hmac.compare_digest(peer.pin, certificate):
            raise OSError(errno.EPROTO, "another certificate than the invitation names")
        self._pin = certificate
        self._hello = messages.Hello(
            messages.VERSION,
            0,
            self.index,
            settings.bulk,
            settings.mtu,
            self.member.number,
            self.member.session,
            self.traffic_class,
            messages.ACCEPTS_SHARDS,
            messages.AUTH_KEY,
            auth.key_id(peer.key),
            secrets.token_bytes(messages.NONCE_BYTES),
        ).frame()
        self.unsent += self._channel.seal([self._hello])

    def _take_greeting(self, frame: bytes, now: int) -> None:
        key = self.member.peer.key
        match messages.decode(frame):
            case messages.Challenge() if not self._transcript:
                self._transcript = auth.transcript(self._hello, frame, self._pin)
                self.send(messages.Proof(auth.client_proof(key, self._transcript)).frame(), now)
            case messages.Welcome() as welcome if self._transcript:
                if not auth.server_proved(key, self._transcript, frame):
                    raise OSError(errno.EPROTO, "the server has not proved that it has our key")
                self._transcript = b""
                self.state, self.since = ESTABLISHED, now
                self.member.welcomed(self, welcome, now)
            case messages.Refused() as refused:
                raise OSError(errno.ECONNREFUSED, f"refused: {refused.text}")
            case _:
                raise PeerError("a greeting out of turn")


class Member:
    """`number` tells it from the others; `session` is that of this run of the crowd."""

    def __init__(self, number: int, peer: Peer, settings: Settings, session_number: int) -> None:
        self.number = number
        self.peer = peer
        self.settings = settings
        self.session = session_number
        self.addresses: list[str] = []
        self.links = [Link(self, index) for index in range(settings.bulk + settings.light)]
        self.established = 0
        self.echoes = 0  # echo requests answered
        self.others = 0  # packets that are none
        self.greetings_ns: list[int] = []
        """From dialling to the welcome, of each connection that got that far."""
        self._seen: dict[int, list[int]] = {}

    @property
    def complete(self) -> bool:
        """All of its connections are established."""
        return self.established == len(self.links)

    def dial_due(self, now: int) -> list[Link]:
        """The links that begin an attempt now."""
        under_way = sum(link.state in (CONNECTING, SECURING, GREETING) for link in self.links)
        begun = []
        for link in self.links:
            if link.state is IDLE and link.due <= now and under_way < DIALS_AT_ONCE:
                under_way += 1
                begun.append(link)
        return begun

    def welcomed(self, link: Link, welcome: messages.Welcome, now: int) -> None:
        self.addresses = [str(each.ip) for each in welcome.addresses]
        self.established += 1
        self.greetings_ns.append(now - link.began)

    def lost(self, link: Link, now: int) -> None:
        """It has ended; when to dial again."""
        settled = link.state is ESTABLISHED and now - link.since >= SETTLED_NS
        self.established -= link.state is ESTABLISHED
        link.close()
        if settled:
            link.backoff.reset()
            link.due = now
        else:
            link.due = now + int(link.backoff.delay() * 1e9)

    def overdue(self, link: Link, now: int) -> str:
        """Why its time is up; "" if it is not."""
        settings = self.settings
        if link.state is ESTABLISHED:
            return "" if self.peer.deaf or now - link.heard < settings.timeout * 1e9 else "nothing heard"
        limit = CONNECT_NS if link.state is CONNECTING else settings.greeting * 1e9
        return "" if link.state is IDLE or now - link.began < limit else f"no answer while {link.state}"

    # -- packets

    def take(self, link: Link, frame: memoryview, now: int) -> None:
        """A frame on an established connection."""
        kind = frame[4]
        if kind == framing.RUN:
            _, _, stream, number, n, _, _, _, _, _ = shard.RUN.unpack_from(frame)
            if n != 1:
                self.others += 1
                return
            seen = self._seen.setdefault(stream, [])
            if number in seen:
                return
            seen.append(number)
            del seen[:-COPIES_REMEMBERED]
            frame, kind = frame[shard.RUN_BYTES :], framing.BLOCK
        if kind == framing.BLOCK:
            at, sizes = lengths(frame, 0, len(frame))
            replies = []
            for size in sizes:
                reply = answer(bytes(frame[at + VNET_HEADER_BYTES : at + size]))
                if reply:
                    replies.append(reply)
                at += size
            self.others += len(sizes) - len(replies)
            self.echoes += len(replies)
            if replies:
                link.send(block_of(replies), now)
        elif kind == framing.DATA:
            reply = answer(bytes(frame[5:]))
            self.echoes += bool(reply)
            self.others += not reply
            if reply:
                link.send(framing.frame(framing.DATA, reply), now)
