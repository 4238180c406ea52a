"""Rules that choose the class of a packet inside a peer: by its mark (DSCP), or by a port of its flow.

    voice     always light, and ahead of other light packets          (always_voice)
    normal    light or bulk, as its flow behaves: without rules all   (always_light: light whatever its flow sends)
    bulk      never light                                             (always_bulk)

A rule is a mark, "EF" or "46", or a protocol and ports at either end of a flow, "udp/5060" or "tcp/8000-8099". A mark
comes before a port; then voice comes before light, and light before bulk. With `by_dscp` the usual marks of voice and
bulk count where no rule names them.

Rules may make a lot of traffic light, which would then delay the other light flows. So voice has RULED_RATE, and
all that is always light has it, too. A packet beyond that, or longer than a light packet may be, is classified
as if there were no rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP
from pipeline.packet.marks import parse_dscp
from pipeline.packet.vnet import VNET_HEADER_BYTES

RULE_FORM = 'a mark such as "EF" or "CS1", or ports such as "udp/5060" or "tcp/8000-8099"'

RULED_RATE = 2_500_000
"""Bytes a second, in each lane: 20 Mbit/s, two hundred calls."""

RULED_BURST_BYTES = 131072

NO_RULE, LIGHT, BULK, VOICE = range(4)

USUAL_VOICE = ("EF", "VA", "CS5")  # RFC 4594: telephony, and its signals
USUAL_BULK = ("CS1", "LE")  # RFC 3662, RFC 8622

_PROTOCOLS = {"tcp": IPPROTO_TCP, "udp": IPPROTO_UDP}
_PORTS = re.compile(r"(tcp|udp)/([0-9]{1,5})(?:-([0-9]{1,5}))?")
_PORT_MAX = 65535
_CLASSES = 256  # values of the octet that has the mark, and two bits of ECN
_IP = VNET_HEADER_BYTES
_PLAIN_V4 = 0x45  # version 4, and no options
_FRAGMENT_OFFSET = 0x1F


class FlowRules:
    """ValueError if a rule is none."""

    def __init__(
        self, light: Iterable[str] = (), bulk: Iterable[str] = (), voice: Iterable[str] = (), by_dscp: bool = False
    ) -> None:
        self._marks = bytearray(_CLASSES)
        self._ports: dict[int, bytearray] = {}
        usual = ((BULK, USUAL_BULK), (VOICE, USUAL_VOICE)) if by_dscp else ()
        for verdict, rules in (*usual, (BULK, bulk), (LIGHT, light), (VOICE, voice)):  # the later one counts
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
