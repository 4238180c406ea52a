"""Fake TCP of a lane of a server: the kernel makes handshakes, and a flow begins with the first segment behind one.

    fresh       a connection that the kernel has made, before a tap has seen a segment of it
    unused      a flow to which nothing was sent: nobody has proved to be a peer there

Both are few: the oldest of them makes room for another one.
"""

from __future__ import annotations

import socket

from pipeline.counters import ID
from pipeline.faketcp.packet import ACK, RST, SYN, Arrived
from pipeline.transport import flow_socket
from pipeline.transport.fake_tcp import UNUSED_NS, FakeTcp, Fresh, OpenFlow
from pipeline.transport.next_hop import HeardFrom

FLOWS_MOST, UNUSED_MOST = 4096, 256
ACCEPTS_MOST = 200
"""In a second. More of them wait in the kernel, and do not take the time of peers."""


_REFUSED = ID["dgram.flows_fake_refused"]
_NO_FLOW = ID["dgram.dropped_segment_no_flow"]


class ServerFakeTcp(FakeTcp):
    """`listener`: of this lane, not blocking. The kernel makes the handshakes, with SYN cookies under a flood."""

    def __init__(self, taps: dict[int, socket.socket], listener: socket.socket, counters: memoryview) -> None:
        super().__init__(taps, counters)
        self._listener = listener
        self._fresh: dict[bytes, Fresh] = {}
        self._unused: dict[bytes, OpenFlow] = {}  # the oldest first; some may be used by now
        self._accepts_left = ACCEPTS_MOST

    def _on_unknown(self, packet: Arrived, heard_from: HeardFrom, now: int) -> OpenFlow | None:
        if packet.flags & (SYN | RST | ACK) == ACK and not packet.is_damaged:
            if packet.key not in self._fresh:
                self._accept(now)
            fresh = self._fresh.pop(packet.key, None)
            if fresh is not None:
                window = packet.window << fresh.agreed.remote_scale
                made = self._open(fresh, packet.acknowledged, packet.sequence, window, 0, heard_from, now)
                self._unused[packet.key] = made
                return made
        if not packet.flags & SYN:
            self._counters[_NO_FLOW] += 1
        return None

    def _accept(self, now: int) -> None:
        while self._accepts_left:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # there is none, or its client has gone
            self._accepts_left -= 1
            try:
                flow_socket.silence(sock)
                ends, agreed = flow_socket.ends(sock), flow_socket.agreed(sock)
            except OSError:
                flow_socket.close(sock)
                continue
            if self._has_room():
                self._fresh[ends.key] = Fresh(sock, ends, agreed, now)
            else:
                self._refuse(sock)

    def _has_room(self) -> bool:
        """The oldest flow from which nobody has proved to be a peer makes room for another one."""
        if len(self._unused) + len(self._fresh) < UNUSED_MOST and len(self._flows) + len(self._fresh) < FLOWS_MOST:
            return True
        while self._unused:
            oldest = self._unused.pop(next(iter(self._unused)))
            if not oldest.is_used:
                self._counters[_REFUSED] += 1
                self._forget(oldest)
                return True
        if not self._fresh:
            return False
        self._refuse(self._fresh.pop(next(iter(self._fresh))).sock)
        return True

    def _forget(self, open_flow: OpenFlow) -> None:
        self._unused.pop(open_flow.flow.ends.key, None)
        super()._forget(open_flow)

    def _refuse(self, sock: socket.socket) -> None:
        self._counters[_REFUSED] += 1
        flow_socket.close(sock)

    def tick(self, now: int) -> None:
        is_look = now >= self._next_look_ns
        super().tick(now)
        if is_look:
            self._accepts_left = ACCEPTS_MOST
            self._accept(now)
            self._unused = {key: each for key, each in self._unused.items() if not each.is_used}
            for key, fresh in list(self._fresh.items()):
                if now - fresh.since_ns > UNUSED_NS:
                    del self._fresh[key]
                    self._refuse(fresh.sock)

    def close(self) -> None:
        for fresh in self._fresh.values():
            flow_socket.close(fresh.sock)
        self._listener.close()
        super().close()
