"""When a connection has to end: limits of silence, of a handshake, of bytes under one key."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest

from pipeline.transport.connection import ESTABLISHED, HANDSHAKE, Connection
from pipeline.transport.tls_channel import TlsChannel
from tests.harness.frame_reader import contexts
from tests.harness.settings import WORKER_SETTINGS
from workers.tcp.connection_checks import BYTES_UNDER_ONE_KEY_MAX, REKEY_AFTER_BYTES, Timeouts, key_worn_out, rekey_due

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
TIMEOUTS = Timeouts.of(WORKER_SETTINGS._replace(timeout=30.0, handshake_timeout=10.0))


@pytest.fixture
def connection() -> Iterator[Connection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Connection(ours, ("192.0.2.1", 9000), HANDSHAKE, 1, NOW)


def test_a_connection_may_be_silent_for_the_whole_timeout_and_no_longer(connection: Connection) -> None:
    connection.establish(NOW)
    assert not TIMEOUTS.silence_expired(connection, NOW + 30 * SECOND)
    assert TIMEOUTS.silence_expired(connection, NOW + 30 * SECOND + 1)


def test_received_bytes_begin_the_silence_again(connection: Connection) -> None:
    connection.establish(NOW)
    connection.receive.last_ns = NOW + 29 * SECOND
    assert not TIMEOUTS.silence_expired(connection, NOW + 59 * SECOND)


def test_a_handshake_has_its_time_from_its_own_beginning(connection: Connection) -> None:
    connection.set_state(HANDSHAKE, NOW + 4 * SECOND)
    assert not TIMEOUTS.handshake_expired(connection, NOW + 14 * SECOND)
    assert TIMEOUTS.handshake_expired(connection, NOW + 14 * SECOND + 1)


def test_time_in_which_we_did_not_run_is_no_silence_of_the_other_end(connection: Connection) -> None:
    connection.establish(NOW)
    later = NOW + 65 * SECOND
    connection.forgive(45 * SECOND, later)
    assert not TIMEOUTS.silence_expired(connection, NOW + 75 * SECOND)
    assert TIMEOUTS.silence_expired(connection, NOW + 75 * SECOND + 1)
    assert connection.state_since_ns == NOW  # its age is its age
    connection.receive.last_ns = later  # read before the pause was noticed
    connection.forgive(45 * SECOND, later)
    assert connection.receive.last_ns == later


def test_time_in_which_we_did_not_run_is_no_part_of_a_handshake(connection: Connection) -> None:
    connection.set_state(HANDSHAKE, NOW)
    connection.forgive(45 * SECOND, NOW + 46 * SECOND)
    assert not TIMEOUTS.handshake_expired(connection, NOW + 55 * SECOND)
    assert TIMEOUTS.handshake_expired(connection, NOW + 55 * SECOND + 1)


# -- keys


def with_tls(connection: Connection, dial_index: int = 0) -> Connection:
    connection.channel = TlsChannel(connection.socket, contexts()[0], server=False, hostname=None)
    connection.dial_index = dial_index
    connection.set_state(ESTABLISHED, NOW)
    return connection


@pytest.mark.parametrize("way", ["send", "receive"])
def test_keys_are_changed_after_so_many_bytes_in_either_direction(connection: Connection, way: str) -> None:
    state = getattr(with_tls(connection), way)
    state.byte_count = REKEY_AFTER_BYTES
    assert not rekey_due(connection)
    state.byte_count += 1
    assert rekey_due(connection)


@pytest.mark.parametrize("way", ["send", "receive"])
def test_no_key_is_used_for_more_than_the_rfc_allows(connection: Connection, way: str) -> None:
    state = getattr(with_tls(connection), way)
    assert REKEY_AFTER_BYTES < BYTES_UNDER_ONE_KEY_MAX <= 2**38.5
    state.byte_count = BYTES_UNDER_ONE_KEY_MAX
    assert rekey_due(connection) and not key_worn_out(connection)
    state.byte_count += 1
    assert key_worn_out(connection)


def test_without_tls_there_are_no_keys_to_change(connection: Connection) -> None:
    connection.send.byte_count = connection.receive.byte_count = 1 << 60
    assert not rekey_due(connection) and not key_worn_out(connection)


def test_connections_that_carry_equal_amounts_do_not_change_their_keys_at_one_time(connection: Connection) -> None:
    limits = []
    for dial_index in range(32):
        with_tls(connection, dial_index)
        low, high = 0, REKEY_AFTER_BYTES + 1  # not due, due
        while high - low > 1:
            connection.send.byte_count = (low + high) // 2
            low, high = (
                (low, connection.send.byte_count) if rekey_due(connection) else (connection.send.byte_count, high)
            )
        limits.append(low)
    assert all(later < earlier for earlier, later in pairwise(limits))
    assert limits[-1] >= REKEY_AFTER_BYTES // 2
