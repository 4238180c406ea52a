"""The scoreboard and the table of counters: one writer per word, readable without help, kept over a worker's death."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import pytest

from pipeline.counters import COUNTERS, ID, IN, OUT
from pipeline.errors import LocalError
from pipeline.shm import layout, scoreboard, segment
from pipeline.shm.scoreboard import Scoreboard

WORKERS = 3
U64 = (1 << 64) - 1

PARTICIPLE = r"(?:[a-z]+ed|read|sent|resent|written|lost|timed_out|late|duplicate|overtaken|whole|recovered_[1-6])"
COUNTER_NAME = re.compile(
    rf"(tun|fec|tcp|dgram)\.(?:(?:[a-z]+s|parity)(?:_[a-z]+)*_{PARTICIPLE}"  # packets_read
    r"|(?:dropped|closed)_[a-z]+(?:_[a-z]+)*"  # dropped_link_down
    r"|[a-z]+(?:_[a-z]+)*_(?:waits|errors|pauses))"
)  # ring_full_waits


@pytest.fixture
def made() -> Iterator[Scoreboard]:
    name = f"/tunnel@scoreboardtest@{secrets.token_hex(4)}@scoreboard"
    created = scoreboard.create(name, WORKERS)
    yield created
    created.close()
    segment.unlink(name)


def test_a_new_scoreboard_is_empty(made: Scoreboard) -> None:
    assert set(made.totals().values()) == {0}
    for page in made.pages:
        assert page.oldest_heartbeat() == 0


def test_totals_add_a_counter_up_over_the_workers(made: Scoreboard) -> None:
    for number, page in enumerate(made.pages):
        page.counters[ID["tun.packets_read"]] = 10**number
    assert made.totals()["tun.packets_read"] == 111
    assert sum(made.totals().values()) == 111


def test_a_successor_continues_the_counters_that_it_finds(made: Scoreboard) -> None:
    made.pages[1].counters[ID["tcp.bytes_sent"]] += 1000
    successor = scoreboard.attach(made.memory.name, WORKERS)
    successor.pages[1].counters[ID["tcp.bytes_sent"]] += 1
    assert made.totals()["tcp.bytes_sent"] == 1001
    successor.close()


def test_a_worker_is_as_alive_as_its_more_silent_duty(made: Scoreboard) -> None:
    page = made.pages[0]
    page.heartbeat("outbound")[0] = 500
    assert page.oldest_heartbeat() == 0
    page.heartbeat("inbound")[0] = 300
    assert page.oldest_heartbeat() == 300


@dataclass(frozen=True)
class Word:
    """The place and the writer of a word of a page."""

    name: str
    at: int
    writer: str


def words() -> list[Word]:
    found = [
        Word(f"counter {c.name}", layout.COUNTERS_AT + 8 * c.id, f"{c.name.split('.')[0]} {c.duty}") for c in COUNTERS
    ]
    for number, duty in enumerate(layout.DUTIES):
        first = layout.DUTY_AT + number * layout.DUTY_STRIDE
        for kind in ("tun", "fec", "tcp"):
            found.append(Word(f"heartbeat {duty}", first + layout.DUTY_HEARTBEAT_AT, f"{kind} {duty}"))
            found.append(Word(f"waiting {duty}", first + layout.DUTY_WAITING_AT, f"{kind} {duty}"))
            found.append(Word(f"sleeping {duty}", first + layout.DUTY_SLEEPING_AT, f"{kind} {duty}"))
    return [*found, Word("connections", layout.CONNECTIONS_AT, "tcp inbound")]


def test_no_cache_line_of_a_page_is_written_by_two_duties() -> None:
    for kind in ("tun", "fec", "tcp"):
        writers: dict[int, set[str]] = {}
        for word in words():
            if word.writer.startswith(kind):
                writers.setdefault(word.at // layout.CACHE_LINE, set()).add(word.writer)
        assert {line: each for line, each in writers.items() if len(each) > 1} == {}


def test_no_two_things_of_a_page_overlap_and_all_lie_in_it() -> None:
    places = {word.at: word.name for word in words()}
    assert len(places) == len({word.name for word in words()})
    assert max(places) + 8 <= layout.SCOREBOARD_PAGE_BYTES
    assert all(at % 8 == 0 for at in places)


def test_pages_lie_one_behind_the_other_and_fill_the_scoreboard() -> None:
    assert [layout.page_at(w) for w in range(3)] == [layout.MAP_PAGE * (1 + w) for w in range(3)]
    assert layout.scoreboard_bytes(3) == layout.page_at(2) + layout.SCOREBOARD_PAGE_BYTES


def test_a_worker_writes_on_its_own_page_alone(made: Scoreboard) -> None:
    before = [bytes(made.memory.view[layout.page_at(w) : layout.page_at(w + 1)]) for w in range(WORKERS)]
    page = made.pages[1]
    page.counters[layout.COUNTERS_MAX - 1] = U64
    for duty in layout.DUTIES:
        page.heartbeat(duty)[0] = page.waiting(duty)[0] = page.sleeping(duty)[0] = U64
    after = [bytes(made.memory.view[layout.page_at(w) : layout.page_at(w + 1)]) for w in range(WORKERS)]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1]
    assert bytes(made.memory.view[: layout.PAGE]).count(0) > layout.PAGE - 64


@pytest.mark.parametrize(
    ("at", "what"),
    [
        (layout.MAGIC_AT, "magic"),
        (layout.VERSION_AT, "layout version"),
        (layout.SCOREBOARD_WORKERS_AT, "workers"),
    ],
)
def test_a_scoreboard_whose_header_differs_is_refused_with_what_was_expected_and_found(
    made: Scoreboard, at: int, what: str
) -> None:
    expected = made.words[at // 8]
    made.words[at // 8] = 99
    with pytest.raises(LocalError, match=f"{made.memory.name}: {what}: expected {expected}, found 99"):
        scoreboard.attach(made.memory.name, WORKERS)


def test_a_scoreboard_of_another_number_of_workers_is_refused(made: Scoreboard) -> None:
    with pytest.raises(LocalError, match=r"expected .* bytes, has"):
        scoreboard.attach(made.memory.name, WORKERS + 1)


# -- the table of counters


def test_counter_ids_and_names_are_unique_and_fit_the_scoreboard() -> None:
    assert len({c.id for c in COUNTERS}) == len({c.name for c in COUNTERS}) == len(COUNTERS) == len(ID)
    assert all(0 <= c.id < layout.COUNTERS_MAX for c in COUNTERS)


def test_the_counters_of_a_duty_stand_together_and_in_the_order_of_their_ids() -> None:
    groups = [list(group) for _, group in groupby(COUNTERS, lambda c: (c.name.split(".")[0], c.duty))]
    assert len(groups) == 8
    for group in groups:
        assert [c.id for c in group] == sorted(c.id for c in group)


@pytest.mark.parametrize("name", [c.name for c in COUNTERS])
def test_a_counter_is_named_kind_noun_participle_or_says_why_there_was_a_drop(name: str) -> None:
    assert COUNTER_NAME.fullmatch(name)


def test_every_counter_has_one_writing_duty_and_a_meaning() -> None:
    assert {c.duty for c in COUNTERS} == {OUT, IN} == set(layout.DUTIES)
    assert all(c.meaning and not c.meaning.endswith(".") for c in COUNTERS)


def test_a_block_of_sixteen_ids_belongs_to_one_duty_of_one_kind() -> None:
    owners: dict[int, set[tuple[str, str]]] = {}
    for counter in COUNTERS:
        owners.setdefault(counter.id // 16, set()).add((counter.name.split(".")[0], counter.duty))
    assert {block: each for block, each in owners.items() if len(each) > 1} == {}
    assert 16 * 8 % layout.CACHE_LINE == 0 == layout.COUNTERS_AT % layout.CACHE_LINE
