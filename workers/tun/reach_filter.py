"""Reach between peers: a forwarder in front of the forwarder, which lets pass what the rules allow.

It is in the way only while any peer has rules. A packet passes if neither of its two peers has rules; if its flow was
begun by the other end; or if the rules of its peer name where it goes. Of all that concerns a peer with rules, the flow
table has who began it.

    TCP, UDP         a flow that passes is looked at again once a second, and at each SYN, FIN and RST
    ICMP errors      pass with the flow that they tell of
    fragments        the first one decides, by its ports; later ones go with it, by their identification
    anything else    as a flow of its addresses and protocol

Refused packets are counted and noted for the supervisor. The first one of a flow in a second is answered, within a
limit for all. Rules that change hold from the next burst on: nothing that was decided before is kept. So a flow that is
no longer allowed ends, unless the other end has begun it.
"""

from __future__ import annotations

from time import monotonic_ns

from pipeline.counters import ID
from pipeline.packet.flow import BEGINS, ERROR, LATER, Flow, flow_of_packet, told_of
from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP
from pipeline.packet.refusal import refusal
from pipeline.packet.vnet import NO_VNET, VNET_HEADER_BYTES
from pipeline.policy.flow_times import Kept, after
from pipeline.policy.reach import Reach
from pipeline.policy.targets import ANY_PROTOCOL, PORT_MAX
from pipeline.policy.token_bucket import TokenBucket
from pipeline.runtime.worker import Attachment
from pipeline.shm.flow_table import FlowTable, Note
from pipeline.shm.reach_rules import Rules, RulesReader
from pipeline.wire import charge
from workers.tun.forwarder import PeerForwarder
from workers.tun.late_charges import LateCharges

SECOND = 1_000_000_000
DECIDED_MAX = 16384  # flows whose decision is kept; then all are looked at again
FRAGMENTS_MAX = 1024
FRAGMENT_NS = 30 * SECOND  # that a first fragment is remembered: net.ipv4.ipfrag_time
ANSWERS_PER_SECOND = 50

_IP = VNET_HEADER_BYTES
_V4_FRAGMENT, _V4_PROTOCOL, _V4_ADDRESSES, _V4_PORTS_END, _V4_FLAGS = _IP + 6, _IP + 9, _IP + 12, _IP + 24, _IP + 33
_V6_PROTOCOL, _V6_ADDRESSES, _V6_PORTS_END, _V6_FLAGS = _IP + 6, _IP + 8, _IP + 44, _IP + 53
_V4_LEAST, _V6_LEAST = _IP + 40, _IP + 60  # bytes of a TCP packet: its flags are in it
_FRAGMENT_BITS = 0x3F  # of the first byte of the offset: more fragments, and an offset
_OF_UDP = bytes([IPPROTO_UDP])
_TCP_SPECIAL = 0x07  # FIN, SYN, RST
_NOT_REACHABLE = ID["tun.dropped_not_reachable"]


class ReachFilter:
    """`forwarder`: that which passes packets on; None if no packet passes from peer to peer."""

    def __init__(
        self, attachment: Attachment, reader: RulesReader, flows: FlowTable, forwarder: PeerForwarder | None
    ) -> None:
        self._reader = reader
        self._flows = flows
        self.forwarder = forwarder
        self._counters = attachment.page.counters
        self._charges = LateCharges(attachment)
        self._rules: Rules = reader.rules
        self._decided: dict[bytes, int] = {}  # when to look again, ns; negative: refused until then
        self._fragments: dict[tuple[bytes, bytes, int, int], tuple[bool, int]] = {}
        self._answers = TokenBucket(ANSWERS_PER_SECOND, ANSWERS_PER_SECOND)

    def follow(self) -> bool:
        """Take the present rules; False while they are written."""
        if not self._reader.follow():
            return False
        self._rules = self._reader.rules
        self._decided.clear()
        self._fragments.clear()
        return True

    def has_changed(self) -> bool:
        return self._reader.has_changed()

    @property
    def is_needed(self) -> bool:
        """Whether any peer has rules, and packets from peer to peer meet them."""
        return self.forwarder is not None and any(policy is not None for policy in self._rules.policies.values())

    @property
    def kept_from_kernel(self) -> frozenset[int]:
        """The peers with rules of which the kernel does not have its part."""
        return self._rules.kept

    def flush(self) -> None:
        if self.forwarder is not None:
            self.forwarder.flush()

    def forward(
        self, slot: memoryview, at: int, length: int, sender: int, peer_handle: int, traffic_class: int
    ) -> None:
        """Forward the packet, if it may pass."""
        if self.forwarder is not None and self._passes(slot, at, length, sender, peer_handle):
            self.forwarder.forward(slot, at, length, sender, peer_handle, traffic_class)
        else:
            self._counters[_NOT_REACHABLE] += 1
            self._flows.count_refused(sender)

    def _passes(self, slot: memoryview, at: int, length: int, sender: int, receiver: int) -> bool:
        policies = self._rules.policies
        own = policies.get(sender)
        if own is None and sender in policies and policies.get(receiver) is None:
            return True
        key = _key_of_plain(slot, at, length)
        now = monotonic_ns()
        if key:
            again = self._decided.get(key, 0)
            if again > now:
                return True
            if -again > now:
                return False
        flow = flow_of_packet(slot, at + _IP, at + length)
        if flow is None or sender not in policies:
            return False
        passes = self._decide(slot, at + length, flow, own, now)
        if key:
            if len(self._decided) >= DECIDED_MAX:
                self._decided.clear()
            self._decided[key] = now + SECOND if passes else -now - SECOND
        if not passes:
            self._refuse(slot, at, length, flow, sender, now)
        return passes

    def _decide(self, slot: memoryview, end: int, flow: Flow, own: Reach | None, now: int) -> bool:
        """`own`: the rules of the sender; None if it may reach everything."""
        seconds = now // SECOND
        if flow.part == ERROR:
            return own is None or self._may_tell(slot, end, flow, own, seconds)
        if flow.part == LATER:
            return own is None or self._goes_with_first(flow, own, now)
        passes = self._passes_whole(flow, own, seconds)
        if flow.ident >= 0 and own is not None:
            if len(self._fragments) >= FRAGMENTS_MAX:
                self._fragments.clear()
            self._fragments[flow.source, flow.destination, flow.protocol, flow.ident] = passes, now + FRAGMENT_NS
        return passes

    def _passes_whole(self, flow: Flow, own: Reach | None, seconds: int) -> bool:
        """A packet with all its headers: an answer, or one that its rules allow. The flow is known from then on."""
        if not flow.is_first:
            before = self._flows.find(flow.key_back, seconds)
            if before is not None:
                self._know(flow.key_back, flow, before, seconds, answers=True)
                return True
        if own is not None and own.find(flow.destination, flow.protocol, flow.port, flow.port) < 0:
            return False
        if flow.part == BEGINS:
            self._know(flow.key, flow, self._flows.find(flow.key, seconds), seconds, answers=False)
        return True

    def _know(self, key: bytes, flow: Flow, before: Kept | None, seconds: int, *, answers: bool) -> None:
        kept = after(flow.protocol, flow.flags, before, answers=answers)
        if kept != before:
            self._flows.put(key, kept, seconds)

    def _may_tell(self, slot: memoryview, end: int, error: Flow, own: Reach, seconds: int) -> bool:
        """An error about a packet of a flow that passes: to the end which has sent that packet."""
        told = told_of(slot, error, end)
        if told is None or told.source != error.destination:
            return False
        return (
            self._flows.find(told.key, seconds) is not None
            or self._flows.find(told.key_back, seconds) is not None
            or own.find(told.source, told.protocol, told.source_port, told.source_port) >= 0
        )

    def _goes_with_first(self, flow: Flow, own: Reach, now: int) -> bool:
        """A later fragment: as the first one, or where every port is allowed."""
        key = flow.source, flow.destination, flow.protocol, flow.ident
        passes, until = self._fragments.get(key, (False, 0))
        if until > now:
            return passes
        return own.find(flow.destination, flow.protocol, 0, PORT_MAX) >= 0 or (
            own.find(flow.destination, ANY_PROTOCOL, 0, PORT_MAX) >= 0
        )

    def _refuse(self, slot: memoryview, at: int, length: int, flow: Flow, sender: int, now: int) -> None:
        """Note a refused packet, and answer it."""
        self._charges.add(sender, charge.SEGMENT)
        if not self._answers.in_credit(now):
            return
        self._answers.spend(1, now)
        if flow.part == LATER:
            return  # the first one was told
        self._flows.note(Note(sender, flow.protocol, flow.port, flow.destination))
        own = self._rules.own.get(len(flow.source), b"")
        answer = refusal(slot, at + _IP, at + length, flow, own)
        if answer and self.forwarder is not None:
            packet = memoryview(NO_VNET + answer)
            self.forwarder.forward(packet, 0, len(packet), sender, sender, 0)


def _key_of_plain(slot: memoryview, at: int, length: int) -> bytes:
    """A key of the flow of a plain TCP or UDP packet that neither begins nor ends it; b"" for any other packet."""
    first = slot[at + _IP]
    if first == 0x45:
        protocol = slot[at + _V4_PROTOCOL]
        if slot[at + _V4_FRAGMENT] & _FRAGMENT_BITS or slot[at + _V4_FRAGMENT + 1]:
            return b""
        if protocol == IPPROTO_TCP:
            if length < _V4_LEAST or slot[at + _V4_FLAGS] & _TCP_SPECIAL:
                return b""
            return bytes(slot[at + _V4_ADDRESSES : at + _V4_PORTS_END])
        if protocol == IPPROTO_UDP and length >= _V4_PORTS_END:
            return bytes(slot[at + _V4_ADDRESSES : at + _V4_PORTS_END]) + _OF_UDP
    elif first >> 4 == 6:
        protocol = slot[at + _V6_PROTOCOL]
        if protocol == IPPROTO_TCP:
            if length < _V6_LEAST or slot[at + _V6_FLAGS] & _TCP_SPECIAL:
                return b""
            return bytes(slot[at + _V6_ADDRESSES : at + _V6_PORTS_END])
        if protocol == IPPROTO_UDP and length >= _V6_PORTS_END:
            return bytes(slot[at + _V6_ADDRESSES : at + _V6_PORTS_END]) + _OF_UDP
    return b""
