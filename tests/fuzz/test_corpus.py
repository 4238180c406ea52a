"""Every parser accepts or refuses any foreign bytes in the way that its callers expect.

An input for which this does not hold is kept: put it into corpus/TARGET, with "found-" before its name, together with
the repair.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import PeerError
from tests.fuzz import three_step_bug
from tests.fuzz.fuzzer import CORPUS, FOUND, Target, fuzz, load, minimal, name_of, remove_all_but, save
from tests.fuzz.line_coverage import Lines
from tests.fuzz.mutate import INPUT_BYTES_MAX
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets_wire import alone

CORPUS_BYTES_MAX = 200_000
SEEDS = [b"toy\0\3\1ab"]
TRIES = 20_000
STAIRS_TRIES = 60_000
STAIRS = three_step_bug.stairs.__code__.co_firstlineno

TOY = Target(alone(three_step_bug.parse), (PeerError,), (three_step_bug.FILE,), lambda: SEEDS)
SOUND = TOY._replace(opened=alone(three_step_bug.sound))


def found_in(target: Target, corpus: list[bytes], seed: str, tries: int) -> str:
    return "\n".join(f"{finding.data!r}\n{finding.error}" for finding in fuzz(target, corpus, seed, tries).findings)


@pytest.mark.parametrize("name", TARGETS)
def test_each_input_of_the_corpus_is_taken_or_refused(name: str) -> None:
    corpus = load(name)
    assert corpus, "no corpus: python -m tests.fuzz --minimise makes one"
    assert not found_in(TARGETS[name], corpus, "", 0)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_are_near_to_them_are_taken_or_refused(name: str) -> None:
    assert not found_in(TARGETS[name], load(name), f"tests {name}", TARGETS[name].tries)


def test_the_corpus_is_small_and_each_file_has_its_name() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(TARGETS)
    assert sum(path.stat().st_size for path in files) < CORPUS_BYTES_MAX
    for path in files:
        assert path.stat().st_size <= INPUT_BYTES_MAX
        assert path.name.removeprefix(FOUND) == name_of(path.read_bytes())


# -- the fuzzer itself


def test_a_bug_behind_four_checks_is_found() -> None:
    (finding,) = fuzz(TOY, SEEDS, "planted", TRIES).findings
    with pytest.raises(IndexError):
        three_step_bug.parse(finding.data)
    assert "IndexError" in finding.error


def test_what_a_target_may_raise_is_no_finding() -> None:
    assert not fuzz(SOUND, SEEDS, "planted", TRIES).findings


def test_a_bug_in_the_corpus_is_found_without_any_change() -> None:
    assert found_in(TOY, [b"toy\0\3\3\xffa"], "", 0)


def test_it_is_led_by_the_lines_that_an_input_reaches() -> None:
    """Blind, as many changes do not get there."""
    stairs = TOY._replace(opened=alone(three_step_bug.stairs))
    assert fuzz(stairs, [bytes(3)], "stairs", STAIRS_TRIES).findings
    assert not fuzz(stairs._replace(files=()), [bytes(3)], "stairs", STAIRS_TRIES).findings


def test_a_seed_stands_for_one_sequence_of_inputs() -> None:
    first, second, other = (fuzz(SOUND, SEEDS, seed, 2000).kept for seed in ("a", "a", "b"))
    assert first == second != other


def test_a_target_is_made_anew_after_a_finding_and_taken_down_at_the_end() -> None:
    events: list[str] = []

    class Opened:
        def __enter__(self) -> object:
            events.append("opened")
            return three_step_bug.parse

        def __exit__(self, *error: object) -> None:
            events.append("closed")

    fuzz(TOY._replace(opened=Opened), [b"toy\0\3\3\xffa", b"", b""], "", 0)
    assert events == ["opened", "closed", "opened", "closed"]


def test_the_fewest_inputs_that_reach_all_lines_are_left_and_made_shorter() -> None:
    inputs = [
        b"",
        b"to",
        b"toy\0\3\1ab",
        b"toy\0\3\1xy",
        b"toy\0\7\3\xc9more!",
        b"toy\0\4\3\0ab",
        b"toy\0\3\2ab",
        b"toy\0\3\1",
    ]
    lines = Lines([three_step_bug.FILE])
    wanted = set().union(*(lines.all(lambda: refused(data)) for data in inputs))
    left = minimal(SOUND, inputs)
    assert set().union(*(lines.all(lambda: refused(data)) for data in left)) == wanted
    assert len(left) == 6  # one for each end that the parser can come to
    assert sum(map(len, left)) < sum(map(len, inputs))


def refused(data: bytes) -> None:
    try:
        three_step_bug.sound(data)
    except PeerError:
        pass


def test_lines_are_new_once_and_all_that_there_are_can_be_reached() -> None:
    lines = Lines([three_step_bug.FILE])
    first = lines.new(lambda: refused(b""))
    assert first and {file for file, _ in first} == {three_step_bug.FILE}
    assert lines.new(lambda: refused(b"")) == set()
    assert lines.all(lambda: refused(b"")) == first
    for data in (b"toy", b"toy\0\3\1ab", b"toy\0\3\2ab", b"toy\0\3\3\0a", b"toy\0\3\3\xc8a", b"toy\0\3\3\xffa"):
        assert lines.new(lambda: refused(data))
    assert lines.reached == {line for line in lines.possible() if line[1] < STAIRS}


def test_inputs_are_saved_under_their_name_and_once(tmp_path: Path) -> None:
    assert save("toy", [b"a", b"b"], tmp_path) == 2
    assert save("toy", [b"b"], tmp_path) == 0
    assert sorted(load("toy", tmp_path)) == [b"a", b"b"]


def test_what_has_shown_a_bug_is_left_in_the_corpus(tmp_path: Path) -> None:
    save("toy", [b"a", b"b"], tmp_path)
    (tmp_path / "toy" / (FOUND + name_of(b"c"))).write_bytes(b"c")
    remove_all_but("toy", [b"b"], tmp_path)
    assert sorted(load("toy", tmp_path)) == [b"b", b"c"]
