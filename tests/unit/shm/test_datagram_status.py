"""The state of a path for datagrams, as words of the peer table."""

from __future__ import annotations

import pytest

from pipeline.policy.carrier import MS, SILENT_NS, Carrier, CarrierStatus, State, silent_for
from pipeline.shm import datagram_status
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.shm.datagram_status import REASONS, STATES, DatagramStatus
from pipeline.shm.layout import RECORD_WORDS

SINCE = 5_000_000_000_000


def words(peers: int = 2) -> memoryview:
    return memoryview(bytearray(8 * RECORD_WORDS * peers)).cast("Q")


@pytest.mark.parametrize("reason", [*REASONS, silent_for(0), silent_for(160), silent_for(65535)])
@pytest.mark.parametrize("state", STATES[1:])
def test_an_observer_reads_what_the_worker_has_published(state: State, reason: str) -> None:
    there = words()
    server = DatagramServer.at("2001:db8::7", 65535)
    status = DatagramStatus(CarrierStatus(state, SINCE, reason), server.host, server.port, 1452)
    datagram_status.publish(there, 1, status)
    assert datagram_status.read(there, 1) == status
    assert datagram_status.read(there, 0) is None
    datagram_status.publish(there, 1, None)
    assert datagram_status.read(there, 1) is None


def test_words_of_other_kinds_stay() -> None:
    there = words()
    for at in range(5):
        there[RECORD_WORDS + at] = 7 + at
    datagram_status.publish(there, 1, DatagramStatus(CarrierStatus(State.OPEN, SINCE, REASONS[4])))
    assert [there[RECORD_WORDS + at] for at in (0, 2, 3, 4)] == [7, 9, 10, 11]


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [("192.0.2.7", 443, "192.0.2.7:443"), ("2001:db8::7", 443, "[2001:db8::7]:443"), ("192.0.2.7", 0, "")],
)
def test_an_address_is_written_as_people_write_it(host: str, port: int, text: str) -> None:
    server = DatagramServer.at(host, port)
    status = DatagramStatus(CarrierStatus(State.OPEN, SINCE, ""), server.host, server.port)
    assert status.endpoint == text


def test_the_reason_of_a_path_that_was_silent_keeps_its_milliseconds() -> None:
    carrier = Carrier("auto", True, SINCE)
    carrier.due(SINCE)
    carrier.answered(SINCE)
    carrier.update(SINCE, SINCE + SILENT_NS + 121 * MS, 40 * MS)
    there = words()
    datagram_status.publish(there, 0, DatagramStatus(carrier.status))
    found = datagram_status.read(there, 0)
    assert found is not None
    assert found.carrier.state is State.DARK
    assert found.carrier.reason.endswith(" for 220 ms")


def test_a_later_version_may_have_reasons_and_states_that_are_not_known_here() -> None:
    there = words()
    there[1] = 2 | 200 << 8
    found = datagram_status.read(there, 0)
    assert found is not None
    assert found.carrier.reason == ""
    there[1] = 77
    assert datagram_status.read(there, 0) is None
