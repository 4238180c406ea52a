"""Where a packet socket has to send. Real routes and neighbours: tests/netns/test_fake_tcp.py."""

from __future__ import annotations

import pytest

from pipeline.transport.next_hop import _address_in

V4, V6 = bytes([10, 1, 0, 1]), bytes(range(16))


@pytest.mark.parametrize(("gateway", "address"), [
    (b"", b""), (V4, V4), (V6, V6), (b"\x0a\0" + V6, V6), (b"\x02\0" + V4, V4),
])  # fmt: skip
def test_a_gateway_of_the_other_version_stands_behind_its_family(gateway: bytes, address: bytes) -> None:
    assert _address_in(gateway) == address
