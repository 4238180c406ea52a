"""Log lines: one write each, as text or JSON, in UTC, with nothing in them that a terminal would obey."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import log
from pipeline.log import LOG, printable
from tests.support import ROOT


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


# -- a standard error that takes nothing

CHILD = """
import sys
from pipeline import log
log.start("town", "tcp-0", "info", "text")
for number in range(3000):
    log.LOG.info("line %d %s", number, "x" * 100)
print("done", flush=True)
sys.stdin.readline()
log.LOG.info("the last line")
"""


def child(stderr: int | socket.socket) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def take(fd: int) -> bytes:
    """All that is there now."""
    os.set_blocking(fd, False)
    found = b""
    try:
        while data := os.read(fd, 1 << 20):
            found += data
    except BlockingIOError:
        pass
    os.set_blocking(fd, True)
    return found


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_a_reader_that_stands_still_costs_lines_and_no_time(kind: str) -> None:
    """A journal that was stopped, a pipe to a program that hangs, a terminal on which Ctrl-S was pressed."""
    if kind == "pipe":
        ours, theirs = os.pipe()
    elif kind == "terminal":
        ours, theirs = os.openpty()
    else:
        ours, theirs = (end.detach() for end in socket.socketpair())
    with child(theirs) as process:
        try:
            os.close(theirs)
            assert process.stdout.readline() == "done\n"
            before = take(ours)
            assert b"line 0 " in before and b"line 2999 " not in before
            process.stdin.write("\n")
            process.stdin.flush()
            after = b""
            while b"the last line" not in after:
                after += os.read(ours, 1 << 16)
            assert re.search(rb"warning town tcp-0: \d+ lines before this one were lost: standard error", after)
            assert process.wait(10) == 0
        finally:
            process.kill()
            os.close(ours)


@pytest.mark.parametrize("place", ["/dev/full", "closed", "no reader"])
def test_a_full_disk_a_closed_standard_error_and_a_reader_that_has_gone_cost_lines_alone(place: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        stderr = {"/dev/full": full.fileno(), "closed": writer, "no reader": writer}[place]
        script = f"import os; os.close(2)\n{CHILD}" if place == "closed" else CHILD
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, input="\n", stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_log_that_is_set_up_again_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.start("town", "supervisor", "info", "text")
        before = os.listdir("/proc/self/fd")
        for _ in range(20):
            log.start("town", "supervisor", "info", "text")
        assert len(os.listdir("/proc/self/fd")) == len(before)
        LOG.info("a line")
        LOG.handlers[0].close()
    assert b"a line" in os.read(reader, 4096)
    os.close(reader)


def test_equal_lines_are_counted_and_none_is_lost(start, monkeypatch):
    written = start("p", "info", "text")
    clock = [0]
    monkeypatch.setattr("time.monotonic_ns", lambda: clock[0])
    for _ in range(15):
        LOG.warning("the same %d", 1)
    LOG.warning("another")
    assert len(written) == 2
    clock[0] = 10_000_000_000
    log.tick()
    log.tick()
    assert written[2].endswith(b" warning town p: the same 1 (repeated 14 times in 10 s)\n")
    LOG.error("the same 1")
    assert written[3].endswith(b" error town p: the same 1\n")
    LOG.error("the same 1")
    log.finish()
    assert written[4].endswith(b"the same 1 (repeated once in 1 s)\n")
    assert len(written) == 5


def test_a_count_that_is_due_comes_before_the_next_line(start, monkeypatch):
    written = start("p", "info", "text")
    clock = [0]
    monkeypatch.setattr("time.monotonic_ns", lambda: clock[0])
    LOG.info("a")
    LOG.info("a")
    clock[0] = 11_000_000_000
    LOG.info("b")
    assert [line.split(b": ")[1] for line in written] == [b"a\n", b"a (repeated once in 11 s)\n", b"b\n"]


def test_each_failure_keeps_its_traceback(start):
    written = start("p", "info", "text")
    for _ in range(2):
        try:
            raise ValueError
        except ValueError:
            LOG.exception("it failed")
    assert [b"Traceback" in line for line in written] == [True, True]


IN_THE_JOURNAL = """
import os, sys
from pipeline import log
if sys.argv[1] == "journal":
    found = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
else:
    os.environ["JOURNAL_STREAM"] = "8:1"
log.start("i", "p", "debug", "text")
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(log.LOG, level)(level)
try:
    1 / 0
except ZeroDivisionError:
    log.LOG.exception("failed")
"""


def test_lines_for_the_journal_begin_with_their_priority_and_have_no_time():
    def written(where: str) -> list[str]:
        done = subprocess.run([sys.executable, "-c", IN_THE_JOURNAL, where], cwd=ROOT, capture_output=True, check=True)
        return done.stderr.decode().splitlines()

    lines = written("journal")
    assert lines[:5] == [
        f"<{number}>{level} i p: {level}"
        for number, level in ((7, "debug"), (6, "info"), (4, "warning"), (3, "error"), (2, "critical"))
    ]
    assert all(line.startswith("<3>") for line in lines[5:])
    assert len(lines) > 7
    assert all(line.startswith("20") for line in written("elsewhere")[:5])
