"""Targets before a connection is established: TLS records, and both sides of the handshake with the supervisor's part.

records            a byte of options, then chunks: to a channel in its handshake, or to two that are ready
server_handshake   a byte of options, then bytes of a client in chunks: to the server's side, supervisor and peers
client_handshake   a byte of options, then bytes of a server in chunks: to the client's side, its supervisor and prover
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from typing import Any, cast

from pipeline.config import parse
from pipeline.errors import PeerError
from pipeline.policy.kernel_entries import Route, contains
from pipeline.policy.reconcile import Seen, Wanted, plan
from pipeline.runtime.supervisor_channel import Answer, SupervisorChannel
from pipeline.supervisor.processes.worker_channels import WorkerChannels
from pipeline.supervisor.roles.client_role import ClientRole
from pipeline.supervisor.run.failures import Failures
from pipeline.transport.connection import HANDSHAKE, Connection
from pipeline.transport.tls_channel import ANSWER_BYTES_MAX, TlsChannel
from pipeline.transport.tls_records import RECORD_BODY_MAX, RECORD_BYTES, RECORD_HEADER_BYTES
from pipeline.wire import auth, framing, messages
from pipeline.wire.handshake import NO_CERTIFICATE, AskProof, AskSupervisor, AskVerdict, Failed, Welcomed
from pipeline.wire.messages import Proof, Welcome
from tests.fuzz.byte_source import ByteSource, chunk
from tests.fuzz.targets_wire import one_of_each
from tests.harness.frame_reader import contexts
from tests.harness.hub import KEYS, HubServer, hello, known
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.tls_ends import End, shake_hands
from workers.tcp.handshake import ClientHandshaker, Outcome, ServerHandshaker

ADDRESS = ("192.0.2.1", 9000)
SETTINGS = WORKER_SETTINGS._replace(client_id=1, session=1)

# -- TLS

SERVER, READY = 1, 2  # of the options: the channel is a server's; its TLS handshake is over
OTHER, RAW, NARROW, STEP, CLOSE_NOTIFY, CLOSED = 1, 2, 4, 8, 16, 32
"""Of a chunk: it is for the other channel; it is sent as it is; it is received into little room; the other end takes
the next step of its handshake first; the other end sends close_notify behind it; the other end closes behind it."""


def records(data: bytes) -> None:
    """For any bytes, the data that was sealed comes out, or the connection ends; and little memory is held for it."""
    bites = ByteSource(data)
    options = bites.number()
    with ExitStack() as stack:
        links = [_Link(stack, bool(options & SERVER), bool(options & READY)) for _ in range(2)]
        for flags, piece in bites.chunks():
            links[flags & OTHER].receive(piece, flags)
        for link in links:
            link.receive(b"", CLOSED)


class _Link:
    """A channel, and the other end of its socket, which the fuzzer drives."""

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
        self._sealed = self._received = b""

    def receive(self, piece: bytes, flags: int) -> None:
        if self._ended:
            return
        try:
            self._send(piece, flags)
        except OSError:
            flags |= CLOSED  # the other end has received an invalid record, or has sent close_notify before
        if flags & CLOSED:
            self._theirs.socket.close()
        try:
            self._read(memoryview(bytearray(3 if flags & NARROW else RECORD_BYTES)))
        except OSError:
            self._ended = True
        assert self._sealed.startswith(self._received)
        channel = self._channel
        assert len(channel.saved_records) <= 2 * (RECORD_HEADER_BYTES + RECORD_BODY_MAX)
        assert channel._incoming.pending <= RECORD_HEADER_BYTES + RECORD_BODY_MAX
        assert channel._outgoing.pending <= ANSWER_BYTES_MAX

    def _send(self, piece: bytes, flags: int) -> None:
        theirs = self._theirs
        if flags & STEP:
            theirs.step()
        if flags & RAW:
            theirs.send_raw(piece)
        elif theirs.channel.ready and piece:
            theirs.send(piece)
            self._sealed += piece
        if flags & CLOSE_NOTIFY:
            theirs.send_raw(theirs.channel.close_notify())

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
                self._received += bytes(view[:got])


def records_seeds() -> list[bytes]:
    garbage = b"\x16\x03\x01\0\x05\x01\0\0\1\0"
    alert, huge, mute = b"\x15\x03\x03\0\2\1\0", b"\x17\x03\x03\xff\xff", b"\x14\x03\x03\0\1\1"
    data = chunk(b"hello") + chunk(b"world" * 40, NARROW) + chunk(b"other", OTHER) + chunk(b"17 bytes of it...")
    stepped = chunk(b"", STEP) + chunk(b"right behind it", STEP) + chunk(b"", STEP) + chunk(b"x", CLOSE_NOTIFY)
    halves = chunk(b"\x17\x03\x03\0\x20abc", RAW) + chunk(b"x", OTHER) + chunk(b"d" * 40, RAW)
    raws = [chunk(raw, RAW) for raw in (garbage, alert, huge, mute * 40)]
    return [
        bytes([options]) + each
        for options in range(4)
        for each in (data, halves, stepped, chunk(b"", CLOSED), data + chunk(b"", CLOSE_NOTIFY), *raws)
    ]


# -- handshakes

KEYED, PROVED, OPEN, EARLIER = 1, 2, 4, 8
"""Of the options: the worker knows of keys; a CHALLENGE is answered by a client that has one; every client is let in;
an earlier session is connected."""
CONFIGURED = {"encryption": "none", "insecure": True, "multi_client": True}


def server_handshake(data: bytes) -> None:
    """A client is admitted, refused or closed without a word, and only a proof gives it a peer's handle."""
    bites = ByteSource(data)
    options = bites.number()
    open_to_all = bool(options & OPEN)
    with ExitStack() as stack:
        server = HubServer(known("ann", "10.1.0.0/16"), known("bob"), **(CONFIGURED if open_to_all else {}))
        stack.callback(server.close)
        bob = server.connect("bob")
        if options & EARLIER:
            server.connect("ann", 5)
        supervisor = _Supervisor(stack, server.admission.handle_hello)
        connection, far = _connection(stack)
        side = ServerHandshaker(SETTINGS._replace(verifies_keys=bool(options & KEYED)), supervisor.channel)
        outcome = side.begin(connection)
        sent = b""
        for flags, piece in bites.chunks():
            if outcome is not None:
                break
            if options & PROVED and (challenge := _waiting(far)):
                piece = _true_proof(_first_frame(sent), challenge)
            sent += piece
            outcome = _step(side, connection, far, piece, flags)
        if isinstance(outcome, AskSupervisor):
            (answer,) = supervisor.answers()
            assert "serial" in answer
            outcome = side.answered(connection, answer)
            assert isinstance(outcome, Welcomed | Failed)
            assert server.is_current(bob) and server.handle_at("10.0.0.2") == bob.peer_handle
        if isinstance(outcome, Welcomed):
            assert open_to_all or (options & PROVED and connection.peer_handle != bob.peer_handle)
            assert len(outcome.rest) <= framing.HELLO_LENGTH_LIMIT
        else:
            assert connection.peer_handle == 0


def _step(
    side: ServerHandshaker | ClientHandshaker, connection: Connection, far: socket.socket, piece: bytes, flags: int
) -> Outcome:
    """The other end sends a piece, and ends its stream behind it if the flags say so."""
    with contextlib.suppress(BrokenPipeError):
        far.sendall(piece)
    if flags & CLOSED:
        far.shutdown(socket.SHUT_WR)
    return side.step(connection)


def _waiting(far: socket.socket) -> bytes:
    """The bytes that have arrived at the other end."""
    with contextlib.suppress(BlockingIOError):
        return far.recv(65536)
    return b""


def _first_frame(stream: bytes) -> bytes:
    return stream[: framing.LENGTH.size + framing.LENGTH.unpack_from(stream)[0]]


def _true_proof(hello_frame: bytes, challenge: bytes) -> bytes:
    return Proof(auth.client_proof(KEYS["ann"], auth.transcript(hello_frame, challenge, NO_CERTIFICATE))).frame()


class _Supervisor:
    """The supervisor's ends of worker channels on a selector of their own, and a worker's end."""

    def __init__(self, stack: ExitStack, answer: Callable[[Any], Any]) -> None:
        self._selector = stack.enter_context(selectors.DefaultSelector())
        channels = WorkerChannels(answer, self._selector, Failures(), lambda name, fd: None)
        self.channel = SupervisorChannel(channels.open_channel("tcp-0"))
        stack.callback(channels.close_all)
        stack.callback(self.channel.socket.close)

    def answers(self) -> list[Answer]:
        for key, _ in self._selector.select(0):
            key.data()
        return self.channel.answers()


def _connection(stack: ExitStack) -> tuple[Connection, socket.socket]:
    near, far = socket.socketpair()
    stack.enter_context(near)
    stack.enter_context(far)
    near.setblocking(False)
    far.setblocking(False)
    return Connection(near, ADDRESS, HANDSHAKE, 7, 0), far


def server_handshake_seeds() -> list[bytes]:
    ann = hello(KEYS["ann"], 6, "10.0.0.9", "fd00::9").frame()
    fixed = ann.replace(hello(KEYS["ann"]).nonce, b"n" * 32)
    at = fixed.index(auth.key_id(KEYS["ann"])) + 8
    fixed = fixed[:at] + b"n" * 32 + fixed[at + 32 :]
    without_key = fixed[: at - 9] + bytes(1 + 8 + 32) + fixed[at + 32 :]
    old = fixed.replace(b"tnl\x01\x01", b"tnl\x01\x02")
    later = chunk(b"")
    return [
        bytes([options]) + each
        for options in (0, KEYED, KEYED | PROVED, OPEN, KEYED | PROVED | EARLIER)
        for each in (
            chunk(fixed) + later,
            chunk(fixed[:9]) + chunk(fixed[9:] + one_of_each()[2]),
            chunk(without_key),
            chunk(old) + later,
            chunk(one_of_each()[1]),
            chunk(b"\0\0\x09\0"),
            chunk(fixed[:20], CLOSED),
        )
    ]


PROVES = 1  # of a chunk: a WELCOME in it gets the proof of a server that has our key
WITH_KEY, AUTO = 1, 2


class _Device:
    """Where addresses and routes would be set, on a host with a default route."""

    def __init__(self) -> None:
        self.applied: list[tuple[tuple[Any, ...], tuple[Any, ...]]] = []

    def take_from_server(
        self, addresses: Iterable[Any], routes: Iterable[Any], server: str, dns: Iterable[Any]
    ) -> list[Any]:
        self.applied.append((tuple(addresses), tuple(routes)))
        way = {ip_address(server): Route(ip_network("0.0.0.0/0"), 100, 2)}
        wanted = Wanted(pushed_addresses=tuple(addresses), pushed_routes=tuple(routes))
        made = plan(wanted, Seen(7, True, (), (), way, {}, {}))
        assert not any(contains(route.prefix, address) for route in made.add_routes for address in way)
        assert not any(address.ip in way for address in made.add_addresses)
        return [*made.taken]


def client_handshake(data: bytes) -> None:
    """A client with a key trusts no server but one that has the key."""
    bites = ByteSource(data)
    options = bites.number()
    key = KEYS["ann"] if options & WITH_KEY else b""
    with ExitStack() as stack:
        device = _Device()
        role = ClientRole(
            parse(
                {
                    "mode": "client",
                    "remote_addr": "192.0.2.1:9000",
                    "encryption": "none",
                    "tunnel_addr": "auto" if options & AUTO else "10.0.0.7/24",
                }
            ),
        )
        settings = SETTINGS._replace(key_id=auth.key_id(key).hex() if key else "", fec="on")
        role._device = cast(Any, device)
        role.credentials = role.credentials._replace(key=key)
        role.expect(settings)
        supervisor = _Supervisor(stack, role.answer_request)
        connection, far = _connection(stack)
        connection.dial_index = 0
        side = ClientHandshaker(settings, supervisor.channel)
        outcome = side.begin(connection)
        hello_frame = far.recv(4096)
        sent = transcript = b""
        proved = False
        for flags, piece in bites.chunks():
            if outcome is not None:
                break
            if key and _waiting(far):  # the client's PROOF: the first frame was a CHALLENGE
                transcript = auth.transcript(hello_frame, _first_frame(sent), NO_CERTIFICATE)
            if flags & PROVES and transcript:
                piece = _proved(piece, transcript)
                proved = True
            sent += piece
            outcome = _step(side, connection, far, piece, flags)
            while isinstance(outcome, AskProof | AskVerdict):
                (answer,) = supervisor.answers()
                assert "serial" in answer and "claim" not in answer
                outcome = side.answered(connection, answer)
        assert supervisor.answers() == []
        role.tick(0)
        welcomed = isinstance(outcome, Welcomed)
        assert len(device.applied) == int(welcomed)
        assert not welcomed or proved or not key
        for addresses, routes in device.applied:
            assert len(addresses) <= messages.ADDRESSES_MAX and len(routes) <= messages.PUSHED_ROUTES_MAX
            assert options & AUTO or not addresses


def _proved(frame: bytes, transcript: bytes) -> bytes:
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


def client_handshake_seeds() -> list[bytes]:
    _, challenge, own, welcome, refused = one_of_each()
    everything = Welcome(1, 0, 1400, 0, routes=tuple(map(ip_network, ("0.0.0.0/0", "192.0.2.0/24"))))
    return [
        bytes([options]) + each
        for options in range(4)
        for each in (
            chunk(challenge) + chunk(welcome, PROVES),
            chunk(challenge + welcome),
            chunk(welcome),
            chunk(refused),
            chunk(everything.frame()),
            chunk(challenge) + chunk(everything.frame(), PROVES),
            chunk(own),
            chunk(welcome[:9]) + chunk(welcome[9:]),
            chunk(b"\0\0\x40\1"),
        )
    ]
