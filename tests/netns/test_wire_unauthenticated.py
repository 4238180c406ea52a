"""Unauthenticated clients learn nothing and disturb no other client, whatever they send: a real server from outside.

Every failure before the proof ends the connection without an answer, under a counter that names the failure, while
another client's pings go on.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.netns.harness.handmade_clients import PLENTY, Dialer, EchoResponder, connect, inviting_server
from tests.netns.harness.instance import Instance, server_config
from tests.reference.blocks import FRAME, frame
from tests.reference.client import BARE_END, CHALLENGE, HELLO, PROOF, VERSION, WireClient, read_to_end, tls
from tests.support import eventually
from tools.lab.network import Lab
from tools.load import flows

HANDSHAKE_SECONDS = 4.0
"""So long that what is ended at once is ended before, on a machine that stands still for a moment too."""

LATE_SECONDS = 1.5
"""Allowed beyond the deadline on a busy machine."""

END_SECONDS = 10.0
INVALID, WRONG = "tcp.closed_hello_invalid", "tcp.closed_proof_wrong"

HTTP = b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.6\r\n"
GARBAGE = hashlib.sha512(b"garbage").digest() * 5
ALERT = 0x15  # content type of a TLS record (RFC 8446, 5.1)
ALERT_BYTES = 7


class Outcome(NamedTuple):
    """The end of a connection as the client sees it."""

    said: bytes
    how: str
    seconds: float


@pytest.fixture(scope="module")
def dialer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dialer]:
    with (
        Lab() as lab,
        inviting_server(lab, tmp_path_factory.mktemp("hub"), handshake_timeout=HANDSHAKE_SECONDS) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def responder(dialer: Dialer) -> Iterator[EchoResponder]:
    """A client that is connected all the time."""
    with EchoResponder(dialer.dial("one")) as responder:
        yield responder


@contextmanager
def undisturbed(dialer: Dialer, responder: EchoResponder, **counted: int) -> Iterator[None]:
    """The connected client loses nothing, no worker dies, and of all counters `closed_` exactly these go up."""
    server = dialer.server
    before, started = closings(server), server.restarts()
    echoes = flows.Echoes(server.node, responder.address, count=20, interval=0.01, timeout=5.0)
    yield
    assert echoes.finish().lost == []
    expected = {name: count + counted.get(name.removeprefix("tcp."), 0) for name, count in before.items()}
    eventually(
        lambda: closings(server) == expected, END_SECONDS, f"{counted} more than {before}, found {closings(server)}"
    )
    assert server.restarts() == started and responder.ended is None


def closings(server: Instance) -> dict[str, int]:
    counters = server.running()["counters"]
    return {name: value for name, value in counters.items() if name.startswith("tcp.closed_")}


def outcome(sock: socket.socket) -> Outcome:
    """Read to the end."""
    began = time.monotonic()
    sock.settimeout(END_SECONDS)
    said, how = read_to_end(sock)
    return Outcome(said, how, time.monotonic() - began)


def client_hello(alpn: str = "tunnel/1") -> bytes:
    """The first flight of a TLS handshake."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        tls(alpn=alpn).wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


# -- failures inside TLS: each function sends all its bytes, and the test checks the end of the connection afterwards


def wrong_proof(client: WireClient, dialer: Dialer) -> None:
    client.send_hello()
    client.receive_challenge()
    client.send_proof(os.urandom(32))


def unknown_key(client: WireClient, dialer: Dialer) -> None:
    client.key = os.urandom(32)
    client.send_hello()
    client.receive_challenge()
    client.send_proof(client.proof())


def replayed_proof(client: WireClient, dialer: Dialer) -> None:
    """Every byte of an earlier handshake that succeeded."""
    with dialer.dial("two") as earlier:
        recorded, proof = earlier.sent_hello, earlier.proof()
    client.socket.sendall(recorded)
    client.receive_challenge()
    client.send_proof(proof)


def reflected_mac(client: WireClient, dialer: Dialer) -> None:
    """A proof of the server's; it is from another handshake, since this one has none yet."""
    client.send_hello()
    client.receive_challenge()
    with dialer.dial_tls("two") as other:
        other.shake_hands()
        client.send_proof(other.server_proof)


def proof_for_another_certificate(client: WireClient, dialer: Dialer) -> None:
    """As somebody in the middle of the TLS would hand it on."""
    client.certificate_hash = hashlib.sha256(b"another certificate").digest()
    client.send_hello()
    client.receive_challenge()
    client.send_proof(client.proof())


def another_version(client: WireClient, dialer: Dialer) -> None:
    client.key = os.urandom(32)
    client.send_hello(wire_version=9)
    client.receive_challenge()
    client.send_proof(client.proof())


def no_key(client: WireClient, dialer: Dialer) -> None:
    client.key = b""
    client.send_hello()


def hello_with(at: int, value: bytes) -> Callable[[WireClient, Dialer], None]:
    def say(client: WireClient, dialer: Dialer) -> None:
        hello = bytearray(client.hello())
        hello[FRAME.size + at : FRAME.size + at + len(value)] = value
        client.socket.sendall(hello)

    return say


def saying(data: bytes) -> Callable[[WireClient, Dialer], None]:
    return lambda client, dialer: client.socket.sendall(data)


def hello_twice(client: WireClient, dialer: Dialer) -> None:
    client.send_hello()
    client.receive_challenge()
    client.send_hello()


def half_a_hello_and_the_end(client: WireClient, dialer: Dialer) -> None:
    client.socket.sendall(client.hello()[:40])
    socket.socket.shutdown(client.socket, socket.SHUT_WR)  # that of an SSLSocket ends TLS as well


INSIDE = {
    "wrong proof": (wrong_proof, WRONG),
    "unknown key": (unknown_key, WRONG),
    "replayed proof": (replayed_proof, WRONG),
    "reflected mac": (reflected_mac, WRONG),
    "another certificate": (proof_for_another_certificate, WRONG),
    "another version, unknown key": (another_version, WRONG),
    "no key": (no_key, WRONG),
    "unknown authentication": (hello_with(30, b"\x07"), WRONG),
    "another magic": (hello_with(0, b"\0"), INVALID),
    "too many requested addresses": (hello_with(71, b"\x09"), INVALID),
    "a requested address that is not there": (hello_with(71, b"\x01"), INVALID),
    "a proof first": (saying(frame(PROOF, bytes(32))), INVALID),
    "the server's part": (saying(frame(CHALLENGE, bytes(32))), INVALID),
    "a packet": (saying(frame(1, bytes(40))), INVALID),
    "a hello twice": (hello_twice, INVALID),
    "a frame of no length": (saying(bytes(4)), INVALID),
    "a long frame": (saying(FRAME.pack(513, HELLO)), INVALID),
    "the longest frame": (saying(FRAME.pack(0xFFFFFFFF, HELLO)), INVALID),
    "HTTP": (saying(HTTP), INVALID),
    "SSH": (saying(SSH), INVALID),
    "garbage": (saying(GARBAGE), INVALID),
    "half a hello": (half_a_hello_and_the_end, INVALID),
}


@pytest.mark.parametrize("what", INSIDE)
def test_a_failed_handshake_is_closed_at_once_without_an_answer(
    dialer: Dialer, responder: EchoResponder, what: str
) -> None:
    act, counter = INSIDE[what]
    with undisturbed(dialer, responder, **{counter.removeprefix("tcp."): 1}), dialer.dial_tls("two") as client:
        act(client, dialer)
        seen = outcome(client.socket)
    assert (seen.said, seen.how) == (b"", "closed")
    assert seen.seconds < HANDSHAKE_SECONDS


@pytest.mark.alone
def test_nobody_can_tell_an_unknown_key_from_a_wrong_proof(dialer: Dialer, responder: EchoResponder) -> None:
    """By the shortest of many times for each case: other load on the machine can only add to a time."""
    seen: dict[str, list[Outcome]] = {"unknown key": [], "wrong proof": []}
    lines = dialer.server.log.count("has not proved to be a peer")
    with undisturbed(dialer, responder, closed_proof_wrong=40):
        for _ in range(20):
            for what, outcomes in seen.items():
                with dialer.dial_tls("two") as client:
                    INSIDE[what][0](client, dialer)
                    outcomes.append(outcome(client.socket))
    unknown, wrong = (min(each.seconds for each in outcomes) for outcomes in seen.values())
    assert {each[:2] for outcomes in seen.values() for each in outcomes} == {(b"", "closed")}
    assert abs(unknown - wrong) < 0.003, f"{unknown * 1e3:.2f} ms and {wrong * 1e3:.2f} ms"
    assert dialer.server.log.count("has not proved to be a peer") < lines + 10  # they do not fill the log


# -- no TLS at all


@pytest.mark.parametrize(
    "data",
    [GARBAGE, HTTP, SSH, bytes(300), frame(HELLO, bytes(90))],
    ids=["garbage", "HTTP", "SSH", "zeros", "a plain hello"],
)
def test_bytes_that_are_no_tls_get_an_alert_at_most(dialer: Dialer, responder: EchoResponder, data: bytes) -> None:
    with undisturbed(dialer, responder, closed_hello_invalid=1), dialer.connect() as sock:
        sock.sendall(data)
        seen = outcome(sock)
    assert seen.how in ("closed", "reset") and seen.seconds < HANDSHAKE_SECONDS
    assert seen.said == b"" or (seen.said[0], len(seen.said)) == (ALERT, ALERT_BYTES)


@pytest.mark.parametrize("alpn", ["", "h2"])
def test_tls_for_another_protocol_ends_with_the_tls_handshake(
    dialer: Dialer, responder: EchoResponder, alpn: str
) -> None:
    with undisturbed(dialer, responder, closed_hello_invalid=1), dialer.connect() as sock:
        sock.settimeout(END_SECONDS)
        with tls(alpn=alpn).wrap_socket(sock, suppress_ragged_eofs=False) as secured:
            assert outcome(secured)[:2] == (b"", "closed")


@pytest.mark.parametrize("data", [GARBAGE, HTTP, SSH, client_hello()], ids=["garbage", "HTTP", "SSH", "TLS"])
def test_without_tls_bytes_that_are_no_handshake_are_closed_without_an_answer(
    lab: Lab, tmp_path: Path, data: bytes
) -> None:
    a, b = lab
    settings = {
        "max_handshakes_per_address": PLENTY,
        "connects_per_address": PLENTY,
        "multi_client": True,
        "state_dir": str(tmp_path / "state"),
    }
    with Instance(a, server_config(a, **settings), tmp_path) as server:
        server.wait_until_running()
        port = int(server.config["local_addr"].rpartition(":")[2])
        client = WireClient(connect(b, a.address, port), client=1)
        client.shake_hands()
        with EchoResponder(client) as responder, undisturbed(Dialer(server, b, {}), responder, closed_hello_invalid=1):
            with connect(b, a.address, port) as sock:
                sock.sendall(data)
                seen = outcome(sock)
            assert seen.said == b"" and seen.how in ("closed", "reset") and seen.seconds < HANDSHAKE_SECONDS


# -- silence, too little, or too slow


@pytest.mark.alone
def test_a_client_that_takes_too_long_is_closed_at_the_deadline_in_every_way_of_being_slow(
    dialer: Dialer, responder: EchoResponder
) -> None:
    flight = client_hello()
    begun: dict[str, tuple[float, float]] = {}  # before and after the dial
    ended: dict[str, float] = {}
    with undisturbed(dialer, responder, closed_too_late=6), ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        slow: dict[socket.socket, Iterator[bytes]] = {}

        def add(name: str, dial: Callable[[], socket.socket], at_once: bytes = b"", slowly: bytes = b"") -> None:
            before = time.monotonic()
            sock = stack.enter_context(dial())
            sock.sendall(at_once)
            sock.setblocking(False)
            slow[sock] = iter([slowly[i : i + 1] for i in range(len(slowly))])
            selector.register(sock, selectors.EVENT_READ, name)
            begun[name] = before, time.monotonic()

        hello = frame(HELLO, bytes(72))

        def dial_tls() -> socket.socket:
            return dialer.dial_tls("two").socket

        add("silence", dialer.connect)
        add("half a TLS hello", dialer.connect, flight[:50])
        add("a TLS hello slowly", dialer.connect, b"", flight)
        add("silence in TLS", dial_tls)
        add("half a hello", dial_tls, hello[:40])
        add("a hello slowly", dial_tls, b"", hello)
        while selector.get_map():
            for key, _ in selector.select(0.2):
                with (
                    pytest.raises(ssl.SSLError, match=BARE_END)
                    if isinstance(key.fileobj, ssl.SSLSocket)
                    else ExitStack()
                ):
                    assert key.fileobj.recv(100) == b""
                ended[key.data] = time.monotonic()
                selector.unregister(key.fileobj)
                del slow[key.fileobj]
            for sock, bytes_left in slow.items():
                if data := next(bytes_left, b""):
                    sock.send(data)
            assert time.monotonic() < min(start for start, _ in begun.values()) + END_SECONDS, slow
    for name, (before, after) in begun.items():
        assert ended[name] - before > HANDSHAKE_SECONDS - 0.5, name
        assert ended[name] - after < HANDSHAKE_SECONDS + LATE_SECONDS, name


def test_a_slow_client_that_proves_its_key_in_time_is_admitted(dialer: Dialer) -> None:
    with dialer.dial_tls("two") as client:
        client.sent_hello = client.hello()
        for byte in client.sent_hello:
            client.socket.send(bytes([byte]))
        client.receive_challenge()
        client.send_proof(client.proof())
        assert client.receive_welcome().version == VERSION


def test_a_client_rejected_before_is_admitted_with_its_key(dialer: Dialer) -> None:
    for act, _ in INSIDE.values():
        with dialer.dial_tls("two") as client:
            act(client, dialer)
            assert outcome(client.socket).how == "closed"
    with dialer.dial("two") as client:
        assert client.welcome.version == VERSION
