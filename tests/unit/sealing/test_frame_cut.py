"""The cut of frames of every size, as docs/wire.md says it: written once more here, and undone."""

from __future__ import annotations

import pytest

from pipeline.fec.shard import BLOCK_BYTES_MAX
from pipeline.sealing.frame_cut import cut
from pipeline.wire import framing

FULL, SHORTER = 16406, 16390
SIZES = range(140_001)


def by_the_document(body: int) -> tuple[int, int, int]:
    for unit in (FULL, SHORTER):
        k = next(k for k in range(100) if 42 + 5 * k + body <= (k + 1) * unit)
        whole = 42 + 5 * k + body
        if unit == SHORTER or k == 0 or whole - k * unit >= 22:
            return k, unit, whole
    raise AssertionError


def test_every_size_of_a_body_is_cut_as_the_document_says() -> None:
    assert max(SIZES) >= max(BLOCK_BYTES_MAX, framing.LENGTH_LIMIT)
    for body in SIZES:
        found = cut(body)
        assert (found.further, found.unit, found.wire_bytes) == by_the_document(body)
        assert found.body_at == 42 + 5 * found.further


def test_the_records_of_every_size_are_records_of_tls_and_fill_the_frame() -> None:
    for body in SIZES:
        found = cut(body)
        lengths = [found.record_bytes(index) for index in range(found.further + 1)]
        assert sum(lengths) + 5 * len(lengths) == found.wire_bytes
        assert all(length == found.unit - 5 for length in lengths[:-1])
        assert 17 <= lengths[-1] <= 16401 and lengths[0] <= 16401
        assert found.body_at <= found.unit or not found.further


@pytest.mark.parametrize("body", range(0, 140_001, 997))
def test_each_record_header_stands_on_bytes_of_the_body_and_the_positions_lead_back(body: int) -> None:
    found = cut(body)
    headers = [record * found.unit for record in range(1, found.further + 1)]
    for at in headers:
        assert found.body_at <= at and at + 5 <= found.wire_bytes
    wire = bytearray(found.wire_bytes)
    content = bytes(at % 251 + 1 for at in range(body))
    wire[found.body_at :] = content
    displaced = [bytes(wire[at : at + 5]) for at in headers]
    for at in headers:
        wire[at : at + 5] = bytes(5)
    assert wire[found.body_at :].count(0) == 5 * found.further
    for at, each in zip(headers, displaced, strict=True):
        wire[at : at + 5] = each
    assert bytes(wire[found.body_at :]) == content
