"""The sending side of one path: blocks are cut, paced, sent, kept until they are reported, and sent again.

    add            a block for this path; its bytes are in memory of the worker's own then. `has_room`: for bulk
    follow         what the other end and the inbound duty say: the rate follows, blocks are kept no longer, lost rows
                   wait to go again
    send           some bursts, as far as pace and window let them go
    go_dark        the path is closed: all blocks that were not reported

The order, each burst anew: light blocks, lost rows, bulk. So a light block is never behind a train that pauses. Light
blocks wait for no pace, and only for twice the window. All are charged: bulk goes the later.

A row that was lost may go several times, apart in time as copies are. Light blocks have one copy at least, as far as a
budget pays for it: then the first loss of a path delays none.

The pace is credit by time. A burst has BURST_NS of it at most. Credit of up to LATE_NS is kept, since a sleep of some
60 us ends late, and on a busy machine later still. Beyond, it is this end that is slow, and the rate of the path has
nothing to learn from it.

If the last rows of all are lost, no later one tells. So of what was sent last something goes out once more if nothing
is heard of it.

Owned by the outbound duty, as all is that Path says is the outbound duty's.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from pipeline.counters import ID
from pipeline.datagram.cut import Cut
from pipeline.datagram.segment import HEADER_BYTES
from pipeline.datagram.segmenter import Segmenter
from pipeline.fec.buffer_pool import BufferPool
from pipeline.policy.copy_budget import CopyBudget
from pipeline.policy.datagram_rate import REPORT_NS
from pipeline.policy.path_mtu import BASE
from workers.dgram.kept_blocks import NOT_SENT, KeptBlock, KeptBlocks
from workers.dgram.path import Path, Pieces
from workers.dgram.path_feedback import PathFeedback
from workers.dgram.segment_socket import FULL, SEGMENTS_MOST, TOO_BIG
from workers.dgram.unsent import Header, RowsAgain, SingleRow, TrainGroup, Unsent

MS = 1_000_000
SECOND = 1_000_000_000
BURST_NS = MS
LATE_NS = 3 * MS
ROOM_NS = 2 * MS  # of the pace: so much may be cut and wait
BURSTS_MOST = 4  # of one turn: other paths have theirs
LEAST_SEGMENTS = 2  # of a burst
LIGHT_WINDOWS = 2
LIGHT_MOST = 512  # blocks that wait, and their copies
KEPT_MOST = 32 << 20  # bytes of blocks
FULL_NS = MS // 2  # until the kernel is asked again that has no room
REFUSED_NS = 10 * MS  # and one that has refused a burst
TICK_NS = 10 * MS
TAIL_MOST_NS = SECOND
MUCH_LOST = 0.1  # a policer lets bursts through, so the rate seems to be higher than it is
COPIES_WAIT_MOST = 262_144  # bytes of copies

_SEGMENTS = ID["dgram.segments_sent"]
_BYTES = ID["dgram.bytes_sent"]
_BLOCKS = ID["dgram.blocks_sent"]
_PARITY = ID["dgram.parity_sent"]
_REPEATED = ID["dgram.segments_repeated"]
_COPIES = ID["dgram.copies_sent"]
_FORGOTTEN = ID["dgram.blocks_unreported"]


class OutboundPath:
    """`more`: a block waits that has found no room."""

    def __init__(
        self,
        path: Path,
        segmenter: Segmenter,
        memory: BufferPool,
        counters: memoryview,
        now: int,
    ) -> None:
        self.path = path
        self.feedback = PathFeedback(now)
        self.more = False
        self._plan = self.feedback.plan
        self._memory = memory
        self._socket = path.segments
        self._counters = counters
        self._header = Header(segmenter, path.session.send_token, path.session.send_mask(SEGMENTS_MOST))
        self._kept = KeptBlocks(self._on_done)
        self._light: deque[Unsent] = deque()
        self._again: deque[Unsent] = deque()
        self._bulk: deque[Unsent] = deque()
        self._bulk_bytes = 0
        self._copies: list[tuple[int, int, SingleRow]] = []  # a heap: due, number in their order, copy
        self._copies_bytes = self._copies_added = 0
        self._budget = CopyBudget(0, 0, now)
        self._later: deque[tuple[int, Unsent]] = deque()  # due: lost rows that go once more
        self._segment_most = path.segment_most
        self._now = now
        self._next_at = now  # when the pace lets bulk go
        self._pause_until = 0  # the kernel takes nothing
        self._had_bulk = False  # since is_limit was asked
        self._is_held = False  # the window was full since the last burst
        self._tail_ns = 0  # how long the tail waits, after it went out again; 0: it did not
        self._next_tick = now
        self._counted = 0, 0, 0

    # -- blocks come

    def has_room(self) -> bool:
        """Whether bulk may be added. If not, there is `more`."""
        if self.is_usable and self._kept.size < KEPT_MOST:
            waiting = self._bulk_bytes
            if not waiting or waiting * SECOND < self.feedback.rate.pacing_rate * ROOM_NS:
                return True
            last = self._bulk[-1]
            if isinstance(last, TrainGroup) and last.is_open:
                return True
        self.more = True
        return False

    @property
    def is_usable(self) -> bool:
        return self._segment_most > 0 and self.path.is_open

    def is_limit(self) -> bool:
        """Whether the path is what limits bulk now: some waits here, or much of what was sent lately is lost."""
        had_bulk, self._had_bulk = self._had_bulk, False
        return self.more or bool(self._bulk) or (had_bulk and self._plan.loss.loss >= MUCH_LOST)

    @property
    def takes_light(self) -> bool:
        return self.is_usable and len(self._light) < LIGHT_MOST

    def add(self, stream: int, number: int, epoch: int, sealed: memoryview | bytes, now: int) -> bool:
        """A block waits to be sent. False if there is no memory for it. ValueError if it is too long."""
        size = len(sealed)
        row_most = self._segment_most - HEADER_BYTES
        light = bool(stream & 1)
        if not light:
            self._plan.bulk += size
            self._had_bulk = True
        if size <= row_most:
            kept = KeptBlock(stream, number, epoch, size, row=bytes(sealed))
            copies = (self._plan.copies or self._pay_copy(size, now)) if light else 0
            unsent: Unsent = SingleRow(self._header, kept, copies)
            self._add_copies(kept, copies, now)
        else:
            cut, spread = self._plan.cut(size, row_most, light)
            segment_bytes = HEADER_BYTES + cut.row_bytes
            memory = self._memory.acquire(cut.segments * segment_bytes)
            if memory is None:
                self.more = True
                return False
            segmenter, token, mask = self._header
            train = segmenter.lay_block(memory, memoryview(sealed), cut, token, mask, stream, number, epoch)
            kept = KeptBlock(stream, number, epoch, size, train, memory=memory)
            last = self._bulk[-1] if self._bulk and not light else None
            if isinstance(last, TrainGroup) and last.is_open and last.cut == cut:
                last.join(kept, train)
                self._kept.add(kept)
                self._bulk_bytes += train.count * segment_bytes
                return True
            unsent = TrainGroup(self._header, kept, train, spread)
        self._kept.add(kept)
        if light:
            self._light.append(unsent)
        else:
            self._bulk.append(unsent)
            self._bulk_bytes += unsent.left * unsent.segment_bytes
        return True

    def _pay_copy(self, size: int, now: int) -> int:
        """Copies of a light block while the path seems to lose nothing."""
        if self._budget.is_due(now):
            self._budget.refill(self.feedback.sent, 0, now)
        return 1 if self._budget.pay(size, now) else 0

    def _add_copies(self, kept: KeptBlock, copies: int, now: int) -> None:
        for number in range(1, copies + 1):
            if self._copies_bytes + kept.size > COPIES_WAIT_MOST:
                return
            self._copies_bytes += kept.size
            self._copies_added += 1
            copy = SingleRow(self._header, kept, copies, is_first=False)
            heappush(self._copies, (now + number * self._plan.spacing_ns, self._copies_added, copy))

    def _on_done(self, kept: KeptBlock) -> None:
        if kept.repeated_ns and self._now - kept.repeated_ns < self.feedback.rate.round_trip:
            self.feedback.was_impatient(self._now)
        if kept.last != NOT_SENT:  # else its group still sends it
            self._free(kept)

    def _free(self, kept: KeptBlock) -> None:
        if kept.memory is not None:
            self._memory.release(kept.memory)
            kept.memory = None

    # -- the other end, and the inbound duty

    def follow(self, now: int) -> None:
        """Take the reports that have come."""
        self._now = now
        path = self.path
        reports, feedback = path.reports, self.feedback
        while reports:
            came, report = reports.popleft()
            before = feedback.highest
            is_news = feedback.take(report.counts, came)
            if feedback.highest > before:
                self._tail_ns = 0
                path.round_trip = feedback.smoothed
                path.outstanding_since = None if feedback.is_all_passed else now
            lost = self._kept.take_report(report, feedback.highest if is_news else -1, feedback.lost_until)
            if self._plan.repeats:
                for kept, rows in lost:
                    self._send_again(kept, rows)
        if feedback.is_size_doubted:
            feedback.is_size_doubted = False
            path.too_big = True
        if path.segment_most != self._segment_most:
            self._follow_size(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_NS
            self.feedback.tick(self._segment_most or BASE, now)
            self._counters[_FORGOTTEN] += self._kept.expire(now)
            self._look_at_tail(now)

    def _send_again(self, kept: KeptBlock, rows: list[int]) -> None:
        times = 1 if kept.has_parity else self._plan.times(kept.rows)
        if kept.train is None:
            self._again.append(SingleRow(self._header, kept, 0, is_first=False, times=times))
        else:
            self._again.append(RowsAgain(self._header, kept, kept.train, rows, times))

    def _look_at_tail(self, now: int) -> None:
        """Send something once more of what was sent last, if nothing else goes and nothing is heard."""
        feedback, path = self.feedback, self.path
        if path.outstanding_since is None or self._bulk or self._light or self._again or not feedback.smoothed:
            return
        wait = max(self._tail_ns, 2 * feedback.smoothed + feedback.patience_ns + 2 * REPORT_NS)
        if now - path.sent_ns < wait:
            return
        kept = self._kept.newest()
        if kept is None:
            return
        self._tail_ns = min(2 * wait, TAIL_MOST_NS)
        self._send_again(kept, kept.lacking or [0 if kept.train is None else kept.train.count - 1])

    def _follow_size(self, now: int) -> None:
        """The path carries segments of another size. Those that it carries no more are cut anew."""
        before, self._segment_most = self._segment_most, self.path.segment_most
        self._pause_until = 0
        if 0 < self._segment_most < before:
            for kept in self.take_back():
                self.add(kept.stream, kept.number, kept.epoch, kept.row, now)

    # -- bursts

    def send(self, now: int) -> bool:
        """Send some bursts. Whether more may go at once."""
        self._now = now
        copies = self._copies
        while copies and copies[0][0] <= now:
            _, _, copy = heappop(copies)
            self._copies_bytes -= copy.kept.size
            if not copy.kept.is_done:
                self._light.append(copy)
        while self._later and self._later[0][0] <= now:
            self._again.append(self._later.popleft()[1])
        if not (self._light or self._again or self._bulk) or not self.is_usable or now < self._pause_until:
            return False
        rate = self.feedback.rate
        for _ in range(BURSTS_MOST):
            room = rate.window - rate.under_way
            if self._light and room > -(LIGHT_WINDOWS - 1) * rate.window:
                goes = self._send_burst(self._light, SEGMENTS_MOST, now)
            elif room <= 0:
                self._is_held = True
                return False
            elif self._next_at > now:
                return False
            elif self._again:
                goes = self._send_burst(self._again, self._most(self._again, room), now)
            elif self._bulk:
                goes = self._send_burst(self._bulk, self._most(self._bulk, room), now)
            else:
                return False
            if not goes:
                return False
        return True

    def _most(self, queue: deque[Unsent], room: int) -> int:
        """Segments of the next burst."""
        credit = self.feedback.rate.pacing_rate * BURST_NS / SECOND
        return max(LEAST_SEGMENTS, int(min(credit, room)) // queue[0].segment_bytes)

    def _send_burst(self, queue: deque[Unsent], most: int, now: int) -> bool:
        """Send the first segments of a queue, which have one size, in one call. False if the kernel takes none."""
        while queue and queue[0].is_done:
            queue.popleft()
        if not queue:
            return True
        size, sequence = queue[0].segment_bytes, self.feedback.sequence
        most = min(most, self._socket.most(size))
        pieces: Pieces = []
        count = 0
        for unsent in queue:
            if count == most or unsent.segment_bytes != size or unsent.is_done:
                break
            some = min(unsent.left, most - count)
            pieces += unsent.pieces(some, sequence + count)
            count += some
        sent = self._socket.send(pieces, size, count, self.path)
        if self.path.outstanding_since is None:
            self.path.outstanding_since = now
        if sent <= 0:
            self._hold_on(sent, now)
            return False
        self._advance(queue, sent, now)
        size *= sent
        if queue is self._bulk:
            self._bulk_bytes -= size
        was_late = self._next_at < now - LATE_NS and not self._is_held
        self._is_held = False
        emptied = not (self.more or self._bulk or self._light or self._again)
        self.feedback.on_sent(sent, size, emptied or was_late, now)
        self.path.sent_ns = now
        self._next_at = max(self._next_at, now - LATE_NS) + int(size * SECOND / self.feedback.rate.pacing_rate)
        self._counters[_SEGMENTS] += sent
        self._counters[_BYTES] += size
        if queue is self._again:
            self._counters[_REPEATED] += sent
        return True

    def _advance(self, queue: deque[Unsent], sent: int, now: int) -> None:
        sequence = self.feedback.sequence - 1
        while sent:
            unsent = queue[0]
            some = min(unsent.left, sent)
            sent -= some
            sequence += some
            unsent.advance(some, sequence, now)
            if unsent.left:
                return
            queue.popleft()
            if unsent.begin_again():
                self._later.append((now + self._plan.spacing_ns, unsent))
            elif isinstance(unsent, TrainGroup):
                self._counters[_BLOCKS] += len(unsent.blocks)
                self._counters[_PARITY] += len(unsent.blocks) * unsent.cut.parts * unsent.cut.m
                for kept in unsent.blocks:
                    if kept.is_done:
                        self._free(kept)
            elif isinstance(unsent, SingleRow):
                self._counters[_BLOCKS if unsent.is_first else _COPIES] += unsent.is_first or unsent.kept.is_light

    def _hold_on(self, why: int, now: int) -> None:
        self._pause_until = now + (FULL_NS if why == FULL else REFUSED_NS)
        if why == TOO_BIG:
            self.path.too_big = True
        elif why != FULL:
            self.path.doubted = True

    # -- when to look again, and the end

    def due(self) -> int:
        """When (CLOCK_MONOTONIC ns) something may go; 0: nothing does before something comes."""
        due = self._copies[0][0] if self._copies else 0
        if self._later:
            due = min(due, self._later[0][0]) if due else self._later[0][0]
        if (self._light or self._again or self._bulk) and self.is_usable:
            if self._pause_until > self._now:
                return self._pause_until
            if self.feedback.rate.window > self.feedback.rate.under_way:
                due = min(due, self._next_at) if due else self._next_at
        if self.path.outstanding_since is not None:
            due = min(due, self._next_tick) if due else self._next_tick
        return due

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and all that was sent has been reported, or never will be."""
        return not (self._light or self._again or self._bulk or self._copies or self._later or self._kept)

    def take_counts(self) -> tuple[int, int, int]:
        """Bytes and segments that were sent since the last call, and segments that were lost."""
        feedback, before = self.feedback, self._counted
        self._counted = feedback.sent, feedback.sequence, feedback.lost
        return feedback.sent - before[0], feedback.sequence - before[1], feedback.lost - before[2]

    def cut_of(self, size: int) -> Cut | None:
        """How a block of this size is cut now; None: there is no size of rows."""
        row_most = self._segment_most - HEADER_BYTES
        return self._plan.cut(size, row_most).cut if row_most > 0 else None

    def take_back(self) -> list[KeptBlock]:
        """The blocks that were not reported, each with all of its bytes in `row`. Those of a stream are in order."""
        for group in self._bulk, self._light:
            for unsent in group:
                if isinstance(unsent, TrainGroup):
                    for kept in unsent.blocks:
                        if kept.is_done:
                            self._free(kept)
        self._light.clear()
        self._again.clear()
        self._bulk.clear()
        self._copies.clear()
        self._later.clear()
        self._bulk_bytes = self._copies_bytes = 0
        every = self._kept.take_all()
        for kept in every:
            kept.row = kept.block()
            kept.train = None
            self._free(kept)
        return every

    def use(self, path: Path) -> None:
        """It goes on by this path to that lane, such as one of another kind of datagrams. Before: go_dark()."""
        self.path = path
        self._socket = path.segments

    def go_dark(self, now: int) -> list[KeptBlock]:
        """The path is closed. It begins anew when it is opened again."""
        back = self.take_back()
        self.feedback.begin(now)
        self.path.outstanding_since = None
        self.path.reports.clear()
        self.more = self._is_held = False
        self._next_at, self._pause_until, self._tail_ns = now, 0, 0
        return back
