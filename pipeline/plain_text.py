"""Text for a terminal, a log or a page: what is no printable character is escaped.

A name from a disk, a peer or the environment may hold control characters. In a terminal they would recolour, move or
hide what else is there; in a log a line break would make a line that nobody has written.

    escaped(text)          on one line
    escaped_lines(text)    each line by itself
    escape_output()        everything that this process prints from now on
"""

from __future__ import annotations

import io
import sys
from typing import TextIO


def escaped(text: str) -> str:
    """The text with everything escaped that is no printable character: no terminal, file or page takes harm."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def escaped_lines(text: str) -> str:
    """Each line escaped. Line breaks are ours: a text that is quoted in a line has been escaped before."""
    return "\n".join(map(escaped, text.split("\n")))


class _PlainStream(io.TextIOWrapper):
    """`before`: the stream whose buffer this one writes to. Its end would close the buffer."""

    def __init__(self, before: io.TextIOWrapper) -> None:
        super().__init__(before.buffer, before.encoding, "backslashreplace", line_buffering=before.line_buffering)
        self._before = before

    def write(self, text: str, /) -> int:
        super().write(escaped_lines(text))
        return len(text)


def escape_output() -> None:
    """Call once, at the start of a command. One that moves the cursor of a terminal writes to the stream's buffer."""
    sys.stdout, sys.stderr = _plain(sys.stdout), _plain(sys.stderr)


def _plain(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return _PlainStream(stream)
