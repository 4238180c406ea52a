"""Notes: what is packed comes out again, and any bytes give a note or a PeerError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LocalError, PeerError
from pipeline.wire import notes
from pipeline.wire.notes import Here, Network, Pair, PairState, Place, State

PLACES = (Place(b"\0" * 10 + b"\xff\xff" + bytes([10, 0, 0, 1]), 443), Place(b"\xfd" + bytes(15), 1))
NETWORKS = (Network(bytes([10, 9, 0, 0]), 16), Network(b"\xfd" + bytes(15), 64))
PAIR = Pair(2**64 - 1, 1, 2, bytes(range(32)), 7, 40_000, "one", PLACES, NETWORKS, NETWORKS[:1])
EVERY = [Here(PLACES), Here(()), PAIR, State(1, PairState.ENDED, "no probe was answered"), State(0, PairState.OPEN)]


@pytest.mark.parametrize("note", EVERY, ids=lambda note: type(note).__name__)
def test_a_note_comes_out_as_it_was_packed_whatever_follows(note: notes.Note) -> None:
    assert notes.unpack(note.pack()) == note
    assert notes.unpack(note.pack() + b"later") == note


@pytest.mark.parametrize("note", EVERY, ids=lambda note: type(note).__name__)
def test_a_note_that_is_cut_off_anywhere_is_refused(note: notes.Note) -> None:
    data = note.pack()
    for size in range(len(data)):
        with pytest.raises(PeerError):
            notes.unpack(data[:size])


@given(st.binary(max_size=200))
def test_any_bytes_give_a_note_or_a_peer_error(data: bytes) -> None:
    try:
        notes.unpack(data)
    except PeerError:
        pass


def test_the_largest_note_fits_into_its_frame() -> None:
    most = Pair(1, 0, 1, bytes(32), 1, 1, "n" * 99, PLACES * 9, NETWORKS * 8, NETWORKS * 8)
    assert len(most.pack()) < notes.NOTE_BYTES_MAX - 24
    with pytest.raises(LocalError):
        PAIR._replace(networks=NETWORKS * 9).pack()


@pytest.mark.parametrize(("at", "value"), [(0, 9), (9, 2)], ids=["kind", "side"])
def test_a_field_that_makes_no_sense_is_refused(at: int, value: int) -> None:
    data = bytearray(PAIR.pack())
    data[at] = value
    with pytest.raises(PeerError):
        notes.unpack(bytes(data))
