"""For how long flows are known."""

from __future__ import annotations

import pytest

from pipeline.policy.flow_times import (
    ACK,
    CLOSING,
    FIN,
    ICMP_SECONDS,
    NEW,
    OPEN,
    OTHER_SECONDS,
    RST,
    SYN,
    TCP_CLOSING,
    TCP_MIDWAY,
    TCP_NEW,
    TCP_OPEN,
    TCP_RESET,
    UDP_NEW,
    UDP_OPEN,
    Kept,
    after,
)
from pipeline.policy.targets import ICMP, ICMPV6, TCP, UDP


def test_a_tcp_connection_from_its_begin_to_its_end() -> None:
    kept = after(TCP, SYN, None, answers=False)
    assert kept == Kept(NEW, TCP_NEW)
    kept = after(TCP, SYN | ACK, kept, answers=True)
    assert kept == Kept(OPEN, TCP_OPEN)
    kept = after(TCP, FIN | ACK, kept, answers=True)
    assert kept == Kept(CLOSING, TCP_CLOSING)
    assert after(TCP, ACK, kept._replace(seconds=50), answers=False) == Kept(CLOSING, 50), "its time goes on"
    assert after(TCP, SYN, kept, answers=False) == Kept(NEW, TCP_NEW), "the ports are used again"


def test_a_reset_ends_a_connection_at_once_almost() -> None:
    assert after(TCP, RST | ACK, Kept(OPEN, TCP_OPEN), answers=True) == Kept(CLOSING, TCP_RESET)


def test_a_connection_that_is_under_way_already_is_taken_for_one() -> None:
    assert after(TCP, ACK, None, answers=False) == Kept(NEW, TCP_MIDWAY)


def test_udp_is_known_for_longer_once_it_is_answered() -> None:
    kept = after(UDP, 0, None, answers=False)
    assert kept == Kept(NEW, UDP_NEW)
    assert after(UDP, 0, kept, answers=False) == kept
    kept = after(UDP, 0, kept, answers=True)
    assert kept == Kept(OPEN, UDP_OPEN) and after(UDP, 0, kept, answers=False) == kept


@pytest.mark.parametrize(("protocol", "seconds"), [(ICMP, ICMP_SECONDS), (ICMPV6, ICMP_SECONDS), (47, OTHER_SECONDS)])
def test_other_protocols_have_one_time(protocol: int, seconds: int) -> None:
    assert after(protocol, 0, None, answers=False).seconds == seconds
