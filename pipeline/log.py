"""Log lines on standard error, one write() each, as text or JSON; times are UTC.

Text that a peer has sent is escaped by printable(): no control character reaches a terminal or a log file.
"""

from __future__ import annotations

import json
import logging
import sys
import time

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


def start(instance: str, process: str, level: str, form: str) -> None:
    """Set up the log of this process. Where standard error is lost, lines are lost, and the data path goes on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(instance, process, form == "json"))
    logging.raiseExceptions = False
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(LEVELS[level])
