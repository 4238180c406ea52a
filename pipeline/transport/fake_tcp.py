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

A process without rights does all of this. The supervisor has made the taps and their filters, which are locked.

receive() and tick() belong to the inbound duty, send() to both. The outbound duty reads tables of flows that the
inbound one changes: it finds a flow, or finds none.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from pipeline.counters import ID
from pipeline.faketcp.flow import Agreed, Ends, Flow
from pipeline.faketcp.packet import Arrived
from pipeline.transport import flow_socket
from pipeline.transport.flow_socket import Address
from pipeline.transport.next_hop import ETH_P_IP, ETH_P_IPV6, LINK_BYTES, HeardFrom, NextHop, NextHops
from pipeline.transport.tap import Tap

PAYLOAD_BYTES_MAX = 65536
"""The size of a buffer for receive()."""

HEAD_BYTES = {ETH_P_IP: 76, ETH_P_IPV6: 96}
"""All headers of a packet with timestamps, from an Ethernet device: the first guess."""

READS_MOST = 64  # packets without payload, in one call of receive()
LOOK_NS = 1_000_000_000  # between two looks at all flows
WAY_NS = 10_000_000_000  # between two looks at the way of a flow
KEEPALIVE_NS = 60_000_000_000
FINISHING_NS = 2_000_000_000  # how long a flow stays that has been finished: the last packets of the other end come
UNUSED_NS = 10_000_000_000  # a flow from which nobody has proved to be a peer
IDLE_NS = 300_000_000_000  # a peer probes every 120 s at least
INTERFACE_GONE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)
NO_WAY = "there is no way for a fake flow"

_OPENED = ID["dgram.flows_fake_opened"]
_ACKS = ID["dgram.acks_fake_sent"]
_DAMAGED = ID["dgram.dropped_segment_damaged"]


class Received(NamedTuple):
    """`size`: of the payload; `waited_ns`: since it came to this machine."""

    size: int
    segment_bytes: int
    address: Address
    waited_ns: int


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
        self.opened = 0  # flows so far

    @property
    def fds(self) -> list[int]:
        """Readable when a segment has come."""
        return [tap.socket.fileno() for tap in self._taps.values()]

    # -- payload

    def send(
        self, pieces: Sequence[memoryview | bytes], size: int, segment_bytes: int, address: Address, now: int
    ) -> None:
        """Send `size` bytes. BlockingIOError: the window or a queue is full. OSError with EMSGSIZE: segments of that
        size do not fit the interface, or are more than the handshake allows; with ENOTCONN or EHOSTUNREACH: there is
        no flow, or no way now."""
        open_flow = self._by_address.get(address)
        if open_flow is None:
            raise OSError(errno.ENOTCONN, "there is no fake flow")
        way, flow = open_flow.way, open_flow.flow
        if way is None:
            raise OSError(errno.EHOSTUNREACH, NO_WAY)
        if segment_bytes > min(way.mtu - flow.head_bytes, flow.agreed.payload_most) or size > flow.payload_most:
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

    def has_flow(self, address: Address) -> bool:
        return address in self._by_address

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
        self.opened += 1
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
