"""`"compat": true`, as server and as client, against a peer written from the original's description alone.

Everything is tried in clear text and in TLS 1.2 and 1.3, as the original speaks it: without ALPN and server name.
Several peers of a server are in test_compat_hub.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.netns.harness.instance import Instance, client_config, server_config
from tests.reference.compat_peer import (
    DATA,
    KEEPALIVE,
    LENGTH_MAX,
    Certificate,
    CompatPeer,
    echo_reply,
    echo_request,
    frame,
    in_tls,
    udp,
)
from tests.support import eventually
from tools.lab.network import Lab, Node
from tools.load import flows

OURS, THEIRS = "10.99.0.1", "10.99.0.2"
COMPAT = {
    "compat": True,
    "multi_client": False,
    "mtu": 1495,
    "tunnel_addr": f"{OURS}/24",
    "reconnect_max": 0.2,
}
MODES = ("server", "client")
PLAIN = ""
TLS_VERSIONS = (PLAIN, "1.2", "1.3")
PORT = 4242
ETH_P_IP = 0x0800  # linux/if_ether.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
TAP_BYTES = 8 << 20
PACKETS = 200
UNKNOWN = "tun.dropped_frame_unknown"


class Pair:
    """Our end, running, on one node, and the means to be its peer on another."""

    def __init__(
        self, instance: Instance, node: Node, listener: socket.socket | None, tls: str, certificate: Certificate
    ) -> None:
        self.instance = instance
        self.theirs = node
        self._listener = listener
        self._tls = tls
        self._certificate = certificate

    def connect(self) -> CompatPeer:
        """A peer that is connected to our end: it has dialled, or was dialled."""
        if self._listener is not None:
            self._drop_waiting(self._listener)
            sock = self._listener.accept()[0]
            return CompatPeer(self._certificate.in_tls(sock, self._tls) if self._tls else sock)
        sock = self.theirs.socket()
        host, _, port = self.instance.config["local_addr"].rpartition(":")
        sock.settimeout(10)
        sock.connect((host, int(port)))
        return CompatPeer(in_tls(sock, self._tls) if self._tls else sock)

    @staticmethod
    def _drop_waiting(listener: socket.socket) -> None:
        """Our end has dialled meanwhile, perhaps long ago: it may have sent keepalives, or have given up waiting."""
        patience = listener.gettimeout()
        listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                listener.accept()[0].close()
        listener.settimeout(patience)

    def tap(self) -> socket.socket:
        """The packets that pass our TUN device in either direction, as the kernel sees them: bare IPv4 packets."""
        sock = self.instance.node.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, TAP_BYTES)
        sock.bind((self.instance.tun_name, ETH_P_IP))
        sock.settimeout(10)
        return sock

    def raw(self) -> socket.socket:
        """Sends whole IPv4 packets from our node, into the tunnel."""
        return self.instance.node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


@contextmanager
def pair(mode: str, directory: Path, tls: str = PLAIN, **settings: object) -> Iterator[Pair]:
    certificate = Certificate(directory)
    with Lab() as lab:
        ours, theirs = lab
        with theirs.socket() as listener:
            listener.settimeout(10)
            listener.bind((theirs.address, 0))
            listener.listen()
            config = server_config(ours, **COMPAT, local_addr=f"{ours.address}:{ours.free_port()}")
            if mode == "client":
                address = f"{theirs.address}:{listener.getsockname()[1]}"
                config = client_config({"local_addr": address}, theirs.address, **COMPAT)
            config |= protection(mode, tls, certificate) | settings
            with Instance(ours, config, directory) as instance:
                instance.wait_until_running()
                yield Pair(instance, theirs, listener if mode == "client" else None, tls, certificate)


def protection(mode: str, tls: str, certificate: Certificate) -> dict[str, object]:
    """The settings of TLS: a server has the original's certificate, a client knows its fingerprint."""
    if not tls:
        return {"encryption": "none"}
    if mode == "client":
        return {"encryption": "tls", "tls_min_version": tls, "tls_fingerprint": certificate.fingerprint}
    files: dict[str, object] = {"tls_cert_file": str(certificate.path), "tls_key_file": str(certificate.key_path)}
    files["state_dir"] = str(certificate.path.parent / "state")
    return {"encryption": "tls", "tls_min_version": tls} | files


@pytest.fixture(scope="module", params=[(mode, tls) for mode in MODES for tls in TLS_VERSIONS], ids="-".join)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    mode, tls = request.param
    with pair(mode, tmp_path_factory.mktemp(mode), tls) as made:
        yield made


@pytest.fixture
def peer(shared: Pair) -> Iterator[CompatPeer]:
    """A connection of the test's own. A server serves one peer at a time, so the end of it is waited for."""
    with shared.connect() as connected:
        yield connected
    if shared.instance.config["mode"] == "server":
        counted = shared.instance.counter
        eventually(lambda: counted("tcp.connections_lost") == counted("tcp.connections_established"))


def some_packets(source: str, target: str) -> list[bytes]:
    """UDP packets of all sizes up to the longest that fits a frame."""
    draw = random.Random(5)
    sizes = [0, 1, LENGTH_MAX - 1 - 28, *(draw.randrange(LENGTH_MAX - 28) for _ in range(PACKETS - 3))]
    return [udp(source, target, PORT, draw.randbytes(size), number) for number, size in enumerate(sizes, 1)]


def test_every_byte_of_ours_is_one_that_the_original_would_send(shared: Pair, peer: CompatPeer) -> None:
    packets = some_packets(OURS, THEIRS)
    with shared.raw() as raw:
        for packet in packets:
            raw.sendto(packet, (THEIRS, 0))
    assert [peer.receive() for _ in packets] == [(DATA, packet) for packet in packets]
    assert peer.captured == b"".join(frame(DATA, packet) for packet in packets)


@pytest.mark.parametrize("how", ["in-two-writes", "in-one-write", "byte-by-byte"])
def test_every_packet_of_the_original_reaches_the_device_unaltered(shared: Pair, peer: CompatPeer, how: str) -> None:
    packets = some_packets(THEIRS, OURS)
    with shared.tap() as tap, shared.instance.node.socket(kind=socket.SOCK_DGRAM) as sink:
        sink.bind((OURS, PORT))  # else the kernel answers that nobody listens there, perhaps after this connection
        if how == "in-two-writes":
            for packet in packets:
                peer.send(DATA, packet)
        elif how == "in-one-write":
            peer.write(b"".join(frame(DATA, packet) for packet in packets))
        else:
            packets = packets[:1] + packets[3:6]
            for packet in packets:
                for byte in frame(DATA, packet):
                    peer.write(bytes([byte]))
        got = []
        while len(got) < len(packets):
            data, (_, _, direction, *_) = tap.recvfrom(65536)
            if direction != socket.PACKET_OUTGOING:
                got.append(data)
    assert got == packets


def test_our_pings_are_answered_by_the_peer(shared: Pair, peer: CompatPeer) -> None:
    with ThreadPoolExecutor(max_workers=1) as thread:
        answered = thread.submit(peer.answer_pings, 5)
        pings = flows.ping(shared.instance.node, THEIRS, count=5, interval=0.01, size=1000)
        assert pings.lost == []
        assert [len(packet) for packet in answered.result(10)] == [1028] * 5


def test_the_pings_of_the_peer_are_answered_by_our_kernel(shared: Pair, peer: CompatPeer) -> None:
    for number in range(1, 6):
        request = echo_request(THEIRS, OURS, bytes(range(100)), number)
        peer.send(DATA, request)
        assert peer.receive_packet()[20:] == echo_reply(request)[20:]


@pytest.mark.parametrize(
    "ignored",
    [
        b"\0\0\0\0",
        b"\0\0\0\0" * 400,
        frame(KEEPALIVE),
        frame(KEEPALIVE, b"with a body"),
        frame(b"\x00"),
        frame(b"\x03"),
        frame(b"\x10", b"not a handshake now"),
        frame(b"\x20", bytes(LENGTH_MAX - 1)),
        frame(b"\xff", b"?"),
    ],
    ids=[
        "nothing",
        "nothing-often",
        "keepalive",
        "keepalive-with-body",
        "type-00",
        "type-03",
        "type-10",
        "type-20",
        "type-ff",
    ],
)
def test_what_the_original_ignores_is_ignored(shared: Pair, peer: CompatPeer, ignored: bytes) -> None:
    request = echo_request(THEIRS, OURS, b"still there?")
    before = drops(shared.instance)
    peer.write(ignored)
    peer.send(DATA, request)
    assert peer.receive_packet()[20:] == echo_reply(request)[20:]
    assert drops(shared.instance) == before


def test_a_flood_of_empty_frames_ends_the_connection(shared: Pair, peer: CompatPeer) -> None:
    closed = shared.instance.counter("tcp.closed_bare_frames")
    peer.write(b"\0\0\0\0" * 1000)
    assert peer.ended()
    assert shared.instance.counter("tcp.closed_bare_frames") == closed + 1


def test_a_block_of_ours_is_as_unknown_here_as_to_the_original(shared: Pair, peer: CompatPeer) -> None:
    blocked, request = (echo_request(THEIRS, OURS, text) for text in (b"in a block", b"in a frame"))
    unknown = shared.instance.counter(UNKNOWN)
    virtio_net_header = bytes(10)
    body = struct.pack(">HI", 1, len(virtio_net_header + blocked)) + virtio_net_header + blocked
    peer.send(b"\x20", body)
    peer.send(DATA, request)
    assert peer.receive_packet()[20:] == echo_reply(request)[20:]
    assert shared.instance.counter(UNKNOWN) == unknown + 1


def drops(instance: Instance) -> dict[str, int]:
    """Counts of refusals and drops, by reason, without frames of types that nobody knows here."""
    counted = instance.running()["counters"]
    bad = (".dropped_", ".closed_")
    return {name: counted[name] for name in counted if any(word in name for word in bad) and name != UNKNOWN}


@pytest.mark.parametrize(
    "packet",
    [b"", b"E", bytes(1495), b"\x60" + bytes(30), b"\x45" + bytes(19), udp(THEIRS, OURS, PORT, b"cut off")[:-1]],
    ids=["empty", "one-byte", "zeroes", "short-ipv6", "zero-length", "cut-off"],
)
def test_a_malformed_packet_is_dropped_and_counted_and_nothing_else(
    shared: Pair, peer: CompatPeer, packet: bytes
) -> None:
    dropped = shared.instance.counter("tun.dropped_packet_malformed")
    request = echo_request(THEIRS, OURS, b"still there?")
    peer.send(DATA, packet)
    peer.send(DATA, request)
    assert peer.receive_packet()[20:] == echo_reply(request)[20:]
    assert shared.instance.counter("tun.dropped_packet_malformed") == dropped + 1


def test_a_frame_of_1496_is_taken(shared: Pair, peer: CompatPeer) -> None:
    request = echo_request(THEIRS, OURS, bytes(LENGTH_MAX - 1 - 28))
    assert frame(DATA, request).startswith(b"\x00\x00\x05\xd8\x01")
    peer.send(DATA, request)
    assert peer.receive_packet()[20:] == echo_reply(request)[20:]


@pytest.mark.parametrize("length", [1497, 2**31, 2**32 - 1])
def test_a_longer_frame_ends_the_connection(shared: Pair, peer: CompatPeer, length: int) -> None:
    closed = shared.instance.counter("tcp.closed_frame_too_long")
    peer.write(length.to_bytes(4, "big"))
    assert peer.ended()
    assert shared.instance.counter("tcp.closed_frame_too_long") == closed + 1
    assert [worker["restarts"] for worker in shared.instance.running()["workers"]] == [0, 0]


def test_nothing_is_said_before_there_is_something_to_say(shared: Pair, peer: CompatPeer) -> None:
    with shared.raw() as raw:
        packet = udp(OURS, THEIRS, PORT, b"first")
        raw.sendto(packet, (THEIRS, 0))
    assert peer.receive() == (DATA, packet)
    assert peer.captured == frame(DATA, packet)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_keepalives_go_both_ways_and_keep_a_silent_connection(mode: str, tmp_path: Path) -> None:
    with pair(mode, tmp_path, keepalive=0.5, timeout=2.5) as made, made.connect() as peer:
        lost = made.instance.counter("tcp.connections_lost")
        for _ in range(10):  # twice the time after which silence would have ended it
            assert peer.receive() == (KEEPALIVE, b"")
            peer.send(KEEPALIVE)
        assert peer.captured[: 5 * 10] == b"\0\0\0\x01\x02" * 10
        assert made.instance.counter("tcp.connections_lost") == lost
        while peer.receive() is not None:  # the peer falls silent
            pass
        assert made.instance.counter("tcp.connections_timed_out") == 1


def test_a_client_dials_again_when_the_original_has_ended_the_connection(tmp_path: Path) -> None:
    with pair("client", tmp_path) as made:
        for _ in range(3):
            with made.connect() as peer:
                request = echo_request(THEIRS, OURS, b"there again?")
                peer.send(DATA, request)
                assert peer.receive_packet()[20:] == echo_reply(request)[20:]


def test_a_second_peer_of_a_server_is_turned_away_and_the_first_does_not_notice(tmp_path: Path) -> None:
    with pair("server", tmp_path) as made, made.connect() as first:
        request = echo_request(THEIRS, OURS, b"still there?")
        first.send(DATA, request)
        assert first.receive_packet()[20:] == echo_reply(request)[20:]
        with made.connect() as second:
            assert second.ended()
        first.send(DATA, request)
        assert first.receive_packet()[20:] == echo_reply(request)[20:]
        assert made.instance.counter("tcp.connections_refused") == 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tls_fingerprint": "ab" * 32}, "fingerprint of the server's certificate: expected abab"),
        ({"tls_fingerprint": ""}, "certificate is not accepted here"),
        ({"tls_fingerprint": "", "key_file": "KEY"}, "certificate is not accepted here"),
    ],
    ids=["another-certificate", "no-authority", "a-key-proves-nothing-here"],
)
def test_a_client_trusts_no_server_that_it_cannot_verify(settings: dict, why: str, tmp_path: Path) -> None:
    if "key_file" in settings:
        key = tmp_path / "key"
        key.write_text("00" * 31 + "01\n")
        key.chmod(0o600)
        settings = settings | {"key_file": str(key)}
    with pair("client", tmp_path, "1.3", **settings) as made:
        try:
            with made.connect() as peer:
                peer.ended()
        except OSError:
            pass  # the client has broken the handshake off
        made.instance.wait_for_log(why)
        assert made.instance.counter("tcp.connections_established") == 0


def test_a_client_of_our_own_wire_format_says_that_a_compat_server_speaks_another(tmp_path: Path) -> None:
    with pair("server", tmp_path, "1.3") as made:
        host, _, port = made.instance.config["local_addr"].rpartition(":")
        native = {"mode": "client", "remote_addr": f"{host}:{port}", "tls_skip_verify": True}
        with Instance(made.theirs, native, tmp_path) as client:
            client.wait_for_log("by ALPN the other end does not speak tunnel/1")
            assert client.counter("tcp.connections_established") == 0
