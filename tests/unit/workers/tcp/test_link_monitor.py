"""Consequences of the kernel's numbers: parity in the link record, pacing rates on sockets.

The numbers are the test's, where a connection asks the kernel; the sockets are real.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping

import pytest

from pipeline.counters import ID
from pipeline.policy.adaptive_parity import CALM_NS
from pipeline.runtime import link_paths
from pipeline.shm.layout import FIRST_PEER_HANDLE, RECORD_WORDS
from pipeline.transport.connection import ESTABLISHED, Connection
from pipeline.transport.socket_options import SO_MAX_PACING_RATE, UNPACED
from pipeline.transport.tcp_info import TcpInfo
from pipeline.wire import framing
from pipeline.wire.uplink import Uplink
from tests.harness.run import Run
from tests.harness.settings import WORKER_SETTINGS
from tests.harness.tls_ends import tcp_pair
from workers.tcp.link_monitor import LinkMonitor
from workers.tcp.link_publisher import LinkPublisher

LANE, PEER = 1, 2
TICK = 100_000_000
MOST = 3
RATE = 6_250_000  # bytes a second that arrive
MS = 1_000
ETH, WWAN = Uplink(0, "eth0", False), Uplink(1, "wwan0", False)


class Observed(Connection):
    """The kernel says what the test wants it to say."""

    info = TcpInfo(0, 0, 0, 0, 40 * MS, 0, 0, 0, 40 * MS, 0)

    def tcp_info(self) -> TcpInfo:
        return self.info

    def moves(self, **fields: int) -> None:
        """The counts grow by so much, other fields are so much."""
        growing = ("total_retrans", "bytes_acked", "data_segs_out", "rwnd_limited_us", "dsack_dups")
        self.info = self.info._replace(
            **{name: value + getattr(self.info, name) if name in growing else value for name, value in fields.items()}
        )

    def pacing_rate(self) -> int:
        (rate,) = struct.unpack("=Q", self.socket.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))
        return rate


class Link:
    """The connections of one peer, and their monitor."""

    def __init__(self, fec: str) -> None:
        self.run = Run()
        attachment = self.run.attach(f"tcp-{LANE}")
        self.counters = attachment.page.counters
        settings = WORKER_SETTINGS._replace(fec=fec, fec_parity=MOST)
        self.monitor = LinkMonitor(settings, PEER, LinkPublisher(attachment), self.counters)
        self.connections: list[Observed] = []
        self.now = TICK

    def connect(self, traffic_class: int = framing.BULK) -> Observed:
        near, far = tcp_pair()
        self.run.sockets += [near, far]
        made = Observed(near, near.getpeername(), ESTABLISHED, len(self.connections) + 1, 0)
        made.traffic_class = traffic_class
        made.peer_handle = FIRST_PEER_HANDLE | PEER
        made.accepts_shards = True
        self.connections.append(made)
        return made

    def tick(self, times: int = 1, **fields: int) -> int:
        """So many updates, with every connection moving so; the parity that is called for."""
        for _ in range(times):
            self.now += TICK
            for each in self.connections:
                each.moves(**fields)
            self.monitor.update({each: each.tcp_info() for each in self.connections}, self.now)
        return self.parity()

    def parity(self) -> int:
        return self.run.requests(LANE, PEER).parity

    def rates(self) -> Mapping[int, float]:
        """The published ones of the uplinks."""
        at = PEER * RECORD_WORDS
        words = self.run.memory.peer_table.paths[LANE][at : at + 3]
        return link_paths.unpack(words, len(self.connections), 0).rates

    def copying(self) -> tuple[int, int]:
        """Copies, and the spacing in microseconds."""
        requests = self.run.requests(LANE, PEER)
        return requests.copies, requests.spacing_us

    def count(self, name: str) -> int:
        return self.counters[ID[name]]


@pytest.fixture
def auto() -> Iterator[Link]:
    made = Link("auto")
    yield made
    made.run.close()


@pytest.fixture
def on() -> Iterator[Link]:
    made = Link("on")
    yield made
    made.run.close()


# -- parity


def test_with_fec_on_all_of_the_parity_is_called_for_whatever_the_kernel_says(on: Link) -> None:
    on.connect()
    assert on.parity() == MOST
    assert on.tick(2 * CALM_NS // TICK, data_segs_out=100) == MOST
    assert on.count("tcp.parity_raised") == on.count("tcp.parity_lowered") == 0


def test_with_auto_parity_follows_the_losses_of_all_connections(auto: Link) -> None:
    for _ in range(3):
        auto.connect()
    assert auto.tick(10, data_segs_out=100) == 0
    assert auto.tick(10, data_segs_out=100, total_retrans=10) == MOST
    assert auto.tick(8 * CALM_NS // TICK, data_segs_out=100) == 0
    assert 1 <= auto.count("tcp.parity_lowered") <= MOST
    assert auto.count("tcp.parity_raised") >= 1


def test_one_timeout_of_one_connection_calls_for_all(auto: Link) -> None:
    first, _ = auto.connect(), auto.connect()
    auto.tick(3, data_segs_out=100)
    first.moves(retransmits=1)
    assert auto.tick() == MOST


def test_a_connection_that_has_ended_for_want_of_an_answer_calls_for_all_once(auto: Link) -> None:
    auto.connect()
    auto.tick(3, data_segs_out=100)
    auto.monitor.connections_unanswered += 1
    assert auto.tick(data_segs_out=100) == MOST
    assert auto.monitor.connections_unanswered == 0
    assert auto.tick(4 * CALM_NS // TICK, data_segs_out=100) == 0


def test_segments_that_had_arrived_before_they_were_sent_again_call_for_none(auto: Link) -> None:
    auto.connect()
    auto.tick(10, data_segs_out=100)
    assert auto.tick(10, data_segs_out=100, total_retrans=2, dsack_dups=2) == 0
    assert auto.tick(10, data_segs_out=100, total_retrans=10, dsack_dups=0) == MOST


def test_trouble_of_a_connection_that_the_other_end_does_not_read_calls_for_none(auto: Link) -> None:
    auto.connect()
    auto.tick(10, data_segs_out=100)
    assert auto.tick(10, data_segs_out=3, total_retrans=1, retransmits=1, rwnd_limited_us=90 * MS) == 0
    assert auto.tick(10, data_segs_out=100, retransmits=0) == 0
    assert auto.tick(1, data_segs_out=3, retransmits=1, rwnd_limited_us=1 * MS) == MOST


def test_with_fec_on_light_packets_are_copied_whatever_the_kernel_says(on: Link) -> None:
    assert on.copying() == (2, 0)
    on.connect()
    on.tick(5, data_segs_out=100)
    assert on.copying() == (2, 0)


def test_with_auto_light_packets_are_copied_on_a_path_that_has_lost_some(auto: Link) -> None:
    auto.connect()
    auto.tick(10, data_segs_out=100)
    assert auto.copying() == (0, 0)
    auto.tick(10, data_segs_out=100, total_retrans=2)
    assert auto.copying() == (2, 0)
    auto.tick(8 * CALM_NS // TICK, data_segs_out=100)
    assert auto.copying() == (1, 0)


@pytest.mark.parametrize("fec", ["auto", "on"])
def test_losses_in_bursts_call_for_a_spacing_whatever_connection_they_hit(
    fec: str, request: pytest.FixtureRequest
) -> None:
    link: Link = request.getfixturevalue(fec)
    for _ in range(3):
        link.connect()
    for _ in range(10):
        link.tick(20, data_segs_out=20)
        link.tick(data_segs_out=20, total_retrans=2)
    assert 1000 < link.copying()[1] < 10_000
    assert link.copying()[0] == 2


def test_parity_is_called_for_at_this_peer_alone(auto: Link) -> None:
    auto.connect().moves(retransmits=1)
    auto.tick()
    assert [auto.run.requests(LANE, peer).parity for peer in range(4)] == [0, 0, MOST, 0]


# -- pacing


def fill_the_path(link: Link, ticks: int = 30) -> None:
    """Bulk flows whose packets wait 60 ms in a queue."""
    for _ in range(ticks):
        for each in link.connections:
            if each.traffic_class == framing.BULK:
                each.moves(rtt_us=100 * MS, bytes_acked=RATE // 10 // 4)
        link.tick()


def test_bulk_is_paced_while_the_queue_of_the_path_is_long_and_light_never(on: Link) -> None:
    light = on.connect(framing.LIGHT)
    bulk = [on.connect() for _ in range(4)]
    on.tick(5, bytes_acked=RATE // 10 // 5)
    assert {each.pacing_rate() for each in (light, *bulk)} == {UNPACED}
    fill_the_path(on, 5)
    assert light.pacing_rate() == UNPACED
    (rate,) = {each.pacing_rate() for each in bulk}
    assert 0 < 4 * rate < 2 * RATE
    assert on.count("tcp.paces_changed") > 0
    assert not on.monitor.idle_may_be_skipped


def test_the_pace_is_lifted_once_it_limits_nothing(on: Link) -> None:
    on.connect(framing.LIGHT)
    bulk = [on.connect() for _ in range(4)]
    fill_the_path(on, 5)
    on.tick(400, rtt_us=40 * MS, bytes_acked=RATE // 10 // 100)
    assert {each.pacing_rate() for each in bulk} == {UNPACED}
    assert on.monitor.idle_may_be_skipped


def test_without_a_light_connection_bulk_has_the_path_for_itself(on: Link) -> None:
    bulk = [on.connect() for _ in range(4)]
    fill_the_path(on)
    assert {each.pacing_rate() for each in bulk} == {UNPACED}
    assert on.count("tcp.paces_changed") == 0


def test_bulk_is_not_paced_while_the_other_end_does_not_read_it(on: Link) -> None:
    on.connect(framing.LIGHT)
    bulk = [on.connect() for _ in range(4)]
    fill_the_path(on, 5)
    assert UNPACED not in {each.pacing_rate() for each in bulk}
    for _ in range(3):
        bulk[0].moves(rwnd_limited_us=50 * MS)
        fill_the_path(on, 1)
    assert {each.pacing_rate() for each in bulk} == {UNPACED}


def test_bulk_is_not_paced_when_its_bytes_wait_unread_in_the_other_ends_window(on: Link) -> None:
    on.connect(framing.LIGHT)
    bulk = [on.connect() for _ in range(4)]
    window = 4_000_000
    for turn in range(25):
        window -= RATE // 10 // 4
        for each in bulk:
            each.moves(snd_wnd=window)
        fill_the_path(on, 1)
        if turn > 2:
            assert {each.pacing_rate() for each in bulk} == {UNPACED}


def test_a_limit_in_force_follows_the_path_while_there_is_no_light_connection(on: Link) -> None:
    light, bulk = on.connect(framing.LIGHT), [on.connect() for _ in range(4)]
    fill_the_path(on, 5)
    assert bulk[0].pacing_rate() < RATE
    on.connections.remove(light)
    on.tick(400, rtt_us=40 * MS, bytes_acked=RATE // 10 // 100)
    assert {each.pacing_rate() for each in bulk} == {UNPACED}


def test_connections_that_are_all_new_begin_without_the_limit_of_those_before(on: Link) -> None:
    on.connect(framing.LIGHT)
    before = on.connect()
    fill_the_path(on, 5)
    assert before.pacing_rate() < UNPACED
    on.connect(framing.LIGHT)
    bulk = on.connect()
    del on.connections[:2]
    on.tick(3)
    assert bulk.pacing_rate() == UNPACED


def test_bulk_is_paced_while_bytes_behind_a_lost_segment_take_up_the_window(on: Link) -> None:
    on.connect(framing.LIGHT)
    bulk = [on.connect() for _ in range(4)]
    for turn in range(10):
        fill_the_path(on, 1)
        for each in bulk:
            each.moves(snd_wnd=4_000_000 - 200_000 * turn, sacked=70)
    assert UNPACED not in {each.pacing_rate() for each in bulk}


def test_a_connection_that_brings_next_to_nothing_says_nothing_about_the_reader_of_the_others(on: Link) -> None:
    on.connect(framing.LIGHT)
    bulk = [on.connect() for _ in range(4)]
    sporadic = on.connect()
    for turn in range(10):
        fill_the_path(on, 1)
        sporadic.moves(bytes_acked=200, snd_wnd=4_000_000 - 20_000 * turn)
    assert UNPACED not in {each.pacing_rate() for each in bulk}


def test_a_connection_that_has_just_ended_does_no_harm(on: Link) -> None:
    on.connect(framing.LIGHT)
    bulk = on.connect()
    bulk.socket.close()
    fill_the_path(on, 5)
    assert on.count("tcp.paces_changed") > 0


# -- peers that send nothing


def test_an_idle_peer_needs_no_update_unless_something_is_to_be_taken_back(auto: Link) -> None:
    auto.connect()
    assert auto.monitor.idle_may_be_skipped
    auto.monitor.connections_unanswered += 1
    assert not auto.monitor.idle_may_be_skipped
    auto.tick()
    assert not auto.monitor.idle_may_be_skipped
    auto.tick(2 * CALM_NS // TICK)
    assert auto.monitor.idle_may_be_skipped


# -- several uplinks


def test_bulk_on_uplinks_is_not_paced(on: Link) -> None:
    on.connect(framing.LIGHT)
    eth, wwan = on.connect(), on.connect()
    eth.uplink, wwan.uplink = ETH, WWAN
    fill_the_path(on, 5)
    assert {each.pacing_rate() for each in (eth, wwan)} == {UNPACED}, "each holds little on its way"


def test_the_rates_of_uplinks_are_published_and_a_silent_one_carries_nothing(on: Link) -> None:
    eth, wwan = on.connect(), on.connect()
    eth.uplink, wwan.uplink = ETH, WWAN
    for _ in range(50):
        on.now += TICK
        eth.moves(bytes_acked=4 * RATE // 10, notsent_bytes=1000)
        wwan.moves(bytes_acked=RATE // 10, notsent_bytes=1000)
        on.monitor.update({each: each.tcp_info() for each in on.connections}, on.now)
    rates = on.rates()
    assert rates[ETH.number] == pytest.approx(4 * RATE, rel=0.1) and rates[WWAN.number] == pytest.approx(RATE, rel=0.1)
    wwan.send.late = True
    on.tick(bytes_acked=0)
    assert on.rates()[WWAN.number] == 0


def test_a_far_uplink_carries_no_bulk_while_a_near_one_works(on: Link) -> None:
    eth, wwan = on.connect(), on.connect()
    eth.uplink, wwan.uplink = ETH, WWAN
    wwan.moves(min_rtt_us=700 * MS)
    on.tick()
    assert [number for number, rate in on.rates().items() if not rate] == [1]
    assert wwan.receive.far and not eth.receive.far
    eth.send.late = True
    on.tick()
    assert [number for number, rate in on.rates().items() if not rate] == [0]
    assert not wwan.receive.far


def test_a_main_uplink_is_not_far_because_a_backup_is_near(on: Link) -> None:
    eth, wwan = on.connect(), on.connect()
    eth.uplink, wwan.uplink = ETH, WWAN._replace(is_backup=True)
    eth.moves(min_rtt_us=700 * MS)
    on.tick()
    assert all(on.rates().values()) and not eth.receive.far


def test_the_timeouts_of_a_silent_uplink_call_for_no_parity(auto: Link) -> None:
    eth, wwan = auto.connect(), auto.connect()
    eth.uplink, wwan.uplink = ETH, WWAN
    auto.tick(3, data_segs_out=100)
    wwan.send.late = True
    wwan.moves(retransmits=1)
    assert auto.tick(data_segs_out=100) == 0
    wwan.send.late = False
    assert auto.tick(data_segs_out=100) == MOST
