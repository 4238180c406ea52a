"""One peer on the way out of a tcp worker: the queues of its connections, its backlog, its rate.

Which queue an item gets. Plain blocks of one lane stay on one connection as long as the set of connections stays, so
order inside a flow holds. Runs name a connection each, by its number: of copies of a light block, the numbers begin at
the connection of the plain blocks of their lane.

A connection that lags behind the others with its runs holds nobody up. Its runs are skipped, that is left unsent, as
long as their blocks can do without them. After that they are moved to another queue. A connection that takes nothing
for STALL_NS, and for which the kernel waits beyond its retransmission timeout, is stalled. It hands its plain blocks to
another as well. The pauses that BBR makes by itself (PROBE_RTT) do not count.

Copies of light blocks are in no stream that the other end puts in order, so each connection has to carry all of them. A
full one may leave out a copy once another one of that block is on its way, and behind that connection's kernel. All
connections are full at once while a burst is more than the path takes, or the other end does not read. Then all wait.

A peer with several uplinks has paths. A connection whose uplink is silent gets nothing (`workers.tcp.path_watch`), and
one on a backup gets nothing while one on a main uplink is there. A run of bulk goes where it arrives first, whatever
its number; of light copies each number stands for its own connection.

Owned by the outbound duty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from pipeline.counters import ID
from pipeline.policy.path_silence import PathSilence
from pipeline.policy.token_bucket import SharedBucket
from pipeline.runtime import link_paths
from pipeline.shm.layout import PEER_INDEX_MASK, RECORD_WORDS
from pipeline.wire import framing
from workers.tcp.backlog import Backlog
from workers.tcp.delayed_items import DelayedItems
from workers.tcp.ring_reader import RingReader
from workers.tcp.send_item import CopiedBlock, SendItem
from workers.tcp.send_queue import SendQueue

STALL_NS = 200_000_000  # the least retransmission timeout of Linux (TCP_RTO_MIN)
LAG_SLOTS = 4  # a connection so far behind the middle of the others loses its runs

_RUNS_SKIPPED = ID["tcp.runs_skipped"]
_RUNS_MOVED = ID["tcp.runs_moved"]


class PeerSender:
    """The peer of one peer handle. `bulk_queues` and `light_queues` are not empty while there is a queue.

    `turn`: a number that differs from client to client. Lane 0 of a client would else send on its first connection, and
    the first connections of all clients may be with one tcp worker of their hub.
    """

    def __init__(self, peer_handle: int, queue_bytes: int, since: int, counters: memoryview, turn: int = 0) -> None:
        self.peer_handle = peer_handle
        self.peer = peer_handle & PEER_INDEX_MASK
        self.record_at = self.peer * RECORD_WORDS  # of the peer's record, in words
        self._counters = counters
        self.queues: list[SendQueue] = []
        self.bulk_queues: list[SendQueue] = []
        self.light_queues: list[SendQueue] = []
        self._places: dict[int, int] = {}  # by lane and class: where in queues_for() the queue of plain blocks is
        self._turn = turn
        self.backlog = Backlog(queue_bytes)
        self.disconnected_since = since
        self.bucket = SharedBucket()
        self.is_limited = False  # by its rate, or that of all
        self.has_paths = False
        self._silences: dict[int, PathSilence] = {}  # by uplink
        self.light_bucket = SharedBucket()  # of light items, while the bucket of all is out of credit
        self.spacing_ns = 0  # between two copies, or runs, as bursts of losses call for

    def set_queues(self, queues: Iterable[SendQueue]) -> None:
        """Set the queues of its connections, sorted by traffic class; a stalled one gets no items unless all are."""
        self.queues = list(queues)
        self.has_paths = any(queue.kept is not None for queue in self.queues)
        if self.has_paths:
            order = link_paths.in_order(queue.connection.uplink for queue in self.queues)
            self.queues = [self.queues[at] for at in order]
        moving = [queue for queue in self.queues if not (queue.stalled or queue.late)] or self.queues
        if self.has_paths:
            moving = [queue for queue in moving if not is_on_backup(queue)] or moving
        self.bulk_queues = [queue for queue in moving if queue.connection.traffic_class == framing.BULK] or moving
        self.light_queues = [queue for queue in moving if queue.connection.traffic_class == framing.LIGHT] or moving
        self._places.clear()

    def queues_for(self, light: bool) -> list[SendQueue]:
        return self.light_queues if light else self.bulk_queues

    def queue_for(self, item: SendItem) -> SendQueue:
        """For plain blocks, one queue a lane as long as the queues stay; for runs, one queue in turn."""
        queues = self.queues_for(item.light)
        if item.shards:
            return queues[item.slot_index % len(queues)]
        return queues[self.place_of(item.source.lane, item.light)]

    def silence_of(self, path: int) -> PathSilence:
        """How long acknowledgements stay away on one of its uplinks."""
        return self._silences.setdefault(path, PathSilence())

    def first_to_arrive(self) -> SendQueue:
        """Of the connections for bulk on several uplinks: one on the nearest uplink that has room, else the emptiest.

        So an uplink with a longer way carries what the others have no room for, as far as it has some itself.
        """
        near = [queue for queue in self.bulk_queues if not queue.connection.receive.far] or self.bulk_queues
        loads = [(queue.load, place) for place, queue in enumerate(near)]
        room = [(near[place].rtt_us, near[place].path) for load, place in loads if load < 1]
        if room:
            nearest = min(room)[1]
            loads = [each for each in loads if near[each[1]].path == nearest]
        return near[min(loads)[1]]

    def place_of(self, lane: int, light: bool) -> int:
        """Where in queues_for() the queue of the plain blocks of a lane is."""
        place = self._places.get(lane << 1 | light)
        return self._choose(lane, light) if place is None else place

    def _choose(self, lane: int, light: bool) -> int:
        """Choose the queue of a lane: that of a connection of the lane, if there is one."""
        every = self.queues_for(light)
        own = [place for place, each in enumerate(every) if each.connection.receive.stamped_lane == lane]
        places = own or range(len(every))
        place = self._places[lane << 1 | light] = places[(lane + self._turn) % len(places)]
        return place

    def assign_backlog(self) -> None:
        """Give what waited for a connection to the new queues, ahead of all that comes later."""
        unassigned = self.backlog.unassigned
        while unassigned:
            item = unassigned.popleft()
            self.queue_for(item).of_class(item.light).append(item)

    # -- what a full connection holds up

    def relieve(self, full: SendQueue, now: int) -> list[SendQueue]:
        """Skip or move what a full connection holds up. The queues that got some of it."""
        if len(self.queues) == 1:
            return []
        changed = []
        if not full.stalled and now - full.full_since > STALL_NS and full.connection.tcp_info().timed_out:
            full.stalled = True
            self.set_queues(self.queues)
            full.copy_out_partial()
            for item in full.remove_plain():
                target = self.queue_for(item)
                target.append_moved(item)
                changed.append(target)
                self._counters[_RUNS_MOVED] += target is not full
        for light in (True, False):
            items = full.of_class(light)
            others = [
                queue for queue in self.queues_for(light) if queue is not full and not queue.connection.receive.far
            ]
            if items and isinstance(items[0].source, DelayedItems):
                changed += self._drop_or_move_delayed(items, full, others)
            if others and items and items[0].shards:
                reader = items[0].source
                if isinstance(reader, RingReader):
                    changed += self._skip_or_move(items, reader, full, others)
        return changed

    def _skip_or_move(
        self, items: deque[SendItem], reader: RingReader, full: SendQueue, others: list[SendQueue]
    ) -> list[SendQueue]:
        """Skip or move the runs in front that are LAG_SLOTS or more behind. The queues that got some."""
        progress = sorted(_progress(queue, reader, items[0].light) for queue in others)
        limit = progress[len(progress) // 2] - LAG_SLOTS
        changed = []
        while items and items[0].shards and items[0].source is reader and reader.distance(items[0].slot_index) <= limit:
            copied = items[0].copied
            is_spare = copied is not None and self._is_on_its_way(copied, full)
            if not (copied is None or is_spare or full.stalled):
                break
            item = items.popleft()
            if is_spare:
                reader.finish(item)
                self._counters[_RUNS_SKIPPED] += 1
            elif reader.skippable[item.slot_index] >= item.shards:
                reader.skippable[item.slot_index] -= item.shards
                reader.finish(item)
                self._counters[_RUNS_SKIPPED] += 1
            else:
                target = min(others, key=lambda queue: len(queue.bulk) + len(queue.light))
                target.of_class(item.light).append(item)
                changed.append(target)
                self._counters[_RUNS_MOVED] += 1
        return changed

    def _drop_or_move_delayed(
        self, items: deque[SendItem], full: SendQueue, others: list[SendQueue]
    ) -> list[SendQueue]:
        """Drop copies of light packets in front, whose other copies have gone out; move runs. The queues that got some.

        Items that stand behind them can be skipped or moved then.
        """
        changed = []
        while items and isinstance(items[0].source, DelayedItems) and (items[0].light or others):
            copied, delayed = items[0].copied, items[0].source
            if not (copied is None or delayed.fill_queues or self._is_on_its_way(copied, full)):
                break
            item = items.popleft()
            if item.light:
                item.source.finish(item)
                self._counters[_RUNS_SKIPPED] += 1
            else:
                target = min(others, key=lambda queue: len(queue.bulk) + len(queue.light))
                target.append_moved(item)
                changed.append(target)
                self._counters[_RUNS_MOVED] += 1
        return changed

    def _is_on_its_way(self, copied: CopiedBlock, full: SendQueue) -> bool:
        """Whether a copy has gone out on another connection, in whose kernel nothing waits."""
        gone_on = copied.gone_on
        return (
            gone_on is not None
            and gone_on is not full.connection
            and any(queue.connection is gone_on for queue in self.queues)
            and not gone_on.tcp_info().notsent_bytes
        )


def is_on_backup(queue: SendQueue) -> bool:
    uplink = queue.connection.uplink
    return uplink is not None and uplink.is_backup


def _progress(queue: SendQueue, reader: RingReader, light: bool) -> int:
    """How far a queue has got in a ring: slots behind the port's cursor."""
    items = queue.of_class(light)
    return reader.distance(items[0].slot_index) if items and items[0].source is reader else reader.scanned
