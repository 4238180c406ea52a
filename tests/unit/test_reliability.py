"""docs/reliability.md against the tests: every test that it names exists, and every figure that it points to."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("| ")]
PROMISES = [row for row in ROWS if len(row) == 3 and row[0] != "promise"]
FIGURES = [row for row in ROWS if len(row) == 4 and row[1] != "figure"]
WORD = re.compile(r"`(tests/[\w/]+\.py|test_\w+)`")


def named_tests(cell: str) -> list[tuple[str, str]]:
    """(file, function) of each test in a cell. A file stands before its functions."""
    found, file = [], ""
    for word in WORD.findall(cell):
        if word.endswith(".py"):
            file = word
        else:
            found.append((file, word))
    return found


TESTS = sorted({test for _, cell, _ in PROMISES for test in named_tests(cell)})


def test_every_promise_has_a_test() -> None:
    assert len(PROMISES) > 40
    assert [promise for promise, cell, _ in PROMISES if not named_tests(cell)] == []


@pytest.mark.parametrize("file", sorted({file for file, _ in TESTS}))
def test_the_tests_that_are_named_exist(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [function for of, function in TESTS if of == file and function not in there] == []


def test_every_figure_has_a_command_and_a_promise() -> None:
    numbers = [row[0] for row in FIGURES]
    assert numbers == [str(number) for number in range(1, len(FIGURES) + 1)]
    assert {number for _, _, cell in PROMISES for number in re.findall(r"\d+", cell)} == set(numbers)
    assert [row for row in FIGURES if not re.match(r"`tools/\w+", row[2])] == []
