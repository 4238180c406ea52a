"""The client's attempts: addresses one after the other, backoff in between, for ever. Time is an argument here."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from pipeline.transport.dialer import CONNECTING, HELD, IDLE, RESOLVING, SETTLED_NS, Dialer, DialSlot
from tests.support import eventually

SECOND = 1_000_000_000
NOW = 1_000 * SECOND

SETTINGS = {
    "reconnect_min": 0.5,
    "reconnect_max": 8.0,
    "timeout": 30.0,
    "notsent_lowat": 0,
    "congestion": "",
    "send_buffer_bytes": 0,
    "receive_buffer_bytes": 0,
}

Make = Callable[..., Dialer]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes dialers; their wake-up descriptors are closed after the test."""
    made: list[Dialer] = []

    def dialer(host: str, port: int, indexes: tuple[int, ...] = (0,), lanes: int = 1, **settings: object) -> Dialer:
        made.append(Dialer(host, port, list(indexes), lanes, SETTINGS | settings))
        return made[-1]

    yield dialer
    for each in made:
        os.close(each.wake)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that is taken by somebody who does not listen: connecting is refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def until_begun(dialer: Dialer, now: int = NOW) -> tuple[DialSlot, socket.socket, tuple]:
    """The one attempt that is due, as soon as the resolver has answered."""
    (begun,) = eventually(lambda: dialer.step(now))
    return begun


def outcome(sock: socket.socket) -> int:
    """How connecting ended: 0 or an errno."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    eventually(lambda: poll.poll(0))
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def fail_once(dialer: Dialer, now: int) -> DialSlot:
    """Let the attempt that is due fail: the slot waits then."""
    slot = dialer.slots[0]
    assert slot.state == IDLE and slot.due <= now
    for begun, sock, _ in dialer.step(now):
        assert outcome(sock) != 0
        sock.close()
        assert dialer.refused(begun, now, "refused") is None
    assert slot.state == IDLE
    return slot


def test_an_address_is_dialled_at_once_without_a_thread(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener))
    ((slot, sock, address),) = dialer.step(NOW)
    with sock:
        assert (slot.index, slot.state, address) == (0, CONNECTING, listener.getsockname())
        assert outcome(sock) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.gettimeout() == 0.0
        listener.accept()[0].close()


def test_each_slot_is_dialled_once(make: Make, listener: socket.socket) -> None:
    dialer = make("127.0.0.1", port_of(listener), (1, 3, 5))
    begun = dialer.step(NOW)
    assert [slot.index for slot, _, _ in begun] == [1, 3, 5]
    assert dialer.step(NOW + 100 * SECOND) == []
    for _, sock, _ in begun:
        sock.close()


@pytest.mark.parametrize(("lanes", "at_once"), [(1, 3), (2, 1), (8, 1)])
def test_the_workers_of_all_lanes_together_have_few_attempts_under_way(
    make: Make, listener: socket.socket, lanes: int, at_once: int
) -> None:
    dialer = make("127.0.0.1", port_of(listener), tuple(range(5)), lanes=lanes)
    begun = dialer.step(NOW)
    assert len(begun) == at_once
    for _, sock, _ in begun:
        sock.close()


def test_a_name_is_resolved_aside_and_the_caller_is_woken(make: Make, listener: socket.socket) -> None:
    dialer = make("localhost", port_of(listener))
    begun = dialer.step(NOW)
    poll = select.poll()
    poll.register(dialer.wake, select.POLLIN)
    eventually(lambda: poll.poll(0))
    os.eventfd_read(dialer.wake)
    begun += dialer.step(NOW)
    ((slot, sock, _),) = begun
    sock.close()
    assert slot.state == CONNECTING


def test_no_second_attempt_begins_while_a_name_is_being_resolved(make: Make) -> None:
    dialer = make("localhost", 9)
    slot = dialer.slots[0]
    slot.state = RESOLVING
    assert dialer.step(NOW + 1000 * SECOND) == []
    assert slot.state == RESOLVING


def test_a_name_that_nobody_knows_is_a_failure_and_is_tried_again(make: Make) -> None:
    dialer = make("no such name.invalid", 9)
    slot = dialer.slots[0]
    dialer.step(NOW)
    eventually(lambda: dialer.step(NOW) or slot.state == IDLE)
    assert dialer.failures == 1
    assert slot.due == NOW + SECOND // 2
    assert "no such name.invalid" in dialer.trouble


def test_an_ipv6_address_is_dialled(make: Make) -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with server:
        ((slot, sock, address),) = make("::1", port_of(server)).step(NOW)
        with sock:
            assert sock.family == socket.AF_INET6
            assert outcome(sock) == 0
            assert (slot.state, address[0]) == (CONNECTING, "::1")


def test_when_one_address_fails_the_next_one_is_tried_without_waiting(
    make: Make, listener: socket.socket, deaf_port: int
) -> None:
    dialer = make("127.0.0.1", deaf_port)
    slot = dialer.slots[0]
    slot.state = RESOLVING  # the answer of a resolver that knows two addresses
    slot.addresses = [(socket.AF_INET, listener.getsockname())]
    begun = dialer.refused(slot, NOW, "the first one is refused")
    assert begun is not None
    _, sock, address = begun
    with sock:
        assert address == listener.getsockname()
        assert outcome(sock) == 0
    assert dialer.failures == 0


def test_when_all_addresses_have_failed_it_waits_and_counts_one_failure(make: Make, deaf_port: int) -> None:
    dialer = make("127.0.0.1", deaf_port)
    slot = fail_once(dialer, NOW)
    assert slot.due == NOW + SECOND // 2
    assert dialer.failures == 1
    assert dialer.step(slot.due - 1) == []
    assert slot.state == IDLE


def test_waits_double_up_to_the_most_and_go_on_for_ever(make: Make, deaf_port: int) -> None:
    dialer = make("127.0.0.1", deaf_port)
    now = NOW
    waits = []
    for _ in range(12):
        slot = fail_once(dialer, now)
        waits.append((slot.due - now) / SECOND)
        now = slot.due
    assert waits[0] == 0.5
    for number, wait in enumerate(waits[1:], 1):
        base = min(8.0, 0.5 * 2**number)
        assert base / 2 <= wait <= base
    assert dialer.failures == 12


def test_a_connection_that_stood_for_a_while_is_dialled_anew_at_once_and_begins_the_waits_anew(
    make: Make, deaf_port: int
) -> None:
    dialer = make("127.0.0.1", deaf_port)
    now = NOW
    for _ in range(5):
        now = fail_once(dialer, now).due
    slot = dialer.slots[0]
    dialer.held(slot, now)
    assert dialer.step(now + 1000 * SECOND) == []
    now += SETTLED_NS
    dialer.lost(slot, now, "it ended")
    assert (slot.state, slot.due) == (IDLE, now)
    assert fail_once(dialer, now).due == now + SECOND // 2


def test_a_connection_that_ends_at_once_each_time_is_not_dialled_faster_each_time(make: Make) -> None:
    dialer = make("127.0.0.1", 9)
    slot = dialer.slots[0]
    waits = []
    for _ in range(6):
        dialer.held(slot, NOW)
        dialer.lost(slot, NOW + SETTLED_NS - 1, "the server sends us away")
        waits.append((slot.due - NOW - SETTLED_NS + 1) / SECOND)
    assert waits[0] == 0.5
    assert waits[-1] >= 4.0


@pytest.mark.parametrize("stood", [0, SETTLED_NS])
def test_the_end_of_a_connection_that_stood_is_no_failed_attempt(make: Make, stood: int) -> None:
    dialer = make("127.0.0.1", 9)
    slot = dialer.slots[0]
    dialer.held(slot, NOW)
    assert slot.state == HELD
    dialer.lost(slot, NOW + stood, "it ended")
    assert dialer.failures == 0


def test_the_same_trouble_is_said_once_until_it_changes_or_ends(
    make: Make, deaf_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    dialer = make("127.0.0.1", deaf_port)
    slot = dialer.slots[0]
    for why in ("refused", "refused", "refused", "no route", "refused"):
        dialer.refused(slot, NOW, why)
    assert [
        record.getMessage().split(": ")[1].split(";")[0] for record in caplog.records if record.levelname == "WARNING"
    ] == ["refused", "no route", "refused"]
    dialer.held(slot, NOW)
    assert dialer.trouble == ""


def test_the_name_is_looked_up_again_for_every_attempt(make: Make, listener: socket.socket) -> None:
    dialer = make("localhost", port_of(listener))
    for attempt in range(2):
        slot, sock, _ = until_begun(dialer, NOW + attempt * 100 * SECOND)
        sock.close()
        dialer.held(slot, NOW)
        assert slot.addresses == []
        dialer.lost(slot, NOW, "it ended")
