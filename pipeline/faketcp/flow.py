"""A fake flow: the sequence numbers, acknowledgements and headers of one TCP connection that is none.

The kernels of both ends have made its handshake. From then on each end writes the headers by itself:

    header()           of so many bytes of payload, as one super-packet; the device or the kernel cuts it
    acknowledge()      of a packet without payload, which is due() after ACK_BYTES or ACK_NS
    keepalive()        of one that asks for an acknowledgement
    finish()           of one that ends the flow
    take(packet)       a packet has come: None if its payload is good, else the counter for the drop

All up to the end of the newest segment is acknowledged, lost ones included: nothing is sent again here. So a firewall
sees a connection without losses. It lets pass only bytes inside the window that the other end has announced last, and
may_send() keeps to that. If all acknowledgements are lost, the window stays full. Then the numbers begin again behind
the last acknowledged byte, as those of a retransmission do. Firewalls and the other end take that for one.

Nobody verifies a packet. A forged one must have the addresses and ports, a sequence number inside the window, an
acknowledgement of bytes that are under way, and a timestamp of this moment. Then its payload gets to those who verify,
and the numbers may be spoilt. That costs the flow at most, and a flow is easily made anew.

The two duties of a worker share a flow. The numbers of what is sent are drawn under a lock, since both send.
take() is the inbound duty's.
"""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from typing import NamedTuple

from pipeline.counters import ID
from pipeline.faketcp.packet import (
    ACK,
    FIN,
    PSH,
    RST,
    STAMPED_BYTES,
    STAMPS,
    SYN,
    TCP_HEADER_BYTES,
    URG,
    Arrived,
)
from pipeline.packet.ip import IPPROTO_TCP, V4_HEADER_BYTES, V6_HEADER_BYTES, Drop
from pipeline.packet.vnet import GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, VNET, VNET_HEADER_BYTES

WINDOW = 0xFFFF
"""Of each header, before it is scaled: all that the handshake allows. Nothing waits here for anybody to read it."""

ACK_BYTES = 256 << 10  # or a quarter of the window
ACK_NS = 40_000_000  # RFC 9293, 3.8.6.3, allows 500 ms
STALL_NS = 200_000_000  # the shortest time after which Linux sends again (TCP_RTO_MIN)
STAMP_MS = 2000
"""So much a timestamp may be off: the newest one was this long before it, or it runs ahead of our clock since then."""

PROBE_BYTES = 1460
"""So much goes out after that even if no window is announced, as TCP probes a window of zero."""

RESET_BEHIND = 1 << 20
"""So far behind the newest byte a reset may be: it answers a header that may be a little old. Or it has the number with
which the kernel has left the handshake: that of a worker that was killed."""

IP_BYTES_MAX = 65535

_U32 = 0xFFFFFFFF
_CHECKSUM_AT = 16  # in struct tcphdr
_DONT_FRAGMENT = 0x4000  # IP_DF, net/ip.h
_V4 = struct.Struct(">BBHHHBBH4s4s")
_V6 = struct.Struct(">IHBB16s16s")
_TCP = struct.Struct(">HHIIBBHHH")
_LENGTH_AND_ID = struct.Struct(">HH")
_U16 = struct.Struct(">H")
_TWO = struct.Struct(">II")

_FLAGS = ID["dgram.dropped_segment_flags"]
_OUTSIDE = ID["dgram.dropped_segment_outside"]
_DAMAGED = ID["dgram.dropped_segment_damaged"]
_RESET = ID["dgram.flows_fake_ended"]


FlowLock = AbstractContextManager[object]


class Ends(NamedTuple):
    """Of a flow, seen from here. Addresses are bytes."""

    local: bytes
    local_port: int
    remote: bytes
    remote_port: int

    @property
    def key(self) -> bytes:
        """As `packet.read` finds it in packets that come."""
        return self.remote + self.local + self.remote_port.to_bytes(2, "big") + self.local_port.to_bytes(2, "big")


class Agreed(NamedTuple):
    """The outcome of the handshake of the kernels. `clock_ms`: our timestamp when the flow begins."""

    remote_scale: int  # shift of the windows that the other end announces
    local_scale: int  # shift of ours
    has_stamps: bool
    clock_ms: int
    hop_limit: int
    payload_most: int  # of a segment: what the other end accepts, lowered by boxes on the way that know a smaller MTU


class Flow:
    """`next_byte`: the number of the first byte that we send; `window`: that the other end has announced, scaled;
    `lock`: of this flow alone."""

    __slots__ = (
        "_ack_bytes", "_addresses_sum", "_answer", "_clock", "_first", "_fixed_sum", "_highest", "_id", "_is_v4",
        "_lock", "_owed_ns", "_remote_scale", "_stalled_at", "_stalled_ns", "_stamp", "_stamped_ns", "_template",
        "_told", "_window_here", "acknowledged", "agreed", "asked_ns", "ends", "has_ended", "head_bytes", "heard_ns",
        "opened_ns", "received", "sent", "was_reset", "window",
    )  # fmt: skip

    def __init__(
        self, ends: Ends, agreed: Agreed, next_byte: int, received: int, window: int, lock: FlowLock, now: int
    ) -> None:
        self.ends = ends
        self.agreed = agreed
        self.opened_ns = self.heard_ns = now
        self.head_bytes = (STAMPED_BYTES if agreed.has_stamps else TCP_HEADER_BYTES) + (
            V4_HEADER_BYTES if len(ends.local) == 4 else V6_HEADER_BYTES
        )
        """Of IP and TCP, in front of each segment."""

        # drawn under the lock
        self._lock = lock
        self.sent = self._highest = next_byte  # the next byte's number; the highest that it ever was
        self._id = next_byte & 0xFFFF  # of IPv4; it means nothing, since no packet is fragmented (RFC 6864)

        # take()'s
        self.acknowledged = next_byte
        self.window = window
        self.received = self._first = received
        self.was_reset = False  # somebody says that there is no such connection
        self.has_ended = False  # the other end does
        self._stamp, self._stamped_ns = 0, 0  # the newest timestamp, and when it came; 0: none has
        self._owed_ns = 0  # since when an acknowledgement is owed; 0: none is
        self._answer = False  # one is owed at once

        # of both
        self.asked_ns = 0  # since when something is sent that nothing has come for; 0: nothing
        self._told = received - 1 & _U32  # the latest acknowledgement
        self._stalled_ns, self._stalled_at = 0, next_byte

        self._clock = agreed.clock_ms * 1_000_000 - now
        self._remote_scale = agreed.remote_scale
        self._window_here = WINDOW << agreed.local_scale
        self._ack_bytes = min(ACK_BYTES, self._window_here // 4)
        self._is_v4 = len(ends.local) == 4
        self.set_link(b"")

    def set_link(self, link: bytes) -> None:
        """From now on packets begin with this link header."""
        ends, agreed = self.ends, self.agreed
        tcp_bytes = STAMPED_BYTES if agreed.has_stamps else TCP_HEADER_BYTES
        tcp = _TCP.pack(ends.local_port, ends.remote_port, 0, 0, tcp_bytes << 2, ACK, WINDOW, 0, 0)
        if agreed.has_stamps:
            tcp += STAMPS + bytes(8)
        if self._is_v4:
            ip = _V4.pack(0x45, 0, 0, 0, _DONT_FRAGMENT, agreed.hop_limit, IPPROTO_TCP, 0, ends.local, ends.remote)
        else:
            ip = _V6.pack(6 << 28, 0, IPPROTO_TCP, agreed.hop_limit, ends.local, ends.remote)
        at = VNET_HEADER_BYTES + len(link)
        # one store: the other duty finds the old template with its offsets, or the new one
        self._template = (bytes(VNET_HEADER_BYTES) + link + ip + tcp, at, at + len(ip))
        self._fixed_sum = int.from_bytes(ip, "big") % 0xFFFF
        self._addresses_sum = (int.from_bytes(ends.local + ends.remote, "big") + IPPROTO_TCP) % 0xFFFF

    # -- what is sent

    @property
    def payload_most(self) -> int:
        """Bytes of one super-packet."""
        return IP_BYTES_MAX - self.head_bytes

    def may_send(self, size: int, now: int) -> bool:
        """Whether so many bytes are inside the window of the other end."""
        if (self.sent - self.acknowledged & _U32) + size <= self.window:
            self._stalled_ns = 0
            return True
        if not self._stalled_ns or self._stalled_at != self.acknowledged:
            self._stalled_ns, self._stalled_at = now, self.acknowledged
        elif now - self._stalled_ns >= STALL_NS:
            with self._lock:
                self.sent = self.acknowledged
            self._stalled_ns = 0
            return size <= max(self.window, PROBE_BYTES)
        return False

    def header(self, size: int, segment_bytes: int, now: int) -> bytearray:
        """The headers of a packet with so many bytes of payload, which is cut into segments of that many."""
        if not self.asked_ns:
            self.asked_ns = now
        return self._header(size, segment_bytes, ACK | PSH, size, now)

    def take_back(self, header: bytearray, size: int) -> None:
        """The packet with this header could not be sent: its numbers are free again, unless later ones were drawn."""
        sequence = _TWO.unpack_from(header, self._template[2] + 4)[0]
        with self._lock:
            if self.sent == sequence + size & _U32:
                self.sent = sequence

    def acknowledge(self, now: int) -> bytearray:
        return self._header(0, 0, ACK, 0, now)

    def keepalive(self, now: int) -> bytearray:
        """Linux answers such a packet at once, and so do we: its byte has been acknowledged."""
        if not self.asked_ns:
            self.asked_ns = now
        return self._header(0, 0, ACK, 0, now, behind=1)

    def finish(self, now: int) -> bytearray:
        return self._header(0, 0, ACK | FIN, 1, now)

    def _header(self, size: int, segment_bytes: int, flags: int, takes: int, now: int, behind: int = 0) -> bytearray:
        with self._lock:
            sequence = self.sent
            self.sent = sequence + takes & _U32
            if (self.sent - self._highest & _U32) <= _U32 >> 1:
                self._highest = self.sent
            number = self._id
            self._id = number + (-(-size // segment_bytes) if size else 1) & 0xFFFF
        acknowledged = self._told = self.received
        self._owed_ns, self._answer = 0, False
        template, ip, tcp = self._template
        made = bytearray(template)
        is_super = size > segment_bytes
        if self._is_v4:
            total = len(made) - ip + size
            gso = GSO_TCPV4
            _LENGTH_AND_ID.pack_into(made, ip + 2, total, number)
            _U16.pack_into(made, ip + 10, 0xFFFF - ((self._fixed_sum + total + number) % 0xFFFF or 0xFFFF))
        else:
            gso = GSO_TCPV6
            _U16.pack_into(made, ip + 4, len(made) - tcp + size)
        VNET.pack_into(
            made, 0, NEEDS_CSUM, gso if is_super else GSO_NONE, len(made) - VNET_HEADER_BYTES,
            segment_bytes if is_super else 0, tcp - VNET_HEADER_BYTES, _CHECKSUM_AT,
        )  # fmt: skip
        _TWO.pack_into(made, tcp + 4, sequence - behind & _U32, acknowledged)
        made[tcp + 13] = flags
        _U16.pack_into(made, tcp + _CHECKSUM_AT, (self._addresses_sum + len(made) - tcp + size) % 0xFFFF)
        if self.agreed.has_stamps:
            _TWO.pack_into(made, tcp + 24, (self._clock + now) // 1_000_000 & _U32, self._stamp)
        return made

    # -- what comes

    def take(self, packet: Arrived, now: int) -> Drop:
        """A packet of this flow has come."""
        if packet.is_damaged:
            return _DAMAGED
        flags = packet.flags
        if flags & RST:
            return self._on_reset(packet)
        if flags & (SYN | URG) or not flags & ACK:
            return _FLAGS
        size = packet.end - packet.begin
        ahead = packet.sequence + size - self.received & _U32
        more = packet.acknowledged - self.acknowledged & _U32
        is_new, is_answer = ahead <= self._window_here, more <= (self._highest - self.acknowledged & _U32)
        if (
            (not is_new and -ahead & _U32 > self._window_here)
            or (not is_answer and -more & _U32 > self.window)
            or (self._stamped_ns and not self._is_of_now(packet.stamp, now))
        ):
            return _OUTSIDE
        self.heard_ns, self.asked_ns = now, 0
        if is_answer:
            self._on_acknowledged(packet.acknowledged, packet.window)
        if is_new:
            self._on_new(packet, size, now)
        elif size or -ahead & _U32 == 1:
            self._answer = True  # it is sent again, or asks for an acknowledgement
        if size and not self._owed_ns:
            self._owed_ns = now
        return None

    def _on_new(self, packet: Arrived, size: int, now: int) -> None:
        self.received = packet.sequence + size & _U32
        if self.agreed.has_stamps and packet.stamp >= 0:
            self._stamp, self._stamped_ns = packet.stamp, now
        if packet.flags & FIN and not self.has_ended:
            self.has_ended = True
            self.received = self.received + 1 & _U32
            self._answer = True

    def due(self, now: int) -> bool:
        """Whether an acknowledgement has to go out, since nothing else has taken it along."""
        if self._answer:
            return True
        if not self._owed_ns:
            return False
        return (self.received - self._told & _U32) >= self._ack_bytes or now - self._owed_ns >= ACK_NS

    def _is_of_now(self, stamp: int, now: int) -> bool:
        ahead = stamp - self._stamp + STAMP_MS & _U32
        return stamp >= 0 and ahead <= (now - self._stamped_ns) // 1_000_000 + 2 * STAMP_MS

    def _on_acknowledged(self, number: int, window: int) -> None:
        self.acknowledged = number
        self.window = window << self._remote_scale
        if 0 < (number - self.sent & _U32) <= _U32 >> 1:  # the numbers had begun again
            with self._lock:
                if 0 < (number - self.sent & _U32) <= _U32 >> 1:
                    self.sent = number

    def _on_reset(self, packet: Arrived) -> Drop:
        """No proof: a box on the way, or the kernel at the other end, or anybody who has guessed right."""
        if (self.received - packet.sequence & _U32) > RESET_BEHIND and packet.sequence != self._first:
            return _OUTSIDE
        self.was_reset = True
        return _RESET
