"""One peer as observers see it: by which carrier its blocks go, and what is known of its datagrams."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.peers.peer_datagrams import BULK_BY_TCP, HAS_RATE, STARTING
from pipeline.peers.peer_status import PeerRow, PeerStatus, describe_peers
from pipeline.policy.carrier import MISSED, NOT_YET, PASSES, CarrierStatus, State
from pipeline.shm import datagram_status, layout, peer_table, segment
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.shm.datagram_status import DatagramStatus
from pipeline.shm.layout import RECORD_WORDS
from pipeline.shm.peer_table import PeerTable

PEER, HANDLE = 1, 4096 + 1
NOW, SINCE = 10**12, 10**12 - 3 * 10**9
OUT_WORDS = ("SENT_BYTES", "RATE", "ROUND_TRIP", "SENT_SEGMENTS", "LOST_SEGMENTS", "CUT", "BULK_BY_TCP")
HERE = DatagramServer.at("2001:db8::7", 4500)


class Seen:
    def __init__(self, table: PeerTable) -> None:
        self.table = table
        table.write_record(HANDLE, 0)
        table.links[0][PEER * RECORD_WORDS + layout.LINK_ESTABLISHED] = 8
        self.row = PeerRow("ann", carrier="auto").with_session(PEER, SINCE, table)

    def write(self, lane: int = 0, **words: int) -> None:
        for name, value in words.items():
            word = getattr(layout, f"DATAGRAM_{name}")
            records = self.table.datagrams_out if name in OUT_WORDS else self.table.datagrams_in
            records[lane][PEER * RECORD_WORDS + word] = value

    def say(self, state: State, reason: str, lane: int = 0) -> None:
        status = DatagramStatus(CarrierStatus(state, SINCE, reason), HERE.host, HERE.port, 1452)
        datagram_status.publish(self.table.datagrams_in[lane], PEER, status)

    def status(self, **others: Any) -> PeerStatus:
        (found,) = describe_peers([self.row._replace(**others)], self.table, NOW)
        return found


@pytest.fixture
def seen() -> Iterator[Seen]:
    table = peer_table.create(f"/tunnel@peerstest@{secrets.token_hex(4)}@peer-table", 2, 2, 4, True)
    yield Seen(table)
    segment.unlink(table.memory.name)
    table.close()


def test_a_peer_with_an_open_path_has_its_figures_and_those_of_all_lanes(seen: Seen) -> None:
    seen.write(1, SENT_SEGMENTS=1000, LOST_SEGMENTS=9)  # of the session before
    seen.row = PeerRow("ann", carrier="auto").with_session(PEER, SINCE, seen.table)
    seen.say(State.DARK, MISSED, 0)
    seen.say(State.OPEN, PASSES, 1)
    seen.write(
        1, PATH=HANDLE, RATE=5_000_000, ROUND_TRIP=41_500, CUT=10 << 8 | 2, SENT_SEGMENTS=1500, RECEIVED_BYTES=70
    )
    seen.write(0, RATE=1_000_000, SENT_BYTES=600)
    found = seen.status()
    assert found["carrier"] == "udp"
    assert found["datagrams"] == {
        "state": "open",
        "reason": PASSES,
        "state_seconds": 3.0,
        "endpoint": "[2001:db8::7]:4500",
        "segment_bytes": 1452,
        "rate_mbit": 48.0,
        "rtt_ms": 41.5,
        "data_rows": 10,
        "parity_rows": 2,
        "sent_segments": 500,
        "lost_segments": 0,
        "sent_bytes": 600,
        "received_bytes": 70,
        "recovered_blocks": 0,
        "carriers": [
            {
                "carrier": "udp",
                "state": "open",
                "reason": PASSES,
                "state_seconds": 3.0,
                "endpoint": "[2001:db8::7]:4500",
            }
        ],
    }


def test_a_peer_whose_blocks_go_by_fake_tcp_has_its_figures_and_says_why_not_by_udp(seen: Seen) -> None:
    seen.say(State.DARK, MISSED)
    status = DatagramStatus(CarrierStatus(State.OPEN, SINCE, PASSES), HERE.host, 444, 1400)
    datagram_status.publish(seen.table.datagrams_fake_tcp[1], PEER, status)
    seen.write(1, PATH=HANDLE)
    found = seen.status()
    assert found["carrier"] == "faketcp"
    about = found["datagrams"]
    assert about is not None
    assert (about["state"], about["endpoint"], about["segment_bytes"]) == ("open", "[2001:db8::7]:444", 1400)
    assert about["reason"] == f"UDP: {MISSED}"
    assert [(each["carrier"], each["state"]) for each in about["carriers"]] == [("udp", "dark"), ("faketcp", "open")]


def test_where_neither_kind_passes_the_reasons_of_both_are_said(seen: Seen) -> None:
    seen.say(State.DARK, MISSED)
    datagram_status.publish(
        seen.table.datagrams_fake_tcp[0], PEER, DatagramStatus(CarrierStatus(State.PROBING, SINCE, NOT_YET))
    )
    found = seen.status()
    assert found["carrier"] == "tcp" and found["datagrams"] is not None
    assert found["datagrams"]["state"] == "dark"
    assert found["datagrams"]["reason"] == f"UDP: {MISSED}; fake TCP: {NOT_YET}"


def test_a_peer_whose_bulk_goes_by_tcp_has_a_reason_for_that(seen: Seen) -> None:
    seen.say(State.OPEN, PASSES)
    seen.write(PATH=HANDLE, BULK_BY_TCP=HANDLE - 4096)
    assert seen.status()["datagrams"]["reason"] == PASSES, "that was another session"
    seen.write(1, BULK_BY_TCP=HANDLE)
    found = seen.status()
    assert (found["carrier"], found["datagrams"]["state"]) == ("udp", "open")
    assert found["datagrams"]["reason"] == BULK_BY_TCP


@pytest.mark.parametrize(("setting", "carrier"), [("auto", "tcp"), ("udp", "none"), ("faketcp", "none")])
def test_a_path_that_is_not_open_leaves_its_blocks_to_tcp_or_to_nobody(seen: Seen, setting: str, carrier: str) -> None:
    seen.say(State.DARK, MISSED)
    seen.write(RATE=5_000_000, ROUND_TRIP=41_500, CUT=10 << 8 | 2)
    found = seen.status(carrier=setting)
    assert found["carrier"] == carrier
    about = found["datagrams"]
    assert about is not None
    assert (about["state"], about["reason"], about["state_seconds"]) == ("dark", MISSED, 3.0)
    assert (about["rate_mbit"], about["rtt_ms"], about["data_rows"], about["segment_bytes"]) == (0.0, None, 0, 0)


def test_a_path_of_another_session_is_no_path_of_this_one(seen: Seen) -> None:
    seen.say(State.PROBING, NOT_YET)
    seen.write(PATH=HANDLE + 4096)
    assert seen.status()["carrier"] == "tcp"


def test_it_says_why_there_are_none(seen: Seen) -> None:
    seen.say(State.OPEN, PASSES)
    about = seen.status(no_datagrams=HAS_RATE)["datagrams"]
    assert about is not None
    assert (about["state"], about["reason"], about["state_seconds"], about["endpoint"]) == ("off", HAS_RATE, None, "")
    datagram_status.publish(seen.table.datagrams_in[0], PEER, None)
    about = seen.status()["datagrams"]
    assert about is not None and about["reason"] == STARTING


def test_where_the_carrier_is_tcp_and_without_a_connection_there_is_nothing(seen: Seen) -> None:
    found = seen.status(carrier="tcp")
    assert (found["carrier"], found["datagrams"]) == ("tcp", None)
    seen.table.links[0][PEER * RECORD_WORDS + layout.LINK_ESTABLISHED] = 0
    found = seen.status()
    assert (found["carrier"], found["datagrams"]) == ("", None)
