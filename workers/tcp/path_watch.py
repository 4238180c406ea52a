"""The watch over a client's uplinks, at either end: what a silent one has taken goes out on the others.

Looked at every LOOK_NS while anything that was sent has no answer:

    1. drop      what the other end's kernel has acknowledged (`workers.tcp.kept_items`)
                 and how much each connection has room for: what TCP lets it have on its way, and what it delivers soon
    2. late      which connections are silent (`pipeline.policy.path_silence`)
    3. move      what these have sent, and what waits in their queues, goes to others, ahead of what waits there. Late
                 ones get nothing more until all that they took has arrived

While no other connection is left, all stays where it is. Owned by the outbound duty.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from pipeline.counters import ID
from pipeline.policy.path_silence import PathSilence, Sample
from pipeline.transport.tcp_info import read_acknowledged
from workers.tcp.kept_items import UNSENT
from workers.tcp.peer_sender import PeerSender
from workers.tcp.send_item import SendItem
from workers.tcp.send_queue import BURST_BYTES, SendQueue

LOOK_NS = 5_000_000
SOON_US = 15_000  # behind a round trip: a connection holds no more than it delivers until then
HEARD_NS = 10_000_000  # something is heard now: the kernel counts in ticks of up to 10 ms

_LATE = ID["tcp.uplinks_timed_out"]
_RESENT = ID["tcp.runs_resent"]


class PathWatch:
    """`next_look`: when to look again, CLOCK_MONOTONIC ns; 0: nothing waits for an answer."""

    def __init__(self, counters: memoryview) -> None:
        self._counters = counters
        self.next_look = 0

    def has_room(self, queue: SendQueue, now: int) -> bool:
        """This queue is about to send. Whether it holds less than it delivers soon; always without uplinks."""
        kept = queue.kept
        if kept is None:
            return True
        kept.now = now
        self.next_look = self.next_look or now + LOOK_NS
        queue.burst_bytes = min(BURST_BYTES, kept.room_left())
        return queue.burst_bytes > 0

    def look(self, peers: Iterable[PeerSender], now: int) -> list[SendQueue]:
        """Look at the uplinks of these peers. The queues that got something to send."""
        changed: list[SendQueue] = []
        waits = False
        for peer in peers:
            if not peer.has_paths:
                continue
            for queue in peer.queues:
                if queue.kept is not None and not queue.kept.is_empty:
                    queue.kept.drop_acknowledged(now)
                    waits = True
            if any(queue.kept or queue.late for queue in peer.queues):
                waits = True
                changed += self._follow(peer, now)
        self.next_look = now + LOOK_NS if waits else 0
        return changed

    def _follow(self, peer: PeerSender, now: int) -> list[SendQueue]:
        paths: dict[int, list[SendQueue]] = {}
        for queue in peer.queues:
            paths.setdefault(queue.path, []).append(queue)
        verdicts: dict[SendQueue, bool] = {}
        for path, queues in paths.items():
            verdicts.update(self._verdicts(queues, peer.silence_of(path), now))
        late = [queue for queue, is_late in verdicts.items() if is_late and not queue.late]
        returned = [queue for queue, is_late in verdicts.items() if queue.late and not is_late]
        if not late and not returned:
            return []
        for queue in returned:
            queue.connection.send.late = False
        for queue in late:
            queue.connection.send.late = True
        self._counters[_LATE] += len({queue.path for queue in late})
        peer.set_queues(peer.queues)
        late = [queue for queue in peer.queues if queue.late]
        return self._move(peer, late) if len(late) < len(peer.queues) else []

    @staticmethod
    def _verdicts(queues: list[SendQueue], silence: PathSilence, now: int) -> dict[SendQueue, bool]:
        """Whether each of the connections on one uplink is late.

        One that was stays so until something is heard, and all that it took before has arrived: the kernel repeats that
        first, and slowly.
        """
        samples = {}
        for queue in queues:
            heard = read_acknowledged(queue.connection.socket)
            if heard is not None and queue.kept is not None:
                queue.kept.rtt_us = heard.rtt_us
                queue.kept.room = heard.snd_cwnd * heard.snd_mss + UNSENT
                if heard.delivery_rate:
                    soon = heard.delivery_rate * (heard.min_rtt_us + SOON_US) // 1_000_000
                    queue.kept.room = min(queue.kept.room, max(soon, 2 * heard.snd_mss))
                oldest = now - queue.kept.oldest_ns if queue.kept else None
                samples[queue] = Sample(
                    oldest,
                    heard.last_ms * 1_000_000,
                    heard.rtt_us * 1000,
                    heard.rttvar_us * 1000,
                    heard.min_rtt_us * 1000,
                )
        verdicts = dict(zip(samples, silence.late(samples.values()), strict=True))
        heard_now = any(each.heard_ns <= HEARD_NS for each in samples.values())
        return {
            queue: is_late or (queue.late and not (heard_now and queue.kept is not None and queue.kept.is_answered))
            for queue, is_late in verdicts.items()
        }

    def _move(self, peer: PeerSender, late: list[SendQueue]) -> list[SendQueue]:
        """Give to others what late connections have sent, and what waits for them."""
        changed = send_again(peer, late, self._counters)
        for queue in late:
            for item in queue.drain():
                target = peer.queue_for(item)
                target.append_moved(item)
                changed.append(target)
        return changed


def send_again(peer: PeerSender, queues: Iterable[SendQueue], counters: memoryview) -> list[SendQueue]:
    """Give to others what these connections have sent without an answer, the oldest first. The queues that got some."""
    again = []
    for queue in queues:
        assert queue.kept is not None
        queue.copy_out_partial()
        again += queue.kept.take()
    again.sort(key=itemgetter(0))
    counters[_RESENT] += len(again)
    return _put_ahead(peer, [item for _, item in again])


def _put_ahead(peer: PeerSender, items: list[SendItem]) -> list[SendQueue]:
    """Put these copies into the peer's queues, in turn, ahead of what waits there. The queues that got some."""
    shares: dict[tuple[SendQueue, bool], list[SendItem]] = {}
    for turn, item in enumerate(items):
        queues = peer.queues_for(item.light)
        shares.setdefault((queues[turn % len(queues)], item.light), []).append(item)
    for (queue, light), share in shares.items():
        queue.of_class(light).extendleft(reversed(share))
    return [queue for queue, _ in shares]
