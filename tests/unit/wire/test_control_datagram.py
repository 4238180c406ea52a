"""Control datagrams as bytes and back: each survives the way, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.wire.control_datagram import (
    BITS_MOST,
    INCOMPLETE_MOST,
    PROBE_LEAST,
    REPORT_MOST,
    STREAMS_MOST,
    WAIT_MOST,
    Answer,
    Arrivals,
    Counts,
    Incomplete,
    Probe,
    Report,
    pack_answer,
    pack_probe,
    pack_report,
    parse,
)

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
BITS = st.binary(max_size=BITS_MOST).map(lambda bits: bits.rstrip(b"\0"))


@st.composite
def reports(draw: st.DrawFn) -> Report:
    streams = tuple(draw(st.lists(st.builds(Arrivals, U32, U32, BITS), max_size=STREAMS_MOST)))
    codewords: st.SearchStrategy = st.just([])
    if streams:
        position = st.integers(0, len(streams) - 1)
        made = st.builds(Incomplete, position, U32, U8, U64.filter(bool))
        codewords = st.lists(made, max_size=INCOMPLETE_MOST)
    counts = Counts(draw(U16), *(draw(U32) for _ in range(8)))
    return Report(counts, streams, tuple(draw(codewords)))


def back(body: bytes) -> Probe | Answer | Report | None:
    return parse(memoryview(body))


FULL = Report(
    Counts(*range(1, 10)),
    streams=tuple(Arrivals(stream, 7, b"\xff" * BITS_MOST) for stream in range(STREAMS_MOST)),
    incomplete=tuple(Incomplete(stream % STREAMS_MOST, 8, 9, 1 << stream) for stream in range(INCOMPLETE_MOST)),
)


@given(st.builds(Probe, U64, U32, st.integers(0, WAIT_MOST)), st.integers(0, 1500))
def test_a_probe_of_any_size_comes_back(probe: Probe, size: int) -> None:
    body = pack_probe(probe, size)
    assert len(body) == max(size, PROBE_LEAST)
    assert back(body) == probe


@given(st.builds(Answer, U64, U32, st.integers(PROBE_LEAST, 65535)))
def test_an_answer_comes_back(answer: Answer) -> None:
    assert back(pack_answer(answer)) == answer


@given(reports())
def test_a_report_comes_back(report: Report) -> None:
    body = pack_report(report)
    assert len(body) <= REPORT_MOST
    assert back(body) == report


def test_a_report_with_more_than_there_is_room_for_has_the_first_of_it() -> None:
    assert len(pack_report(FULL)) == REPORT_MOST
    more = FULL._replace(
        streams=(*FULL.streams[:-1], FULL.streams[-1]._replace(bits=b"\xff" * 99), Arrivals(99, 0)),
        incomplete=(Incomplete(STREAMS_MOST, 1, 1, 1), *FULL.incomplete, Incomplete(0, 1, 1, 1)),
    )
    assert back(pack_report(more)) == FULL


def test_a_whole_report_with_too_many_streams_or_codewords_is_refused() -> None:
    fields = pack_report(FULL._replace(streams=(), incomplete=()))[3:]
    stream, codeword = bytes(9), bytes(6) + b"\1" * 8
    for streams, incomplete in ((STREAMS_MOST, 0), (1, INCOMPLETE_MOST)):
        body = bytes([3, streams, incomplete]) + fields + stream * streams + codeword * incomplete
        assert back(body)
    for streams, incomplete in ((STREAMS_MOST + 1, 0), (1, INCOMPLETE_MOST + 1)):
        body = bytes([3, streams, incomplete]) + fields + stream * streams + codeword * incomplete
        assert back(body) is None


@given(reports())
def test_each_cut_and_each_byte_more_of_a_report_or_an_answer_is_refused(report: Report) -> None:
    for body in (pack_report(report), pack_answer(Answer(1, 2, 300))):
        assert all(back(body[:size]) is None for size in range(len(body)))
        assert back(body + b"\0") is None


def test_a_probe_that_is_cut_below_its_fields_or_is_not_filled_with_zeros_is_refused() -> None:
    body = pack_probe(Probe(1, 2), 100)
    assert all(back(body[:size]) is None for size in range(PROBE_LEAST))
    assert back(body[:-1] + b"\1") is None


CODEWORD_BYTES = 14
ONE = pack_report(FULL._replace(streams=FULL.streams[:1], incomplete=(Incomplete(0, 1, 1, 1),)))

REFUSED = {
    "nothing": b"",
    "another type": b"\0" + pack_answer(Answer(1, 2, 300))[1:],
    "a type of later": b"\4" + pack_answer(Answer(1, 2, 300))[1:],
    "a wait that is too long": pack_probe(Probe(1, 2, WAIT_MOST + 1), 0),
    "an answer to less than a probe": pack_answer(Answer(1, 2, PROBE_LEAST - 1)),
    "too many streams": bytes([3, STREAMS_MOST + 1]) + pack_report(FULL)[2:],
    "too many codewords": bytes([3, STREAMS_MOST, INCOMPLETE_MOST + 1]) + pack_report(FULL)[3:],
    "fewer codewords than there are": bytes([3, STREAMS_MOST, INCOMPLETE_MOST - 1]) + pack_report(FULL)[3:],
    "bits that end with zeros": pack_report(FULL._replace(streams=(Arrivals(1, 1, b"\1"),), incomplete=()))[:-1]
    + b"\0",
    "a codeword of no stream": ONE[:-CODEWORD_BYTES] + b"\1" + ONE[1 - CODEWORD_BYTES :],
    "a codeword that lacks nothing": pack_report(FULL._replace(incomplete=(Incomplete(0, 1, 1, 0),))),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_an_impossible_field_is_refused(body: bytes) -> None:
    assert back(ONE)
    assert back(body) is None


@given(st.binary(max_size=REPORT_MOST + 9), st.integers(0, 4))
def test_nothing_raises_and_all_that_is_taken_is_written_as_it_was(noise: bytes, kind: int) -> None:
    body = bytes([kind]) + noise
    match back(body):
        case Probe() as probe:
            assert pack_probe(probe, len(body)) == body
        case Answer() as answer:
            assert pack_answer(answer) == body
        case Report() as report:
            assert pack_report(report) == body
