"""Log lines: one write each, as text or JSON, in UTC, with nothing in them that a terminal would obey."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import log
from pipeline.log import LOG, printable


class Pipe(io.RawIOBase):
    """Where standard error goes, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.writes.append(bytes(data))
        return len(data)


class Broken(Pipe):
    """A pipe whose reader has gone."""

    def write(self, data) -> int:
        raise BrokenPipeError


def as_stderr(raw: io.RawIOBase) -> io.TextIOWrapper:
    """As the interpreter builds its own."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw), "utf-8", errors="backslashreplace", line_buffering=True, write_through=False
    )


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    handlers, propagate, level, raises = list(LOG.handlers), LOG.propagate, LOG.level, logging.raiseExceptions
    yield
    LOG.handlers, LOG.propagate, logging.raiseExceptions = handlers, propagate, raises
    LOG.setLevel(level)


Start = Callable[[str, str, str], list[bytes]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start logging to a standard error of our own: the list of its writes."""

    def begin(process: str, level: str, form: str) -> list[bytes]:
        pipe = Pipe()
        monkeypatch.setattr(sys, "stderr", as_stderr(pipe))
        log.start("town", process, level, form)
        return pipe.writes

    return begin


def test_a_line_of_text_says_when_how_grave_which_instance_and_which_process(start: Start) -> None:
    written = start("tcp-0", "info", "text")
    LOG.warning("connection %d ended", 7)
    assert len(written) == 1
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning town tcp-0: connection 7 ended\n", written[0])


def test_a_line_of_json_has_the_same_fields(start: Start) -> None:
    written = start("tcp-0", "info", "json")
    LOG.error('a "quoted" text\nin two lines')
    assert len(written) == 1
    assert written[0].count(b"\n") == 1
    line = json.loads(written[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "error", "instance": "town", "process": "tcp-0", "text": 'a "quoted" text\nin two lines'}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failure_with_its_stack_is_one_write(start: Start, form: str) -> None:
    written = start("tun-0", "info", form)
    try:
        raise ValueError("wrong")
    except ValueError:
        LOG.critical("the %s duty failed", "inbound", exc_info=True)
    assert len(written) == 1
    assert b"Traceback" in written[0]
    assert b"ValueError: wrong" in written[0]


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_not_written(start: Start, level: str, shown: int) -> None:
    written = start("tcp-0", level, "text")
    for say in (LOG.debug, LOG.info, LOG.warning, LOG.error):
        say("a line")
    assert len(written) == shown


def test_a_second_start_replaces_the_first(start: Start) -> None:
    first = start("tcp-0", "info", "text")
    second = start("tcp-0", "info", "text")
    LOG.info("once")
    assert (len(first), len(second)) == (0, 1)


def test_a_lost_standard_error_costs_the_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Broken(), 1), "utf-8", write_through=True))
    log.start("town", "tcp-0", "info", "text")
    LOG.error("without a reader")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x00\x07\x7f", r"\x00\x07\x7f"),
        ("caf\xe9 \u202e", r"caf\xe9 \u202e"),
    ],
)
def test_control_characters_are_shown_instead_of_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(blacklist_categories=())))
def test_any_text_of_a_peer_becomes_printable_ascii(text: str) -> None:
    shown = printable(text)
    assert shown.isascii()
    assert shown.isprintable()
