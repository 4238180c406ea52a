"""The handshake queue on real sockets: when unauthenticated clients are served, and in which order."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from pipeline.policy.handshake_budget import BURST_NS, TRAFFIC_BYTES, TURN_NS, WINDOW_NS
from pipeline.transport.connection import HANDSHAKE, Connection
from workers.tcp.handshake_queue import CHEAP_NS, HandshakeQueue

NOW = 1_000_000_000_000


class Waiting:
    """A queue in a worker's epoll, and connections in it whose clients have sent something."""

    def __init__(self) -> None:
        self.worker_epoll = select.epoll()
        self.queue = HandshakeQueue(self.worker_epoll)
        self.connections: dict[int, Connection] = {}
        self.clients: list[socket.socket] = []

    def connect(self, count: int, data: bytes = b"hello") -> list[Connection]:
        made = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            connection = Connection(ours, ("192.0.2.1", 1), HANDSHAKE, len(self.clients) + 1, NOW)
            self.connections[connection.fd] = connection
            self.queue.epoll.register(connection.fd, select.EPOLLIN)
            self.clients.append(theirs)
            theirs.send(data) if data else None
            made.append(connection)
        return made

    def announced(self) -> bool:
        """Whether the worker's epoll wakes the duty for the queue."""
        announced = bool(self.worker_epoll.poll(0))
        self.queue.has_work |= announced
        return announced

    def begin(self, now: int = NOW, byte_count: int = 0) -> int:
        self.announced()
        return self.queue.begin_turn(byte_count, now)

    def order(self) -> list[int]:
        return [connection.serial for connection in self.queue.ready(self.connections)[0]]

    def close(self) -> None:
        self.queue.close()
        self.worker_epoll.close()
        for sock in (*self.clients, *(connection.socket for connection in self.connections.values())):
            sock.close()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting()
    yield made
    made.close()


def exhaust(waiting: Waiting) -> int:
    """Let peers have traffic, and spend all that is allowed beside it. The time."""
    waiting.begin(NOW, 0)
    now = NOW + WINDOW_NS
    assert waiting.begin(now, TRAFFIC_BYTES)
    waiting.queue.end_turn(BURST_NS)
    return now


def test_nobody_waits(waiting: Waiting) -> None:
    waiting.connect(2, b"")
    assert not waiting.announced() and waiting.begin() == 0


def test_in_quiet_a_turn_follows_the_other(waiting: Waiting) -> None:
    waiting.connect(1)
    for now in range(NOW, NOW + 100 * TURN_NS, TURN_NS):
        assert waiting.begin(now) == now + TURN_NS
        waiting.queue.end_turn(TURN_NS)


def test_when_the_budget_is_used_up_clients_do_not_even_wake_the_duty(waiting: Waiting) -> None:
    waiting.connect(1)
    now = exhaust(waiting)
    assert waiting.begin(now) == 0
    assert not waiting.announced()
    waiting.connect(1)
    assert not waiting.announced() and waiting.begin(now + 1) == 0


def test_when_there_is_time_again_they_are_served_without_another_event(waiting: Waiting) -> None:
    waiting.connect(1)
    now = exhaust(waiting)
    assert waiting.begin(now) == 0
    later = now + BURST_NS
    assert waiting.begin(later, TRAFFIC_BYTES) == later + TURN_NS
    assert waiting.announced() and waiting.order() == [1]


def test_the_oldest_client_is_served_first(waiting: Waiting) -> None:
    waiting.connect(20)
    assert waiting.order() == list(range(1, 21))


def test_a_handshake_that_has_begun_goes_before_new_clients_unless_it_has_cost_too_much(waiting: Waiting) -> None:
    _, begun, costly = waiting.connect(3)
    waiting.queue.charge(begun, CHEAP_NS // 2)
    waiting.queue.charge(costly, CHEAP_NS // 2)
    waiting.queue.charge(costly, CHEAP_NS // 2)
    assert waiting.order() == [begun.serial, 1, costly.serial]


@pytest.mark.parametrize("proved", [True, False])
def test_what_a_client_has_cost_is_given_back_when_it_has_proved_to_be_a_peer(waiting: Waiting, proved: bool) -> None:
    (client,) = waiting.connect(1)
    now = exhaust(waiting)
    assert waiting.begin(now, TRAFFIC_BYTES) == 0
    waiting.queue.charge(client, TURN_NS)
    waiting.queue.forget(client, free=proved)
    assert waiting.begin(now, TRAFFIC_BYTES) == (now + TURN_NS if proved else 0)
    waiting.queue.forget(client, free=proved)
    waiting.queue.end_turn(TURN_NS)
    assert waiting.begin(now, TRAFFIC_BYTES) == 0


def test_descriptors_of_others_in_the_queue_are_no_connections(waiting: Waiting) -> None:
    waiting.connect(1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting.queue.epoll.register(ours.fileno(), select.EPOLLIN)
        theirs.send(b"x")
        assert waiting.order() == [1]
