"""Attacks on a hub, by unauthenticated clients and by a peer that is admitted. An attack costs the attacker its
connection and no other client anything.

    hub --+-- one      an ordinary client, connected all the time
          +-- two      the attacker, with many addresses
          +-- three    a new client of a test's own
"""

from __future__ import annotations

import hashlib
import random
import secrets
import select
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from pipeline.credentials import certificates, invitation
from pipeline.sealing import key_schedule, session
from pipeline.wire import auth, framing, messages
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.handmade_clients import closed_on_error, welcomed
from tests.netns.harness.hub import CALL_SECONDS, PLAIN, Client, Hub, call, established, reaches, tls_context
from tests.netns.harness.instance import Instance
from tests.reference.client import Ended, WireClient, tls
from tests.reference.records import Header
from tests.reference.sealed_blocks import BULK, plaintext
from tests.support import eventually
from tools.lab.namespace import stop
from tools.lab.network import Lab, Node
from workers.tcp.server_connections import ENOUGH_NS

HANDSHAKE_SECONDS = 1.0
MARGIN_SECONDS = 1.5  # of a busy machine, on top of that
PER_ADDRESS, IN_ALL = 4, 64  # the defaults
ADDRESSES = [f"10.77.0.{100 + number}" for number in range(2 * IN_ALL // PER_ADDRESS)]
STATE_WITHOUT_PROOF = "handshake"
CLOSED_ON_ARRIVAL = ("tcp.closed_handshakes_full", "tcp.closed_handshakes_of_address", "tcp.closed_connects_of_address")
EVIL = "\x1b[31mevil\n2026-01-01T00:00:00.000Z info: all is well\r\x07"


@contextmanager
def attacked(directory: Path, **settings: object) -> Iterator[Hub]:
    with Lab(names=("hub", "one", "two", "three")) as lab, Hub(lab, directory, **settings) as made:
        lab["two"].ip(*(f"address add {address}/24 dev link0" for address in ADDRESSES))
        made.join(lab["one"], **PLAIN)
        yield made


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Its deadline for handshakes is the default: no test that stands still for a moment meets it."""
    with attacked(tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Its deadline for handshakes is soon."""
    with attacked(tmp_path_factory.mktemp("hasty"), handshake_timeout=HANDSHAKE_SECONDS) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_else_notices(request: pytest.FixtureRequest) -> Iterator[None]:
    """An honest client's transfer goes on, and no worker dies."""
    hub: Hub = request.getfixturevalue("hasty" if "hasty" in request.fixturenames else "hub")
    before, lost = hub.server.worker_pids(), hub["one"].counter("tcp.connections_lost")
    with Flow(hub["one"], hub.server) as up, Flow(hub.server, hub["one"]) as down:
        up.pause()
        down.pause()
        yield
        for flow in (up, down):
            flow.resume()
            flow.wait_for(100_000)
    assert hub.server.worker_pids() == before and hub["one"].counter("tcp.connections_lost") == lost
    assert "Traceback" not in hub.server.log


def counted(hub: Hub, *names: str) -> int:
    counters = hub.server.running()["counters"]
    return sum(counters[name] for name in names)


def without_proof(hub: Hub) -> int:
    return sum(row["state"] == STATE_WITHOUT_PROOF for row in hub.server.running()["connections"])


def ended(sock: socket.socket) -> bool:
    """Whether the other end has closed it."""
    try:
        return not sock.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


# -- unauthenticated clients


@pytest.mark.alone
def test_connections_that_say_nothing_are_few_and_end_in_time(hasty: Hub) -> None:
    before = {name: counted(hasty, name) for name in ("tcp.closed_too_late", *CLOSED_ON_ARRIVAL)}
    silent = [call(hasty.lab["two"], hasty.node.address, hasty.port) for _ in range(100)]
    began = time.monotonic()
    try:
        while not all(map(ended, silent)):
            assert without_proof(hasty) <= PER_ADDRESS
            assert time.monotonic() - began < HANDSHAKE_SECONDS + MARGIN_SECONDS
    finally:
        for sock in silent:
            sock.close()
    grown = {name: counted(hasty, name) - count for name, count in before.items()}
    assert sum(grown.values()) == len(silent) and PER_ADDRESS <= grown["tcp.closed_too_late"] < len(silent) // 2
    assert grown["tcp.closed_connects_of_address"] and grown["tcp.closed_handshakes_of_address"]


class Flood:
    """Connections that say nothing, PER_ADDRESS from each of these addresses at a time; who is closed comes again."""

    def __init__(self, node: Node, address: str, port: int, sources: list[str]) -> None:
        self._to = address, port
        self._sources = sources
        self._done = threading.Event()
        self._thread = threading.Thread(target=lambda: node.inside(self._run))

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(CALL_SECONDS)

    def _run(self) -> None:
        there = {self._dial(source): source for source in self._sources for _ in range(PER_ADDRESS)}
        while not self._done.wait(0.02):
            for sock in [sock for sock in there if ended(sock)]:
                sock.close()
                source = there.pop(sock)
                there[self._dial(source)] = source
        for sock in there:
            sock.close()

    def _dial(self, source: str) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((source, 0))
        sock.connect_ex(self._to)
        return sock


def test_a_flood_from_one_address_keeps_out_no_client_from_another(hub: Hub, tmp_path: Path) -> None:
    invitation = hub.invite("three")
    with Flood(hub.lab["two"], hub.node.address, hub.port, ADDRESSES[:1]):
        eventually(lambda: without_proof(hub) == PER_ADDRESS)
        with Client(hub.lab["three"], invitation, tmp_path, **PLAIN) as three:
            three.wait_until_joined()
            assert reaches(three.node, hub.server.address)
        assert without_proof(hub) <= PER_ADDRESS
    hub.server.command("revoke", "three")


def listen_overflows(node: Node) -> int:
    """How often the accept queue of any socket in the node had no room."""
    lines = [line.split() for line in node.run(["cat", "/proc/net/netstat"]).stdout.splitlines()]
    return int(lines[1][lines[0].index("ListenOverflows")])


@pytest.mark.alone
def test_thousands_of_connections_a_second_from_one_address_keep_out_no_client_from_another(hub: Hub) -> None:
    before = counted(hub, "tcp.closed_connects_of_address")
    overflows = listen_overflows(hub.node)
    flood = hub.lab["two"].popen(
        [sys.executable, "-P", "-m", "tools.load.flood", hub.node.address, str(hub.port), "--hellos", "--rate", "3000"]
    )
    with flood:
        try:
            eventually(lambda: counted(hub, "tcp.closed_connects_of_address") > before + 2000)
            for _ in range(10):
                call(hub.lab["three"], hub.node.address, hub.port, tls_context()).close()
        finally:
            stop([flood], CALL_SECONDS)
    assert listen_overflows(hub.node) == overflows


@pytest.mark.alone
def test_a_flood_from_many_addresses_keeps_out_no_client_that_was_connected_before(hasty: Hub, tmp_path: Path) -> None:
    invitation = hasty.invite("three")
    with Client(hasty.lab["three"], invitation, tmp_path, **PLAIN) as three:
        three.wait_until_joined()
        full = counted(hasty, "tcp.closed_handshakes_full")
        with Flood(hasty.lab["two"], hasty.node.address, hasty.port, ADDRESSES):
            eventually(lambda: counted(hasty, "tcp.closed_handshakes_full") > full + IN_ALL)
            back = counted(hasty, "tcp.connections_established")
            three.wait_until_replaced("tcp-0", three.signal_worker("tcp-0", signal.SIGKILL))
            eventually(lambda: established(three), what="it is back")
            eventually(lambda: counted(hasty, "tcp.connections_established") > back, what="the server knows so, too")
            assert eventually(lambda: without_proof(hasty), what="the flood goes on") <= IN_ALL
        assert reaches(three.node, hasty.server.address)
    eventually(lambda: not without_proof(hasty), HANDSHAKE_SECONDS + MARGIN_SECONDS)
    hasty.server.command("revoke", "three")


CLIENT_HELLO_BEGINS = bytes.fromhex("1603010200010001fc0303")  # RFC 8446, 5.1 and 4.1.2: 512 bytes are to come
GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n",
    "zeros": bytes(65536),
    "noise": random.Random(4).randbytes(65536),
    "plain-hello": messages.Hello(messages.VERSION, 0, 0, 1, 1400, 1, 1, 0, 0).frame(),
    "plain-packet": framing.frame(framing.DATA, bytes(20)),
    "long-record": bytes.fromhex("160301ffff") + bytes(1000),
    "old-tls": bytes.fromhex("802e0100020015000000100100800300800600400200800700c0") + bytes(22),  # SSL 2.0
}
SLOW = {"nothing": b"", "a-byte-now-and-then": CLIENT_HELLO_BEGINS + bytes(500)}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_tls_ends_its_connection_at_once(hub: Hub, what: str) -> None:
    before = counted(hub, "tcp.closed_hello_invalid")
    with call(hub.lab["two"], hub.node.address, hub.port) as sock:
        with suppress(ConnectionError):
            sock.sendall(GARBAGE[what])
        eventually(lambda: ended(sock))
    assert counted(hub, "tcp.closed_hello_invalid") == before + 1, "that is: not at the deadline"


@pytest.mark.alone
@pytest.mark.parametrize("what", SLOW)
def test_a_slow_handshake_is_ended_at_the_deadline(hasty: Hub, what: str) -> None:
    before = counted(hasty, "tcp.closed_too_late")
    with call(hasty.lab["two"], hasty.node.address, hasty.port) as sock:
        began = time.monotonic()
        rest = iter(SLOW[what])

        def next_byte_or_end() -> bool:
            with suppress(ConnectionError, StopIteration):
                sock.send(bytes([next(rest)]))
            return bool(select.select([sock], [], [], 0.05)[0]) and ended(sock)

        eventually(next_byte_or_end, HANDSHAKE_SECONDS + MARGIN_SECONDS)
        assert time.monotonic() - began > 0.9 * HANDSHAKE_SECONDS
    assert counted(hasty, "tcp.closed_too_late") == before + 1


def test_connections_that_are_reset_at_once_do_no_harm(hub: Hub) -> None:
    for source in ADDRESSES[:8]:
        for _ in range(8):
            with call(hub.lab["two"], hub.node.address, hub.port, source=source) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    eventually(lambda: not without_proof(hub))


# -- by hand, with TLS


@pytest.fixture
def key(hub: Hub) -> Iterator[bytes]:
    """Of a peer of the hub, who has no other client than ourselves."""
    yield invitation.decode(hub.invite("mallory")).key
    hub.server.command("revoke", "mallory")


class Caller:
    """A client by hand: TLS, and then frames."""

    def __init__(self, hub: Hub) -> None:
        self._sock = call(hub.lab["two"], hub.node.address, hub.port, tls_context(), ADDRESSES[0])
        self.certificate = hashlib.sha256(self._sock.getpeercert(True)).digest()

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def say(self, data: bytes) -> None:
        self._sock.sendall(data)

    def hear(self) -> bytes:
        """The next frame; b"" if the server has closed the connection instead."""
        try:
            head = self._sock.recv(framing.LENGTH.size)
            return head and head + self._sock.recv(framing.LENGTH.unpack(head)[0])
        except TimeoutError:
            raise
        except OSError:
            return b""

    def prove(self, key: bytes, hello: bytes, change: bytes = b"") -> bytes:
        """Answer the challenge, with another proof than is right if so asked; what the server says then."""
        self.say(hello)
        challenge = self.hear()
        assert isinstance(messages.decode(challenge), messages.Challenge)
        right = auth.client_proof(key, auth.transcript(hello, challenge, self.certificate))
        self.proof = messages.Proof(change or right).frame()
        self.say(self.proof)
        return self.hear()


KEY_SHARE = session.Offer(key_schedule.AES_256_GCM).key_share.pack()


def hello_with(key: bytes, **changes: object) -> bytes:
    hello = messages.Hello(
        messages.VERSION,
        0,
        0,
        1,
        1400,
        1,
        time.time_ns(),
        framing.BULK,
        0,
        messages.AUTH_KEY,
        auth.key_id(key),
        secrets.token_bytes(32),
        key_share=KEY_SHARE,
    )
    return hello._replace(**changes).frame()


def mallory(hub: Hub, key: bytes) -> WireClient:
    """A client that is welcome."""

    def dial() -> WireClient:
        client = WireClient(
            call(hub.lab["two"], hub.node.address, hub.port, source=ADDRESSES[0]), key=key, session=time.time_ns()
        )
        with closed_on_error(client):
            client.secure(tls())
        return client

    return welcomed(dial)


def test_a_client_with_the_key_is_welcome(hub: Hub, key: bytes) -> None:
    with mallory(hub, key):
        eventually(lambda: "mallory" in hub.connected())


@pytest.mark.parametrize("whose", ["a-peers-key-id", "nobodys-key-id"])
def test_a_wrong_proof_is_answered_with_silence_whether_or_not_there_is_such_a_peer(
    hub: Hub, key: bytes, whose: str
) -> None:
    before = counted(hub, "tcp.closed_proof_wrong")
    with Caller(hub) as caller:
        named = key if whose == "a-peers-key-id" else secrets.token_bytes(32)
        assert caller.prove(named, hello_with(named), secrets.token_bytes(32)) == b""
    assert counted(hub, "tcp.closed_proof_wrong") == before + 1
    assert hub.connected() == {"one"}


def test_a_replayed_handshake_admits_no_client(hub: Hub, key: bytes) -> None:
    with Caller(hub) as honest:
        hello = hello_with(key)
        assert honest.prove(key, hello)[4] == framing.WELCOME
        recorded = honest.proof
    with Caller(hub) as replaying:
        replaying.say(hello)
        assert replaying.hear()[4] == framing.CHALLENGE
        replaying.say(recorded)
        assert replaying.hear() == b""


OUT_OF_TURN = {
    "no-key": messages.Hello(messages.VERSION, 0, 0, 1, 1400, 1, 1, 0, 0, key_share=KEY_SHARE).frame(),
    "unknown-authentication": messages.Hello(messages.VERSION, 0, 0, 1, 1400, 1, 1, 0, 0, auth=77).frame(),
    "proof-first": messages.Proof(bytes(32)).frame(),
    "welcome": messages.Welcome(messages.VERSION, 0, 1400, 0).frame(),
    "packets": framing.frame(framing.BLOCK, bytes(100)),
    "unknown-type": framing.frame(0x7F, b"?"),
    "other-magic": framing.frame(framing.HELLO, b"tnl\x02" + bytes(100)),
    "too-short": framing.frame(framing.HELLO, b"tnl\x01"),
    "longer-than-any": struct.pack(">IB", 0xFFFFFFFF, framing.HELLO),
    "no-length": bytes(4),
    "http": GARBAGE["http"],
}


@pytest.mark.parametrize("what", OUT_OF_TURN)
def test_bytes_that_are_no_handshake_end_their_connection_at_once_without_an_answer(hub: Hub, what: str) -> None:
    before = counted(hub, "tcp.closed_hello_invalid", "tcp.closed_proof_wrong")
    with Caller(hub) as caller:
        caller.say(OUT_OF_TURN[what])
        assert caller.hear() == b""
    assert counted(hub, "tcp.closed_hello_invalid", "tcp.closed_proof_wrong") == before + 1


@pytest.mark.alone
def test_a_client_silent_within_the_handshake_is_closed_like_one_silent_before_it(hasty: Hub) -> None:
    key = invitation.decode(hasty.invite("silent")).key
    before = counted(hasty, "tcp.closed_too_late")
    with Caller(hasty) as one, Caller(hasty) as two, Caller(hasty) as three:
        one.say(hello_with(key))
        assert one.hear()[4] == framing.CHALLENGE
        two.say(hello_with(key)[:-1])
        assert [caller.hear() for caller in (one, two, three)] == [b""] * 3
    assert counted(hasty, "tcp.closed_too_late") == before + 3


# -- a peer who is in


def packet(source: str, destination: str, *, total: int = 28, header: int = 0x45, vnet: bytes = bytes(10)) -> bytes:
    """An IPv4 packet without a checksum, of 28 bytes whatever it says, behind a virtio-net header."""
    return vnet + struct.pack(
        ">BBHHHBBH4s4s8x", header, 0, total, 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(destination)
    )


def block(content: bytes, length: int = 0) -> bytes:
    """The plaintext of a block of one packet, which says that it has `length` bytes."""
    return struct.pack(">HHI", 0, 1, length or len(content)) + content


def vnet(flags: int = 0, gso_type: int = 0, csum_start: int = 0) -> bytes:
    return struct.pack("<BBHHHH", flags, gso_type, 0, 0, csum_start, 0)


HUB = "10.99.0.1"
WRONG = {
    "longer-than-its-frame": (lambda me: block(packet(me, HUB), 1 << 31), "tun.dropped_frame_malformed"),
    "shorter-than-its-frame": (lambda me: block(packet(me, HUB), 30), "tun.dropped_frame_malformed"),
    "version-7": (lambda me: block(packet(me, HUB, header=0x75)), "tun.dropped_packet_malformed"),
    "says-that-it-is-longer": (lambda me: block(packet(me, HUB, total=1000)), "tun.dropped_packet_malformed"),
    "header-beyond-its-end": (lambda me: block(packet(me, HUB, header=0x4F)), "tun.dropped_packet_malformed"),
    "header-of-nothing": (lambda me: block(packet(me, HUB, header=0x40)), "tun.dropped_packet_malformed"),
    "ipv4-that-says-ipv6": (lambda me: block(packet(me, HUB, header=0x65)), "tun.dropped_packet_malformed"),
    "checksum-beyond-its-end": (
        lambda me: block(packet(me, HUB, vnet=vnet(flags=1, csum_start=100))),
        "tun.dropped_header_malformed",
    ),
    "segments-of-nothing": (lambda me: block(packet(me, HUB, vnet=vnet(gso_type=1))), "tun.dropped_header_malformed"),
    "from-the-hub": (lambda me: block(packet(HUB, me)), "tun.dropped_source_refused"),
    "to-itself": (lambda me: block(packet(me, me)), "tun.dropped_own_destination"),
    "nothing-at-all": (lambda me: b"", "tun.dropped_frame_malformed"),
    "another-count-than-its-header": (lambda me: plaintext([bytes(40)] * 2, 0), "tun.dropped_frame_malformed"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_block_or_packet_that_is_wrong_costs_itself_and_is_counted(hub: Hub, key: bytes, what: str) -> None:
    make, counter = WRONG[what]
    before = counted(hub, counter)
    with mallory(hub, key) as client:
        me = str(client.welcome.addresses[0].ip)
        client.send_sealed(client.session.seal_plaintext(BULK, make(me), 1))
        eventually(lambda: counted(hub, counter) == before + 1, what=counter)
        assert "mallory" in hub.connected()


def test_a_frame_of_no_known_type_costs_itself_and_is_counted(hub: Hub, key: bytes) -> None:
    before = counted(hub, "tun.dropped_frame_unknown")
    with mallory(hub, key) as client:
        client.send_header(Header(0x7F))
        eventually(lambda: counted(hub, "tun.dropped_frame_unknown") == before + 1)
        assert "mallory" in hub.connected()


ENDING = {
    "shards-beyond-all": Header(framing.RUN, 1, 1, 10, 3, 12, 2, 10000),
    "no-shards": Header(framing.RUN, 1, 1, 10, 3, 0, 0, 10000),
    "no-such-code": Header(framing.RUN, 1, 1, 38, 0, 0, 1, 10000),
    "no-data-shards": Header(framing.RUN, 1, 1, 0, 1, 0, 1, 10000),
    "too-much-parity": Header(framing.RUN, 1, 1, 10, 7, 0, 1, 10000),
    "a-block-of-nothing": Header(framing.RUN, 1, 1, 1, 0, 0, 1, 0),
    "a-block-longer-than-any": Header(framing.RUN, 1, 1, 37, 0, 0, 1, 133141),
    "more-shards-than-a-frame-takes": Header(framing.RUN, 1, 1, 10, 6, 0, 16, 133140),
    "a-second-copy-of-a-block-without-copies": Header(framing.RUN, 1, 1, 1, 0, 1, 1, 100),
}


@pytest.mark.parametrize("what", ENDING)
def test_a_header_out_of_range_ends_its_own_connection(hub: Hub, key: bytes, what: str) -> None:
    before = counted(hub, "tcp.closed_frame_too_long")
    with mallory(hub, key) as client:
        client.send_header(ENDING[what])
        with pytest.raises(Ended):
            client.receive_packets(CALL_SECONDS, count=1 << 30)
    eventually(lambda: counted(hub, "tcp.closed_frame_too_long") == before + 1)
    eventually(lambda: hub.connected() == {"one"})


# -- what runs out


@pytest.mark.alone
@pytest.mark.slow
def test_without_descriptors_a_server_tells_clients_so_and_goes_on(tmp_path: Path) -> None:
    limits = {
        "max_handshakes": 1000,
        "max_handshakes_per_address": 1000,
        "connects_per_address": 1000,
        "handshake_timeout": 60,
    }
    with (
        Lab(names=("hub", "one", "two", "three")) as lab,
        Hub(lab, tmp_path, wrap=["prlimit", "--nofile=64"], **limits) as hub,
    ):
        one = hub.join(lab["one"], **PLAIN)
        invitation = hub.invite("three")
        silent = [call(lab["two"], hub.node.address, hub.port) for _ in range(100)]
        for sock in silent:
            sock.setblocking(False)  # with a timeout, recv would wait for it
        try:
            eventually(lambda: counted(hub, "tcp.accepts_failed"), what="no descriptor is left")
            worker = psutil.Process(hub.server.worker_pids()["tcp-0"])
            began, used = time.monotonic(), sum(worker.cpu_times()[:2])
            eventually(lambda: sum(map(ended, silent)) > 20, what="clients beyond the descriptors are told at once")
            assert time.monotonic() - began < ENOUGH_NS / 1e9
            while time.monotonic() < began + 1.0:
                assert reaches(one.node, hub.server.address) and hub.server.command("peers").returncode == 0
            assert sum(worker.cpu_times()[:2]) - used < 0.3 * (time.monotonic() - began)
            with Client(lab["three"], invitation, tmp_path, **PLAIN) as three:
                three.wait_until_joined()  # in the place of a client that has been silent long enough
            assert counted(hub, "tcp.closed_for_another")
        finally:
            for sock in silent:
                sock.close()
        assert set(hub.server.restarts().values()) == {0}


# -- what is written about them


def test_the_text_of_a_refusal_is_escaped_in_the_clients_log(hub: Hub, tmp_path: Path) -> None:
    a, b = hub.lab["three"], hub.lab["two"]
    with a.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        listener.settimeout(CALL_SECONDS)
        config = {
            "mode": "client",
            "remote_addr": f"{a.address}:{listener.getsockname()[1]}",
            "encryption": "none",
            "tunnel_addr": "10.98.0.2/24",
            **PLAIN,
        }
        with Instance(b, config, tmp_path) as client:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(CALL_SECONDS)
                assert sock.recv(1000)
                sock.sendall(messages.Refused(77, EVIL).frame())
                client.wait_for_log("refused by the server: \\x1b[31mevil\\n2026")
            client.stop()
            assert no_evil(client.log)


def test_with_a_ca_a_certificate_whose_name_would_alter_a_log_is_refused(tmp_path: Path) -> None:
    ca = certificates.make_ca("Test CA")
    mine, honest = (certificates.issue(ca, name, server=name == "hub") for name in ("hub", "honest"))
    for name, content in (
        ("ca.crt", ca.certificate),
        ("hub.crt", mine.certificate),
        ("hub.key", mine.key),
        ("honest", honest.certificate + honest.key),
        ("evil", evil_certificate(ca)),
    ):
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    files = {
        f"tls_{what}_file": str(tmp_path / name)
        for what, name in (("ca", "ca.crt"), ("cert", "hub.crt"), ("key", "hub.key"))
    }
    with Lab() as lab, Hub(lab, tmp_path, **files) as hub:
        assert "no peer can connect yet" not in hub.server.log
        for who, is_in in (("honest", True), ("evil", False)):
            with call(lab["b"], hub.node.address, hub.port, tls_context(pair=(tmp_path / who,))) as sock:
                sock.sendall(OUT_OF_TURN["no-key"])
                said = b""
                with suppress(ssl.SSLError):  # the end, without close_notify
                    said = sock.recv(5)
                assert (said[4:] == bytes([framing.WELCOME])) == is_in
        assert set(hub.peers()) == {"honest"}
        hub.server.stop()
        assert no_evil(hub.server.log)


def no_evil(text: str) -> bool:
    return not any(character in text for character in "\x1b\r\x07") and "\n2026-01-01" not in text


def evil_certificate(ca: certificates.CertificatePair) -> bytes:
    """Of the CA, with EVIL for a name, and its key."""
    pair = certificates.issue(ca, "evil", server=False)
    issued = x509.load_pem_x509_certificate(pair.certificate)
    builder = x509.CertificateBuilder(
        issuer_name=issued.issuer,
        subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, EVIL)]),
        public_key=issued.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=datetime.now(UTC) - timedelta(days=1),
        not_valid_after=datetime.now(UTC) + timedelta(days=1),
    )
    for extension in issued.extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(load_pem_private_key(ca.key, None), hashes.SHA256())
    return signed.public_bytes(Encoding.PEM) + pair.key
