"""A dgram worker knows by its token which session a datagram is of, as long as the session lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest

from pipeline.counters import ID
from pipeline.sealing.datagram_seal import ControlWindows
from pipeline.shm.datagram_secrets import DatagramSecrets, DatagramSecretTable
from tests.harness.sealed_lane import handle, words
from workers.dgram.path import Path, Paths, SegmentSender
from workers.dgram.sessions import CONTROL, DATA, LOOK_NS, Session, Sessions

CAPACITY = 3


@pytest.fixture
def table() -> Iterator[DatagramSecretTable]:
    made, fd = DatagramSecretTable.create(CAPACITY)
    yield made
    made.close()
    os.close(fd)


def secrets(peer_handle: int, letter: bytes = b"a", port: int = 0) -> DatagramSecrets:
    return DatagramSecrets(peer_handle, 1, bytes(16), port, letter.upper() * 32, letter * 32)


def sessions(table: DatagramSecretTable, counts: memoryview | None = None) -> Sessions:
    return Sessions(table, CAPACITY, words(320) if counts is None else counts)


def test_a_session_has_the_tokens_of_what_the_other_end_sends(table: DatagramSecretTable) -> None:
    table.write(secrets(handle(7, 1)))
    here = sessions(table)
    assert here.look(0)
    session = here.of_handle(handle(7, 1))
    assert session is not None and session.peer == 1
    there = Session(DatagramSecrets(1, 1, bytes(16), 0, b"a" * 32, b"A" * 32))
    assert here.of_token(there.send_token) == (session, DATA)
    datagram = memoryview(bytearray(64))
    size = there.sealer(3, 0).seal(b"body", datagram)
    token = int.from_bytes(datagram[:4], "big")
    assert here.of_token(token) == (session, CONTROL)
    room = memoryview(bytearray(64))
    opener = session.opener(ControlWindows(memoryview(bytearray(ControlWindows.BYTES))))
    assert bytes(room[: opener.open(datagram[:size], room)]) == b"body"


def test_the_table_is_looked_at_ten_times_a_second_or_at_once_for_a_token_that_is_not_known(
    table: DatagramSecretTable,
) -> None:
    here = sessions(table)
    here.look(0)
    table.write(secrets(handle(1)))
    assert not here.look(LOOK_NS - 1)
    assert here.look(2, pause_ns=2)
    table.erase(handle(1))
    assert not here.look(LOOK_NS)
    assert here.look(LOOK_NS + 2)
    assert not here.present


def test_a_session_that_is_written_again_as_it_was_stays_the_session(table: DatagramSecretTable) -> None:
    table.write(secrets(handle(1)))
    here = sessions(table)
    here.look(0)
    before = here.of_handle(handle(1))
    table.write(secrets(handle(1)))
    assert not here.look(LOOK_NS)
    assert here.of_handle(handle(1)) is before
    table.write(secrets(handle(1), port=4))
    assert here.look(2 * LOOK_NS)
    assert here.of_handle(handle(1)) is not before


def test_an_ended_session_is_not_known_and_the_next_one_of_its_peer_is(table: DatagramSecretTable) -> None:
    table.write(secrets(handle(1), b"a"))
    here = sessions(table)
    here.look(0)
    ended = here.of_handle(handle(1))
    assert ended is not None
    table.write(secrets(handle(2), b"b"))
    here.look(LOOK_NS)
    assert here.of_token(ended.receive_token) is None and here.of_token(ended.control_token) is None
    assert list(here.present) == [handle(2)]


def test_of_two_sessions_with_a_token_in_common_the_later_one_waits_for_the_end_of_the_other(
    table: DatagramSecretTable,
) -> None:
    counts = words(320)
    here = sessions(table, counts)
    table.write(secrets(handle(1, 0)))
    here.look(0)
    table.write(secrets(handle(2, 1)))
    table.write(secrets(handle(3, 2), b"b"))
    here.look(LOOK_NS)
    assert set(here.present) == {handle(1, 0), handle(3, 2)}
    table.erase(handle(1, 0))
    here.look(2 * LOOK_NS)
    here.look(3 * LOOK_NS)
    assert set(here.present) == {handle(2, 1), handle(3, 2)}
    assert counts[ID["dgram.sessions_refused"]] == 1


def test_while_a_record_is_written_the_session_stays_as_it_is(table: DatagramSecretTable) -> None:
    table.write(secrets(handle(1)))
    here = sessions(table)
    here.look(0)
    table.words[0] += 1
    assert not here.look(LOOK_NS)
    assert list(here.present) == [handle(1)]
    table.words[0] += 1


def test_the_open_paths_to_a_peer_are_in_the_order_of_its_lanes() -> None:
    session, segments = Session(secrets(handle(1))), cast("SegmentSender", None)
    first, second = Path(session, 0, segments), Path(session, 1, segments)
    other = Path(Session(secrets(handle(2, 1))), 0, segments)
    paths = Paths()
    for each in (second, first, other, first):
        paths.open(each)
    assert paths.of(handle(1)) == (first, second)
    version = paths.version
    paths.close(second)
    paths.close(first)
    assert paths.of(handle(1)) == () and paths.of(handle(2, 1)) == (other,)
    assert paths.version != version and not first.is_open and other.is_open


def test_a_path_of_another_kind_takes_the_place_of_the_one_to_that_lane() -> None:
    session, segments = Session(secrets(handle(1))), cast("SegmentSender", None)
    by_udp, by_fake_tcp, next_lane = (Path(session, lane, segments) for lane in (0, 0, 1))
    paths = Paths()
    for each in (by_udp, next_lane, by_fake_tcp):
        paths.open(each)
    assert paths.of(handle(1)) == (by_fake_tcp, next_lane)
    assert not by_udp.is_open and by_fake_tcp.is_open
    paths.close(by_udp)
    assert paths.of(handle(1)) == (by_fake_tcp, next_lane)
