"""Log lines on standard error, one write() each, as text or JSON; times are UTC. No process ever waits for its log.

Text that a peer has sent is escaped by printable(): no control character reaches a terminal or a log file.
"""

from __future__ import annotations

import encodings.unicode_escape  # noqa: F401  (printable: Python would load it when it is needed, from a file)
import json
import logging
import os
import stat
import sys
import time
from collections.abc import Callable
from typing import TextIO

LOG = logging.getLogger("tunnel")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Line(logging.Formatter):
    """Time, level, instance, process, text; with a traceback if there is one."""

    def __init__(self, instance: str, process: str, as_json: bool) -> None:
        super().__init__()
        self._instance = instance
        self._process = process
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{seconds}.{int(record.msecs):03d}Z"
        level = record.levelname.lower()
        if self._json:
            return json.dumps(
                {"time": stamp, "level": level, "instance": self._instance, "process": self._process, "text": text}
            )
        return f"{stamp} {level} {self._instance} {self._process}: {text}"


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
        self._close: Callable[[], None] = lambda: None
        self._write: Callable[[bytes], int] = self._write_to_stream
        try:
            self._write, self._close = _without_waiting(stream.fileno()) or (self._write, self._close)
        except (OSError, ValueError, AttributeError):
            pass  # no descriptor is behind the stream, or none is left: it is written to as it is

    def emit(self, record: logging.LogRecord) -> None:
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


def start(instance: str, process: str, level: str, form: str) -> None:
    """Set up the log of this process. If standard error stands still or is lost, lines are lost, and nothing else."""
    handler = _Output(sys.stderr)
    handler.setFormatter(_Line(instance, process, form == "json"))
    logging.raiseExceptions = False
    for old in LOG.handlers:
        old.close()
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(LEVELS[level])
