"""What is published of the peers whose bulk goes by TCP although datagrams pass."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from pipeline.policy.bulk_carrier import LIMITED_NS, SECOND, TRIAL_NS
from pipeline.shm import peer_table, segment
from pipeline.shm.layout import DATAGRAM_BULK_BY_TCP, DATAGRAM_SENT_BYTES, LINK_ESTABLISHED, RECORD_WORDS, SENT_BYTES
from pipeline.shm.peer_table import PeerTable
from workers.dgram.bulk_choice import BulkChoice

PEER, HANDLE = 1, 4096 + 1
STEP_NS = SECOND // 10


class Session:
    """Bulk for a peer: datagrams take 300 kB a second, and connections ten times as much."""

    def __init__(self, table: PeerTable) -> None:
        self.table = table
        table.write_record(HANDLE, 0)
        self.connections(8)
        self.choice = BulkChoice(table, table.datagrams_out[0])
        self.now = 1000 * SECOND

    def connections(self, count: int) -> None:
        self.table.links[0][PEER * RECORD_WORDS + LINK_ESTABLISHED] = count

    def run(self, nanoseconds: int) -> int:
        for _ in range(nanoseconds // STEP_NS):
            self.now += STEP_NS
            if self.word:
                self.table.sent[0][PEER * RECORD_WORDS + SENT_BYTES] += 300_000
            else:
                self.table.datagrams_out[0][PEER * RECORD_WORDS + DATAGRAM_SENT_BYTES] += 30_000
            self.choice.update({HANDLE: not self.word}, self.now)
        return self.word

    @property
    def word(self) -> int:
        return self.table.datagrams_out[0][PEER * RECORD_WORDS + DATAGRAM_BULK_BY_TCP]


@pytest.fixture
def session() -> Iterator[Session]:
    table = peer_table.create(f"/tunnel@bulktest@{secrets.token_hex(4)}@peer-table", 2, 1, 4, True)
    yield Session(table)
    segment.unlink(table.memory.name)
    table.close()


def test_bulk_of_a_peer_goes_by_tcp_after_a_trial(session: Session) -> None:
    assert session.run(LIMITED_NS - SECOND) == 0
    assert session.run(4 * SECOND) == HANDLE, "a trial"
    assert session.run(TRIAL_NS + 10 * SECOND) == HANDLE


def test_the_choice_ends_with_the_session(session: Session) -> None:
    assert session.run(15 * SECOND) == HANDLE
    session.table.write_record(HANDLE + 4096, 0)
    session.choice.update({}, session.now)
    assert session.word == 0


def test_a_peer_without_a_connection_has_its_bulk_in_datagrams(session: Session) -> None:
    assert session.run(15 * SECOND) == HANDLE
    session.connections(0)
    assert session.run(60 * SECOND) == 0


def test_a_successor_begins_with_datagrams(session: Session) -> None:
    assert session.run(15 * SECOND) == HANDLE
    BulkChoice(session.table, session.table.datagrams_out[0])
    assert session.word == 0
