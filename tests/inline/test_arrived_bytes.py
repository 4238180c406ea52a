"""Bytes by class of what comes from peers: for the hub itself, from client to client, and of nonsense."""

from __future__ import annotations

import pytest

from pipeline.packet.vnet import VNET_HEADER_BYTES
from pipeline.shm.peer_table import ARRIVED_CLASSES
from tests.inline.harness.ends import Dial, End, Make, block_of, hello, push, step_for, until
from tests.inline.harness.hub_ends import BULK_BYTES, between, connected_hub, index_of

PACKETS = 20
LIGHT_BYTES = 100


def arrived(server: End, client: int) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of packets from a client, and of others for it."""
    counts = server.memory.peer_table.arrived_bytes(index_of(server, client))
    return dict(zip(ARRIVED_CLASSES, counts, strict=False)), dict(zip(ARRIVED_CLASSES, counts[2:], strict=True))


@pytest.mark.parametrize("fec", ["off", "on"])
@pytest.mark.parametrize(("size", "of_class"), [(BULK_BYTES, "bulk"), (LIGHT_BYTES, "light")])
def test_bytes_of_packets_count_for_their_sender_and_in_transit_for_their_receiver(
    make: Make, fec: str, size: int, of_class: str
) -> None:
    server, first, second = connected_hub(make, fec=fec, connections=2, light_connections=1)
    for to in (0, 2):
        waiting = list(between(1, to, range(PACKETS), size=size))
        total = sum(len(each) - VNET_HEADER_BYTES for each in waiting)
        until(lambda: push(first, waiting), server, first, second)
        got = server if to == 0 else second
        until(lambda: len(got.packets()) >= PACKETS, server, first, second)
    step_for(0.1, server, first, second)
    sent, passed = arrived(server, 1)
    assert sent == dict.fromkeys(ARRIVED_CLASSES, 0) | {of_class: 2 * total}
    assert passed == dict.fromkeys(ARRIVED_CLASSES, 0)
    assert arrived(server, 2)[1] == dict.fromkeys(ARRIVED_CLASSES, 0) | {of_class: total}


def test_a_block_of_packets_shorter_than_their_headers_counts_nothing_and_ends_no_worker(
    make: Make, dial: Dial
) -> None:
    server = make("server", capacity=4)
    peer = dial(server, hello(client=1))
    peer.socket.send(block_of(b"", b"x"))
    until(lambda: server.count("tun.dropped_packet_malformed") == 2, server)
    assert arrived(server, 1)[0] == dict.fromkeys(ARRIVED_CLASSES, 0)
