"""Segments by fake TCP, in the place of a UDP socket. Errors are those that a UDP socket would have.

    send(pieces, size, segment_bytes, address, now)    payload, as one super-packet of equal segments; the last one may
                                                       be shorter
    receive(into, now)                                 the next payload, at the beginning of `into`: its size, that of
                                                       its segments, and its sender
    segment_most(address)                              bytes of a segment that will probably get through
    tick(now)                                          all that time brings: every 10 ms, from the duty that receives
    finish(), close()                                  end all flows; the sockets of flows

    tap         the packet socket of a version of IP: it sees all segments of our port and lane, and sends all of ours
    open flow   a fake flow, and the kernel's socket that has made its handshake
    fresh       said of a connection that the kernel has made, before a tap has seen a segment of it

A process without rights does all of this. The supervisor has made the taps and their filters, which are locked.

receive() and tick() belong to the inbound duty, send() to both. The outbound duty reads tables of flows that the
inbound one changes: it finds a flow, or finds none.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from pipeline.counters import ID
from pipeline.faketcp.flow import Agreed, Ends, Flow
from pipeline.faketcp.packet import ACK, RST, SYN, Arrived, read
from pipeline.policy.flow_renewal import FlowRenewal
from pipeline.transport import flow_socket
from pipeline.transport.flow_socket import Address
from pipeline.transport.next_hop import ETH_P_IP, ETH_P_IPV6, LINK_BYTES, HeardFrom, NextHop, NextHops

PAYLOAD_BYTES_MAX = 65536
"""The size of a buffer for receive()."""

SO_TIMESTAMPNS = 35  # asm-generic/socket.h
WAITED_MOST_NS = 1_000_000_000  # more than that is a step of the clock
HEAD_BYTES = {ETH_P_IP: 76, ETH_P_IPV6: 96}
"""All headers of a packet with timestamps, from an Ethernet device: the first guess."""

READS_MOST = 64  # packets without payload, in one call of receive()
LOOK_NS = 1_000_000_000  # between two looks at all flows
WAY_NS = 10_000_000_000  # between two looks at the way of a flow
KEEPALIVE_NS = 60_000_000_000
FINISHING_NS = 2_000_000_000  # how long a flow stays that has been finished: the last packets of the other end come
UNUSED_NS = 10_000_000_000  # a flow from which nobody has proved to be a peer
IDLE_NS = 300_000_000_000  # a peer probes every 120 s at least
FLOWS_MOST, UNUSED_MOST = 4096, 256
ACCEPTS_MOST = 200
"""In a second. More of them wait in the kernel, and do not take the time of peers."""

INTERFACE_GONE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)
NO_WAY = "there is no way for a fake flow"

_TIME = struct.Struct("@ll")
_OPENED = ID["dgram.fake_flows_opened"]
_REFUSED = ID["dgram.fake_flows_refused"]
_ACKS = ID["dgram.fake_acks_sent"]
_NO_FLOW = ID["dgram.dropped_segment_no_flow"]
_DAMAGED = ID["dgram.dropped_segment_damaged"]


class Received(NamedTuple):
    """`size`: of the payload; `waited_ns`: since it came to this machine."""

    size: int
    segment_bytes: int
    address: Address
    waited_ns: int


class Tap:
    """A packet socket. `head`: where it puts headers; `source`, `waited_ns`: of the latest packet."""

    __slots__ = ("_ancillary_bytes", "head", "socket", "source", "waited_ns")

    def __init__(self, sock: socket.socket, head_bytes: int) -> None:
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket = sock
        self.head = memoryview(bytearray(head_bytes))
        self.source: tuple[str, int, int, int, bytes] = ("", 0, 0, 0, b"")
        self.waited_ns = 0
        self._ancillary_bytes = socket.CMSG_SPACE(_TIME.size)

    def receive(self, into: memoryview) -> int:
        """Bytes in head and `into`; 0: more than they hold, which is only with a greater gro_max_size (ip-link(8)).

        OSError: nothing is there, or an interface went down."""
        size, ancillary, flags, self.source = self.socket.recvmsg_into([self.head, into], self._ancillary_bytes)
        for level, kind, data in ancillary:
            if kind == SO_TIMESTAMPNS and level == socket.SOL_SOCKET:
                seconds, rest = _TIME.unpack(data)
                waited = time.time_ns() - seconds * 1_000_000_000 - rest
                self.waited_ns = waited if 0 < waited < WAITED_MOST_NS else 0
        return 0 if flags & socket.MSG_TRUNC else size

    def read(self, into: memoryview, size: int, link_bytes: int) -> Arrived | None:
        """The packet of so many bytes, whose payload is at the beginning of `into` then."""
        expected = len(self.head)
        found = read(self.head[:size], into[: max(0, size - expected)], link_bytes)
        if found is not None and found.begin == min(expected, size):
            return found
        whole = memoryview(bytes(self.head[:size]) + bytes(into[: max(0, size - expected)]))
        found = read(whole, whole[:0], link_bytes)
        if found is not None and found.end > found.begin:  # a flow without timestamps, or another kind of device
            into[: found.end - found.begin] = whole[found.begin : found.end]
            self.head = memoryview(bytearray(found.begin))
        return found


class OpenFlow:
    """`is_used`: we send there, so its other end has proved to be a peer."""

    __slots__ = ("address", "finished_ns", "flow", "heard_from", "is_used", "looked_ns", "scope", "sock", "to", "way")

    def __init__(self, flow: Flow, sock: socket.socket, address: Address, scope: int) -> None:
        self.flow = flow
        self.sock = sock
        self.address = address
        self.scope = scope
        self.way: NextHop | None = None
        self.to: tuple[str, int] = ("", 0)
        self.heard_from: HeardFrom | None = None
        self.looked_ns = 0
        self.finished_ns = 0
        self.is_used = False


class Fresh(NamedTuple):
    sock: socket.socket
    ends: Ends
    agreed: Agreed
    since_ns: int


class FakeTcp:
    """The flows of one lane. `taps`: by protocol of the link layer, not blocking. `counters`: of the worker."""

    def __init__(self, taps: dict[int, socket.socket], counters: memoryview) -> None:
        self._taps = {protocol: Tap(tap, HEAD_BYTES[protocol]) for protocol, tap in taps.items()}
        self._counters = counters
        self._hops = NextHops()
        self._flows: dict[bytes, OpenFlow] = {}
        self._by_address: dict[Address, OpenFlow] = {}
        self._owing: set[OpenFlow] = set()  # they owe an acknowledgement that can wait
        self._next_look_ns = 0

    @property
    def fds(self) -> list[int]:
        """Readable when a segment has come."""
        return [tap.socket.fileno() for tap in self._taps.values()]

    # -- payload

    def send(
        self, pieces: Sequence[memoryview | bytes], size: int, segment_bytes: int, address: Address, now: int
    ) -> None:
        """Send `size` bytes. BlockingIOError: the window or a queue is full. OSError with EMSGSIZE: segments of that
        size do not fit the interface; with ENOTCONN or EHOSTUNREACH: there is no flow, or no way now."""
        open_flow = self._by_address.get(address)
        if open_flow is None:
            raise OSError(errno.ENOTCONN, "there is no fake flow")
        way, flow = open_flow.way, open_flow.flow
        if way is None:
            raise OSError(errno.EHOSTUNREACH, NO_WAY)
        if flow.head_bytes + segment_bytes > way.mtu or size > flow.payload_most:
            raise OSError(errno.EMSGSIZE, "a segment of a fake flow is too large")
        if not flow.may_send(size, now):
            raise BlockingIOError(errno.EAGAIN, "the window of a fake flow is full")
        open_flow.is_used = True
        header = flow.header(size, segment_bytes, now)
        try:
            self._taps[open_flow.to[1]].socket.sendmsg([header, *pieces], [], 0, open_flow.to)
        except OSError as error:
            flow.take_back(header, size)
            if error.errno in INTERFACE_GONE:
                raise OSError(errno.EHOSTUNREACH, NO_WAY) from None
            raise

    def segment_most(self, address: Address) -> int:
        """Larger ones may be tried. 0: there is no flow."""
        open_flow = self._by_address.get(address)
        if open_flow is None or open_flow.way is None:
            return 0
        flow = open_flow.flow
        return min(open_flow.way.mtu - flow.head_bytes, flow.agreed.payload_most)

    def receive(self, into: memoryview, now: int) -> Received | None:
        """The next payload, in `into`; None: nothing more has come."""
        for tap in self._taps.values():
            for _ in range(READS_MOST):
                try:
                    size = tap.receive(into)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an interface went down, which is said once
                received = self._take(tap, into, size, now)
                if received is not None:
                    return received
        return None

    def _take(self, tap: Tap, into: memoryview, size: int, now: int) -> Received | None:
        interface, _, _, kind, link_address = tap.source
        link_bytes = LINK_BYTES.get(kind)
        packet = None if link_bytes is None else tap.read(into, size, link_bytes)
        if packet is None:
            self._counters[_DAMAGED] += 1
            return None
        open_flow = self._flows.get(packet.key) or self._on_unknown(packet, (interface, link_address), now)
        if open_flow is None:
            return None
        flow = open_flow.flow
        drop = flow.take(packet, now)
        if drop is not None:
            self._counters[drop] += 1
            return None
        if flow.due(now):
            self._acknowledge(open_flow, now)
        elif packet.end > packet.begin:
            self._owing.add(open_flow)
        if packet.end == packet.begin:
            return None
        return Received(packet.end - packet.begin, packet.segment_bytes, open_flow.address, tap.waited_ns)

    def _on_unknown(self, packet: Arrived, heard_from: HeardFrom, now: int) -> OpenFlow | None:
        """The flow that begins with a packet, if the kernel knows of it; else the packet is counted."""
        raise NotImplementedError

    # -- flows

    def _open(
        self, fresh: Fresh, next_byte: int, received: int, window: int, scope: int, heard_from: HeardFrom, now: int
    ) -> OpenFlow:
        ends = fresh.ends
        flow = Flow(ends, fresh.agreed, next_byte, received, window, Lock(), now)
        family = socket.AF_INET if len(ends.remote) == 4 else socket.AF_INET6
        made = OpenFlow(flow, fresh.sock, (socket.inet_ntop(family, ends.remote), ends.remote_port), scope)
        made.heard_from = heard_from
        self._find_way(made, now)
        self._flows[ends.key] = made
        self._by_address[made.address] = made
        self._counters[_OPENED] += 1
        self._acknowledge(made, now)  # this opens the window of the other end: that of a handshake is small
        return made

    def _find_way(self, open_flow: OpenFlow, now: int) -> None:
        ends = open_flow.flow.ends
        open_flow.looked_ns = now
        way = self._hops.find(ends, open_flow.scope, open_flow.heard_from)
        if way is not None and (open_flow.way is None or way.link != open_flow.way.link):
            open_flow.flow.set_link(way.link)
        if way is not None:
            open_flow.to = (way.interface, ETH_P_IP if len(ends.local) == 4 else ETH_P_IPV6)
        open_flow.way = way

    def _acknowledge(self, open_flow: OpenFlow, now: int) -> None:
        self._owing.discard(open_flow)
        self._counters[_ACKS] += 1
        self._transmit(open_flow, open_flow.flow.acknowledge(now))

    def _transmit(self, open_flow: OpenFlow, header: bytearray) -> None:
        """A packet without payload. One that cannot be sent is as good as lost."""
        if open_flow.way is not None:
            try:
                self._taps[open_flow.to[1]].socket.sendmsg([header], [], 0, open_flow.to)
            except OSError:
                pass

    def tick(self, now: int) -> None:
        for open_flow in [each for each in self._owing if each.flow.due(now)]:
            self._acknowledge(open_flow, now)
        if now >= self._next_look_ns:
            self._next_look_ns = now + LOOK_NS
            for open_flow in list(self._flows.values()):
                self._look_at(open_flow, now)

    def _look_at(self, open_flow: OpenFlow, now: int) -> None:
        flow = open_flow.flow
        if open_flow.finished_ns:
            if now - open_flow.finished_ns > FINISHING_NS:
                self._forget(open_flow)
            return
        silent_ns = now - flow.heard_ns
        if flow.has_ended or silent_ns > IDLE_NS or (not open_flow.is_used and now - flow.opened_ns > UNUSED_NS):
            self._finish(open_flow, now)
            return
        if now - open_flow.looked_ns > WAY_NS or open_flow.way is None:
            self._find_way(open_flow, now)
        if silent_ns > KEEPALIVE_NS and not flow.asked_ns:
            self._transmit(open_flow, flow.keepalive(now))

    def finish(self, now: int) -> None:
        """Say the end of all flows. Their last packets come and go in the next two seconds."""
        for open_flow in list(self._flows.values()):
            if not open_flow.finished_ns:
                self._finish(open_flow, now)

    def _finish(self, open_flow: OpenFlow, now: int) -> None:
        open_flow.finished_ns = now
        self._transmit(open_flow, open_flow.flow.finish(now))
        if self._by_address.get(open_flow.address) is open_flow:
            del self._by_address[open_flow.address]

    def _forget(self, open_flow: OpenFlow) -> None:
        self._owing.discard(open_flow)
        self._flows.pop(open_flow.flow.ends.key, None)
        if self._by_address.get(open_flow.address) is open_flow:
            del self._by_address[open_flow.address]
        flow_socket.close(open_flow.sock)

    def close(self) -> None:
        """Close the sockets of all flows. The taps are the supervisor's; here are copies of their descriptors."""
        for open_flow in list(self._flows.values()):
            self._forget(open_flow)
        for tap in self._taps.values():
            tap.socket.close()
        self._hops.close()


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
        self._is_ending = False

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
        if self._is_ending:
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

    def finish(self, now: int) -> None:
        self._is_ending = True
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
