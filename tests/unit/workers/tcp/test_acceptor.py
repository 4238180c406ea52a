"""The acceptor on a real listening socket: bursts, rejections, pauses, and limits that a reload changes."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from pipeline.counters import COUNTERS, ID
from pipeline.policy.handshake_limiter import BURST
from tests.harness.factory import factory
from tests.harness.no_descriptors import no_descriptor_left
from tests.harness.settings import WORKER_SETTINGS
from workers.tcp.acceptor import FAILED_PAUSE_NS, REJECTED_PAUSE_NS, Acceptor

NOW = 1_000_000_000_000
LONG_NS = 10_000_000_000
MANY = 100


class Entrance:
    """An acceptor, the clients before it, and the sockets that it has accepted."""

    def __init__(self, workers: int = 1, **settings: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2 * MANY)
        self._listener.setblocking(False)
        self._counters = memoryview(bytearray(8 * (1 + max(ID.values())))).cast("Q")
        self.epoll = select.epoll()
        self.acceptor = Acceptor(
            os.dup(self._listener.fileno()),
            WORKER_SETTINGS._replace(**settings),
            workers,
            self._counters,
            self.epoll,
        )
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def connect(self, count: int) -> None:
        """The connections wait in the kernel's queue when this returns."""
        for _ in range(count):
            self.clients.append(socket.create_connection(self._listener.getsockname()))

    def accept(self, now: int = NOW, seconds: float = 10.0) -> list[str]:
        """The clients' addresses, as they see them themselves."""
        found = list(self.acceptor.accept(now, time.monotonic_ns() + int(seconds * 1e9)))
        self.accepted += [each.socket for each in found]
        return ["{}:{}".format(*each.address) for each in found]

    def tick(self, now: int) -> None:
        """End a pause, as the duty does, if it is over."""
        if self.acceptor.resume_at_ns and now >= self.acceptor.resume_at_ns:
            self.acceptor.resume()

    def is_watched(self) -> bool:
        """Whether epoll tells of connections that wait."""
        return self.epoll.poll(0) == [(self.acceptor.fd, select.EPOLLIN)]

    def count(self, name: str) -> int:
        return self._counters[ID[name]]

    def counts(self) -> dict[str, int]:
        return {counter.name: value for counter in COUNTERS if (value := self._counters[counter.id])}

    def close(self) -> None:
        self.acceptor.close()
        self.epoll.close()
        for sock in (self._listener, *self.clients, *self.accepted):
            sock.close()


Make = Callable[..., Entrance]


@pytest.fixture
def entrance() -> Iterator[Make]:
    with factory(Entrance) as make:
        yield make


def is_closed(client: socket.socket) -> bool:
    """Whether the other end has closed the connection."""
    client.settimeout(5.0)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_connections_that_wait_are_accepted_with_their_addresses_in_order(entrance: Make) -> None:
    made = entrance()
    made.connect(3)
    assert made.accept() == ["{}:{}".format(*client.getsockname()) for client in made.clients]
    assert made.counts() == {}


def test_with_nothing_that_waits_accept_returns_at_once(entrance: Make) -> None:
    made = entrance()
    assert made.accept() == []
    assert made.counts() == {}


def test_one_event_accepts_all_that_wait(entrance: Make) -> None:
    made = entrance()
    made.connect(MANY)
    assert len(made.accept()) == MANY
    assert not made.is_watched()


def test_when_the_time_is_over_the_rest_is_left_to_the_next_turn(entrance: Make) -> None:
    made = entrance()
    made.connect(3)
    assert [len(made.accept(seconds=-1.0)) for _ in range(3)] == [1, 1, 1]
    assert not made.is_watched()


def test_a_rejected_connection_is_closed_and_counted(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=2)
    made.connect(5)
    assert len(made.accept()) == 2
    assert made.counts() == {"tcp.closed_handshakes_of_address": 3}
    assert [is_closed(client) for client in made.clients[2:]] == [True] * 3


def test_a_handshake_that_is_over_makes_room_for_another_one_from_its_address(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    for proved in (True, False, True):
        made.connect(1)
        assert len(made.accept()) == 1
        made.acceptor.handshake_done("127.0.0.1", proved)


def test_an_address_that_connects_too_often_is_rejected_under_another_counter(entrance: Make) -> None:
    made = entrance(connects_per_address=1)
    for _ in range(BURST):
        made.connect(1)
        assert len(made.accept()) == 1
        made.acceptor.handshake_done("127.0.0.1", proved=False)
    made.connect(1)
    assert made.accept() == []
    assert made.counts() == {"tcp.closed_connects_of_address": 1}


def test_after_a_rejection_accepting_pauses_and_then_goes_on(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    made.connect(2)
    made.accept()
    made.connect(1)
    assert not made.is_watched()
    made.tick(NOW + REJECTED_PAUSE_NS - 1)
    assert not made.is_watched()
    made.tick(NOW + REJECTED_PAUSE_NS)
    assert made.is_watched()


def test_without_a_rejection_there_is_no_pause(entrance: Make) -> None:
    made = entrance()
    made.connect(2)
    made.accept()
    made.connect(1)
    assert made.is_watched()


def test_one_turn_rejects_a_flood_to_its_end_and_pauses_once(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    made.connect(MANY)
    assert len(made.accept()) == 1
    assert made.count("tcp.closed_handshakes_of_address") == MANY - 1
    assert not made.is_watched()


def test_a_flood_whose_end_is_not_reached_yet_is_no_reason_to_pause(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    made.connect(3)
    made.accept(seconds=-1.0)
    made.accept(seconds=-1.0)
    assert made.is_watched()


def test_during_a_pause_nobody_is_accepted(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    made.connect(2)
    made.accept()
    made.acceptor.set_limits(WORKER_SETTINGS)
    made.connect(1)
    assert made.accept() == []
    made.tick(NOW + REJECTED_PAUSE_NS)
    assert len(made.accept()) == 1


def test_a_rejected_connection_leaves_nothing_behind_and_an_accepted_one_ends_in_order(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    made.connect(2)
    made.accept()
    with pytest.raises(ConnectionResetError):
        made.clients[1].recv(1)
    made.accepted[0].send(b"the last word")
    made.accepted[0].close()
    assert made.clients[0].recv(100) == b"the last word"
    assert made.clients[0].recv(100) == b""


def test_without_descriptors_clients_that_wait_are_reset_and_accepting_pauses_for_longer(entrance: Make) -> None:
    made = entrance()
    made.connect(3)
    with no_descriptor_left():
        assert made.accept() == []
        assert [is_closed(client) for client in made.clients] == [True] * 3
    assert made.counts() == {"tcp.accepts_failed": 3}
    made.connect(1)
    made.tick(NOW + FAILED_PAUSE_NS - 1)
    assert not made.is_watched()
    made.tick(NOW + FAILED_PAUSE_NS)
    assert made.is_watched()
    assert len(made.accept(NOW + FAILED_PAUSE_NS)) == 1


def test_a_descriptor_in_reserve_that_was_lost_is_taken_again_after_the_pause(entrance: Make) -> None:
    made = entrance()
    os.close(made.acceptor._reserve)
    made.acceptor._reserve = -1
    made.connect(1)
    with no_descriptor_left():
        assert made.accept() == []
        assert made.counts() == {"tcp.accepts_failed": 1}
    made.tick(NOW + FAILED_PAUSE_NS)
    with no_descriptor_left():
        assert made.accept(NOW + FAILED_PAUSE_NS) == []
    assert is_closed(made.clients[0])


def test_descriptors_that_run_out_in_the_middle_leave_accepted_connections_alone(entrance: Make) -> None:
    made = entrance()
    made.connect(2)
    accepting = made.acceptor.accept(NOW, time.monotonic_ns() + LONG_NS)
    made.accepted.append(next(accepting)[0])
    with no_descriptor_left():
        assert list(accepting) == []
    assert made.count("tcp.accepts_failed") == 1
    assert made.accepted[0].getpeername() == made.clients[0].getsockname()


def test_limits_of_a_reload_hold_for_the_next_connection(entrance: Make) -> None:
    made = entrance(max_handshakes_per_address=1)
    made.connect(2)
    assert len(made.accept()) == 1
    made.tick(NOW + REJECTED_PAUSE_NS)
    made.acceptor.set_limits(WORKER_SETTINGS._replace(max_handshakes_per_address=3))
    made.connect(3)
    assert len(made.accept()) == 2
    made.tick(NOW + REJECTED_PAUSE_NS)
    made.acceptor.set_limits(WORKER_SETTINGS._replace(max_handshakes_per_address=1))
    made.connect(1)
    assert made.accept() == []
    assert made.count("tcp.closed_handshakes_of_address") == 3


def test_workers_share_the_limit_of_all_handshakes(entrance: Make) -> None:
    made = entrance(workers=4, max_handshakes=32)  # 8 for each, and a quarter of them for one address
    made.connect(5)
    assert len(made.accept()) == 2


def test_a_closed_acceptor_has_no_descriptor(entrance: Make) -> None:
    made = entrance()
    fd = made.acceptor.fd
    made.acceptor.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_without_descriptors_a_handshake_may_end_for_the_next_client(entrance: Make) -> None:
    made = entrance()
    made.connect(1)
    made.accept()
    made.connect(2)

    def make_room() -> bool:
        if not made.accepted:
            return False
        made.accepted.pop().close()
        return True

    made.acceptor._make_room = make_room
    with no_descriptor_left():
        found = [each.socket for each in made.acceptor.accept(NOW, time.monotonic_ns() + LONG_NS)]
    made.accepted += found
    assert len(found) == 1
    assert made.counts() == {"tcp.accepts_failed": 1}
