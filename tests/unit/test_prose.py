"""Prose of the program and its documents: short sentences with named subjects, for readers of any first language.

Tables, code and headings are no sentences. In a docstring an indented line, or one with a gap, belongs to a table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

FOLDERS = sorted({path.parent for top in ("pipeline", "workers") for path in (ROOT / top).rglob("*.py")})
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]
SOURCES = pytest.mark.parametrize("source", [*FOLDERS, *DOCUMENTS], ids=lambda path: str(path.relative_to(ROOT)))

WORDS_MAX = 30
THE_SAME_MAX = 9  # in all

END = re.compile(r"(?<=[.!?;])\s+|(?<=:)\s+(?=[A-Z])|\s·\s")
WORD = re.compile(r"[A-Za-z][\w'-]*")
NO_SUBJECT = re.compile(r"(Who(m|ever)?|What(ever)?)\b(?!.*\?$)")
HE = re.compile(r"\b(he|him|his|himself)\b", re.IGNORECASE)
THE_SAME = re.compile(r"\bthe same(?= (as|for|and|or|in|is|are|to|with|by|at|on)\b|[.,;:)]|$)", re.IGNORECASE)
TABLE_ROW = re.compile(r"\s|\S+.*\S {2,}\S")


def docstrings(folder: Path) -> Iterator[str]:
    """The paragraphs of every docstring, those behind constants included."""
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    first, _, rest = text.partition("\n")
                    lines = [first, *re.sub(r"(?m)^" + " " * node.col_offset, "", rest).split("\n")]
                    yield from "\n".join("" if TABLE_ROW.match(line) else line for line in lines).split("\n\n")


def paragraphs(document: Path) -> Iterator[str]:
    """The paragraphs and items of a document, and the cells of its tables."""
    text = re.sub(r"^```.*?^```|^#.*?$|<!--.*?-->", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\n\n(    .*\n)+", "\n\n", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text).replace("**", "")
    yield from re.split(r"\n\n|\n *(?:-|\d+\.) |\|", text)


@cache
def sentences(source: Path) -> list[str]:
    found = docstrings(source) if source.is_dir() else paragraphs(source)
    return [each for paragraph in found for each in END.split(" ".join(re.sub(r"`[^`]*`", "X", paragraph).split()))]


@SOURCES
def test_no_sentence_is_long(source: Path) -> None:
    assert [each for each in sentences(source) if len(WORD.findall(each)) > WORDS_MAX] == []


@SOURCES
def test_a_sentence_begins_with_a_noun_where_a_pronoun_would_stand_for_it(source: Path) -> None:
    assert [each for each in sentences(source) if NO_SUBJECT.match(each)] == []


@SOURCES
def test_a_peer_is_it_and_never_he(source: Path) -> None:
    assert [each for each in sentences(source) if HE.search(each)] == []


def test_the_same_stands_before_a_noun() -> None:
    found = [each for source in (*FOLDERS, *DOCUMENTS) for each in sentences(source) if THE_SAME.search(each)]
    assert len(found) <= THE_SAME_MAX, found
