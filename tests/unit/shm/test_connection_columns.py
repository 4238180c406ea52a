"""The columns of the status rows have the numbers of the established connections, and of no other row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.shm.connection_status import ConnectionStatus, established_rows, read_columns, rows_by_peer
from pipeline.shm.layout import PEER_INDEX_MASK, STATUS_ROW_BYTES

WORD, LONG = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
ROWS = st.builds(
    ConnectionStatus,
    state=st.sampled_from(["handshake", "established"]),
    address=st.text(max_size=60),
    lane=st.integers(0, 15),
    serial=WORD,
    sent_bytes=LONG,
    received_bytes=LONG,
    since_ns=LONG,
    last_received_ns=LONG,
    rtt_us=WORD,
    traffic_class=st.integers(0, 1),
    peer=st.integers(0, PEER_INDEX_MASK),
    resent_segments=WORD,
    sent_segments=WORD,
    uplink_row=st.integers(0, 4),
)


@given(st.lists(st.none() | ROWS, max_size=12))
def test_columns_are_those_of_the_rows(rows: list[ConnectionStatus | None]) -> None:
    memory = memoryview(b"".join((row.pack() if row else b"").ljust(STATUS_ROW_BYTES, b"\0") for row in rows))
    there = {number: row for number, row in enumerate(rows) if row is not None and row.state == "established"}
    assert established_rows(memory) == list(there)
    found = read_columns(memory)
    assert list(zip(*found, strict=True)) == [
        (row.serial, row.rtt_us, row.traffic_class, row.resent_segments, row.sent_segments) for row in there.values()
    ]
    assert rows_by_peer(memory) == {
        peer: [number for number, row in there.items() if row.peer == peer]
        for peer in {row.peer for row in there.values()}
    }
