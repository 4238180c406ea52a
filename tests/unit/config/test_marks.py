"""The settings of marks (DSCP): which are accepted, and those that are refused with which words."""

from __future__ import annotations

import pytest

from pipeline.config import parse
from pipeline.packet.marks import parse_dscp
from tests.harness.config_problems import CLIENT, the_problem


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("", 0),
        ("EF", 46),
        ("ef", 46),
        ("AF41", 34),
        ("AF13", 14),
        ("CS1", 8),
        ("CS0", 0),
        ("LE", 1),
        (0, 0),
        (63, 63),
        ("46", 46),
    ],
)
def test_a_mark_is_a_name_or_a_number(given: str | int, number: int) -> None:
    assert parse_dscp(given) == number
    assert parse(CLIENT | {"dscp_light": given, "dscp_bulk": given}).dscp_light == given


@pytest.mark.parametrize("given", ["EFF", "AF44", "AF51", "CS8", "64", "0x2e", 64, -1, "4" * 5000, "\u0664", 4.5])
def test_any_other_mark_is_refused_with_an_example(given: object) -> None:
    problem = the_problem(CLIENT | {"dscp_bulk": given})
    assert problem.startswith("test.json: dscp_bulk: given") and '"AF41"' in problem
