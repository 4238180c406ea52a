"""docs/glossary.md against the tree: each term occurs in it, and no retired word does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

GLOSSARY = "docs/glossary.md"
SPOKEN = ("pipeline", "workers", "tools", "tests", "docs", "configs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def rows(part: str) -> list[tuple[str, str]]:
    """First and second column of the tables in one part of the page: "terms" or "retired"."""
    text = (ROOT / GLOSSARY).read_text()
    terms, retired = text.split("## Retired")
    body = retired if part == "retired" else terms
    found = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", body, re.MULTILINE)
    return [row for row in found if row[0] not in ("term", "retired")]


def words(cell: str) -> list[str]:
    return [word.strip() for word in cell.split(",")]


def files() -> dict[str, str]:
    """The text of every file that speaks, this page and the fuzz corpus excepted."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SPOKEN],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    paths = [Path(name) for name in listed if name and name != GLOSSARY and "corpus" not in name]
    return {
        str(path): (ROOT / path).read_text()
        for path in paths
        if path.suffix in (".py", ".md", ".json") and (ROOT / path).is_file()
    }


ON_THE_WIRE = "tunnel greeting"
"""Bytes that the proof of a handshake covers (pipeline.wire.auth): they cannot change with the vocabulary."""


def spoken(text: str) -> str:
    """Code and prose as words: `peer_handle`, `PeerHandle` and `peer handles` all become "peer handle"."""
    text = text.replace(ON_THE_WIRE, "")
    text = re.sub(r"([a-z])([A-Z])", r"\1 \2", text)
    return re.sub(r"[\s_\-]+", " ", text).lower()


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    return {name: spoken(text) for name, text in files().items() if name != "tests/unit/test_glossary.py"}


TERMS = [word for row in rows("terms") for word in words(row[0])]
RETIRED = [word for row in rows("retired") for word in words(row[0])]


def test_the_page_has_its_tables() -> None:
    assert len(TERMS) > 50
    assert len(RETIRED) > 15


def test_no_word_has_two_lines() -> None:
    assert sorted(set(TERMS)) == sorted(TERMS)
    assert not set(TERMS) & set(RETIRED)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_occurs_in_the_code(term: str, tree: dict[str, str]) -> None:
    pattern = re.compile(rf"\b{re.escape(spoken(term))}")
    assert any(pattern.search(text) for name, text in tree.items() if name.startswith(("pipeline/", "workers/")))


@pytest.mark.parametrize("word", RETIRED)
def test_a_retired_word_occurs_nowhere(word: str, tree: dict[str, str]) -> None:
    pattern = re.compile(rf"\b{re.escape(spoken(word))}s?\b")
    assert [name for name, text in tree.items() if pattern.search(text)] == []
