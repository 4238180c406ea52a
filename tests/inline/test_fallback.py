"""A server that shares its port with a web server: peers are peers, and all others see the web server alone."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import pytest

from pipeline.runtime.client_hello import client_hello
from pipeline.supervisor.roles.prover import Prover
from pipeline.transport.settings import ALPN, FallbackSettings
from pipeline.wire import auth, messages, proxy_protocol
from tests.harness.hub import KEYS, known
from tests.harness.web_site import ANSWER, SECONDS, WebSite
from tests.inline.harness.ends import End, Make, step_for, until
from tests.inline.harness.hub_ends import configure, inside, packet, tls
from tests.support import eventually

KEY = KEYS["ann"]
T = TypeVar("T")


@pytest.fixture
def site() -> Iterator[WebSite]:
    with WebSite() as made:
        yield made


def shared(make: Make, address: str, alpn: tuple[str, ...] = ("http/1.1",), **settings: Any) -> End:
    """A server that knows ann's key, and has a fallback."""
    fallback = FallbackSettings(address, "", address, False, 256)
    fallback = fallback._replace(**{name: settings.pop(name) for name in fallback._fields if name in settings})
    material = tls()[0]._replace(alpn=alpn, like_a_web_server=True)
    server = make("server", capacity=4, tls=material, verifies_keys=True, fallback=fallback, **settings)
    configure(server, known("ann"))
    return server


def client_of(
    make: Make, server: End, alpn: tuple[str, ...] = ("h2", "http/1.1"), key: bytes = KEY, **more: Any
) -> End:
    client = make(
        "client",
        port=server.port,
        client_id=1,
        session=1,
        tls=tls()[1]._replace(alpn=alpn),
        key_id=auth.key_id(key).hex(),
        **{"connections": 1, "knock_key": auth.knock_key(key).hex(), **more},
    )
    client.prover = Prover(key, client.plan.settings)
    return client


def beside(act: Callable[[], T], *ends: End) -> T:
    """What a function returns that blocks, in a thread, while these ends run."""
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(act())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: not thread.is_alive(), *ends, seconds=2 * SECONDS)
    thread.join()
    if errors:
        raise errors[0]
    return found[0]


def browser(alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(alpn)
    return context


def dial(server: End) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)


def in_tls(server: End, alpn: tuple[str, ...] = ("http/1.1",)) -> ssl.SSLSocket:
    return browser(alpn).wrap_socket(dial(server))


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def ask(server: End, data: bytes | Callable[[ssl.SSLSocket], bytes]) -> bytes:
    """What somebody gets who says this in TLS."""

    def act() -> bytes:
        with in_tls(server) as sock:
            sock.sendall(data if isinstance(data, bytes) else data(sock))
            return read_all(sock)

    return beside(act, server)


def hello(server: End, key: bytes = KEY, **changes: Any) -> messages.Hello:
    made = client_hello(server.plan.settings, auth.key_id(key), 0, secrets.token_bytes(32))
    return made._replace(**changes)


def knocking(sock: ssl.SSLSocket, made: messages.Hello, key: bytes = KEY) -> messages.Hello:
    binding = sock.get_channel_binding("tls-unique")
    assert binding
    return made._replace(knock=auth.knock(auth.knock_key(key), made.nonce, binding))


# -- peers


def test_a_client_that_looks_like_a_browser_is_connected_and_carries_packets(make: Make, site: WebSite) -> None:
    server = shared(make, site.address)
    client = client_of(make, server, connections=4)
    until(lambda: server.established() == client.established() == 4, server, client)
    sent = packet(inside(1, 4), inside(0, 4))
    client.write(sent)
    until(lambda: server.packets() == [sent], server, client)
    assert site.got == [] and server.count("tcp.fallbacks_opened") == 0


def test_the_web_server_keeps_no_connection_for_a_peer(make: Make, site: WebSite) -> None:
    server = shared(make, site.address)
    client = client_of(make, server)
    until(lambda: server.established() == client.established() == 1, server, client)
    fallback = server.workers["tcp-0"].duty("inbound").connections._fallback
    assert not fallback._waiting and not len(fallback)
    eventually(lambda: site.accepted == 1, what="the thread of the web server has seen it")


@pytest.mark.parametrize("alpn", [(ALPN,), ("h2", ALPN)])
def test_an_older_client_is_connected_where_our_own_name_may_be_selected(
    make: Make, site: WebSite, alpn: tuple[str, ...]
) -> None:
    server = shared(make, site.address, alpn=("http/1.1", ALPN))
    client = client_of(make, server, alpn, knock_key="")
    until(lambda: server.established() == client.established() == 1, server, client)


def test_an_older_client_is_not_connected_where_it_may_not(make: Make, site: WebSite) -> None:
    server = shared(make, site.address)
    client = client_of(make, server, (ALPN,), knock_key="")
    until(lambda: client.count("tcp.dials_failed") >= 1, server, client)
    assert server.established() == 0


def test_peers_are_connected_while_there_is_no_web_server(make: Make) -> None:
    with WebSite() as gone:
        address = gone.address
    server = shared(make, address)
    client = client_of(make, server)
    until(lambda: server.established() == client.established() == 1, server, client)


def test_a_client_with_another_key_learns_that_a_web_server_has_answered(
    make: Make, site: WebSite, caplog: pytest.LogCaptureFixture
) -> None:
    server = shared(make, site.address)
    with caplog.at_level("DEBUG", "tunnel"):
        client = client_of(make, server, key=KEYS["bob"])
        until(lambda: "a web server has answered" in caplog.text, server, client)
    assert client.established() == 0


# -- all others

FIRST_BYTES: dict[str, Callable[[End], bytes]] = {
    "a request": lambda server: b"GET / HTTP/1.1\r\nHost: site\r\n\r\n",
    "an empty line": lambda server: b"\r\n\r\n",
    "one byte": lambda server: b"\0",
    "garbage": lambda server: secrets.token_bytes(3000),
    "half a hello": lambda server: hello(server).frame()[:40],
    "the length of a hello": lambda server: b"\0\0\0\x82",
    "a hello without a knock": lambda server: hello(server).frame(),
    "a hello without a key": lambda server: hello(server, auth=messages.AUTH_NONE).frame(),
    "a hello with a made-up knock": lambda server: hello(server, knock=secrets.token_bytes(32)).frame(),
    "a hello and more": lambda server: hello(server, knock=secrets.token_bytes(32)).frame() + b"x" * 5000,
    "another message": lambda server: messages.Proof(bytes(32)).frame(),
    "a long frame": lambda server: b"\0\0\x02\x01\x10",
}


@pytest.mark.parametrize("what", FIRST_BYTES)
def test_the_web_server_gets_the_first_bytes_of_all_others_and_answers(make: Make, site: WebSite, what: str) -> None:
    server = shared(make, site.address)
    said = FIRST_BYTES[what](server)
    assert ask(server, said) == ANSWER
    assert site.got == [said]
    until(lambda: server.count("tcp.fallbacks_ended") == server.count("tcp.fallbacks_opened") == 1, server)
    assert server.count("tcp.closed_proof_wrong") == server.count("tcp.closed_hello_invalid") == 0


def test_a_right_knock_of_an_unknown_key_is_the_web_servers(make: Make, site: WebSite) -> None:
    server = shared(make, site.address)
    said: list[bytes] = []

    def act(sock: ssl.SSLSocket) -> bytes:
        said.append(knocking(sock, hello(server, KEYS["bob"]), KEYS["bob"]).frame())
        return said[0]

    assert ask(server, act) == ANSWER and site.got == said


def test_a_hello_that_was_recorded_is_the_web_servers_on_another_connection(make: Make, site: WebSite) -> None:
    server = shared(make, site.address)
    recorded: list[bytes] = []

    def knock_for_real() -> bytes:
        with in_tls(server) as sock:
            recorded.append(knocking(sock, hello(server)).frame())
            sock.sendall(recorded[0])
            return sock.recv(1000)

    assert beside(knock_for_real, server)[4] == 0x13  # a challenge
    assert ask(server, recorded[0]) == ANSWER and site.got == recorded


def test_bytes_without_tls_go_to_the_address_for_them_as_they_are(make: Make, site: WebSite) -> None:
    with WebSite() as plain:
        server = shared(make, site.address, plain=plain.address)

        def act() -> bytes:
            with dial(server) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return read_all(sock)

        assert beside(act, server) == ANSWER
        assert plain.got == [b"GET / HTTP/1.1\r\n\r\n"] and site.got == []


def test_a_client_that_selects_h2_gets_the_web_server_that_speaks_it(make: Make, site: WebSite) -> None:
    with WebSite() as two:
        server = shared(make, site.address, alpn=("h2", "http/1.1"), h2=two.address)

        def act() -> bytes:
            with in_tls(server, ("h2", "http/1.1")) as sock:
                assert sock.selected_alpn_protocol() == "h2"
                sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                return read_all(sock)

        assert beside(act, server) == ANSWER
        assert two.got == [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] and site.got == []


def test_a_transfer_of_megabytes_both_ways_arrives_as_it_was(make: Make) -> None:
    data = secrets.token_bytes(3_000_000)

    def echo(connection: socket.socket) -> bytes:
        got = b""
        while len(got) < len(data):
            got += connection.recv(65536)
        connection.sendall(got)
        return b"echoed"

    with WebSite(echo) as site:
        server = shared(make, site.address)
        assert ask(server, data) == data
        assert server.count("tcp.bytes_fallback_sent") == server.count("tcp.bytes_fallback_received") == len(data)


def test_an_end_of_the_client_reaches_the_web_server_and_the_answer_still_arrives(make: Make) -> None:
    def answer_at_the_end(connection: socket.socket) -> bytes:
        got = b""
        while piece := connection.recv(65536):
            got += piece
        connection.sendall(ANSWER)
        return got

    with WebSite(answer_at_the_end) as site:
        server = shared(make, site.address, alpn=("http/1.1",))

        def act() -> bytes:
            with dial(server) as sock:
                sock.sendall(b"POST")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        assert beside(act, server) == ANSWER and site.got == [b"POST"]


@pytest.mark.parametrize("secured", [False, True])
def test_a_silent_client_is_ended_when_the_web_server_ends_it_and_not_before(make: Make, secured: bool) -> None:
    enough = threading.Event()

    def be_patient(connection: socket.socket) -> bytes:
        enough.wait(SECONDS)
        return b""

    with WebSite(be_patient) as site:
        server = shared(make, site.address, handshake_timeout=0.1)

        def dial_silently() -> socket.socket:
            return in_tls(server) if secured else dial(server)

        with beside(dial_silently, server) as sock:
            step_for(0.5, server)
            sock.setblocking(False)
            with pytest.raises((BlockingIOError, ssl.SSLWantReadError)):
                sock.recv(1)
            enough.set()
            sock.settimeout(SECONDS)
            assert beside(lambda: sock.recv(1), server) == b""


def test_a_web_server_that_is_not_there_costs_its_clients_the_connection_and_is_said(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with WebSite() as gone:
        address = gone.address
    server = shared(make, address)
    with suppress(ConnectionResetError):  # which tickets that are unread may hide
        assert ask(server, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert server.count("tcp.fallbacks_failed") == server.count("tcp.fallbacks_ended") == 1
    assert f"the web server at {address}" in caplog.text and "refused" in caplog.text


def test_the_web_server_is_told_the_address_of_the_client(make: Make, site: WebSite) -> None:
    server = shared(make, site.address, tells_address=True)
    own: list[tuple[str, int]] = []

    def act(sock: ssl.SSLSocket) -> bytes:
        own.append(sock.getsockname())
        return b"GET"

    assert ask(server, act) == ANSWER
    header = proxy_protocol.ProxyHeader()
    while header.needs:
        size = header.needs
        header.feed(site.got[0][:size])
        site.got[0] = site.got[0][size:]
    assert (header.client, site.got) == (own[0], [b"GET"])


def hold_until(over: threading.Event) -> Callable[[socket.socket], bytes]:
    """Repeat the first bytes, and hold the connection."""

    def hold(connection: socket.socket) -> bytes:
        connection.sendall(connection.recv(100))
        over.wait(SECONDS)
        return b"held"

    return hold


def speak(server: End, source: str) -> ssl.SSLSocket:
    """A client from this address that the web server has answered."""

    def act() -> ssl.SSLSocket:
        where = "127.0.0.1", server.port
        with ExitStack() as undo:
            raw = undo.enter_context(socket.create_connection(where, SECONDS, source_address=(source, 0)))
            sock = undo.enter_context(browser().wrap_socket(raw))
            sock.sendall(b"hello?")
            assert sock.recv(100) == b"hello?"
            undo.pop_all()
        return sock

    return beside(act, server)


def test_where_all_places_are_in_use_the_longest_idle_client_makes_room(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.tcp.server_connections.ENOUGH_NS", 0)
    over = threading.Event()
    with WebSite(hold_until(over)) as site, ExitStack() as stack:
        stack.callback(over.set)
        server = shared(make, site.address, connections=4)  # one of them from each address
        held = [stack.enter_context(speak(server, f"127.0.1.{number}")) for number in range(4)]
        stack.enter_context(speak(server, "127.0.1.9"))
        assert server.count("tcp.closed_for_another") == 1
        assert beside(lambda: held[0].recv(1), server) == b""
        held[1].setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            held[1].recv(1)


def test_no_address_has_more_than_its_part_of_the_places(make: Make) -> None:
    over = threading.Event()
    with WebSite(hold_until(over)) as site, ExitStack() as stack:
        stack.callback(over.set)
        server = shared(make, site.address, connections=8)
        for _ in range(2):
            stack.enter_context(speak(server, "127.0.1.1"))

        def dial_in_vain() -> bytes:
            with socket.create_connection(("127.0.0.1", server.port), SECONDS, source_address=("127.0.1.1", 0)) as raw:
                return raw.recv(1)

        with pytest.raises(ConnectionResetError):
            beside(dial_in_vain, server)
        assert server.count("tcp.closed_handshakes_of_address") == 1
        stack.enter_context(speak(server, "127.0.1.2"))


def test_a_client_that_is_given_away_leaves_nothing_behind(make: Make, site: WebSite) -> None:
    server = shared(make, site.address)
    for _ in range(3):
        assert ask(server, b"GET") == ANSWER
    manager = server.workers["tcp-0"].duty("inbound").connections
    until(lambda: not len(manager._fallback), server)
    fallback, limiter = manager._fallback, manager._acceptor._limiter
    assert not (fallback._waiting or fallback._waiting_by_fd or fallback._watched or manager._queue._spent)
    assert not (limiter._total or limiter._handshakes or manager._handshaking.by_fd)
