"""A path opens once its address and size are proved, and closes when nothing is heard: two ends in simulated time."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import cast

import pytest

from pipeline.policy.carrier import State
from pipeline.policy.nat_keepalive import STEPS_S
from pipeline.policy.path_mtu import BASE
from pipeline.policy.return_address import Address
from pipeline.sealing.datagram_seal import OVERHEAD
from pipeline.shm.datagram_secrets import DatagramSecrets
from pipeline.wire import control_datagram
from pipeline.wire.control_datagram import PROBE_LEAST, Answer, Probe, pack_probe
from workers.dgram.path import Path, SegmentSender
from workers.dgram.path_control import PathControl, Way
from workers.dgram.sessions import Session

MS = 1_000_000
SECOND = 1000 * MS
SERVER = Address("192.0.2.1", 443)
CLIENT = Address("198.51.100.7", 5555)
SEGMENTS = cast("SegmentSender", None)
SESSION = Session(DatagramSecrets(256, 1, bytes(16), 0, bytes(32), bytes(32)))


class Ends:
    """A client and a server. `client_at`: where its datagrams come from. `carries`: bytes of UDP payload.

    `passes(to_server, size)` says whether a datagram arrives.
    """

    def __init__(self, delay: int = 10 * MS) -> None:
        self.now = SECOND
        self.delay = delay
        self.client_at = CLIENT
        self.interface = 9000
        self.passes: Callable[[bool, int], bool] = lambda to_server, size: True
        self.under_way: list[tuple[int, bool, bytes, Address]] = []
        self.sent: list[tuple[bool, int, int]] = []  # to the server, size, type
        self.count = {True: 0, False: 0}
        self.client = PathControl(
            Path(SESSION, 0, SEGMENTS), "auto", self._sender(True), self.now, (SERVER, Way(("server",), []))
        )
        self.server = PathControl(Path(SESSION, 0, SEGMENTS), "auto", self._sender(False), self.now)

    def _sender(self, to_server: bool) -> Callable[[Path, bytes, Way], int]:
        def send(path: Path, body: bytes, way: Way) -> int:
            size = len(body) + OVERHEAD
            if size > self.interface - 28:
                return errno.EMSGSIZE
            self.sent.append((to_server, size, body[0]))
            if self.passes(to_server, size) and (to_server or way.address == tuple(self.client_at)):
                self.under_way.append((self.now + self.delay, to_server, body, self.client_at))
            return 0

        return send

    def run(self, time: int, step: int = 5 * MS) -> None:
        for _ in range(time // step):
            self.now += step
            while self.under_way and self.under_way[0][0] <= self.now:
                _, to_server, body, source = self.under_way.pop(0)
                self.deliver(to_server, body, source)
            for each in (self.client, self.server):
                each.tick(self.now, True)

    def deliver(self, to_server: bool, body: bytes, source: Address) -> None:
        end = self.server if to_server else self.client
        self.count[to_server] += 1
        size = len(body) + OVERHEAD
        at = source if to_server else SERVER
        end.heard(at, Way(tuple(at), []), self.count[to_server], size, self.now)
        message = control_datagram.parse(memoryview(body))
        if isinstance(message, Probe):
            end.on_probe(message, at, size, self.now)
        else:
            assert isinstance(message, Answer)
            end.on_answer(message, self.now, self.now)


def test_a_path_opens_at_both_ends_within_two_round_trips() -> None:
    ends = Ends()
    ends.run(4 * ends.delay + 20 * MS)
    assert ends.client.is_open and ends.server.is_open
    assert ends.server.address == CLIENT
    assert ends.client.path.probed_round_trip == pytest.approx(2 * ends.delay, abs=10 * MS)


def test_while_there_is_no_flow_nothing_is_probed_and_then_at_once() -> None:
    ends = Ends()
    there = False
    ends.client = PathControl(
        Path(SESSION, 0, SEGMENTS), "auto", ends._sender(True), ends.now, (SERVER, Way(("server",), [])),
        reaches=lambda address: there,
    )  # fmt: skip
    ends.run(30 * SECOND)
    assert not ends.sent
    there = True
    ends.run(4 * ends.delay + 20 * MS)
    assert ends.client.is_open and ends.server.is_open


def test_a_dark_path_lets_its_socket_know() -> None:
    ends, doubts = Ends(), []
    ends.client = PathControl(
        Path(SESSION, 0, SEGMENTS), "auto", ends._sender(True), ends.now, (SERVER, Way(("server",), [])),
        doubt=lambda: doubts.append(ends.now),
    )  # fmt: skip
    ends.run(SECOND)
    assert ends.client.is_open and not doubts
    ends.passes = lambda to_server, size: False
    ends.client.path.outstanding_since = ends.now
    ends.run(SECOND)
    assert not ends.client.is_open and doubts


def test_no_more_than_three_times_as_much_goes_to_an_address_that_is_not_proved() -> None:
    ends = Ends()
    ends.passes = lambda to_server, size: to_server
    ends.run(5 * SECOND)
    assert not ends.client.is_open and not ends.server.is_open
    to_server = sum(size for there, size, _ in ends.sent if there)
    assert 0 < sum(size for there, size, _ in ends.sent if not there) <= 3 * to_server


def test_small_probes_from_an_address_that_is_not_proved_get_few_answers() -> None:
    ends = Ends()
    ends.passes = lambda to_server, size: False
    size = PROBE_LEAST + OVERHEAD
    for number in range(50):
        ends.deliver(True, pack_probe(Probe(number, 0), PROBE_LEAST), CLIENT)
    assert 0 < sum(each for there, each, _ in ends.sent if not there) <= 3 * 50 * size
    before = len(ends.sent)
    ends.deliver(True, pack_probe(Probe(1, 0), PROBE_LEAST), Address("203.0.113.9", 1))
    ends.server.on_probe(Probe(2, 0), CLIENT, size, ends.now)
    assert len(ends.sent) == before + 1, "an earlier address gets none"


def test_the_first_probe_asks_for_all_that_is_to_be_known() -> None:
    ends = Ends()
    ends.run(100 * MS, step=MS)
    first = [size for to_server, size, kind in ends.sent if to_server and kind == control_datagram.PROBE][:2]
    assert first == [BASE, 9000 - 28]


@pytest.mark.parametrize(("interface", "carries"), [(9000, 8972), (1500, 1472), (1500, 1400), (1500, 1200)])
def test_the_size_is_what_interface_and_path_carry(interface: int, carries: int) -> None:
    ends = Ends()
    ends.interface = interface
    ends.passes = lambda to_server, size: size <= carries
    ends.run(60 * SECOND)
    for each in (ends.client, ends.server):
        assert carries - 16 <= each.segment_most <= carries


def test_an_interface_of_1500_bytes_costs_no_time() -> None:
    ends = Ends()
    ends.interface = 1500
    ends.run(20 * ends.delay)
    assert ends.client.segment_most >= 1472 - 16


def test_segments_without_a_report_make_the_path_dark_and_two_answers_open_it_again() -> None:
    ends = Ends()
    ends.run(2 * SECOND)
    ends.passes = lambda to_server, size: False
    ends.client.path.outstanding_since = ends.now
    ends.run(SECOND // 2)
    assert ends.client.carrier.status.state is State.DARK and not ends.client.is_open
    ends.client.path.outstanding_since = None
    ends.passes = lambda to_server, size: True
    ends.run(5 * SECOND)
    assert ends.client.is_open


def test_a_path_that_is_not_read_yet_is_not_dark() -> None:
    ends = Ends()
    ends.run(2 * SECOND)
    ends.client.path.outstanding_since = ends.now - 10 * SECOND
    ends.client.tick(ends.now, has_read_all=False)
    assert ends.client.is_open
    ends.client.tick(ends.now, has_read_all=True)
    assert not ends.client.is_open


def test_reports_keep_it_open() -> None:
    ends = Ends()
    ends.run(2 * SECOND)
    for _ in range(20):
        ends.client.path.outstanding_since = ends.now - 50 * MS
        ends.client.on_report(True, ends.now)
        ends.run(100 * MS)
        assert ends.client.is_open


def test_another_port_is_used_at_once_and_another_host_once_it_has_answered() -> None:
    ends = Ends()
    ends.run(2 * SECOND)
    ends.client_at = Address(CLIENT.host, 7777)
    ends.client.carrier.doubt()
    ends.run(ends.delay + 300 * MS)
    assert ends.server.address == ends.client_at
    ends.run(2 * SECOND)
    assert ends.server.segment_most > BASE
    before, ends.client_at = ends.client_at, Address("203.0.113.9", 1)
    ends.client.carrier.doubt()
    while ends.server._return._asked is None:
        ends.run(5 * MS)
    assert ends.server.address == before and ends.server.is_open
    while ends.server.address == before:
        ends.run(5 * MS)
    assert ends.server.is_open and ends.server.segment_most == BASE, "nothing more is known of the new path"


def test_an_idle_client_learns_how_long_its_nat_waits_and_probes_no_more_often() -> None:
    ends = Ends()
    ends.run(2000 * SECOND, step=50 * MS)
    assert ends.client._nat is not None and ends.client._nat.idle_s == STEPS_S[-1]
    before = len(ends.sent)
    ends.run(480 * SECOND, step=50 * MS)
    assert len(ends.sent) - before <= 14
    assert ends.client.is_open and ends.server.is_open


def test_a_missing_answer_of_the_keepalive_makes_a_doubt_that_a_probe_clears() -> None:
    ends = Ends()
    ends.run(300 * SECOND, step=50 * MS)
    ends.passes = lambda to_server, size: False
    ends.run(400 * SECOND, step=50 * MS)
    assert not ends.client.is_open
    ends.passes = lambda to_server, size: True
    ends.run(100 * SECOND, step=50 * MS)
    assert ends.client.is_open and ends.server.is_open


def test_what_the_outbound_duty_sees_is_taken_up() -> None:
    ends = Ends()
    ends.run(2 * SECOND)
    assert ends.client.segment_most > BASE
    ends.passes = lambda to_server, size: size <= BASE
    ends.client.path.too_big = True
    ends.run(5 * MS)
    assert ends.client.segment_most == BASE and not ends.client.path.too_big
    before = len(ends.sent)
    ends.client.path.doubted = True
    ends.run(5 * MS)
    assert not ends.client.path.doubted
    assert any(to_server for to_server, _, kind in ends.sent[before:])


def test_a_path_that_is_resumed_is_open_at_once_and_asks_whether_it_is() -> None:
    ends = Ends()
    ends.server.resume(CLIENT, Way(tuple(CLIENT), []), 1452, ends.now)
    assert ends.server.is_open and ends.server.segment_most == 1452
    ends.passes = lambda to_server, size: False
    ends.run(600 * MS)
    assert len([size for to_server, size, _ in ends.sent if not to_server and size == BASE]) >= 4
    ends.passes = lambda to_server, size: True
    ends.run(SECOND)
    assert ends.server.is_open
