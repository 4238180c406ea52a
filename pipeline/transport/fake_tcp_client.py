"""Fake TCP of a lane of a client: one flow to the server, and another one when it is no good.

There is none before it is wanted, and none after rest().
"""

from __future__ import annotations

import socket

from pipeline.counters import ID
from pipeline.faketcp.packet import ACK, RST, SYN, Arrived
from pipeline.policy.flow_renewal import FlowRenewal
from pipeline.transport import flow_socket
from pipeline.transport.fake_tcp import FakeTcp, Fresh, OpenFlow, Received
from pipeline.transport.flow_socket import Address
from pipeline.transport.next_hop import HeardFrom

_REFUSED = ID["dgram.flows_fake_refused"]
_NO_FLOW = ID["dgram.dropped_segment_no_flow"]


class ClientFakeTcp(FakeTcp):
    """One flow to the server, and another one when it is no good. `port`, `host`: of the server's fake TCP."""

    def __init__(
        self,
        taps: dict[int, socket.socket],
        server: Address,
        scope: int,
        lane: int,
        lanes: int,
        counters: memoryview,
    ) -> None:
        super().__init__(taps, counters)
        self.server = server
        self._family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self._scope = scope
        self._lane, self._lanes = lane, lanes
        self._renewal = FlowRenewal()
        self._dialing: socket.socket | None = None
        self._answer: tuple[Arrived, HeardFrom] | None = None  # the SYN-ACK that the tap has seen
        self._current: OpenFlow | None = None
        self._is_doubted = False
        self.is_wanted = False

    def doubt(self) -> None:
        """Nothing gets through, although segments may be acknowledged: somebody else may do that."""
        self._is_doubted = True

    def _on_unknown(self, packet: Arrived, heard_from: HeardFrom, now: int) -> OpenFlow | None:
        is_answer = packet.flags & (SYN | ACK | RST) == SYN | ACK and not packet.is_damaged
        if self._dialing is None or not is_answer:
            self._counters[_NO_FLOW] += 1
            return None
        self._answer = (packet, heard_from)
        try:
            self._try_to_open(now)
        except OSError:
            self._give_up()
        return None

    def _try_to_open(self, now: int) -> None:
        """The tap may see the answer before the kernel does. OSError: the dialing has failed."""
        sock = self._dialing
        if sock is None or not flow_socket.is_connected(sock) or self._answer is None:
            return
        packet, heard_from = self._answer
        ends = flow_socket.ends(sock)
        if packet.key != ends.key:
            return
        flow_socket.silence(sock)
        fresh = Fresh(sock, ends, flow_socket.agreed(sock), now)
        before = self._current
        received = packet.sequence + 1 & 0xFFFFFFFF
        opened = self._open(fresh, packet.acknowledged, received, packet.window, self._scope, heard_from, now)
        opened.is_used = True
        self._current, self._dialing, self._answer, self._is_doubted = opened, None, None, False
        if before is not None and not before.finished_ns:
            self._finish(before, now)

    def tick(self, now: int) -> None:
        super().tick(now)
        try:
            self._try_to_open(now)
        except OSError:
            self._give_up()
        if not self.is_wanted:
            return
        current = self._current
        if current is None:
            is_due = self._renewal.due(now, 0, 0, False)
        else:
            flow = current.flow
            is_over = (
                self._is_doubted or flow.was_reset or flow.has_ended or current.finished_ns > 0 or current.way is None
            )
            is_due = self._renewal.due(now, flow.opened_ns, flow.asked_ns, is_over)
        if is_due:
            self._dial()

    def _dial(self) -> None:
        self._give_up()
        try:
            self._dialing = flow_socket.dial(self._family, self.server, self._scope, self._lane, self._lanes)
        except OSError:
            self._counters[_REFUSED] += 1

    def receive(self, into: memoryview, now: int) -> Received | None:
        found = super().receive(into, now)
        if found is None and self._current is not None and self._current.flow.was_reset:
            self.tick(now)  # another flow is begun at once
        return found

    def rest(self, now: int) -> None:
        """There is nothing to send for a while: the flow ends, and another one may be wanted later."""
        self.finish(now)
        self._current, self._renewal = None, FlowRenewal()

    def finish(self, now: int) -> None:
        self.is_wanted = False
        self._give_up()
        super().finish(now)

    def _give_up(self) -> None:
        if self._dialing is not None:
            self._counters[_REFUSED] += 1
            flow_socket.close(self._dialing)
            self._dialing = self._answer = None

    def close(self) -> None:
        if self._dialing is not None:
            flow_socket.close(self._dialing)
        super().close()
