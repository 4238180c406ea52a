"""The watch over uplinks: what was sent and is not acknowledged goes out on another uplink once its own is silent. The
kernel's numbers are the test's; bytes travel through real sockets."""

from __future__ import annotations

import pytest

from pipeline.counters import ID
from pipeline.policy.path_silence import OVERDUE_NS
from pipeline.shm.layout import FIRST_PEER_HANDLE
from pipeline.transport.tcp_info import Acknowledged
from pipeline.wire import framing
from pipeline.wire.uplink import Uplink
from tests.harness.send_queues import Ends, OutboundRing, frame, numbers
from workers.tcp import kept_items, path_watch
from workers.tcp.kept_items import KeptItems
from workers.tcp.path_watch import LOOK_NS, PathWatch
from workers.tcp.peer_sender import PeerSender
from workers.tcp.send_queue import SendQueue

MS = 1_000_000
HOUR = 3_600_000 * MS
ETH, WWAN, LTE = Uplink(0, "eth0", False), Uplink(1, "wwan0", False), Uplink(2, "lte0", True)


class Bench:
    """A peer with connections on these uplinks, one ring, and a kernel that says what the test wants."""

    def __init__(self, ends: Ends, monkeypatch: pytest.MonkeyPatch, *uplinks: Uplink) -> None:
        self.ends = ends
        self.now = HOUR
        self.counters = memoryview(bytearray(8 * 256)).cast("Q")
        self.peer = PeerSender(FIRST_PEER_HANDLE | 5, 1 << 20, 0, self.counters)
        self.queues = [ends.queue() for _ in uplinks]
        self.heard: dict[object, int] = {}
        self.acknowledges: set[object] = set()
        for queue, uplink in zip(self.queues, uplinks, strict=True):
            queue.connection.uplink = uplink
            queue.kept = KeptItems(queue.connection)
            self.hear(queue)
        self.peer.set_queues(self.queues)
        self.watch = PathWatch(self.counters)
        self.ring = OutboundRing()
        monkeypatch.setattr(path_watch, "read_acknowledged", self._read)
        monkeypatch.setattr(
            kept_items, "unacknowledged_bytes", lambda sock: 0 if sock in self.acknowledges else 1 << 30
        )

    def _read(self, sock: object) -> Acknowledged:
        return Acknowledged(1448, (self.now - self.heard[sock]) // MS, 20_000, 1000, 10, 20_000, 0)

    def hear(self, *queues: SendQueue) -> None:
        for queue in queues:
            self.heard[queue.connection.socket] = self.now

    def send(self, queue: SendQueue, *sent: int, light: bool = False) -> None:
        """Send these blocks on a connection; their slots go on at once."""
        assert queue.kept is not None
        queue.kept.now = self.now
        for number in sent:
            queue.of_class(light).append(self.ring.item(frame(number, light=light), light=light, shards=1))
        self.ends.send_all(queue)
        assert self.ring.release() == len(sent)

    def pass_time(self, milliseconds: int, *hearing: SendQueue) -> list[SendQueue]:
        """Look all the while. `hearing`: connections on which acknowledgements come."""
        changed = []
        for _ in range(milliseconds * MS // LOOK_NS):
            self.now += LOOK_NS
            self.hear(*hearing)
            changed += self.watch.look([self.peer], self.now)
        return changed

    def came(self, queue: SendQueue) -> list[int]:
        self.ends.send_all(queue)
        return [number for _, number in numbers(self.ends.wire(queue))]

    def count(self, name: str) -> int:
        return self.counters[ID[name]]


def test_what_a_silent_uplink_has_taken_goes_out_on_the_other_ahead_of_what_waits_there(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, wwan = bench.queues
    bench.send(eth, 1, 2, 3)
    assert bench.pass_time(20, wwan) == [], "it has a round trip and more for the answer"
    wwan.bulk.append(bench.ring.item(frame(9), shards=1))
    assert wwan in bench.pass_time(80, wwan)
    assert bench.came(wwan) == [1, 2, 3, 9]
    assert (bench.count("tcp.uplinks_timed_out"), bench.count("tcp.runs_resent")) == (1, 3)
    assert bench.pass_time(200, wwan) == [], "once"


def test_what_is_acknowledged_is_not_sent_again(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, wwan = bench.queues
    bench.send(eth, 1, 2)
    bench.acknowledges.add(eth.connection.socket)
    bench.pass_time(10, eth)
    bench.acknowledges.clear()
    bench.send(eth, 3)
    bench.pass_time(100, wwan)
    assert bench.came(wwan) == [3]


def test_an_uplink_on_which_acknowledgements_come_keeps_what_it_has_unless_that_takes_too_long(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, wwan = bench.queues
    bench.send(eth, 1)
    assert bench.pass_time(OVERDUE_NS // MS, eth) == [] and not eth.late
    assert wwan in bench.pass_time(100, eth), "it has become slow"


def test_a_late_connection_gets_nothing_until_something_is_heard_on_it(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, ETH, WWAN)
    first, second, wwan = bench.queues
    bench.send(first, 1)
    bench.pass_time(100, wwan)
    assert bench.peer.bulk_queues == [wwan], "nor does the other connection on that uplink"
    bench.acknowledges.update(queue.connection.socket for queue in (second, wwan))
    bench.pass_time(50, first, wwan)
    assert bench.peer.bulk_queues == [second, wwan], "the kernel has yet to repeat what the first one took"
    bench.acknowledges.add(first.connection.socket)
    bench.pass_time(50, first, wwan)
    assert bench.peer.bulk_queues == [first, second, wwan]


def test_what_waits_for_a_late_connection_goes_to_others_and_what_has_begun_from_its_beginning(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, wwan = bench.queues
    bench.send(eth, 1)
    assert eth.kept is not None
    for number in (2, 3):
        eth.bulk.append(bench.ring.item(frame(number, 5000), shards=1))
    ends.send(eth, 100)
    bench.pass_time(100, wwan)
    assert bench.came(wwan) == [1, 2, 3]
    ends.send_all(wwan)
    assert bench.ring.release() == 2, "their slots wait no longer"
    assert bench.came(eth) == [1, 2], "the record that was begun is finished, or all behind it would be unreadable"


def test_a_backup_gets_something_when_all_main_uplinks_are_silent(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ends, monkeypatch, LTE, ETH, WWAN)
    lte, eth, wwan = bench.queues
    assert bench.peer.bulk_queues == [eth, wwan]
    bench.send(eth, 1)
    bench.send(wwan, 2)
    bench.pass_time(100, wwan, lte)
    assert bench.came(wwan) == [2, 1]
    bench.pass_time(200, lte)
    assert sorted(bench.came(lte)) == [1, 2]
    assert bench.peer.bulk_queues == [lte]
    bench.acknowledges.add(eth.connection.socket)
    bench.pass_time(50, eth, lte)
    assert bench.peer.bulk_queues == [eth], "and then no more"


def test_with_all_uplinks_silent_everything_stays_where_it_is(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, wwan = bench.queues
    bench.send(eth, 1)
    bench.send(wwan, 2)
    assert bench.pass_time(500) == []
    assert bench.came(eth) == [1] and bench.came(wwan) == [2]
    bench.acknowledges.add(wwan.connection.socket)
    bench.pass_time(50, wwan)
    assert bench.came(wwan) == [2, 1]


def test_light_blocks_go_again_ahead_of_bulk(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, wwan = bench.queues
    bench.send(eth, 1)
    bench.send(eth, 2, light=True)
    bench.pass_time(100, wwan)
    assert bench.came(wwan) == [2, 1]


def test_nothing_is_looked_at_while_nothing_waits_for_an_answer(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, _ = bench.queues
    bench.send(eth, 1)
    bench.watch.look([bench.peer], bench.now)
    assert bench.watch.next_look == bench.now + LOOK_NS
    bench.acknowledges.add(eth.connection.socket)
    bench.pass_time(500, eth)
    assert bench.watch.next_look == 0


def test_traffic_classes_have_connections_of_their_own_on_each_uplink(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, ETH, WWAN, WWAN)
    for queue in bench.queues[1::2]:
        queue.connection.traffic_class = framing.LIGHT
    bench.peer.set_queues(bench.queues)
    bench.send(bench.queues[0], 1)
    bench.send(bench.queues[1], 2, light=True)
    bench.pass_time(100, *bench.queues[2:])
    assert bench.came(bench.queues[2]) == [1] and bench.came(bench.queues[3]) == [2]


# -- which connection gets a run of bulk


def load(queue: SendQueue, share: float) -> None:
    """Let the connection hold so much of its room."""
    assert queue.kept is not None
    queue.kept.note_given(int(share * queue.kept.room) - queue.kept.outstanding)


def test_bulk_goes_on_the_nearest_uplink_that_has_room_and_else_where_most_is_left(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, WWAN, ETH, ETH)
    wwan, first, second = bench.queues
    for queue, rtt_us in ((wwan, 60_000), (first, 20_000), (second, 21_000)):
        assert queue.kept is not None
        queue.kept.rtt_us = rtt_us
    assert bench.peer.first_to_arrive() is first
    load(first, 0.5)
    assert bench.peer.first_to_arrive() is second, "both are on the nearest one"
    load(first, 1.1)
    load(second, 1.2)
    assert bench.peer.first_to_arrive() is wwan
    load(wwan, 1.15)
    assert bench.peer.first_to_arrive() is first
    first.connection.receive.far = second.connection.receive.far = True
    assert bench.peer.first_to_arrive() is wwan


def test_a_connection_that_holds_as_much_as_it_delivers_soon_gets_no_more_in_one_call_than_it_has_room_for(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    eth, _ = bench.queues
    assert bench.watch.has_room(eth, bench.now)
    assert eth.kept is not None
    assert eth.burst_bytes == eth.kept.room
    load(eth, 1.0)
    assert not bench.watch.has_room(eth, bench.now)
    bench.acknowledges.add(eth.connection.socket)
    assert bench.watch.has_room(eth, bench.now)


def test_a_connection_of_before_the_client_had_uplinks_may_be_among_the_others(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(ends, monkeypatch, ETH, WWAN)
    earlier = ends.queue()
    bench.hear(earlier)
    bench.peer.set_queues([*bench.queues, earlier])
    assert bench.peer.first_to_arrive() in bench.peer.bulk_queues
    assert bench.watch.has_room(earlier, bench.now)
    bench.send(bench.queues[0], 1)
    bench.pass_time(200, bench.queues[1])
    assert bench.queues[0] not in bench.peer.bulk_queues
