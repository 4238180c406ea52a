"""The client's attempts to connect: one address after the other, with backoff, for ever. Time is an argument here."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.transport.dialer import (
    DIAL_CONNECTING,
    DIAL_ESTABLISHED,
    DIAL_IDLE,
    DIAL_RESOLVING,
    STABLE_NS,
    Attempt,
    Dialer,
    DialSlot,
)
from tests.harness.factory import factory
from tests.harness.settings import WORKER_SETTINGS
from tests.support import eventually

SECOND = 1_000_000_000
NOW = 1_000 * SECOND

SETTINGS = WORKER_SETTINGS._replace(reconnect_min=0.5, reconnect_max=8.0)

Make = Callable[..., Dialer]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes dialers; their wake-up descriptors are closed after the test."""

    def dialer(host: str, port: int, indexes: tuple[int, ...] = (0,), lanes: int = 1, **settings: Any) -> Dialer:
        return Dialer(host, port, list(indexes), lanes, SETTINGS._replace(**settings))

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


def until_started(dialer: Dialer, now: int = NOW) -> Attempt:
    """The one attempt that is due, as soon as the resolver has answered."""
    (attempt,) = eventually(lambda: dialer.start_due(now))
    return attempt


def outcome(sock: socket.socket) -> int:
    """How connecting ended: 0 or an errno."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    eventually(lambda: poll.poll(0))
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def fail_once(dialer: Dialer, now: int) -> DialSlot:
    """Let the attempt that is due fail: the slot waits then."""
    slot = dialer.slots[0]
    assert slot.state == DIAL_IDLE and slot.due_at <= now
    for attempt in dialer.start_due(now):
        assert outcome(attempt.sock) != 0
        attempt.sock.close()
        assert dialer.attempt_failed(attempt.dial_index, now, "refused") is None
    assert slot.state == DIAL_IDLE
    return slot


def test_an_address_is_dialed_at_once_without_a_thread(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    ((dial_index, sock, address),) = dialer.start_due(NOW)
    with sock:
        assert (dial_index, dialer.slots[0].state, address) == (0, DIAL_CONNECTING, listener.getsockname())
        assert outcome(sock) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.gettimeout() == 0.0
        listener.accept()[0].close()


def test_each_slot_is_dialed_once(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener), (1, 3, 5))
    attempts = dialer.start_due(NOW)
    assert [attempt.dial_index for attempt in attempts] == [1, 3, 5]
    assert dialer.start_due(NOW + 100 * SECOND) == []
    for attempt in attempts:
        attempt.sock.close()


@pytest.mark.parametrize(("lanes", "at_once"), [(1, 3), (2, 1), (8, 1)])
def test_the_workers_of_all_lanes_together_have_few_attempts_under_way(
    make: Make, listener: socket.socket, lanes: int, at_once: int
) -> None:
    dialer = make("127.0.0.1", port_of(listener), tuple(range(5)), lanes=lanes)
    attempts = dialer.start_due(NOW)
    assert len(attempts) == at_once
    for attempt in attempts:
        attempt.sock.close()


def test_a_name_is_resolved_in_a_thread_and_the_caller_is_woken(make: Make, listener: socket.socket) -> None:
    dialer = make("localhost", port_of(listener))
    attempts = dialer.start_due(NOW)
    poll = select.poll()
    poll.register(dialer.wake, select.POLLIN)
    eventually(lambda: poll.poll(0))
    os.eventfd_read(dialer.wake)
    attempts += dialer.start_due(NOW)
    (attempt,) = attempts
    attempt.sock.close()
    assert dialer.slots[0].state == DIAL_CONNECTING


def test_no_second_attempt_begins_while_a_name_is_being_resolved(make: Make) -> None:
    dialer = make("localhost", 9)
    slot = dialer.slots[0]
    slot.state = DIAL_RESOLVING
    assert dialer.start_due(NOW + 1000 * SECOND) == []
    assert slot.state == DIAL_RESOLVING


def test_an_unknown_name_is_a_failure_and_is_tried_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    dialer = make("no such name.invalid", 9)
    slot = dialer.slots[0]
    dialer.start_due(NOW)
    eventually(lambda: dialer.start_due(NOW) or slot.state == DIAL_IDLE)
    assert dialer.failures == 1
    assert slot.due_at == NOW + SECOND // 2
    assert "no such name.invalid" in caplog.text


def test_an_ipv6_address_is_dialed(make: Make) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server:
        ((_, sock, address),) = make("::1", port_of(server)).start_due(NOW)
        with sock:
            assert sock.family == socket.AF_INET6
            assert outcome(sock) == 0
            assert address[0] == "::1"


def test_when_one_address_fails_the_next_one_is_tried_without_waiting(
    make: Make, listener: socket.socket, closed_port: int
) -> None:
    dialer = make("127.0.0.1", closed_port)
    slot = dialer.slots[0]
    slot.state = DIAL_RESOLVING  # the answer of a resolver that knows two addresses
    slot.addresses = [(socket.AF_INET, listener.getsockname())]
    attempt = dialer.attempt_failed(slot.index, NOW, "the first one is refused")
    assert attempt is not None
    with attempt.sock:
        assert attempt.address == listener.getsockname()
        assert outcome(attempt.sock) == 0
    assert dialer.failures == 0


def test_when_all_addresses_have_failed_it_waits_and_counts_one_failure(make: Make, closed_port: int) -> None:
    dialer = make("127.0.0.1", closed_port)
    slot = fail_once(dialer, NOW)
    assert slot.due_at == NOW + SECOND // 2
    assert dialer.failures == 1
    assert dialer.start_due(slot.due_at - 1) == []
    assert slot.state == DIAL_IDLE


def test_waits_double_up_to_the_most_and_go_on_for_ever(make: Make, closed_port: int) -> None:
    dialer = make("127.0.0.1", closed_port)
    now = NOW
    waits = []
    for _ in range(12):
        slot = fail_once(dialer, now)
        waits.append((slot.due_at - now) / SECOND)
        now = slot.due_at
    assert waits[0] == 0.5
    for number, wait in enumerate(waits[1:], 1):
        base = min(8.0, 0.5 * 2**number)
        assert base / 2 <= wait <= base
    assert dialer.failures == 12


def test_a_stable_connection_is_dialed_again_at_once_and_its_waits_begin_again(make: Make, closed_port: int) -> None:
    dialer = make("127.0.0.1", closed_port)
    now = NOW
    for _ in range(5):
        now = fail_once(dialer, now).due_at
    slot = dialer.slots[0]
    dialer.established(slot.index, now)
    assert dialer.start_due(now + 1000 * SECOND) == []
    now += STABLE_NS
    dialer.connection_lost(slot.index, now, "it ended")
    assert (slot.state, slot.due_at) == (DIAL_IDLE, now)
    assert fail_once(dialer, now).due_at == now + SECOND // 2


def test_a_connection_that_ends_at_once_each_time_is_not_dialed_faster_each_time(make: Make) -> None:
    dialer = make("127.0.0.1", 9)
    slot = dialer.slots[0]
    waits = []
    for _ in range(6):
        dialer.established(slot.index, NOW)
        dialer.connection_lost(slot.index, NOW + STABLE_NS - 1, "the server sends us away")
        waits.append((slot.due_at - NOW - STABLE_NS + 1) / SECOND)
    assert waits[0] == 0.5
    assert waits[-1] >= 4.0


@pytest.mark.parametrize("stood", [0, STABLE_NS])
def test_the_end_of_an_established_connection_is_no_failed_attempt(make: Make, stood: int) -> None:
    dialer = make("127.0.0.1", 9)
    slot = dialer.slots[0]
    dialer.established(slot.index, NOW)
    assert slot.state == DIAL_ESTABLISHED
    dialer.connection_lost(slot.index, NOW + stood, "it ended")
    assert dialer.failures == 0


def test_a_reason_is_logged_once_until_it_changes_or_a_connection_is_established(
    make: Make, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = make("127.0.0.1", closed_port)
    for why in ("refused", "refused", "refused", "no route", "refused"):
        dialer.attempt_failed(0, NOW, why)
    dialer.established(0, NOW)
    dialer.attempt_failed(0, NOW, "refused")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(": ")[1].split(";")[0] for text in warnings] == ["refused", "no route", "refused", "refused"]


def test_the_name_is_looked_up_again_for_every_attempt(make: Make, listener: socket.socket) -> None:
    dialer = make("localhost", port_of(listener))
    for attempt in range(2):
        until_started(dialer, NOW + attempt * 100 * SECOND).sock.close()
        dialer.established(0, NOW)
        assert dialer.slots[0].addresses == []
        dialer.connection_lost(0, NOW, "it ended")
