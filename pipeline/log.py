"""Log lines on standard error, one write() each, as text or JSON; times are UTC. No process ever waits for its log.

Text that a peer has sent is escaped by printable(), and every line is escaped as a whole (pipeline.plain_text): no
control character reaches a terminal or a log file.

Equal lines are counted, not repeated (`policy.repeats`): tick() writes the counts that are due, finish() the rest.
Under systemd, where standard error is the journal, each line begins with its priority (sd-daemon(3)); the journal has
the time already.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401  (printable: Python would load it when it is needed, from a file)
import json
import logging
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TextIO

from pipeline.plain_text import escaped_lines
from pipeline.policy.repeats import Repeated, Repeats

LOG = logging.getLogger("tunnel")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


PRIORITIES = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}
"""The priority in front of a line, by its level, as sd-daemon(3) has it."""


class _Line(logging.Formatter):
    """Time, level, instance, process, text; with a traceback if there is one. `journal`: the journal reads it."""

    def __init__(self, instance: str, process: str, as_json: bool, journal: bool = False) -> None:
        super().__init__()
        self._instance = instance
        self._process = process
        self._json = as_json
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        line = self._line(record, text)
        if not self._journal:
            return line
        priority = PRIORITIES.get(record.levelno, "<6>")
        return "\n".join(priority + each for each in line.split("\n"))  # each is an entry of its own there

    def _line(self, record: logging.LogRecord, text: str) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{seconds}.{int(record.msecs):03d}Z"
        level = record.levelname.lower()
        if self._json:
            return json.dumps(
                {"time": stamp, "level": level, "instance": self._instance, "process": self._process, "text": text}
            )
        return f"{'' if self._journal else f'{stamp} '}{level} {self._instance} {self._process}: {escaped_lines(text)}"


def printable(text: str) -> str:
    """The text with all but printable ASCII escaped."""
    return text.encode("unicode_escape").decode()


class _Output(logging.Handler):
    """A stream that is never waited for: a line that it does not take at once is lost and counted.

    A pipe whose reader stands still, a journal that was stopped, a terminal that was paused: a write to them would stop
    the packets. To write without waiting must be our own choice alone, since others share the open file.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lost = 0
        self._torn = False  # the last line was cut
        self._repeats: Repeats[tuple[int, str]] = Repeats()  # by level and text
        self._close: Callable[[], None] = lambda: None
        self._write: Callable[[bytes], int] = self._write_to_stream
        try:
            self._write, self._close = _without_waiting(stream.fileno()) or (self._write, self._close)
        except (OSError, ValueError, AttributeError):
            pass  # no descriptor is behind the stream, or none is left: it is written to as it is

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic_ns()
        self._write_counts(self._repeats.due(now))
        if record.exc_info or self._repeats.is_new((record.levelno, record.getMessage()), now):
            self._emit(record)

    def tick(self, finish: bool = False) -> None:
        """Write the counts of repeated lines that are due, or all of them."""
        with self.lock or nullcontext():
            now = time.monotonic_ns()
            self._write_counts(self._repeats.rest(now) if finish else self._repeats.due(now))

    def _write_counts(self, counts: Iterable[Repeated[tuple[int, str]]]) -> None:
        for each in counts:
            level, text = each.key
            fields = {"levelno": level, "levelname": logging.getLevelName(level), "msg": f"{text} ({each.words})"}
            self._emit(logging.makeLogRecord(fields))

    def _emit(self, record: logging.LogRecord) -> None:
        lines = [record]
        if self._lost:
            text = f"{self._lost} lines before this one were lost: standard error took no more"
            lost = {"levelno": logging.WARNING, "levelname": "WARNING", "msg": text, "created": record.created}
            lines.insert(0, logging.makeLogRecord(lost))
        try:
            text = "\n" * self._torn + "".join(self.format(each) + "\n" for each in lines)
            data = text.encode(errors="backslashreplace")
            written = self._write(data)
        except Exception:  # the reader has gone, the disk is full, the stream is closed
            self._lost += 1
            return
        self._lost, self._torn = 0, written < len(data)

    def _write_to_stream(self, data: bytes) -> int:
        self._stream.write(data.decode())
        self._stream.flush()
        return len(data)

    def close(self) -> None:
        self.tick(finish=True)
        super().close()
        self._close()


def _without_waiting(fd: int) -> tuple[Callable[[bytes], int], Callable[[], None]] | None:
    """How to write to a file that may not take everything, and how to close it then; None for a file on a disk."""
    kind = os.fstat(fd).st_mode
    if stat.S_ISSOCK(kind):
        import socket  # which a worker without connections would otherwise load for nothing

        own = socket.socket(fileno=os.dup(fd))
        return lambda data: own.send(data, socket.MSG_DONTWAIT), own.close
    if stat.S_ISFIFO(kind) or os.isatty(fd):
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        opened = os.open(f"/proc/self/fd/{fd}", flags)
        return lambda data: os.write(opened, data), lambda: os.close(opened)
    return None


def is_journal(stream: TextIO) -> bool:
    """Whether systemd's journal is behind the stream: $JOURNAL_STREAM has its device and inode (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def tick() -> None:
    """Call about once a second: write the counts of repeated lines that are due."""
    for handler in LOG.handlers:
        if isinstance(handler, _Output):
            handler.tick()


def finish() -> None:
    """The process is about to end: write all counts of repeated lines."""
    for handler in LOG.handlers:
        if isinstance(handler, _Output):
            handler.tick(finish=True)


def start(instance: str, process: str, level: str, form: str) -> None:
    """Set up the log of this process. If standard error stands still or is lost, lines are lost, and nothing else."""
    handler = _Output(sys.stderr)
    handler.setFormatter(_Line(instance, process, form == "json", is_journal(sys.stderr)))
    logging.raiseExceptions = False
    for old in LOG.handlers:
        old.close()
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(LEVELS[level])
