"""The emulated link, measured from outside: what it does to real traffic against what was asked."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
import signal
import socket
import statistics
import struct
import threading
import time

import pytest

from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.lab.waiting import until
from tools.load.flows import TcpFlow, ping, udp_flow

pytestmark = [pytest.mark.tools, pytest.mark.alone]
UDP_SEGMENT = 103  # linux/udp.h
TCP_PAYLOAD_SHARE = 1448 / 1514
"""Of a full segment's wire bytes, with timestamps."""


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def transfer(lab: Lab, data: bytes, family: socket.AddressFamily) -> bytes:
    """Send `data` over one TCP connection from the first node to the second; what arrived."""
    a, b = lab
    arrived = bytearray()
    with b.socket(family) as listener, a.socket(family) as client:
        listener.bind(("", 0))
        listener.listen()
        client.settimeout(20)
        address = b.address6 if family == socket.AF_INET6 else b.address
        client.connect((address, listener.getsockname()[1]))
        connection, _ = listener.accept()
        connection.settimeout(20)

        def receive() -> None:
            with connection:
                while part := connection.recv(1 << 20):
                    arrived.extend(part)

        receiver = threading.Thread(target=receive)
        receiver.start()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        receiver.join(30)
    return bytes(arrived)


def test_packets_arrive_after_the_delay_asked_and_hardly_later() -> None:
    with Lab(link=LinkSpec(delay_ms=10)) as lab:
        a, b = lab
        delays = udp_flow(a, b, b.address, count=500, rate=1000).delays_ms
    assert len(delays) == 500
    assert min(delays) >= 10
    assert statistics.median(delays) < 10.5
    assert quantile(delays, 0.9) < 11


def test_each_direction_has_its_own_delay() -> None:
    with Lab(link=(LinkSpec(delay_ms=4), LinkSpec(delay_ms=20))) as lab:
        a, b = lab
        forward = udp_flow(a, b, b.address, count=50, rate=500, idle=0.1).delays_ms
        backward = udp_flow(b, a, a.address6, count=50, rate=500, idle=0.1).delays_ms
        round_trips = ping(a, b.address, count=20, interval=0.01).rtts_ms
    assert 4 <= statistics.median(forward) < 4.5
    assert 20 <= statistics.median(backward) < 20.5
    assert 24 <= statistics.median(round_trips) < 25


def test_jitter_spreads_the_delay_without_reordering() -> None:
    with Lab(link=LinkSpec(delay_ms=10, jitter_ms=5)) as lab:
        a, b = lab
        flow = udp_flow(a, b, b.address, count=1000, rate=1000)
    assert flow.overtaken == 0
    assert 5 <= min(flow.delays_ms) < 7
    assert quantile(flow.delays_ms, 0.99) > 12
    assert quantile(flow.delays_ms, 0.95) < 15.5


@pytest.mark.slow
def test_loss_is_within_binomial_bounds_and_repeats_with_its_seed() -> None:
    count, share = 6000, 0.05
    spread = 4 * math.sqrt(count * share * (1 - share))

    def lost(seed: int) -> set[int]:
        with Lab(link=LinkSpec(loss_percent=100 * share, seed=seed)) as lab:
            a, b = lab
            flow = udp_flow(a, b, b.address, count=count, rate=10_000, idle=1.0)
            return set(range(count)) - set(flow.sequence)

    first, again, other = lost(5), lost(5), lost(6)
    assert count * share - spread < len(first) < count * share + spread
    assert first == again
    assert first != other


def test_burst_loss_comes_in_spells_of_the_mean_length_asked() -> None:
    count = 10_000
    with Lab(link=LinkSpec(loss_percent=5, burst=8, seed=2)) as lab:
        a, b = lab
        arrived = set(udp_flow(a, b, b.address, count=count, rate=15_000).sequence)
    spells = itertools.groupby(range(count), arrived.__contains__)
    lengths = [len(list(group)) for here, group in spells if not here]
    assert sum(lengths) / count == pytest.approx(0.05, rel=0.4)
    assert statistics.mean(lengths) == pytest.approx(8, rel=0.4)


def test_reordered_and_duplicated_packets_are_the_share_asked() -> None:
    with Lab(link=LinkSpec(delay_ms=2, reorder_percent=5, reorder_ms=3, duplicate_percent=2)) as lab:
        a, b = lab
        flow = udp_flow(a, b, b.address, count=2000, rate=2000)
        stats = lab.link.stats()["forward"]
    assert flow.received == 2000
    assert flow.duplicates == stats.duplicated
    assert 0.7 * stats.reordered < flow.overtaken <= stats.reordered
    assert stats.reordered == pytest.approx(100, rel=0.5)
    assert stats.duplicated == pytest.approx(40, rel=0.6)


def test_a_tcp_stream_gets_the_rate_asked() -> None:
    with Lab(link=LinkSpec(delay_ms=2, rate_mbit=100)) as lab:
        a, b = lab
        with TcpFlow(a, b, b.address, seconds=2) as flow:
            flow.wait_for_bytes()
            began = flow.samples[-1].time_ns
            flow.finish(10)
    steady = [sample for sample in flow.samples if sample.time_ns > began + 500_000_000]
    got = (steady[-1].bytes - steady[0].bytes) * 8e3 / (steady[-1].time_ns - steady[0].time_ns)
    assert got == pytest.approx(100 * TCP_PAYLOAD_SHARE, rel=0.06)


def test_small_packets_above_the_rate_wait_in_the_queue_and_then_drop() -> None:
    with Lab(link=LinkSpec(rate_mbit=8, queue_packets=20)) as lab:
        a, b = lab
        flow = udp_flow(a, b, b.address, count=2000, rate=2000, size=958)  # 1000 bytes on the wire: 16 Mbit/s
        stats = lab.link.stats()["forward"]
    assert flow.received * 8e-3 / flow.seconds == pytest.approx(8, rel=0.05)
    assert stats.dropped_queue_full == 2000 - flow.received
    assert 18 < quantile(flow.delays_ms, 0.9) < 22


def test_twenty_thousand_packets_a_second_cross_without_loss_and_on_time() -> None:
    with Lab(link=LinkSpec(delay_ms=5)) as lab:
        a, b = lab
        flow = udp_flow(a, b, b.address, count=20_000, rate=25_000, size=1472)
        stats = lab.link.stats()["forward"]
    assert stats.offered == stats.delivered == 20_000
    assert stats.writes_late < 1000
    assert flow.received > 19_000, "the receiver may be short of time; the link is not"


def test_two_gigabits_cross_as_super_packets() -> None:
    with Lab(link=LinkSpec(delay_ms=1)) as lab:
        a, b = lab
        with TcpFlow(a, b, b.address, seconds=1) as flow:
            sent, _ = flow.finish(10)
        stats = lab.link.stats()["forward"]
    assert sent.count * 8 / sent.seconds > 2e9
    assert stats.delivered > 10 * stats.writes


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_tcp_survives_cut_super_packets_byte_for_byte(family: socket.AddressFamily) -> None:
    data = random.Random(4).randbytes(8_000_000)
    with Lab(link=LinkSpec(delay_ms=1, loss_percent=1, reorder_percent=1, duplicate_percent=1)) as lab:
        arrived = transfer(lab, data, family)
        stats = lab.link.stats()["forward"]
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(data).digest()
    assert stats.lost > 30
    assert stats.delivered > stats.writes, "super-packets must have crossed"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_the_rest_of_a_udp_super_packet_arrives_when_segments_are_lost(family: socket.AddressFamily) -> None:
    with Lab(link=LinkSpec(loss_percent=20, seed=9)) as lab:
        a, b = lab
        with a.socket(family, socket.SOCK_DGRAM) as sender, b.socket(family, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("", 0))
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            receiver.settimeout(2)
            address = b.address6 if family == socket.AF_INET6 else b.address
            sender.connect((address, receiver.getsockname()[1]))
            sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 500)
            for burst in range(20):
                sender.send(b"".join(struct.pack("!I", 20 * burst + number) * 125 for number in range(20)))
            arrived = []
            while (stats := lab.link.stats()["forward"]).offered < 400 or len(arrived) < stats.delivered:
                packet = receiver.recv(65536)
                assert packet == packet[:4] * 125
                arrived.append(struct.unpack_from("!I", packet)[0])
    assert stats.lost == 400 - len(arrived)
    assert 40 < stats.lost < 120
    assert arrived == sorted(set(arrived))


def test_a_segment_above_the_path_mtu_vanishes() -> None:
    with Lab(link=LinkSpec(mtu=1400)) as lab:
        a, b = lab
        assert ping(a, b.address, count=2, interval=0.01, size=1372).lost == []
        assert len(ping(a, b.address, count=2, interval=0.01, size=1373, timeout=0.1).lost) == 2


def test_a_blackout_loses_everything_and_one_direction_can_be_black_alone() -> None:
    with Lab(link=LinkSpec(delay_ms=5)) as lab:
        a, b = lab
        with TcpFlow(a, b, b.address, seconds=20, rate_mbit=50) as flow:
            flow.wait_for_bytes(100_000)
            lab.link.blackout(True)
            until(lambda: time.monotonic_ns() - flow.samples[-1].time_ns > 200_000_000, "silence")
            assert lab.link.stats()["forward"].dropped_blackout > 0
            lab.link.blackout(False)
            flow.wait_for_bytes(100_000)
        lab.link.blackout(True, "backward")
        before = lab.link.stats()
        assert ping(a, b.address, count=3, interval=0.01, timeout=0.1).lost == [0, 1, 2]
        after = lab.link.stats()
        assert after["forward"].delivered >= before["forward"].delivered + 3
        assert after["backward"].delivered == before["backward"].delivered


def test_a_changed_spec_holds_at_once() -> None:
    with Lab() as bare, pytest.raises(LabError, match="has 0"):
        bare.link.change(LinkSpec())
    with Lab(link=LinkSpec()) as lab:
        a, b = lab
        assert statistics.median(ping(a, b.address, count=5, interval=0.01).rtts_ms) < 2
        lab.link.change(LinkSpec(delay_ms=15), "forward")
        assert 15 <= statistics.median(ping(a, b.address, count=5, interval=0.01).rtts_ms) < 17
        lab.link.change(LinkSpec(delay_ms=15))
        assert 30 <= statistics.median(ping(a, b.address, count=5, interval=0.01).rtts_ms) < 32


def test_an_emulator_that_died_is_named_in_the_error() -> None:
    with Lab(link=LinkSpec()) as lab:
        os.kill(lab.link.pid, signal.SIGKILL)
        with pytest.raises(LabError, match=f"pid {lab.link.pid}"):
            lab.link.stats()
