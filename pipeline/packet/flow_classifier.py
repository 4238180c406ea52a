"""Classification of flows: light flows send little, all other flows are bulk.

A flow that sends little deserves a path of its own past the flows that fill the path. Such flows are an echo, a game, a
call, a shell, the acknowledgements of a download. Each flow has a token bucket, the committed part of RFC 2697. While a
flow keeps within it, the flow is *light*; else it is *bulk*. No flow may overtake itself. So a flow changes its class

    light -> bulk    with a packet above LIGHT_PACKET_BYTES, or beyond OVERDRAFT_BYTES of debt: at once
                     with less debt: with the first packet after a pause, if the light ring is empty then
    bulk -> light    when all debt is paid, so after at least half a second of little traffic: the rings are empty then

A flow is its addresses, and its ports where TCP or UDP has them. Packets of other protocols count together.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.packet.ip import IPPROTO_TCP, IPPROTO_UDP
from pipeline.packet.vnet import VNET_HEADER_BYTES

LIGHT_PACKET_BYTES = 3072
"""The longest packet that can be light: two of an ordinary MTU. The light ring has room for three copies of it."""

RATE_BYTES_PER_S = 125_000
"""Tokens of a flow: 1 Mbit/s, a call, or the acknowledgements of some 50 Mbit/s."""

BURST_BYTES = 16384
"""The size of a bucket."""

OVERDRAFT_BYTES = 131072
"""How far one burst may overdraw a bucket."""

PAUSE_NS = 20_000_000
"""After such a pause, the packets before it are on their way, also on a busy machine."""

DEBT_BYTES = 65536
"""The least debt of a bulk flow: half a second at its rate."""

FLOWS_MAX = 4096
"""Flows that are known at a time; when there are more, all of them begin anew."""

_TOKENS_PER_NS = RATE_BYTES_PER_S / 1e9
_IP = VNET_HEADER_BYTES
_V4_PROTOCOL, _V4_ADDRESSES, _V4_PORTS_END = _IP + 9, _IP + 12, _IP + 24
_V6_PROTOCOL, _V6_ADDRESSES, _V6_PORTS_END = _IP + 6, _IP + 8, _IP + 44
_PORTS_BYTES = 4
_WITH_PORTS = (IPPROTO_TCP, IPPROTO_UDP)


class _Flow:
    """The token bucket of a flow, and its class."""

    __slots__ = ("counted_ns", "is_bulk", "tokens")

    def __init__(self, now: int) -> None:
        self.tokens: float = BURST_BYTES
        self.counted_ns = now
        self.is_bulk = False


class FlowClassifier:
    """The flows of one TUN queue. `is_empty` tells whether the light ring is empty; `count` hears of each new flow."""

    def __init__(self, is_empty: Callable[[], bool], count: Callable[[], object] = lambda: None) -> None:
        self._is_empty = is_empty
        self._count = count
        self._flows: dict[bytes, _Flow] = {}
        self._last = _Flow(0)

    def classify_light(self, slot: memoryview, at: int, length: int, now: int) -> bool:
        """Count the packet of `length` bytes at slot[at], virtio-net header included. Whether its flow is light now.

        `now`: CLOCK_MONOTONIC ns.
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
            flow = self._flows[key] = _Flow(now)
            self._count()
        self._last = flow
        pause = now - flow.counted_ns
        tokens = flow.tokens + pause * _TOKENS_PER_NS
        tokens = (tokens if tokens < BURST_BYTES else BURST_BYTES) - length
        flow.tokens = tokens
        flow.counted_ns = now
        if length > LIGHT_PACKET_BYTES:
            flow.is_bulk = True
        elif tokens >= 0:
            flow.is_bulk = False
        elif tokens < -OVERDRAFT_BYTES or (pause >= PAUSE_NS and self._is_empty()):
            flow.is_bulk = True
        if not flow.is_bulk:
            return True
        flow.tokens = max(min(tokens, -DEBT_BYTES), -OVERDRAFT_BYTES)
        return False

    def demote_last(self) -> None:
        """Make the flow of the last packet bulk: there was no room for that packet in the light ring."""
        self._last.tokens = -DEBT_BYTES
        self._last.is_bulk = True
