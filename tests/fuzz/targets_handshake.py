"""Targets at the door: TLS records, and both sides of the greeting with the supervisor's part behind them.

records    a byte of shape, then chunks: to a channel in its handshake, or to two that are ready
host       a byte of shape, then what a client says in chunks: to the server's side, its desk and its hub
guest      the same from a server to the client's side, and on to its supervisor
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from contextlib import ExitStack
from ipaddress import ip_network

from pipeline.config import parse
from pipeline.errors import PeerError
from pipeline.runtime.supervisor_channel import SupervisorChannel
from pipeline.supervisor.client_role import ClientRole
from pipeline.supervisor.worker_channels import WorkerChannels
from pipeline.transport.connection import HANDSHAKE, Connection
from pipeline.transport.tls_channel import ANSWERS_MAX, TlsChannel
from pipeline.transport.tls_records import BODY_MAX, HEADER, RECORD
from pipeline.wire import auth, framing, messages
from pipeline.wire.messages import Proof, Welcome
from tests.fuzz.byte_source import Bites, chunk
from tests.fuzz.targets_wire import greetings
from tests.harness.frame_reader import contexts
from tests.harness.hub import KEYS, Server, hello, known
from tests.harness.tls_ends import End, shake_hands
from workers.tcp.handshake import Guest, Host

ADDRESS = ("192.0.2.1", 9000)
SETTINGS = {
    "compat": False,
    "keys": True,
    "tls": None,
    "connections": 1,
    "offloads_accepted": 0,
    "mtu": 1400,
    "client": 1,
    "session": 1,
    "wishes": [],
}

# -- TLS

SERVER, READY = 1, 2  # of the shape
OTHER, RAW, NARROW = 1, 2, 4  # of a chunk: for the other channel; as it is; received into little room
STEP, GOODBYE, CLOSED = 8, 16, 32  # the other end takes its next step of the handshake first; it ends after the chunk


def records(data: bytes) -> None:
    """Whatever comes in: the data that was sealed comes out, or the connection ends, and little is held for it."""
    bites = Bites(data)
    shape = bites.number()
    with ExitStack() as stack:
        links = [_Link(stack, bool(shape & SERVER), bool(shape & READY)) for _ in range(2)]
        for flags, piece in bites.chunks():
            links[flags & OTHER].hear(piece, flags)
        for link in links:
            link.hear(b"", CLOSED)


class _Link:
    """A channel, and the other end of its socket in the fuzzer's hand."""

    def __init__(self, stack: ExitStack, server: bool, ready: bool) -> None:
        near, far = socket.socketpair()
        stack.enter_context(near)
        stack.enter_context(far)
        client_context, server_context = contexts()
        self._ours = End(near, server_context if server else client_context, server)
        self._theirs = End(far, client_context if server else server_context, not server)
        if ready:
            shake_hands(*([self._theirs, self._ours] if server else [self._ours, self._theirs]))
        else:
            with contextlib.suppress(BlockingIOError):
                self._theirs.step()  # a client's first flight
        self._channel: TlsChannel = self._ours.channel
        self._ended = False
        self._sealed = self._came = b""

    def hear(self, piece: bytes, flags: int) -> None:
        if self._ended:
            return
        try:
            self._say(piece, flags)
        except OSError:
            flags |= CLOSED  # the other end has heard what it cannot bear, or has said goodbye before
        if flags & CLOSED:
            self._theirs.socket.close()
        try:
            self._read(memoryview(bytearray(3 if flags & NARROW else RECORD)))
        except OSError:
            self._ended = True
        assert self._sealed.startswith(self._came)
        channel = self._channel
        assert len(channel.stash) <= 2 * (HEADER + BODY_MAX)
        assert channel._incoming.pending <= HEADER + BODY_MAX
        assert channel._outgoing.pending <= ANSWERS_MAX

    def _say(self, piece: bytes, flags: int) -> None:
        theirs = self._theirs
        if flags & STEP:
            theirs.step()
        if flags & RAW:
            theirs.send_raw(piece)
        elif theirs.channel.ready and piece:
            theirs.send(piece)
            self._sealed += piece
        if flags & GOODBYE:
            theirs.send_raw(theirs.channel.closing())

    def _read(self, view: memoryview) -> None:
        channel = self._channel
        if not channel.ready:
            with contextlib.suppress(BlockingIOError):
                while channel.handshake():
                    break
            if not channel.ready:
                return
        with contextlib.suppress(BlockingIOError):
            while got := channel.receive(view):
                self._came += bytes(view[:got])


def records_seeds() -> list[bytes]:
    garbage = b"\x16\x03\x01\0\x05\x01\0\0\1\0"
    alert, huge, mute = b"\x15\x03\x03\0\2\1\0", b"\x17\x03\x03\xff\xff", b"\x14\x03\x03\0\1\1"
    data = chunk(b"hello") + chunk(b"world" * 40, NARROW) + chunk(b"other", OTHER) + chunk(b"17 bytes of it...")
    greeted = chunk(b"", STEP) + chunk(b"right behind it", STEP) + chunk(b"", STEP) + chunk(b"x", GOODBYE)
    halves = chunk(b"\x17\x03\x03\0\x20abc", RAW) + chunk(b"x", OTHER) + chunk(b"d" * 40, RAW)
    raws = [chunk(raw, RAW) for raw in (garbage, alert, huge, mute * 40)]
    return [
        bytes([shape]) + each
        for shape in range(4)
        for each in (data, halves, greeted, chunk(b"", CLOSED), data + chunk(b"", GOODBYE), *raws)
    ]


# -- greetings

KEYED, PROVED, STRANGERS, EARLIER = 1, 2, 4, 8
"""Of the shape: the worker knows of keys; a CHALLENGE is answered by a client that has one; everybody is let in; an
earlier session is connected."""
CONFIGURED = {"encryption": "none", "insecure": True, "multi_client": True}


def host(data: bytes) -> None:
    """A client is admitted, refused or turned away, and only who has proved it has a peer's seat."""
    bites = Bites(data)
    shape = bites.number()
    strangers = bool(shape & STRANGERS)
    with ExitStack() as stack:
        server = Server(known("ann", "10.1.0.0/16"), known("bob"), **(CONFIGURED if strangers else {}))
        stack.callback(server.close)
        bob = server.comes("bob")
        if shape & EARLIER:
            server.comes("ann", 5)
        office = _Office(stack, server.hub.answer)
        connection, far = _connection(stack)
        side = Host(SETTINGS | {"keys": bool(shape & KEYED)}, office.desk)
        side.begin(connection)
        exchange = connection.exchange
        for flags, piece in bites.chunks():
            if exchange.expects == "proof" and shape & PROVED:
                piece = _true_proof(exchange.hello_frame, far.recv(4096), exchange.certificate_sha256)
            _say(far, piece, flags)
            with contextlib.suppress(BlockingIOError):
                side.step(connection)
            assert len(exchange.buffer) <= 2 * framing.HELLO_LENGTH_LIMIT + 4
            if exchange.expects == "answer":
                break
        if exchange.expects == "answer":
            (answer,) = office.answers()
            try:
                side.answered(connection, answer)
            finally:
                assert server.is_current(bob) and server.whose("10.0.0.2") == bob.peer_handle
                assert (
                    connection.peer_handle == 0
                    or strangers
                    or (shape & PROVED and connection.peer_handle != bob.peer_handle)
                )


def _true_proof(hello_frame: bytes, challenge: bytes, certificate_sha256: bytes) -> bytes:
    return Proof(auth.client_proof(KEYS["ann"], auth.transcript(hello_frame, challenge, certificate_sha256))).frame()


class _Office:
    """The supervisor's desks on a selector of its own, and a worker's end."""

    def __init__(self, stack: ExitStack, answer: object) -> None:
        self._selector = stack.enter_context(selectors.DefaultSelector())
        desks = WorkerChannels(answer, self._selector)
        self.desk = SupervisorChannel(desks.open("tcp-0"))
        stack.callback(desks.close_all)
        stack.callback(self.desk.socket.close)

    def answers(self) -> list[dict]:
        for key, _ in self._selector.select(0):
            key.data()
        return self.desk.answers()


def _connection(stack: ExitStack) -> tuple[Connection, socket.socket]:
    near, far = socket.socketpair()
    stack.enter_context(near)
    stack.enter_context(far)
    near.setblocking(False)
    far.settimeout(1.0)
    return Connection(near, ADDRESS, HANDSHAKE, 7, 0), far


def _say(far: socket.socket, piece: bytes, flags: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        far.sendall(piece)
    if flags & CLOSED:
        far.shutdown(socket.SHUT_WR)


def host_seeds() -> list[bytes]:
    ann = hello(KEYS["ann"], 6, "10.0.0.9", "fd00::9").frame()
    fixed = ann.replace(hello(KEYS["ann"]).nonce, b"n" * 32)
    at = fixed.index(auth.key_id(KEYS["ann"])) + 8
    fixed = fixed[:at] + b"n" * 32 + fixed[at + 32 :]
    bare = fixed[: at - 9] + bytes(1 + 8 + 32) + fixed[at + 32 :]
    old = fixed.replace(b"tnl\x01\x01", b"tnl\x01\x02")
    later = chunk(b"")
    return [
        bytes([shape]) + each
        for shape in (0, KEYED, KEYED | PROVED, STRANGERS, KEYED | PROVED | EARLIER)
        for each in (
            chunk(fixed) + later,
            chunk(fixed[:9]) + chunk(fixed[9:] + greetings()[2]),
            chunk(bare),
            chunk(old) + later,
            chunk(greetings()[1]),
            chunk(b"\0\0\x09\0"),
            chunk(fixed[:20], CLOSED),
        )
    ]


SEALED = 1  # of a chunk: a WELCOME in it gets the proof of a server that has our key
WITH_KEY, AUTO = 1, 2


class _Device:
    """Where addresses and routes would be set."""

    def __init__(self) -> None:
        self.adopted: list[tuple] = []

    def adopt(self, addresses: object, routes: object) -> bool:
        self.adopted.append((tuple(map(str, addresses)), tuple(map(str, routes))))
        return True


def guest(data: bytes) -> None:
    """With a key, nobody's word is taken but that of a server that has it."""
    bites = Bites(data)
    shape = bites.number()
    key = KEYS["ann"] if shape & WITH_KEY else b""
    with ExitStack() as stack:
        device = _Device()
        end = ClientRole(
            parse(
                {
                    "mode": "client",
                    "remote_addr": "192.0.2.1:9000",
                    "encryption": "none",
                    "tunnel_addr": "auto" if shape & AUTO else "10.0.0.7/24",
                }
            ),
            key,
        )
        end._device = device
        office = _Office(stack, end.answer)
        connection, far = _connection(stack)
        connection.dial_index = 0
        side = Guest(SETTINGS | {"key": key.hex()}, office.desk, messages.ACCEPTS_SHARDS)
        side.begin(connection)
        exchange = connection.exchange
        proved = welcome = False
        try:
            for flags, piece in bites.chunks():
                if flags & SEALED and key:
                    piece = _sealed(piece, exchange.transcript)
                    proved |= bool(exchange.transcript)
                _say(far, piece, flags)
                with contextlib.suppress(BlockingIOError):
                    welcome = side.step(connection)
                    break
                assert len(exchange.buffer) <= 2 * framing.WELCOME_LENGTH_LIMIT + 4
        finally:
            assert office.answers() == []
            assert len(device.adopted) == int(welcome)
            assert not welcome or proved or not key
            for addresses, routes in device.adopted:
                assert len(addresses) <= messages.ADDRESSES_MAX and len(routes) <= messages.PUSHED_ROUTES_MAX
                assert shape & AUTO or not addresses
                assert "0.0.0.0/0" not in routes  # leads to the server itself


def _sealed(frame: bytes, transcript: bytes) -> bytes:
    try:
        found = messages.decode(frame)
    except PeerError:
        return frame
    if not isinstance(found, Welcome):
        return frame
    mac = auth.server_proof(KEYS["ann"], transcript, frame)
    at = messages.WELCOME_MAC_AT
    sealed = frame[:at] + mac + frame[at + messages.MAC_BYTES :]
    assert auth.server_proved(KEYS["ann"], transcript, sealed)
    return sealed


def guest_seeds() -> list[bytes]:
    _, challenge, own, welcome, refused = greetings()
    everything = Welcome(1, 0, 1400, 0, routes=tuple(map(ip_network, ("0.0.0.0/0", "192.0.2.0/24"))))
    return [
        bytes([shape]) + each
        for shape in range(4)
        for each in (
            chunk(challenge) + chunk(welcome, SEALED),
            chunk(challenge + welcome),
            chunk(welcome),
            chunk(refused),
            chunk(everything.frame()),
            chunk(challenge) + chunk(everything.frame(), SEALED),
            chunk(own),
            chunk(welcome[:9]) + chunk(welcome[9:]),
            chunk(b"\0\0\x40\1"),
        )
    ]
