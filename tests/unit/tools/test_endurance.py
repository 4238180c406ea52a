"""Endurance runs: what counts as growth, what counts as altered."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import cast

import pytest

from tests.support import eventually
from tools.bench.machine import Machine
from tools.endurance.faults import FAULTS, draws, select
from tools.endurance.report import Report, Struck, grown, table
from tools.endurance.samples import Held, Sample
from tools.endurance.traffic import Probe, Stream
from tools.lab.namespace import Namespace

MB = 1_000_000


class Here:
    """Stands for a namespace: sockets of this one."""

    socket = staticmethod(socket.socket)


HERE = cast(Namespace, Here())


def samples(value: Callable[[int], Held], names: Callable[[int], int] = lambda _: 40) -> list[Sample]:
    return [Sample(10.0 * n, {"two workers": value(n)}, names(n), 1000, 1.0, 5.0) for n in range(40)]


def report(struck: list[Struck], problems: list[str]) -> Report:
    steady = samples(lambda _: Held(50 * MB, 40, 9, 3))
    return Report(Machine(2, "cpu", "6.18", "3.11"), 400.0, 1, struck, steady, problems, {"stream": 5}, 2)


def test_a_run_that_holds_what_it_held_has_not_grown() -> None:
    assert grown(samples(lambda n: Held(50 * MB + n % 3 * MB, 40 + n % 2, 9, 3))) == []


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (lambda n: Held(50 * MB + n * MB // 2, 40, 9, 3), "memory of two workers: 52.2 -> 67.2 MB"),
        (lambda n: Held(50 * MB, 40 + n // 4, 9, 3), "descriptors of two workers: 41 -> 49"),
        (lambda n: Held(50 * MB, 40, 9 + n // 10, 3), "threads of two workers: 9 -> 12"),
    ],
)
def test_steady_growth_is_named(held: Callable[[int], Held], said: str) -> None:
    assert [sentence.partition(" ->")[0] for sentence in grown(samples(held))] == [said.partition(" ->")[0]]


def test_names_that_stay_in_shared_memory_are_growth() -> None:
    assert grown(samples(lambda _: Held(50 * MB, 40, 9, 3), names=lambda n: 40 + n)) == [
        "names in /dev/shm: 44.5 -> 74.5"
    ]


def test_too_few_samples_say_nothing() -> None:
    assert grown(samples(lambda n: Held(n * 100 * MB, n, n, 3))[:7]) == []


def test_the_report_has_each_fault_with_its_longest_silence() -> None:
    struck = [Struck(1.0, "kill", {"a": 10.0, "b": 80.0}), Struck(9.0, "kill", {"a": 20.0, "b": 5.0})]
    shown = report(struck, []).failed, table(report(struck, []))
    assert not shown[0]
    assert any(line.split() == ["kill", "2", "80", "80", "80"] for line in shown[1].splitlines())


def test_a_problem_makes_a_run_a_failure() -> None:
    failed = report([], ["left behind: a name"])
    assert failed.failed and "PROBLEM: left behind: a name" in table(failed)


def test_each_fault_is_drawn_as_often_as_asked_in_an_order_that_the_seed_decides() -> None:
    faults = select(["kill -9 of a "])
    drawn, again, other = (list(draws(faults, random.Random(seed), times=20)) for seed in (1, 1, 2))
    assert drawn == again != other
    assert Counter(drawn) == dict.fromkeys(faults, 20)
    assert drawn[:20] != [drawn[0]] * 20


def test_without_a_number_faults_are_drawn_by_weight_without_end() -> None:
    light, heavy = (fault._replace(weight=weight) for fault, weight in zip(FAULTS, (1, 9), strict=False))
    drawn = Counter(islice(draws([light, heavy], random.Random(1)), 1000))
    assert 50 < drawn[light] < 200


def test_a_stream_that_receives_other_bytes_than_were_sent_says_so() -> None:
    with Stream("stream", HERE, HERE, "127.0.0.1", 100.0) as stream:
        eventually(lambda: stream.received > 100_000)
        assert not stream.error
        stream._sender.send(b"x")
        eventually(lambda: stream.error)
    assert "other bytes than were sent" in stream.error


def test_a_silence_is_counted_from_the_mark_and_while_it_lasts() -> None:
    with Probe("probe", HERE, HERE, "127.0.0.1") as probe:
        eventually(lambda: probe.received > 3)
        probe.mark()
        assert probe.silence_ms() < 1000
        probe._to = ("127.0.0.1", 9)  # nobody listens there
        eventually(lambda: probe.present_silence() > 0.3)
        assert probe.silence_ms() >= 300
    assert not probe.error
