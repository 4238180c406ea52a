"""The monitor of a tcp worker's connections to one peer: what the kernel says of them, and what follows from it.

    loss, stalls    the parity and the copies that they call for, which the link publisher tells the tun and fec workers
    bursts          the spacing between copies or runs, which it tells the outbound duties of the tcp workers
    delay           how fast the bulk connections may send, so that light flows find the path's queue short. On
                    several uplinks there is none: each connection holds little there (workers.tcp.path_watch)
    rates           of a client with several uplinks: how much each carries, so that the fec workers share out bulk

Neither says anything about the path while the other end does not read, because it is busy: its window becomes smaller
with the bytes that it gets, or is closed. With `fec` off there is no monitor. Owned by the inbound duty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.policy import path_rates
from pipeline.policy.adaptive_parity import COPIES_MOST, AdaptiveParity, LossSample
from pipeline.policy.loss_bursts import LossBursts
from pipeline.policy.pacing import BulkPacer, PathSample
from pipeline.policy.path_rates import PathRates
from pipeline.runtime.plan import WorkerSettings
from pipeline.shm.link_requests import NONE, LinkRequests
from pipeline.transport.connection import Connection
from pipeline.transport.socket_options import UNPACED, set_pacing_rate
from pipeline.transport.tcp_info import TcpInfo
from pipeline.wire import framing
from workers.tcp.link_publisher import LinkPublisher

CLOSED_SHARE = 10  # a connection is unread if the other end's window was closed for a tenth of the time,
UNREAD_SHARE = 2  # or if the window has become smaller by half of the bytes that arrived, and
UNREAD_LEAST = 8192  # by so many, as a few packets that are about to be read take some of it

UNMEASURED_US = 0xFFFFFFFF  # tcpi_min_rtt before the first measurement

_PARITY_RAISED = ID["tcp.parity_raised"]
_PARITY_LOWERED = ID["tcp.parity_lowered"]
_PACES_CHANGED = ID["tcp.paces_changed"]


class LinkMonitor:
    """`connections_unanswered`: those that have ended for want of an answer since the last update; the owner counts."""

    def __init__(self, settings: WorkerSettings, peer: int, publisher: LinkPublisher, counters: memoryview) -> None:
        self._peer = peer
        self._publisher = publisher
        self._counters = counters
        self._pacer = BulkPacer()
        self._path_rates = PathRates()
        self._before: Mapping[Connection, TcpInfo] = {}  # at the last update
        self._fell: set[Connection] = set()  # the window became smaller from the update before it to the last one
        self._updated_at = 0
        self._bursts = LossBursts()
        self._requests = NONE  # published
        self._adaptive: AdaptiveParity | None = None
        self.connections_unanswered = 0
        if settings.fec == "auto":
            self._adaptive = AdaptiveParity(settings.fec_parity, settings.fec_data)
        else:
            self._request(LinkRequests(settings.fec_parity, min(settings.fec_parity, COPIES_MOST), 0))

    @property
    def idle_may_be_skipped(self) -> bool:
        """Whether a peer whose connections send nothing needs no update."""
        return not (
            self.connections_unanswered or self._pacer.rate or (self._adaptive is not None and self._adaptive.parity)
        )

    def update(self, infos: Mapping[Connection, TcpInfo], now: int) -> None:
        """Set parity and pacing rates by the kernel's numbers of all connections. `now`: CLOCK_MONOTONIC ns."""
        if self._before.keys().isdisjoint(infos):
            self._pacer = BulkPacer()  # for other connections: perhaps on another path
        unread = self._unread(infos, now)
        losses = [
            LossSample(
                connection.serial, info.retransmits, info.lost_segments, info.data_segs_out, connection in unread
            )
            for connection, info in infos.items()
            if not connection.send.late  # others send what it has taken, and need no parity for that
        ]
        requests = self._requests
        if self._adaptive is not None:
            parity = self._update_parity(self._adaptive, losses, now)
            requests = requests._replace(parity=parity, copies=self._adaptive.copies)
        self._request(requests._replace(spacing_us=self._update_spacing(losses, now)))
        self.connections_unanswered = 0
        bulk = {
            connection: PathSample(
                connection.serial, 1000 * info.rtt_us, 1000 * info.min_rtt_us, info.bytes_acked, connection in unread
            )
            for connection, info in infos.items()
            if connection.traffic_class == framing.BULK
        }
        # without light connections nothing needs the room; but a limit that is in force must go on to follow the path
        if any(connection.uplink for connection in infos):
            self._update_rates(infos, now)
        elif len(bulk) < len(infos) or self._pacer.rate:
            self._update_pacing(bulk, now)

    def _unread(self, infos: Mapping[Connection, TcpInfo], now: int) -> set[Connection]:
        """The connections of which the other end does not read what arrives.

        The window has to become smaller twice in a row: the last answer may have been written before its bytes were
        read. Bytes behind a lost segment take up the window as well, in the kernel.
        """
        closed_us = (now - self._updated_at) // 1000 // CLOSED_SHARE
        self._updated_at = now
        closed, fell = set(), set()
        for connection, info in infos.items():
            before = self._before.get(connection, info)
            arrived = info.bytes_acked - before.bytes_acked
            if info.rwnd_limited_us - before.rwnd_limited_us > closed_us:
                closed.add(connection)
            elif before.snd_wnd - info.snd_wnd > max(UNREAD_LEAST, arrived // UNREAD_SHARE) and not info.sacked:
                fell.add(connection)
        unread = closed | (fell & self._fell)
        self._before, self._fell = infos, fell
        return unread

    def _update_parity(self, adaptive: AdaptiveParity, losses: list[LossSample], now: int) -> int:
        before = adaptive.parity
        parity = adaptive.update(losses, self.connections_unanswered, now)
        if parity != before:
            self._counters[_PARITY_RAISED if parity > before else _PARITY_LOWERED] += 1
            LOG.debug("peer %d: parity changed from %d to %d", self._peer, before, parity)
        return parity

    def _update_spacing(self, losses: list[LossSample], now: int) -> int:
        """The spacing that the bursts of losses call for, in microseconds."""
        spacing = self._bursts.update(
            {each.serial: (each.resent, each.sent) for each in losses if not each.unread}, now
        )
        spacing_us = spacing // 1000
        if spacing_us != self._requests.spacing_us:
            LOG.debug("peer %d: spacing between copies changed to %.1f ms", self._peer, spacing / 1e6)
        return spacing_us

    def _request(self, requests: LinkRequests) -> None:
        if requests != self._requests:
            self._requests = requests
            self._publisher.request(self._peer, requests)

    def _update_pacing(self, bulk: dict[Connection, PathSample], now: int) -> None:
        before = self._pacer.rate
        each = self._pacer.update(list(bulk.values()), now)
        if before or each:
            for connection in bulk:
                set_pacing_rate(connection.socket, int(each) or UNPACED)
            self._counters[_PACES_CHANGED] += 1

    def _update_rates(self, infos: Mapping[Connection, TcpInfo], now: int) -> None:
        """Publish what each uplink carries."""
        paths = _by_uplink(connection for connection in infos if connection.traffic_class == framing.BULK)
        samples = {
            number: [
                path_rates.PathSample(each.serial, infos[each].bytes_acked, infos[each].notsent_bytes)
                for each in connections
            ]
            for number, connections in paths.items()
        }
        rates = dict(self._path_rates.update(samples, now))
        for number, connections in paths.items():
            if all(connection.send.late for connection in connections):
                rates[number] = 0.0
        mains = {number: each for number, each in paths.items() if rates[number] and not _is_backup(each)}
        far = path_rates.far({number: _round_trip_ns(each, infos) for number, each in mains.items()})
        for number, connections in paths.items():
            for connection in connections:
                connection.receive.far = number in far
            if number in far:
                rates[number] = 0.0
        self._publisher.set_rates(self._peer, rates, infos)


def _is_backup(connections: Iterable[Connection]) -> bool:
    """Whether the uplink of these connections is one."""
    return any(each.uplink is not None and each.uplink.is_backup for each in connections)


def _round_trip_ns(connections: Iterable[Connection], infos: Mapping[Connection, TcpInfo]) -> int:
    """The shortest one of these connections; 0: the kernel has measured none."""
    measured = (infos[each].min_rtt_us for each in connections)
    return 1000 * min((each for each in measured if each != UNMEASURED_US), default=0)


def _by_uplink(connections: Iterable[Connection]) -> dict[int, list[Connection]]:
    """These connections by the number of their uplink; without uplinks, all of them as 0."""
    found: dict[int, list[Connection]] = {}
    for connection in connections:
        found.setdefault(connection.uplink.number if connection.uplink else 0, []).append(connection)
    return found
