"""Rules that say which packets are light and which are bulk, whatever their flows send (`always_light`, `always_bulk`).

A rule is a mark, "EF" or "46", or a protocol and ports at either end of a flow, "udp/5060" or "tcp/8000-8099". A mark
comes before a port, and a rule for light before one for bulk.

Rules may make a lot of traffic light, which would then delay the other light flows. So all of it together has
RULED_RATE. A packet beyond that, or longer than a light packet may be, is classified as if there were no rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pipeline.packet.flow_classifier import LIGHT_PACKET_BYTES, FlowClassifier
from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP
from pipeline.packet.marks import parse_dscp
from pipeline.packet.vnet import VNET_HEADER_BYTES

RULE_FORM = 'a mark such as "EF" or "CS1", or ports such as "udp/5060" or "tcp/8000-8099"'

RULED_RATE = 2_500_000
"""Bytes a second, in each lane: 20 Mbit/s, two hundred calls."""

RULED_BURST_BYTES = 131072

NO_RULE, LIGHT, BULK = range(3)

_TOKENS_PER_NS = RULED_RATE / 1e9
_PROTOCOLS = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP}
_PORTS = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PORT_MAX = 65535
_CLASSES = 256  # values of the octet that has the mark, and two bits of ECN
_IP = VNET_HEADER_BYTES
_PLAIN_V4 = 0x45  # version 4, and no options
_FRAGMENT_OFFSET = 0x1F


class FlowRules:
    """ValueError if a rule is none."""

    def __init__(self, light: Iterable[str], bulk: Iterable[str]) -> None:
        self._marks = bytearray(_CLASSES)
        self._ports: dict[int, bytearray] = {}
        for verdict, rules in ((BULK, bulk), (LIGHT, light)):  # the later one counts
            for rule in rules:
                self._add(rule, verdict)

    def _add(self, rule: str, verdict: int) -> None:
        if ports := _PORTS.fullmatch(rule.lower()):
            first = int(ports[2])
            last = int(ports[3] or first)
            if not first <= last <= _PORT_MAX:
                raise ValueError(RULE_FORM)
            of_protocol = self._ports.setdefault(_PROTOCOLS[ports[1]], bytearray(_PORT_MAX + 1))
            of_protocol[first : last + 1] = bytes([verdict]) * (last + 1 - first)
            return
        try:
            mark = parse_dscp(rule)
        except ValueError:
            mark = 0
        if not mark:
            raise ValueError(RULE_FORM)
        self._marks[mark << 2 : mark + 1 << 2] = bytes([verdict]) * 4

    def look(self, slot: memoryview, at: int) -> int:
        """The verdict of the first rule for the packet at slot[at], virtio-net header included."""
        at += _IP
        first = slot[at]
        if first < 0x50:
            verdict = self._marks[slot[at + 1]]
            of_protocol = self._ports.get(slot[at + 9])
            if verdict or of_protocol is None or first != _PLAIN_V4 or slot[at + 6] & _FRAGMENT_OFFSET or slot[at + 7]:
                return verdict
            at += 20
        else:
            verdict = self._marks[(first & 15) << 4 | slot[at + 1] >> 4]
            of_protocol = self._ports.get(slot[at + 6])
            if verdict or of_protocol is None:
                return verdict
            at += 40
        return of_protocol[slot[at] << 8 | slot[at + 1]] or of_protocol[slot[at + 2] << 8 | slot[at + 3]]


class RuledClassifier(FlowClassifier):
    """A FlowClassifier behind rules."""

    def __init__(self, rules: FlowRules, is_empty: Callable[[], bool], count: Callable[[], object]) -> None:
        super().__init__(is_empty, count)
        self._rules = rules
        self._tokens: float = RULED_BURST_BYTES
        self._counted_ns = 0

    def classify_light(self, slot: memoryview, at: int, length: int, now: int) -> bool:
        verdict = self._rules.look(slot, at)
        if verdict == BULK:
            return False
        if verdict == LIGHT and length <= LIGHT_PACKET_BYTES and self._has_room(length, now):
            return True
        return super().classify_light(slot, at, length, now)

    def _has_room(self, length: int, now: int) -> bool:
        tokens = min(RULED_BURST_BYTES, self._tokens + (now - self._counted_ns) * _TOKENS_PER_NS) - length
        if tokens < 0:
            return False
        self._tokens, self._counted_ns = tokens, now
        return True


def classifier(
    light: Iterable[str], bulk: Iterable[str], is_empty: Callable[[], bool], count: Callable[[], object]
) -> FlowClassifier:
    """The classifier for these rules."""
    light, bulk = list(light), list(bulk)
    if not (light or bulk):
        return FlowClassifier(is_empty, count)
    return RuledClassifier(FlowRules(light, bulk), is_empty, count)
