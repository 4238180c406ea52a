"""The doctor where blocks may travel in datagrams."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.doctor.datagrams import judge
from pipeline.doctor.finding import Level
from pipeline.peers.peer_datagrams import BULK_BY_TCP
from tests.harness.snapshots import datagrams, peer


def of(carrier: str, state: str, name: str = "one") -> dict[str, Any]:
    return peer(name, carrier=carrier, datagrams=datagrams(state=state, reason=f"it is {state}"))


def test_where_the_carrier_is_tcp_there_is_nothing_to_say() -> None:
    assert judge([]) == []


@pytest.mark.parametrize(
    ("carrier", "state", "level"),
    [
        ("udp", "open", Level.OK),
        ("tcp", "off", Level.OK),
        ("tcp", "probing", Level.NOTE),
        ("tcp", "dark", Level.NOTE),
        ("none", "dark", Level.PROBLEM),
        ("none", "off", Level.PROBLEM),
    ],
)
def test_datagrams_that_do_not_pass_are_a_problem_only_if_nothing_else_carries(
    carrier: str, state: str, level: Level
) -> None:
    (found,) = judge([of("udp", "open"), of(carrier, state, "two")])
    assert found.level is level
    assert ("two: it is" in found.text) == (carrier != "udp")
    assert ("Let UDP pass" in found.cure) == (level is not Level.OK)


def test_blocks_behind_tcp_headers_are_in_datagrams_as_well() -> None:
    (found,) = judge([of("udp", "open"), of("faketcp", "open", "two")])
    assert found.level is Level.OK and "1 of 2 behind TCP headers" in found.text


def test_of_many_peers_the_first_are_named() -> None:
    (found,) = judge([of("tcp", "dark", f"peer{number}") for number in range(9)])
    assert "9 of 9" in found.text and "peer2" in found.text and "peer3" not in found.text and "and 6 more" in found.text


def test_where_datagrams_pass_and_tcp_carries_more_that_is_said_in_words() -> None:
    slow = [peer(f"peer{n}", carrier="udp", datagrams=datagrams(state="open", reason=BULK_BY_TCP)) for n in range(2)]
    passing, found = judge([of("udp", "open"), *slow])
    assert passing.level is Level.OK and found.level is Level.NOTE
    assert "TCP carries more than datagrams with 2 of 3 (peer0; peer1)" in found.text and "limits UDP" in found.cure
