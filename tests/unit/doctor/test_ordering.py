"""The doctor on the processor: what it knows of it, and what it makes of a litmus test."""

from __future__ import annotations

import json

import pytest

from pipeline.cli.main import main
from pipeline.doctor import ordering
from pipeline.doctor.finding import Level
from pipeline.doctor.subject import Subject
from pipeline.shm import litmus, memory_order
from pipeline.shm.litmus import Outcome, Run

PAIRS = [(0, 1), (0, 7)]
FENCED = [Outcome("ring", 1_500_000, 0), Outcome("flag before look", 700_000, 0)]
BARE = [Outcome("flag before look", 600_000, 12)]


@pytest.mark.parametrize(
    ("run", "level", "expected"),
    [
        (
            Run(FENCED, BARE, PAIRS, 10.0),
            Level.OK,
            "between processors 0 and 1, 0 and 7; without a fence: flag before look: 12 of 600000 rounds",
        ),
        (Run(FENCED, [], PAIRS, 10.0), Level.OK, "all 2.2 million rounds are in order, between processors 0 and 1, 0"),
        (Run([], [], [], 0.0), Level.NOTE, "there is one processor"),
        (
            Run([*FENCED, Outcome("cursor after slot", 0, 0)], BARE, PAIRS, 0.1),
            Level.NOTE,
            "no round of the litmus test could tell the order: cursor after slot",
        ),
        (
            Run([*FENCED, Outcome("cursor after slot", 90, 1)], BARE, PAIRS, 10.0),
            Level.PROBLEM,
            "out of order, in spite of fences: cursor after slot: 1 of 90 rounds",
        ),
    ],
    ids=["in order", "nothing bare", "one processor", "too short", "out of order"],
)
def test_a_litmus_test_is_judged(run: Run, level: Level, expected: str) -> None:
    (finding,) = ordering.judge_litmus(run)
    assert finding.level is level and expected in finding.text
    assert bool(finding.cure) == (level is not Level.OK)


def test_a_machine_that_is_beta_is_noted_and_one_that_is_refused_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_order, "find_caution", lambda: "this machine is new")
    assert [finding.level for finding in ordering.processor(Subject())] == [Level.NOTE]
    monkeypatch.setattr(memory_order, "find_refusal", lambda: "this machine is too small")
    assert [finding.level for finding in ordering.processor(Subject())] == [Level.PROBLEM]
    assert "nothing was tested" in ordering.run_litmus(1.0)[0].text


def test_the_command_makes_the_test_if_it_is_asked_to_and_fails_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def run(seconds: float) -> Run:
        asked.append(seconds)
        return Run([Outcome("ring", 10, 3)], [], PAIRS, seconds)

    monkeypatch.setattr(litmus, "run", run)
    main(["doctor", "--json"])
    assert asked == [] and '"litmus"' not in capsys.readouterr().out
    assert main(["doctor", "--json", "--litmus"]) == 1
    found = next(each for each in json.loads(capsys.readouterr().out)["findings"] if each["check"] == "litmus")
    assert found["level"] == "problem" and found["looks_at"] and "ring: 3 of 10 rounds" in found["text"]
    main(["doctor", "--litmus", "2.5"])
    assert asked == [10.0, 2.5]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_a_time_that_makes_no_sense_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", f"--litmus={seconds}"]) == 2
    assert "expected at most 86400 seconds, above 0" in capsys.readouterr().err
