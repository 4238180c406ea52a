"""The sockets of a client's dials, and the resolver. When each slot is dialed: tests/unit/policy/test_dialing.py.

Time is an argument here; sockets are real.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from pipeline.policy.dialing import CONNECT_NS
from pipeline.policy.server_addresses import ServerAddress
from pipeline.transport.dialer import Dialed, Dialer, make_dialing
from pipeline.transport.resolver import Resolver, ResolverAnswer
from pipeline.transport.socket_options import SO_BINDTODEVICE
from pipeline.wire.approach import Proxy
from tests.harness.factory import factory
from tests.harness.fake_proxy import FakeProxy
from tests.harness.no_descriptors import no_descriptor_left
from tests.harness.settings import WORKER_SETTINGS
from tests.support import eventually

SECOND = 1_000_000_000
NOW = 1_000 * SECOND

SETTINGS = WORKER_SETTINGS._replace(reconnect_min=0.5, reconnect_max=8.0)

Make = Callable[..., Dialer]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes dialers; their descriptors are closed after the test."""

    def dialer(
        host: str, port: int, slots: int = 1, hindrance: str = "", interface: str = "", **settings: Any
    ) -> Dialer:
        known = SETTINGS._replace(**settings)
        dialing = make_dialing(range(slots), 0, 1, known)
        return Dialer(host, port, dialing, known, lambda address: hindrance, interface)

    with factory(dialer) as make_dialer:
        yield make_dialer


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound and does not listen: connecting is refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def until_dialed(dialer: Dialer, now: int = NOW) -> Dialed:
    """The one socket that connects."""
    (dialed,) = eventually(lambda: dialer.step(now))
    return dialed


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_socket_that_has_connected_is_the_callers_with_all_its_options(make: Make, listener: socket.socket) -> None:
    dialed = until_dialed(make("127.0.0.1", port_of(listener)))
    with dialed.sock as sock:
        assert (dialed.dial_index, dialed.address.sockaddr) == (0, listener.getsockname())
        assert sock.getpeername() == listener.getsockname()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.gettimeout() == 0.0


def test_the_descriptor_of_the_dialer_tells_that_a_connection_is_there(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    dialed = dialer.step(NOW)
    poll = select.poll()
    poll.register(dialer.fd, select.POLLIN)
    if not dialed:
        eventually(lambda: poll.poll(0))
        dialed = dialer.step(NOW)
    assert len(dialed) == 1
    dialed[0].sock.close()
    assert poll.poll(0) == []


def test_a_socket_that_connects_as_the_network_changes_is_dialed_anew(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    assert dialer.step(NOW) == []  # the kernel tells of the connection at the next look
    dialer.hurry(NOW)
    until_dialed(dialer).sock.close()
    assert dialer.failures == 0


def test_a_name_is_resolved_beside_the_caller_that_is_woken(make: Make, listener: socket.socket) -> None:
    dialer = make("localhost", port_of(listener))
    assert dialer.step(NOW) == []
    poll = select.poll()
    poll.register(dialer.fd, select.POLLIN)
    eventually(lambda: poll.poll(0))
    until_dialed(dialer).sock.close()


def test_an_ipv6_address_is_dialed(make: Make) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server, until_dialed(make("::1", port_of(server))).sock as sock:
        assert sock.family == socket.AF_INET6


def test_an_address_that_refuses_is_a_failed_attempt_in_plain_words(
    make: Make, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = make("127.0.0.1", closed_port)
    eventually(lambda: not dialer.step(NOW) and dialer.failures == 1)
    (line,) = warnings(caplog)
    reason = "connection refused: nothing listens on this port there"
    assert line == f"server 127.0.0.1 port {closed_port}: {reason}; trying again until it succeeds"


def test_an_unknown_name_is_a_failed_attempt(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    dialer = make("no such name.invalid", 9)
    eventually(lambda: not dialer.step(NOW) and dialer.failures == 1)
    assert "no such name.invalid" in caplog.text


def test_a_name_is_looked_up_beside_the_duty_which_is_woken_once_by_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def look_up(host: str, port: int) -> ResolverAnswer:
        go_on.wait(10)
        return ResolverAnswer([], "the name is unknown")

    monkeypatch.setattr("pipeline.transport.resolver.look_up", look_up)
    with closing(Resolver("hub.test", 9)) as resolver:
        resolver.begin()
        assert resolver.answers() == []
        go_on.set()
        assert select.select([resolver.wake], [], [], 10)[0]
        assert resolver.answers() == [ResolverAnswer([], "the name is unknown")]
        assert not select.select([resolver.wake], [], [], 0)[0]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(resolver.wake)


def test_the_next_address_is_tried_when_the_first_one_refuses_and_the_log_says_so_once(
    make: Make, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = port_of(listener)
    refusing, good = (ServerAddress(socket.AF_INET, (host, port)) for host in ("127.0.0.2", "127.0.0.1"))
    monkeypatch.setattr("pipeline.transport.resolver.look_up", lambda host, port: ResolverAnswer([refusing, good]))
    dialer = make("localhost", port, 2)
    now = NOW
    for index in range(2):
        dialed = until_dialed(dialer, now)
        dialed.sock.close()
        assert (dialed.dial_index, dialed.address) == (index, good)
        dialer.established(index, f"127.0.0.1:{port}", now)
    dialer.step(now)
    (line,) = warnings(caplog)
    assert "127.0.0.2 does not work (connection refused" in line
    assert line.endswith("using 127.0.0.1")


def test_the_socket_of_an_address_that_does_not_answer_is_closed(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as first, socket.socket() as second:
        for filler in (first, second):  # the queue of accepted connections is full: a SYN is dropped
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        dialer = make("127.0.0.1", port_of(full))
        assert dialer.step(NOW) == []
        assert dialer.step(NOW + CONNECT_NS + 1) == []
        assert dialer.failures == 1
        assert dialer._connecting == {}


def test_an_address_with_a_hindrance_is_not_dialed(
    make: Make, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = make("127.0.0.1", port_of(listener), hindrance="the way there leads into the tunnel itself")
    assert dialer.step(NOW) == []
    assert "leads into the tunnel itself; trying again" in caplog.text


def test_a_failed_handshake_is_a_failed_attempt_and_a_lost_connection_is_dialed_again(
    make: Make, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tunnel")
    dialer = make("127.0.0.1", port_of(listener))
    until_dialed(dialer).sock.close()
    dialer.failed(0, "no TLS")
    dialer.step(NOW)
    assert dialer.failures == 1
    until_dialed(dialer, NOW + SECOND).sock.close()
    dialer.established(0, "", NOW + SECOND)
    dialer.lost(0, "closed by the peer", NOW + 100 * SECOND)
    until_dialed(dialer, NOW + 100 * SECOND).sock.close()
    dialer.step(NOW + 200 * SECOND)
    assert "1 connection ended: closed by the peer" in caplog.text
    assert dialer.failures == 1


def test_without_a_free_descriptor_an_attempt_fails_in_plain_words(
    make: Make, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    with no_descriptor_left():
        assert dialer.step(NOW) == []
    assert dialer.failures == 1 and "no file descriptor left" in caplog.text
    until_dialed(dialer, NOW + SECOND).sock.close()


def test_the_connection_of_an_uplink_is_bound_to_its_interface(make: Make, listener: socket.socket) -> None:
    with until_dialed(make("127.0.0.1", port_of(listener), interface="lo")).sock as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16) == b"lo\0"


def test_an_uplink_that_is_missing_fails_and_the_log_names_it(
    make: Make, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = make("127.0.0.1", port_of(listener), interface="no-such-link")
    eventually(lambda: dialer.step(NOW) or dialer.failures)
    assert "by no-such-link: the network interface is gone; trying again" in caplog.text


def test_every_change_from_outside_makes_a_step_due_at_once(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    changes = [
        lambda: dialer.established(0, "", NOW),
        lambda: dialer.renew(0, True, NOW),
        lambda: dialer.renew(0, False, NOW),
        lambda: dialer.hurry(NOW),
        lambda: dialer.lost(0, "", NOW),
    ]
    until_dialed(dialer).sock.close()
    for change in changes:
        dialer.next_step_ns = NOW + SECOND
        change()
        assert dialer.next_step_ns == 0


def test_when_it_is_closed_no_socket_is_left(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        Dialer(
            "127.0.0.1", port_of(listener), make_dialing(range(3), 0, 1, SETTINGS), SETTINGS
        ).close()  # a socket that is not closed fails the test


def test_further_slots_are_dialed_as_soon_as_they_are_wanted_and_of_others_nothing_is_heard(
    make: Make, listener: socket.socket
) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    with until_dialed(dialer).sock:
        dialer.established(0, "127.0.0.1", NOW)
        dialer.want({0, 1}, NOW)
        second = until_dialed(dialer)
        with second.sock:
            assert second.dial_index == 1 and dialer.keeps(1)
            dialer.want({0}, NOW)
            assert not dialer.keeps(1) and dialer.step(NOW + SECOND) == []
            dialer.lost(0, "closed by the peer", NOW + 2 * SECOND)
            with until_dialed(dialer, NOW + 2 * SECOND).sock as again:
                assert again.getpeername() == listener.getsockname()


def test_the_socket_of_a_slot_that_is_wanted_no_longer_is_closed(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, socket.create_connection(silent.getsockname()):
        dialer = make("127.0.0.1", silent.getsockname()[1])  # the queue is full: the kernel answers no further SYN
        dialer.step(NOW)
        (connecting,) = dialer._connecting.values()
        dialer.want(set(), NOW)
        assert connecting.sock.fileno() == -1 and dialer.step(NOW + CONNECT_NS * 2) == []


# -- through a proxy


def through(make: Make, fake: FakeProxy, slots: int = 1, scheme: str = "http", **settings: Any) -> Dialer:
    proxy = Proxy(scheme, "127.0.0.1", fake.port, ("user", "password"))
    return make("hub.test", 9000, slots, proxy=proxy, **settings)


LET_IN = b"HTTP/1.1 200 OK\r\n\r\n"
FIRST = b"the server's first bytes"


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "byte by byte"])
def test_a_socket_is_the_callers_once_the_proxy_has_let_it_through_with_all_bytes_behind(
    make: Make, in_pieces: bool
) -> None:
    with FakeProxy(LET_IN + FIRST, in_pieces=in_pieces) as fake:
        dialed = until_dialed(through(make, fake))
        with dialed.sock as sock:
            assert fake.asked[0].startswith(b"CONNECT hub.test:9000 ")
            assert b"Basic dXNlcjpwYXNzd29yZA==" in fake.asked[0]
            assert dialed.address.host == "127.0.0.1"
            assert sock.gettimeout() == 0.0
            assert eventually(lambda: len(sock.recv(100, socket.MSG_PEEK)) == len(FIRST))
            assert sock.recv(100) == FIRST


@pytest.mark.parametrize(
    ("answer", "closes", "said"),
    [
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", False, "wants a login by NTLM"),
        (b"HTTP/1.1 418 \x1b[31m\r\n\r\n", False, "(418 \\x1b[31m)"),
        (b"HTTP/1.1 302 Found\r\nLocation: \xe9\x9b\r\n\r\n", False, "\\x9b"),
        (b"", True, "closed the connection without an answer"),
    ],
    ids=["refused", "control characters", "more of them", "closed"],
)
def test_a_refusal_of_the_proxy_is_a_failed_attempt_in_plain_words(
    make: Make, caplog: pytest.LogCaptureFixture, answer: bytes, closes: bool, said: str
) -> None:
    with FakeProxy(answer, closes=closes) as fake:
        dialer = through(make, fake)
        eventually(lambda: not dialer.step(NOW) and dialer.failures == 1)
        (line,) = warnings(caplog)
        assert line.startswith(f"proxy http://127.0.0.1:{fake.port} to server hub.test port 9000: ")
        assert said in line and line.isprintable()
        assert dialer._approaching == {}


def test_a_proxy_that_says_nothing_fails_the_attempt_in_time(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    with FakeProxy(None) as fake:
        dialer = through(make, fake, handshake_timeout=3.0)
        eventually(lambda: not dialer.step(NOW) and fake.asked)
        assert dialer.step(NOW + 3 * SECOND - 1) == []
        assert dialer.failures == 0
        dialer.step(NOW + 3 * SECOND)
        assert dialer.failures == 1 and "takes connections and says nothing" in caplog.text


def test_a_change_of_the_network_ends_an_approach_and_begins_another(make: Make) -> None:
    with FakeProxy(None) as fake:
        dialer = through(make, fake, reconnect_min=0.001, reconnect_max=0.001)
        eventually(lambda: not dialer.step(NOW) and fake.asked)
        dialer.hurry(NOW)
        eventually(lambda: not dialer.step(NOW + SECOND) and len(fake.asked) == 2)


def test_another_login_counts_from_the_next_connection_on(make: Make) -> None:
    with FakeProxy(LET_IN) as fake:
        dialer = through(make, fake)
        until_dialed(dialer).sock.close()
        dialer.established(0, "", NOW)
        dialer.use(SETTINGS._replace(proxy=Proxy("http", "127.0.0.1", fake.port, ("other", "word"))))
        dialer.lost(0, "closed by the peer", NOW + 100 * SECOND)
        until_dialed(dialer, NOW + 100 * SECOND).sock.close()
        assert b"Basic b3RoZXI6d29yZA==" in fake.asked[1]


def test_a_slot_that_is_not_kept_up_any_more_ends_its_approach_without_a_word(make: Make) -> None:
    with FakeProxy(None) as fake:
        dialer = through(make, fake, slots=2)
        eventually(lambda: not dialer.step(NOW) and fake.asked)
        dialer.want(set(), NOW)
        assert dialer._approaching == {}
        assert dialer.step(NOW + 100 * SECOND) == [] and dialer.failures == 0
