"""The description of a machine: cores out of threads, and a file that comes back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.policy.machine import Device, Machine, Thread, from_json, made_of, to_json

MACHINES = st.builds(
    lambda nodes, caches, cores, smt, quota, settings: made_of(
        nodes, caches, cores, smt, quota=quota, settings=settings, devices=(Device("eth0", rps=("0",)),)
    ),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.one_of(st.none(), st.floats(0.1, 64)),
    st.dictionaries(st.text(), st.text(), max_size=3),
)


@given(MACHINES)
def test_a_description_comes_back_as_it_was(machine: Machine) -> None:
    assert from_json(to_json(machine)) == machine


def test_threads_of_one_core_are_one_core_and_those_that_may_not_be_used_are_left_out() -> None:
    machine = made_of(1, 1, 3, smt=2, usable=(0, 1, 3, 5))
    assert [core.numbers for core in machine.cores] == [[0, 3], [1], [5]]


def test_equal_core_numbers_in_two_packages_are_two_cores() -> None:
    machine = Machine((Thread(0, package=0, core=0), Thread(1, package=1, core=0)))
    assert len(machine.cores) == 2


def test_fast_cores_come_first() -> None:
    machine = made_of(1, 1, 4, speeds=[100, 100, 200, 190])
    assert [(core.number, core.is_fast) for core in machine.cores] == [(2, True), (3, True), (0, False), (1, False)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "threads"),
        ('{"threads": []}', "no threads"),
        ('{"threads": [{"number": 0}, {"number": 0}]}', "different numbers"),
        ('{"threads": [{"number": -1}]}', "different numbers"),
        ('{"threads": [{"number": 0}], "usable": [0, 3]}', "no thread 3"),
        ('{"threads": [{"number": 0}], "quota": 0}', "above 0"),
        ('{"threads": [{"number": 0}], "version": 2}', "version 2"),
        ('{"threads": [{"number": 0}], "colour": "red"}', "colour"),
        ('{"threads": [{"number": "zero"}]}', "int"),
    ],
)
def test_a_description_that_cannot_be_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_json(text)
