"""The tools for many clients: echo replies, kinds of garbage, reports; one swarm client against the server's side."""

from __future__ import annotations

import hashlib
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface

import msgspec
import pytest

from pipeline.errors import PeerError
from pipeline.fec import shard
from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.runtime.supervisor_channel import Admitted, NotAdmitted, Seal, SupervisorChannel
from pipeline.sealing import kinds
from pipeline.sealing.aead import TAG_BYTES, aead
from pipeline.sealing.block_seal import BlockOpener, BlockSealer
from pipeline.sealing.key_schedule import AES_256_GCM
from pipeline.sealing.session import KeyShare, answer_key_share, answer_offer
from pipeline.transport.connection import HANDSHAKE, Connection
from pipeline.transport.settings import TlsMaterial
from pipeline.transport.tls_context import client_context
from pipeline.wire import auth, framing, messages
from pipeline.wire.block import EPOCH_BYTES, lengths
from pipeline.wire.handshake import AskSupervisor, Failed, Welcomed
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.tls_ends import issue
from tests.reference.packets import echo_request, is_reply, reply_to
from tools.bench.hub_report import Compared, Garbage, Hellos, HubResult, Idle, Return, table
from tools.bench.machine import Machine
from tools.load.flood import HELLO, KINDS, Flooded
from tools.load.icmp_echo import answer, block_of
from tools.load.swarm_client import ESTABLISHED, Invited, SwarmClient, SwarmConnection, SwarmSettings
from workers.tcp.handshake import ServerHandshaker

PAIRS = [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")]


@pytest.mark.parametrize(("source", "destination"), PAIRS, ids=["IPv4", "IPv6"])
def test_an_echo_request_gets_the_reply_that_the_documents_say(source: str, destination: str) -> None:
    for number in (0, 1, 0x01FF, 0xFF00, 0xFFFF):
        request = echo_request(source, destination, number, bytes([number & 0xFF]) * 9)
        reply = answer(request)
        assert is_reply(reply, request)
        expected = reply_to(request)
        if ":" in source:
            assert reply == expected
        else:
            assert reply[20:] == expected[20:] and reply[10:12] == request[10:12]  # the header's sum is the same


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x45",
        bytes(100),
        reply_to(echo_request(*PAIRS[0], 1)),
        reply_to(echo_request(*PAIRS[1], 1)),
        echo_request(*PAIRS[0], 1)[:27],
    ],
    ids=["nothing", "a byte", "zeros", "a reply", "a reply in IPv6", "cut off"],
)
def test_anything_else_gets_none(packet: bytes) -> None:
    assert answer(packet) is None


def test_a_block_has_its_packets_in_order() -> None:
    packets = [bytes([number]) * (20 + number) for number in range(5)]
    frame = memoryview(block_of(packets))
    at, sizes = lengths(frame, 0, len(frame))
    found = []
    for size in sizes:
        found.append(bytes(frame[at + VNET_HEADER_BYTES : at + size]))
        at += size
    assert found == packets


def test_the_kinds_of_garbage_are_what_they_are_called() -> None:
    assert KINDS["http"]().startswith(b"GET / HTTP/1.1\r\n") and KINDS["ssh"]().startswith(b"SSH-2.0-")
    assert HELLO[:3] == b"\x16\x03\x01" and int.from_bytes(HELLO[3:5], "big") == len(HELLO) - 5
    assert HELLO.startswith(KINDS["half"]()) and KINDS["silence"]() == b"" and KINDS["leaves"]() is None
    assert len({KINDS["garbage"]() for _ in range(10)}) > 1


def result() -> HubResult:
    compared = Compared(plain=4.0, beside=3.8, ratio=0.95, plain_rounds=[4.0], beside_rounds=[3.8])
    return HubResult(
        machine=Machine(cores=2, cpu="Some CPU", kernel="6.18", python="3.11.7"),
        seconds=5,
        rounds=3,
        settings=[],
        idle=Idle(
            clients=200,
            connections=8,
            invited_seconds=4.0,
            first_seconds=6.0,
            complete_seconds=8.0,
            handshake_p50_ms=300.0,
            handshake_p99_ms=900.0,
            failed={"closed": 7},
            pingable=199,
            bytes_empty={"tcp-0": 14_000_000},
            bytes_full={"tcp-0": 46_000_000},
            bytes_per_client=160_000.0,
            cpu_percent_empty={"tcp-0": 0.5},
            cpu_percent_full={"tcp-0": 9.5},
        ),
        returns=[
            Return(how="SIGKILL", clients=100, down_seconds=1.5, back_seconds=2.5, complete_seconds=5.0, attempts=900)
        ],
        garbage=Garbage(
            compared,
            compared,
            Flooded(20.0, 20_000, 19_000, 1000, {"closed": 19_000}, 1000.0),
            {"closed_hello_invalid": 12},
        ),
        hellos=Hellos(
            compared, compared, [0.02, 0.01], [0.05, 0.04], Flooded(7.0, 28_000, 28_000, 0, {"answered": 900}, 4000.0)
        ),
        client_to_client=compared,
        deaf=compared,
        left_behind=["/dev/shm/x"],
    )


def test_the_table_says_what_each_thing_costs() -> None:
    text = table(result())
    lines = [line.split() for line in text.splitlines()]
    assert "200 clients with 8 connections each, 199 pingable; invited in 4.0 s" in text
    assert "memory of a client in all processes of the server: 160 kB" in text
    assert ["tcp-0", "14000", "46000", "160.0", "0.5", "9.5"] in lines
    assert ["after", "SIGKILL", "100", "1.5", "2.5", "5.0", "900"] in lines
    assert ["client", "to", "client,", "beside", "the", "bare", "link", "4.00", "3.80", "0.95"] in lines
    assert "the handshakes: 4000 a second, 900 answered" in text
    assert "a new client is connected after 0.02 s, beside connections from one address 0.05 s" in text
    assert "1000 connections a second; the server counted closed_hello_invalid 12" in text
    assert lines[-1] == ["LEFT", "BEHIND:", "/dev/shm/x"]


def test_what_was_not_measured_is_not_in_the_table() -> None:
    few = HubResult(machine=result().machine, seconds=1, rounds=1, settings=["lanes=2"])
    assert table(few).splitlines()[1:] == ["settings: lanes=2"]


def test_the_json_comes_back_the_same() -> None:
    text = msgspec.json.encode(result())
    assert msgspec.json.decode(text)["schema_version"] == 1
    assert msgspec.json.decode(text, type=HubResult) == result()


# -- a swarm client against the server's side of the program

KEY = bytes(range(32))
WELCOME = messages.Welcome(messages.VERSION, 0, 1400, 0, addresses=(ip_interface("10.0.0.2/24"),))
SECONDS = 10.0


class Ends:
    """One connection of a swarm client, and the server's side of it with TLS; the test decides for the supervisor."""

    def __init__(self, stack: ExitStack, key: bytes = KEY, pin: bytes = b"") -> None:
        pair = issue("server.test")
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.certificate)).digest()
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        host, port = listener.getsockname()
        context = client_context(system_cas=False, verify=False)
        self.client = SwarmClient(
            1,
            Invited("one", host, port, key, pin or found),
            SwarmSettings(context, 1, 1, 1400, 10.0, 30.0, 10.0, 0.1, 10.0),
            session=1,
        )
        self.slot = self.client.due_slots(0)[0]
        self.near = self.slot.connection = SwarmConnection(self.slot, 0)
        stack.callback(self.near.socket.close)
        self.near.connect()
        accepted, address = listener.accept()
        stack.enter_context(accepted).setblocking(False)
        self.far = Connection(accepted, address, HANDSHAKE, 7, 0)
        self._supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(self._supervisor)
        channel = SupervisorChannel(worker.detach())
        stack.enter_context(channel.socket)
        tls = TlsMaterial(pair.certificate, pair.key, "", "1.3", found.hex())
        self._side = ServerHandshaker(WORKER_SETTINGS._replace(tls=tls, verifies_keys=True), channel)
        self.outcome = self._side.begin(self.far)

    def run(self) -> None:
        """Until the server's side has welcomed or failed, and the client knows."""
        deadline = time.monotonic() + SECONDS
        while not isinstance(self.outcome, Welcomed | Failed) or self.near.state is not ESTABLISHED:
            assert time.monotonic() < deadline
            write = [self.near.socket] if self.near.wants_write else []
            readable, writable, _ = select.select([self.near.socket, self.far.socket], write, [], SECONDS)
            if self.near.socket in readable + writable:
                self.near.step(1)
            if self.far.socket in readable and not isinstance(self.outcome, Welcomed | Failed):
                self.outcome = self._side.step(self.far)
            if isinstance(self.outcome, AskSupervisor):
                self.outcome = self._side.answered(self.far, self._decision(self.outcome))

    def _decision(self, question: AskSupervisor) -> Admitted | NotAdmitted:
        seen = auth.transcript(question.hello, question.challenge, question.certificate_hash)
        if not auth.client_proved(KEY, seen, question.proof):
            frame = messages.Refused(messages.REVOKED, "revoked").frame()
            return NotAdmitted(serial=7, frame=frame.hex(), reason="revoked", name="ann")
        hello = messages.decode(question.hello)
        self.session = answer_offer(
            KeyShare.of_client(hello.key_share), AES_256_GCM, KEY, hello.client_id, hello.session
        )
        answer = WELCOME._replace(key_share=answer_key_share(self.session, b"").pack())
        welcome = answer._replace(mac=auth.server_proof(KEY, seen, answer.frame())).frame()
        suite, send, receive = self.session.connection_secrets(
            question.hello, question.challenge, welcome, question.certificate_hash
        )
        seal = Seal(suite=suite, send=send.hex(), receive=receive.hex())
        return Admitted(serial=7, frame=welcome.hex(), peer_handle=1, name="ann", seal=seal)

    def send(self, block: bytes) -> None:
        """The server sends a block, without its frame header."""
        plaintext = bytes(EPOCH_BYTES) + block
        stream, size = kinds.stream(1, 0, kinds.PLAIN), len(plaintext) + TAG_BYTES
        sealed = bytearray(size)
        keys = self.session.keys()
        BlockSealer(aead(keys.suite, keys.send)).seal(stream, 0, 0, memoryview(plaintext), memoryview(sealed))
        head = bytearray(shard.RUN_BYTES)
        shard.SEALED_RUN.pack_into(head, 0, 0, framing.RUN, stream, 0, 1, 0, 0, 1, size, 0, block[1])
        pieces, _ = self.far.send.writer.pieces(0, bytes(head), sealed)
        self.far.send.writer.sealer.advance(1)
        self.far.socket.sendall(b"".join(pieces))

    def receive(self) -> bytes:
        """The block that the client has sent."""
        data = bytearray(self.far.socket.recv(1 << 16))
        whole = self.far.receive.scanner.scan(memoryview(data), 0, len(data), framing.LENGTH_LIMIT)[0]
        assert whole == len(data)
        at = framing.LENGTH.size + framing.LENGTH.unpack_from(data)[0]  # behind the padding
        _, kind, stream, number, n, m, copy, _, size, _, _ = shard.SEALED_RUN.unpack_from(data, at)
        assert (kind, n, m) == (framing.RUN, 1, 0)
        keys, plaintext = self.session.keys(), bytearray(size)
        opener = BlockOpener(aead(keys.suite, keys.open_now))
        sealed = memoryview(data)[at + shard.RUN_BYTES :]
        assert opener.open(stream, number, copy, sealed, memoryview(plaintext)) == size - TAG_BYTES
        return bytes(plaintext[EPOCH_BYTES:-TAG_BYTES])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_a_swarm_client_is_welcomed_and_answers_an_echo_request(stack: ExitStack) -> None:
    ends = Ends(stack)
    ends.run()
    assert isinstance(ends.outcome, Welcomed) and ends.outcome.accepts_shards
    assert ends.client.addresses == ["10.0.0.2"] and ends.client.established == 1
    assert not ends.client.is_complete and [slot.index for slot in ends.client.due_slots(0)] == [1]
    request = echo_request("10.0.0.1", "10.0.0.2", 1)
    ends.send(block_of([request, request])[framing.FRAME.size :])
    assert select.select([ends.near.socket], [], [], SECONDS)[0]
    ends.near.step(2)
    assert ends.client.echoes == 2
    assert select.select([ends.far.socket], [], [], SECONDS)[0]
    block = framing.frame(framing.BLOCK, ends.receive())
    first, (length, _) = lengths(memoryview(block), 0, len(block))
    assert is_reply(block[first + 10 : first + length], request)


def test_a_swarm_client_that_is_refused_says_why_and_dials_again_after_a_pause(stack: ExitStack) -> None:
    ends = Ends(stack, key=bytes(32))
    with pytest.raises(PeerError, match="refused by the server: revoked"):
        ends.run()
    ends.slot.ended(ends.near, 5)
    assert ends.slot.connection is None and ends.slot.due_ns > 5


def test_a_swarm_client_says_nothing_to_a_server_with_another_certificate(stack: ExitStack) -> None:
    ends = Ends(stack, pin=b"p" * 32)
    with pytest.raises(PeerError, match="fingerprint of the server's certificate: expected 7070"):
        ends.run()
