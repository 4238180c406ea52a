"""The documents for people, without typing anything: tests/netns/test_document_commands.py types their commands."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from pipeline.cli import help_text
from pipeline.cli.main import make_parser
from pipeline.config import parse
from tests.harness.typed_commands import NOT_RUN, TYPED, Settings, Typed, blocks, has_shape, steps
from tests.support import ROOT

PROGRAM = re.compile(r"(?:^|[|;&] )(?:sudo )?(?:tunnel-supervisor|tools/run) ([^|;&>]*)")
OURS = re.compile(r"^ *(?:sudo |\w+[#$] )?(?:tunnel-supervisor|tools/run) ", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")
DOCUMENTS = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))]


def typed_in(name: str) -> list[Typed]:
    return [step for step in steps(ROOT / name, ROOT) if isinstance(step, Typed)]


@pytest.mark.parametrize("name", TYPED)
def test_every_command_of_ours_is_in_a_block_that_is_typed(name: str) -> None:
    text = (ROOT / name).read_text()
    for block in blocks(ROOT / name, ROOT):
        if block.language == "console":
            text = text.replace(block.text, "")
    assert OURS.findall(text) == [], "write it into a block that begins with ```console"


@pytest.mark.parametrize("name", TYPED)
def test_every_command_of_ours_is_one_that_the_program_understands(name: str) -> None:
    for command in typed_in(name):
        for found in PROGRAM.finditer(command.command.split("  #")[0]):
            words = shlex.split(found[1])
            if words[0] not in ("bench", "demo"):
                assert make_parser().parse_args(words), command.place


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_a_document_shows_is_one_that_the_program_understands(path: Path) -> None:
    for line in re.findall(r"^    (?:sudo )?(?:tunnel-supervisor|tools/run) (.*)$", path.read_text(), re.MULTILINE):
        words = shlex.split(re.split(r" {2,}| [|&>#] ", line)[0])
        if words[0] not in ("bench", "demo") and "..." not in words and words[-1] != "\\":
            assert make_parser().parse_args(words), line


@pytest.mark.parametrize("name", TYPED)
def test_every_setting_that_a_reader_writes_is_one(name: str) -> None:
    for step in steps(ROOT / name, ROOT):
        if isinstance(step, Settings):
            hub = {"mode": "server", "tunnel_addr": "10.83.47.1/24"}
            assert parse(hub | step.values), step.place


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    commands = [command.command for name in TYPED for command in typed_in(name)]
    assert [each for each in NOT_RUN if not any(re.match(each, command) for command in commands)] == []


def test_a_shape_is_the_words_whatever_the_numbers_and_the_gaps() -> None:
    assert has_shape(("a  12 ms b", "..."), ["a 7.5 s   b", "x", "y"])
    assert has_shape(("...", "since 3m ago: ..."), ["x", "since 1h02m ago: whatever"])
    assert not has_shape(("a 12 ms b",), ["a 12 ms c"])
    assert not has_shape(("a",), ["a", "b"]) and not has_shape(("a", "b"), ["a"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(path: Path) -> None:
    dead = []
    for target, anchor in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        there = (path.parent / target).resolve() if target else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor[1:] not in anchors(there)):
            dead.append(target + anchor)
    assert dead == []


@cache
def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_texts_that_are_explained_are_those_of_the_program() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    explained = []
    for table in re.findall(
        r"^\| (?:text|`status`, `doctor` or.*|`join` says) \|.*\n\|---.*\n((?:\|.*\n)+)", page, re.M
    ):
        explained += [row.split("|")[1].strip() for row in table.splitlines()]
    assert len(explained) > 30
    assert [text for text in explained if not any(text in constant for constant in texts())] == []


@cache
def texts() -> set[str]:
    """Every text in the code; the values in it are replaced by nothing."""
    found = set()
    for top in ("pipeline", "workers"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Constant(value=str(text)):
                        found.add(text)
                    case ast.JoinedStr(values=values):
                        found.add("".join(str(v.value) for v in values if isinstance(v, ast.Constant)))
    return found


def test_every_command_is_in_the_reference() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    (choice,) = (each for each in make_parser()._actions if isinstance(each, argparse._SubParsersAction))
    assert [name for name in help_text.parsers_of(choice) if f"### {name}" not in page] == []


@pytest.mark.parametrize("name", TYPED)
def test_a_package_in_the_documents_has_the_version_of_this_one(name: str) -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert set(re.findall(r"tunnel-supervisor_([^-]+)-\d~deb\d+_amd64", (ROOT / name).read_text())) <= {version}
