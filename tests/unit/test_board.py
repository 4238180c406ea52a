"""The board and the table of counters: one writer per word, readable without asking, kept over a worker's death."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import board, layout, segment
from pipeline.board import Board, ConnectionRow
from pipeline.counters import COUNTERS, ID, IN, OUT
from pipeline.errors import LocalError

WORKERS = 3
U64 = (1 << 64) - 1

PARTICIPLE = r"(?:[a-z]+ed|read|sent|resent|written|lost|timed_out|late|duplicate|overtaken|whole|recovered_[1-6])"
COUNTER_NAME = re.compile(rf"(tun|fec|tcp)\.(?:(?:[a-z]+s|parity)(?:_[a-z]+)*_{PARTICIPLE}"  # packets_read
                          r"|(?:dropped|closed)_[a-z]+(?:_[a-z]+)*"               # dropped_link_down
                          r"|[a-z]+(?:_[a-z]+)*_(?:waits|errors))")              # ring_full_waits


@pytest.fixture
def made() -> Iterator[Board]:
    name = f"/tunnel@boardtest@{secrets.token_hex(4)}@board"
    created = board.create(name, WORKERS)
    yield created
    created.close()
    segment.unlink(name)


def row(**changes: object) -> ConnectionRow:
    return ConnectionRow("established", "192.0.2.1:9000", 1, 7, 10, 20, 30, 40, 50, 0)._replace(**changes)


def test_a_new_board_says_nothing(made: Board) -> None:
    assert set(made.totals().values()) == {0}
    for page in made.pages:
        assert page.rows() == []
        assert page.oldest_heartbeat() == 0
        assert list(page.carrier) == [0] * layout.CARRIER_WORDS


def test_totals_add_a_counter_up_over_the_workers(made: Board) -> None:
    for number, page in enumerate(made.pages):
        page.counters[ID["tun.packets_read"]] = 10 ** number
    assert made.totals()["tun.packets_read"] == 111
    assert sum(made.totals().values()) == 111


def test_a_successor_goes_on_with_the_counters_that_it_finds(made: Board) -> None:
    made.pages[1].counters[ID["tcp.bytes_sent"]] += 1000
    successor = board.attach(made.memory.name, WORKERS)
    successor.pages[1].counters[ID["tcp.bytes_sent"]] += 1
    assert made.totals()["tcp.bytes_sent"] == 1001
    successor.close()


def test_a_worker_is_as_alive_as_its_more_silent_duty(made: Board) -> None:
    page = made.pages[0]
    page.heartbeat("outbound")[0] = 500
    assert page.oldest_heartbeat() == 0
    page.heartbeat("inbound")[0] = 300
    assert page.oldest_heartbeat() == 300


@dataclass(frozen=True)
class Word:
    """Where a word of a page is, and who writes it."""

    name: str
    at: int
    writer: str


def words() -> list[Word]:
    found = [Word(f"counter {c.name}", layout.COUNTERS_AT + 8 * c.id, f"{c.name.split('.')[0]} {c.duty}")
             for c in COUNTERS]
    found += [Word(f"carrier {at}", at, "tcp inbound")
              for at in (layout.CARRIER_ESTABLISHED_AT, layout.CARRIER_OFFLOADS_AT, layout.CARRIER_CLIENT_AT,
                         layout.CARRIER_SESSION_AT)]
    for number, duty in enumerate(layout.DUTIES):
        first = layout.DUTY_AT + number * layout.DUTY_STRIDE
        for kind in ("tun", "fec", "tcp"):
            found.append(Word(f"heartbeat {duty}", first + layout.DUTY_HEARTBEAT_AT, f"{kind} {duty}"))
            found.append(Word(f"sleeping {duty}", first + layout.DUTY_SLEEPING_AT, f"{kind} {duty}"))
    found += [Word(f"row {number}", layout.ROWS_AT + number * layout.ROW_BYTES, "tcp inbound")
              for number in range(layout.ROWS_MAX)]
    return found


def test_no_cache_line_of_a_page_is_written_by_two_duties() -> None:
    for kind in ("tun", "fec", "tcp"):
        writers: dict[int, set[str]] = {}
        for word in words():
            if word.writer.startswith(kind):
                writers.setdefault(word.at // layout.CACHE_LINE, set()).add(word.writer)
        assert {line: who for line, who in writers.items() if len(who) > 1} == {}


def test_no_two_things_of_a_page_overlap_and_all_lie_in_it() -> None:
    places = {word.at: word.name for word in words()}
    assert len(places) == len({word.name for word in words()})
    assert max(places) + layout.ROW_BYTES <= layout.BOARD_PAGE_BYTES
    assert all(at % 8 == 0 for at in places)


def test_pages_lie_one_behind_the_other_and_fill_the_board() -> None:
    assert [layout.page_at(w) for w in range(3)] == [layout.PAGE + w * layout.BOARD_PAGE_BYTES for w in range(3)]
    assert layout.board_bytes(3) == layout.page_at(2) + layout.BOARD_PAGE_BYTES


def test_what_one_worker_writes_is_on_its_own_page_alone(made: Board) -> None:
    before = [bytes(made.memory.view[layout.page_at(w) : layout.page_at(w + 1)]) for w in range(WORKERS)]
    page = made.pages[1]
    page.counters[layout.COUNTERS_MAX - 1] = U64
    page.carrier[3] = U64
    for duty in layout.DUTIES:
        page.heartbeat(duty)[0] = page.sleeping(duty)[0] = U64
    for index in range(layout.ROWS_MAX):
        page.write_row(index, row(address="x" * 500))
    after = [bytes(made.memory.view[layout.page_at(w) : layout.page_at(w + 1)]) for w in range(WORKERS)]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1]
    assert bytes(made.memory.view[: layout.PAGE]).count(0) > layout.PAGE - 64


def test_rows_are_read_back_in_order_and_cleared_ones_are_gone(made: Board) -> None:
    page = made.pages[2]
    page.write_row(0, row(serial=1))
    page.write_row(5, row(serial=2, state="greeting", address="[2001:db8::1]:9000"))
    page.write_row(layout.ROWS_MAX - 1, row(serial=3, state="connecting"))
    assert [(r.serial, r.state) for r in page.rows()] == [(1, "established"), (2, "greeting"), (3, "connecting")]
    page.write_row(0, None)
    assert [r.serial for r in page.rows()] == [2, 3]


@given(st.builds(
    ConnectionRow, st.sampled_from(["connecting", "greeting", "established"]),
    st.from_regex(r"[0-9a-f.:\[\]]{0,60}", fullmatch=True), st.integers(0, 65535), st.integers(0, 2**32 - 1),
    st.integers(0, U64), st.integers(0, U64), st.integers(0, U64), st.integers(0, U64), st.integers(0, 2**32 - 1),
    st.integers(0, 255)))
def test_any_row_comes_back_as_it_was_written(original: ConnectionRow) -> None:
    assert len(original.pack()) <= layout.ROW_BYTES
    assert ConnectionRow.unpack(original.pack().ljust(layout.ROW_BYTES, b"\0")) == original


@given(st.binary(min_size=layout.ROW_BYTES, max_size=layout.ROW_BYTES))
def test_a_reader_takes_whatever_bytes_it_finds_in_a_row(data: bytes) -> None:
    found = ConnectionRow.unpack(data)
    assert found is None or len(found.address) <= layout.ROW_BYTES


def test_an_address_that_is_too_long_is_cut_and_the_next_row_is_whole(made: Board) -> None:
    page = made.pages[0]
    page.write_row(1, row(serial=2))
    page.write_row(0, row(serial=1, address="é" * 500))
    assert [r.serial for r in page.rows()] == [1, 2]
    assert page.rows()[0].address.startswith("é" * 20)


@pytest.mark.parametrize(("at", "what"), [
    (layout.BOARD_MAGIC_AT, "magic"),
    (layout.BOARD_VERSION_AT, "layout version"),
    (layout.BOARD_WORKERS_AT, "workers"),
])
def test_a_board_whose_header_differs_is_refused_with_what_was_expected_and_found(
        made: Board, at: int, what: str) -> None:
    expected = made.words[at // 8]
    made.words[at // 8] = 99
    with pytest.raises(LocalError, match=f"{made.memory.name}: {what}: expected {expected}, found 99"):
        board.attach(made.memory.name, WORKERS)


def test_a_board_of_another_number_of_workers_is_refused(made: Board) -> None:
    with pytest.raises(LocalError, match="expected .* bytes, has"):
        board.attach(made.memory.name, WORKERS + 1)


# -- the table of counters


def test_counter_ids_and_names_are_unique_and_fit_the_board() -> None:
    assert len({c.id for c in COUNTERS}) == len({c.name for c in COUNTERS}) == len(COUNTERS) == len(ID)
    assert all(0 <= c.id < layout.COUNTERS_MAX for c in COUNTERS)


def test_counters_stand_in_the_order_of_their_ids() -> None:
    assert [c.id for c in COUNTERS] == sorted(c.id for c in COUNTERS)


@pytest.mark.parametrize("name", [c.name for c in COUNTERS])
def test_a_counter_is_named_kind_noun_participle_or_says_why_something_was_dropped(name: str) -> None:
    assert COUNTER_NAME.fullmatch(name)


def test_every_counter_has_one_writing_duty_and_a_meaning() -> None:
    assert {c.duty for c in COUNTERS} == {OUT, IN} == set(layout.DUTIES)
    assert all(c.meaning and not c.meaning.endswith(".") for c in COUNTERS)


def test_a_block_of_sixteen_ids_belongs_to_one_duty_of_one_kind() -> None:
    owners: dict[int, set[tuple[str, str]]] = {}
    for counter in COUNTERS:
        owners.setdefault(counter.id // 16, set()).add((counter.name.split(".")[0], counter.duty))
    assert {block: who for block, who in owners.items() if len(who) > 1} == {}
    assert 16 * 8 % layout.CACHE_LINE == 0 == layout.COUNTERS_AT % layout.CACHE_LINE
