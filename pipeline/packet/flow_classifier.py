"""Which packets belong to flows that send little.

A flow that sends little (an echo, a game, a voice, a shell, the acknowledgements of a download) is worth a way of its
own past those that fill the path. Each flow has a token bucket (RFC 2697's committed part): who keeps within it is
*light*, who does not is *bulk*. No flow is to overtake itself, so

    light -> bulk    at a pause, when the light ring is empty, or with a packet above LIGHT_PACKET_BYTES; a burst may
                     overdraw the bucket that long
    bulk -> light    when all debt is paid, after half a second of little traffic at least: rings are empty by then

A flow is its addresses, and ports where TCP and UDP have them. Packets of other protocols count together.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.packet.vnet import VNET_HEADER_BYTES

LIGHT_PACKET_BYTES = 4096
RATE_BYTES_PER_S = 125_000  # 1 Mbit/s: a call, and the acknowledgements of some 50 Mbit/s
BURST_BYTES = 16384
OVERDRAFT_BYTES = 131072  # of one burst
PAUSE_NS = 20_000_000  # what came before it is on its way, also on a machine that is busy
DEBT_BYTES = 65536  # half a second at that rate
FLOWS_MAX = 4096  # when there are more, all begin anew

_PER_NS = RATE_BYTES_PER_S / 1e9
_IP = VNET_HEADER_BYTES
_V4_PROTOCOL, _V4_ADDRESSES, _V4_PORTS_END = _IP + 9, _IP + 12, _IP + 24
_V6_PROTOCOL, _V6_ADDRESSES, _V6_PORTS_END = _IP + 6, _IP + 8, _IP + 44
_PORTS_BYTES = 4
_WITH_PORTS = (6, 17)  # IPPROTO_TCP, IPPROTO_UDP


class FlowClassifier:
    """The flows of one TUN queue. `is_empty` tells whether the light ring is."""

    def __init__(self, is_empty: Callable[[], bool]) -> None:
        self._is_empty = is_empty
        self._last: list = [0, 0, False]
        self._flows: dict[bytes, list] = {}  # tokens in bytes, when they were counted, and whether it is bulk

    def light(self, slot: memoryview, at: int, length: int, now: int) -> bool:
        """Whether the packet of `length` bytes at slot[at], virtio-net header included, is of a light flow.

        Counts it. `now`: CLOCK_MONOTONIC ns.
        """
        if slot[at + _IP] < 0x50:
            end = at + _V4_PORTS_END if slot[at + _V4_PROTOCOL] in _WITH_PORTS else at + _V4_PORTS_END - _PORTS_BYTES
            key = bytes(slot[at + _V4_ADDRESSES : end])
        else:
            end = at + _V6_PORTS_END if slot[at + _V6_PROTOCOL] in _WITH_PORTS else at + _V6_PORTS_END - _PORTS_BYTES
            key = bytes(slot[at + _V6_ADDRESSES : end])
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= FLOWS_MAX:
                self._flows.clear()
            flow = self._flows[key] = [BURST_BYTES, now, False]
        self._last = flow
        pause = now - flow[1]
        tokens = flow[0] + pause * _PER_NS
        tokens = (tokens if tokens < BURST_BYTES else BURST_BYTES) - length
        flow[0] = tokens
        flow[1] = now
        if length > LIGHT_PACKET_BYTES:
            flow[2] = True
        elif tokens >= 0:
            flow[2] = False
        elif tokens < -OVERDRAFT_BYTES or (pause >= PAUSE_NS and self._is_empty()):
            flow[2] = True
        if not flow[2]:
            return True
        flow[0] = max(min(tokens, -DEBT_BYTES), -OVERDRAFT_BYTES)
        return False

    def spill(self) -> None:
        """There was no room for the packet of the last call: its flow is bulk from here on."""
        self._last[0] = -DEBT_BYTES
        self._last[2] = True
