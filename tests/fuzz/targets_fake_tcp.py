"""A packet of anybody at the port of fake TCP, as a flow takes it."""

from __future__ import annotations

from contextlib import nullcontext

from pipeline.counters import ID
from pipeline.faketcp.flow import WINDOW, Agreed, Ends, Flow
from pipeline.faketcp.packet import read
from pipeline.packet import gso as superpacket

NOW = 5_000_000
LINK_BYTES = 14
U32 = 0xFFFFFFFF
NOTHING = memoryview(b"")
V4 = Ends(bytes([10, 0, 0, 1]), 443, bytes([10, 0, 0, 2]), 40000)
V6 = Ends(bytes(15) + b"\1", 443, bytes(15) + b"\2", 40000)


def _flow(has_stamps: bool) -> Flow:
    """One that has heard its other end a moment ago, and has bytes under way."""
    flow = Flow(V4, Agreed(7, 7, has_stamps, 9, 64, 1448), 1000, 2000, 1 << 20, nullcontext(), 0)
    flow.header(5000, 1400, 0)
    return flow


def fake_tcp(data: bytes) -> None:
    """Its payload is inside it. A flow moves no further than its window, and can go on whatever came."""
    for link_bytes in (0, LINK_BYTES):
        packet = read(memoryview(data), NOTHING, link_bytes)
        if packet is None:
            continue
        assert packet.begin <= packet.end <= len(data)
        assert packet.segment_bytes <= packet.end - packet.begin
        for has_stamps in (False, True):
            flow = _flow(has_stamps)
            for now in (1, NOW):
                drop = flow.take(packet, now)
                assert drop is None or drop in ID.values()
            assert (flow.received - 2000 & U32) <= 2 * (WINDOW << 7) + 1
            assert flow.sent == 6000 and (flow.acknowledged - 1000 & U32) <= 5000
            flow.due(NOW)
            flow.may_send(1000, NOW)
            assert len(superpacket.finish(bytes(flow.header(3000, 1400, NOW)) + bytes(3000))) == 3


def fake_tcp_seeds() -> list[bytes]:
    seeds = []
    for ends in (V4, V6):
        there = Ends(ends.remote, ends.remote_port, ends.local, ends.local_port)
        for has_stamps in (False, True):
            for link in (b"", bytes(LINK_BYTES)):
                flow = Flow(there, Agreed(7, 7, has_stamps, 9, 64, 1448), 2000, 6000, 1 << 20, nullcontext(), 0)
                flow.set_link(link)
                whole = bytes(flow.header(90, 40, 0)) + bytes(90)
                seeds += [whole, bytes(flow.finish(0)), bytes(flow.keepalive(0)), *superpacket.finish(whole)]
    return seeds
