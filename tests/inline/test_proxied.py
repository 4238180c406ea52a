"""A server behind a proxy that speaks the PROXY protocol: the address of the client counts."""

from __future__ import annotations

import struct

import pytest

from pipeline.wire import proxy_protocol
from pipeline.wire.proxy_protocol import LOCAL, SIGNATURE, Client
from tests.harness.web_site import ANSWER, WebSite
from tests.inline.harness.ends import WELCOME, Dial, End, Make, hello, step_for, until
from tests.inline.test_fallback import beside, browser, read_all, shared
from tests.inline.test_fallback import dial as dial_server

HEADERS = {
    "version 1": b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 443\r\n",
    "version 2": proxy_protocol.header(Client("192.0.2.7", 40000), Client("192.0.2.1", 443)),
}
OWN = {"version 1": b"PROXY UNKNOWN\r\n", "version 2": SIGNATURE + struct.pack("!BBH", LOCAL, 0, 0)}
FROM_HERE = ("127.0.0.0/8",)


def addresses(server: End) -> list[str]:
    return [row.address for row in server.memory.peer_table.connections(0)]


@pytest.mark.parametrize("version", HEADERS)
def test_a_client_of_a_proxy_has_its_own_address(make: Make, dial: Dial, version: str) -> None:
    server = make("server", proxies=FROM_HERE)
    peer = dial(server)
    for byte in HEADERS[version]:  # in pieces, and nothing behind it is taken for a part of it
        peer.send(bytes([byte]))
        step_for(0.001, server)
    peer.send(hello())
    until(lambda: WELCOME in peer.kinds(), server)
    until(lambda: addresses(server) == ["192.0.2.7:40000"], server)


@pytest.mark.parametrize("version", OWN)
def test_a_proxy_that_speaks_for_itself_is_where_it_is(make: Make, dial: Dial, version: str) -> None:
    server = make("server", proxies=FROM_HERE)
    peer = dial(server)
    peer.send(OWN[version] + hello())
    until(lambda: WELCOME in peer.kinds(), server)
    until(lambda: addresses(server)[0].startswith("127.0.0.1:"), server)


def test_a_health_check_without_a_byte_is_no_error(make: Make, dial: Dial) -> None:
    server = make("server", proxies=FROM_HERE)
    peer = dial(server)
    step_for(0.02, server)
    peer.socket.close()
    manager = server.workers["tcp-0"].duty("inbound").connections
    until(lambda: not (manager._headers or manager._handshaking.by_fd), server)
    assert server.count("tcp.closed_proxy_header") == 0


@pytest.mark.parametrize("said", [b"", hello(), b"PROXY TCP4 ", b"\x16\x03\x01\x02\x00"])
def test_a_proxy_without_a_header_is_closed_and_counted(make: Make, dial: Dial, said: bytes) -> None:
    server = make("server", proxies=FROM_HERE, handshake_timeout=0.2)
    peer = dial(server)
    peer.send(said)
    until(lambda: peer.read_frames().ended, server)
    assert server.count("tcp.closed_proxy_header") == 1 and server.count("tcp.closed_too_late") == 0
    manager = server.workers["tcp-0"].duty("inbound").connections
    assert not (manager._headers or manager._acceptor._limiter._total)


def test_limits_are_those_of_each_client(make: Make, dial: Dial) -> None:
    server = make("server", proxies=FROM_HERE, max_handshakes_per_address=1)
    held = [dial(server) for _ in range(4)]
    for number, peer in enumerate(held):
        peer.send(f"PROXY TCP4 192.0.2.{number % 3} 192.0.2.9 1 2\r\n".encode())
    until(lambda: held[3].read_frames().ended, server)
    assert server.count("tcp.closed_handshakes_of_address") == 1
    assert not any(peer.read_frames().ended for peer in held[:3])


def test_a_header_from_elsewhere_is_garbage(make: Make, dial: Dial) -> None:
    server = make("server", proxies=("192.0.2.0/24",))
    peer = dial(server)
    peer.send(HEADERS["version 1"])
    until(lambda: peer.read_frames().ended, server)
    assert server.count("tcp.closed_hello_invalid") == 1


def test_the_web_server_of_a_fallback_is_told_the_address_that_the_proxy_has_told(make: Make) -> None:
    with WebSite() as site:
        server = shared(make, site.address, tells_address=True, proxies=FROM_HERE)

        def act() -> bytes:
            raw = dial_server(server)
            raw.sendall(HEADERS["version 2"])
            with browser().wrap_socket(raw) as sock:
                sock.sendall(b"GET")
                return read_all(sock)

        assert beside(act, server) == ANSWER
        head = proxy_protocol.header(Client("192.0.2.7", 40000), Client("127.0.0.1", server.port))
        assert site.got == [head + b"GET"]
