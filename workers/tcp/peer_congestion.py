"""The congestion control of a tcp worker's connections to one peer: set on their sockets, as they live.

    ""       what the host has; nothing is done
    a name   that one
    "auto"   what pipeline.policy.congestion makes of the losses; on several uplinks BBR at once, which fills no queue:
             packets would wait for those in the longest one

A worker has no rights, and the kernel lets it choose among a few algorithms alone
(net.ipv4.tcp_allowed_congestion_control). A socket that it is refused goes to the supervisor, which sets the algorithm
and closes its own descriptor of it. If the socket does not have the algorithm then, it is handed over again after
AGAIN_NS: perhaps a module has been loaded meanwhile.

A socket that has had BBR paces to its end, whatever it has later (sk_pacing_status, net/sock.h). On a fast path that
costs a sixth. There such a connection is worn, and a client dials it anew. One whose segments have become shorter is
kept: its kernel has found out that long ones vanish (RFC 4821), which a new one would have to find out again, for
seconds. Owned by the inbound duty.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from pipeline.counters import ID
from pipeline.log import LOG
from pipeline.policy.congestion import AUTO, LOSSY, LossCounts, PathLoss, algorithm
from pipeline.transport.connection import Connection
from pipeline.transport.socket_options import congestion_control, set_congestion_control
from pipeline.transport.tcp_info import TcpInfo

AGAIN_NS = 60_000_000_000

_CHANGED = ID["tcp.controls_changed"]

HandOver = Callable[[str, socket.socket], bool]
"""Let the supervisor set this algorithm on a socket. False if it takes no more requests now."""


class PeerCongestion:
    """`setting`: `congestion`, which is not empty."""

    def __init__(self, setting: str, peer: int, hand_over: HandOver, counters: memoryview) -> None:
        self._setting = setting
        self._peer = peer
        self._hand_over = hand_over
        self._counters = counters
        self._loss = PathLoss()
        self._host: dict[Connection, str] = {}  # the algorithm that the host has chosen
        self._refused: dict[Connection, int] = {}  # without the wanted algorithm; when to try again
        self._pacing: dict[Connection, None] = {}  # those that have had BBR, the first one first
        self._longest: dict[Connection, int] = {}  # bytes of the longest segment that each has had
        self._shortened: set[Connection] = set()  # those whose segments have become shorter

    @property
    def idle_may_be_skipped(self) -> bool:
        """Whether connections that send nothing need no update."""
        return not self._refused

    @property
    def worn(self) -> Connection | None:
        """The connection that is to be dialed anew now: one after the other, so that the others carry what it had."""
        if self._setting == AUTO and not self._loss.lossy and self._loss.is_fast:
            kept = self._shortened
            return next((each for each in self._pacing if each not in kept and each.uplink is None), None)
        return None

    def begin(self, connection: Connection, now: int) -> None:
        """A connection has been established."""
        self._host[connection] = congestion_control(connection.socket)
        self._set(connection, now)

    def end(self, connection: Connection) -> None:
        del self._host[connection]
        for known in (self._pacing, self._longest, self._refused):
            known.pop(connection, None)
        self._shortened.discard(connection)

    def update(self, infos: Mapping[Connection, TcpInfo], now: int) -> None:
        """The kernel's numbers of all connections. `now`: CLOCK_MONOTONIC ns."""
        self._note_lengths(infos)
        if self._setting == AUTO and self._has_changed(infos, now):
            for connection in infos:
                self._set(connection, now)
        for connection, again_at in list(self._refused.items()):
            wanted = self._wanted(connection)
            if congestion_control(connection.socket) == wanted:
                del self._refused[connection]
                self._note(connection, wanted)
            elif now >= again_at:
                self._set(connection, now)

    def _note_lengths(self, infos: Mapping[Connection, TcpInfo]) -> None:
        for connection, info in infos.items():
            longest = self._longest[connection] = max(self._longest.get(connection, 0), info.snd_mss)
            if info.snd_mss < longest:
                self._shortened.add(connection)

    def _has_changed(self, infos: Mapping[Connection, TcpInfo], now: int) -> bool:
        before = self._loss.lossy
        samples = [
            LossCounts(connection.serial, info.lost_segments, info.data_segs_out, 1000 * info.min_rtt_us)
            for connection, info in infos.items()
        ]
        if self._loss.update(samples, now) is before:
            return False
        self._counters[_CHANGED] += 1
        LOG.debug("peer %d: the path %s packets", self._peer, "has lost no more" if before else "loses")
        return True

    def _wanted(self, connection: Connection) -> str:
        if self._setting != AUTO:
            return self._setting
        return algorithm(self._host[connection], self._loss.lossy or connection.uplink is not None)

    def _set(self, connection: Connection, now: int) -> None:
        wanted = self._wanted(connection)
        self._refused.pop(connection, None)
        if congestion_control(connection.socket) in ("", wanted) or set_congestion_control(connection.socket, wanted):
            self._note(connection, wanted)
        else:
            self._refused[connection] = now + AGAIN_NS if self._hand_over(wanted, connection.socket) else now

    def _note(self, connection: Connection, control: str) -> None:
        """The connection has this algorithm now."""
        if control.startswith(LOSSY):
            self._pacing[connection] = None
