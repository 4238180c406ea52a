"""Who has not proved who he is learns nothing and disturbs nobody, whatever he says: a real server from outside.

Every failure before the proof is a connection that ends without a word, under a counter that says what it was, while
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

from tests.netns.harness.handmade_clients import PLENTY, Answering, Door, connect, hub
from tests.netns.harness.instance import End, needs_root, restarts, server_config
from tests.reference.blocks import FRAME, frame
from tests.reference.client import CHALLENGE, HELLO, PROOF, WireClient, tls
from tests.support import eventually
from tools.lab.network import Lab
from tools.load import flows

pytestmark = needs_root

HANDSHAKE_SECONDS = 1.5
LATE_SECONDS = 1.5
"""Beyond that, on a busy machine."""

END_SECONDS = 10.0
INVALID, WRONG = "tcp.closed_hello_invalid", "tcp.closed_proof_wrong"

HTTP = b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.6\r\n"
GARBAGE = hashlib.sha512(b"garbage").digest() * 5
ALERT = 0x15  # content type of a TLS record (RFC 8446, 5.1)
ALERT_BYTES = 7


class Outcome(NamedTuple):
    """What one sees who has been turned away."""

    said: bytes
    how: str
    seconds: float


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with Lab() as lab, hub(lab, tmp_path_factory.mktemp("hub"), handshake_timeout=HANDSHAKE_SECONDS) as made:
        yield made


@pytest.fixture(scope="module")
def guest(door: Door) -> Iterator[Answering]:
    """Somebody who is connected all the time."""
    with Answering(door.dial("one")) as answering:
        yield answering


@contextmanager
def undisturbed(door: Door, guest: Answering, **counted: int) -> Iterator[None]:
    """Nothing happens to who is connected, no worker has died, and these counters have gone up, no other `closed_`."""
    server = door.server
    before, started = closings(server), restarts(server)
    echoes = flows.Echoes(server.node, guest.address, count=50, interval=0.01, timeout=5.0)
    yield
    assert echoes.finish().lost == []
    expected = {name: count + counted.get(name.removeprefix("tcp."), 0) for name, count in before.items()}
    eventually(lambda: closings(server) == expected, 2.0, f"{counted} more than {before}, found {closings(server)}")
    assert restarts(server) == started and guest.ended is None


def closings(server: End) -> dict[str, int]:
    counters = server.status()["counters"]
    return {name: value for name, value in counters.items() if name.startswith("tcp.closed_")}


def outcome(sock: socket.socket) -> Outcome:
    """Read to the end."""
    began, said = time.monotonic(), b""
    sock.settimeout(END_SECONDS)
    try:
        while data := sock.recv(65536):
            said += data
        how = "goodbye" if isinstance(sock, ssl.SSLSocket) else "closed"
    except ssl.SSLEOFError:
        how = "closed"
    except ConnectionResetError:
        how = "reset"
    return Outcome(said, how, time.monotonic() - began)


def client_hello(alpn: str = "tunnel/1") -> bytes:
    """The first flight of a TLS handshake."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        tls(alpn=alpn).wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


# -- what goes wrong inside TLS. Each says all that it has to say; the ending is looked at afterwards


def wrong_proof(client: WireClient, door: Door) -> None:
    client.say_hello()
    client.take_challenge()
    client.prove(os.urandom(32))


def unknown_key(client: WireClient, door: Door) -> None:
    client.key = os.urandom(32)
    client.say_hello()
    client.take_challenge()
    client.prove(client.proof())


def replayed_proof(client: WireClient, door: Door) -> None:
    """Every byte of an earlier greeting that was good."""
    with door.dial("two") as earlier:
        recorded, proof = earlier.sent_hello, earlier.proof()
    client.socket.sendall(recorded)
    client.take_challenge()
    client.prove(proof)


def reflected_mac(client: WireClient, door: Door) -> None:
    """What the server itself has proved, to us in this greeting it cannot be yet."""
    client.say_hello()
    client.take_challenge()
    with door.secured("two") as other:
        other.greet()
        client.prove(other.server_proof)


def proof_for_another_certificate(client: WireClient, door: Door) -> None:
    """As somebody in the middle of the TLS would hand it on."""
    client.certificate_hash = hashlib.sha256(b"his certificate").digest()
    client.say_hello()
    client.take_challenge()
    client.prove(client.proof())


def another_version(client: WireClient, door: Door) -> None:
    client.key = os.urandom(32)
    client.say_hello(wire_version=9)
    client.take_challenge()
    client.prove(client.proof())


def no_key(client: WireClient, door: Door) -> None:
    client.key = b""
    client.say_hello()


def hello_with(at: int, value: bytes) -> Callable[[WireClient, Door], None]:
    def say(client: WireClient, door: Door) -> None:
        hello = bytearray(client.hello())
        hello[FRAME.size + at : FRAME.size + at + len(value)] = value
        client.socket.sendall(hello)

    return say


def saying(data: bytes) -> Callable[[WireClient, Door], None]:
    return lambda client, door: client.socket.sendall(data)


def hello_twice(client: WireClient, door: Door) -> None:
    client.say_hello()
    client.take_challenge()
    client.say_hello()


def half_a_hello_and_the_end(client: WireClient, door: Door) -> None:
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
    "too many wishes": (hello_with(71, b"\x09"), INVALID),
    "a wish that is not there": (hello_with(71, b"\x01"), INVALID),
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
def test_a_greeting_that_fails_is_closed_at_once_and_without_a_word(door: Door, guest: Answering, what: str) -> None:
    act, counter = INSIDE[what]
    with undisturbed(door, guest, **{counter.removeprefix("tcp."): 1}), door.secured("two") as client:
        act(client, door)
        seen = outcome(client.socket)
    assert (seen.said, seen.how) == (b"", "closed")
    assert seen.seconds < HANDSHAKE_SECONDS


def test_nobody_can_tell_an_unknown_key_from_a_wrong_proof(door: Door, guest: Answering) -> None:
    """By the least of many times each: what others do with the machine only adds to it."""
    seen: dict[str, list[Outcome]] = {"unknown key": [], "wrong proof": []}
    lines = door.server.log.count("has not proved to be a peer")
    with undisturbed(door, guest, closed_proof_wrong=40):
        for _ in range(20):
            for what, outcomes in seen.items():
                with door.secured("two") as client:
                    INSIDE[what][0](client, door)
                    outcomes.append(outcome(client.socket))
    unknown, wrong = (min(each.seconds for each in outcomes) for outcomes in seen.values())
    assert {each[:2] for outcomes in seen.values() for each in outcomes} == {(b"", "closed")}
    assert abs(unknown - wrong) < 0.003, f"{unknown * 1e3:.2f} ms and {wrong * 1e3:.2f} ms"
    assert door.server.log.count("has not proved to be a peer") < lines + 10  # they do not fill the log


# -- no TLS at all


@pytest.mark.parametrize(
    "data",
    [GARBAGE, HTTP, SSH, bytes(300), frame(HELLO, bytes(90))],
    ids=["garbage", "HTTP", "SSH", "zeros", "a plain hello"],
)
def test_whoever_speaks_no_tls_gets_an_alert_at_most(door: Door, guest: Answering, data: bytes) -> None:
    with undisturbed(door, guest, closed_hello_invalid=1), door.connect() as sock:
        sock.sendall(data)
        seen = outcome(sock)
    assert seen.how in ("closed", "reset") and seen.seconds < HANDSHAKE_SECONDS
    assert seen.said == b"" or (seen.said[0], len(seen.said)) == (ALERT, ALERT_BYTES)


@pytest.mark.parametrize("alpn", ["", "h2"])
def test_tls_for_something_else_ends_with_the_handshake(door: Door, guest: Answering, alpn: str) -> None:
    with undisturbed(door, guest, closed_hello_invalid=1), door.connect() as sock:
        sock.settimeout(END_SECONDS)
        with tls(alpn=alpn).wrap_socket(sock, suppress_ragged_eofs=False) as stranger:
            assert outcome(stranger)[:2] == (b"", "closed")


@pytest.mark.parametrize("data", [GARBAGE, HTTP, SSH, client_hello()], ids=["garbage", "HTTP", "SSH", "TLS"])
def test_a_plain_port_ends_what_is_no_greeting_without_a_word(lab: Lab, tmp_path: Path, data: bytes) -> None:
    a, b = lab
    settings = {
        "max_handshakes_per_address": PLENTY,
        "connects_per_address": PLENTY,
        "multi_client": True,
        "state_dir": str(tmp_path / "state"),
    }
    with End(a, server_config(a, **settings), tmp_path) as server:
        server.wait_until_running()
        port = int(server.config["local_addr"].rpartition(":")[2])
        client = WireClient(connect(b, a.address, port), client=1)
        client.greet()
        with Answering(client) as guest, undisturbed(Door(server, b, {}), guest, closed_hello_invalid=1):
            with connect(b, a.address, port) as sock:
                sock.sendall(data)
                seen = outcome(sock)
            assert seen.said == b"" and seen.how in ("closed", "reset") and seen.seconds < HANDSHAKE_SECONDS


# -- nothing, or too little, or too slowly


def test_whoever_takes_too_long_is_closed_at_the_deadline_however_he_does_it(door: Door, guest: Answering) -> None:
    flight = client_hello()
    begun: dict[str, tuple[float, float]] = {}
    with undisturbed(door, guest, closed_too_late=6), ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        slow: dict[socket.socket, Iterator[bytes]] = {}

        def add(name: str, sock: socket.socket, at_once: bytes = b"", slowly: bytes = b"") -> None:
            stack.enter_context(sock)
            sock.sendall(at_once)
            sock.setblocking(False)
            slow[sock] = iter([slowly[i : i + 1] for i in range(len(slowly))])
            selector.register(sock, selectors.EVENT_READ, name)
            begun[name] = time.monotonic(), 0.0

        hello = frame(HELLO, bytes(72))
        add("silence", door.connect())
        add("half a TLS hello", door.connect(), flight[:50])
        add("a TLS hello slowly", door.connect(), b"", flight)
        add("silence in TLS", door.secured("two").socket)
        add("half a greeting", door.secured("two").socket, hello[:40])
        add("a greeting slowly", door.secured("two").socket, b"", hello)
        while selector.get_map():
            for key, _ in selector.select(0.2):
                with pytest.raises(ssl.SSLEOFError) if isinstance(key.fileobj, ssl.SSLSocket) else ExitStack():
                    assert key.fileobj.recv(100) == b""
                begun[key.data] = begun[key.data][0], time.monotonic()
                selector.unregister(key.fileobj)
                del slow[key.fileobj]
            for sock, bytes_left in slow.items():
                if data := next(bytes_left, b""):
                    sock.send(data)
            assert time.monotonic() < min(start for start, _ in begun.values()) + END_SECONDS, slow
    for name, (start, end) in begun.items():
        assert HANDSHAKE_SECONDS - 0.5 < end - start < HANDSHAKE_SECONDS + LATE_SECONDS, name


def test_a_slow_stranger_who_proves_it_in_time_is_let_in(door: Door) -> None:
    with door.secured("two") as client:
        client.sent_hello = client.hello()
        for byte in client.sent_hello:
            client.socket.send(bytes([byte]))
        client.take_challenge()
        client.prove(client.proof())
        assert client.take_welcome().version == 1


def test_whoever_was_turned_away_once_is_let_in_with_his_key(door: Door) -> None:
    for act, _ in INSIDE.values():
        with door.secured("two") as client:
            act(client, door)
            assert outcome(client.socket).how == "closed"
    with door.dial("two") as client:
        assert client.welcome.version == 1
