"""The one way to read a small file: configuration, key, certificate, peer, invitation, what was saved.

    read(path, limit, what)         the bytes
    read_text(path, limit, what)    UTF-8 without a byte order mark, and without NUL bytes
    bare(text)                      a key or an invitation without what mail, chats and editors put around it

For anything that stands at the path, the answer comes soon. It is content, or a ConfigError with path and setting:

    FIFO, device, socket, directory    refused before it is opened: opening can wait, rewind a tape or start a watchdog
    a link                             followed; the opened file counts
    more than `limit` bytes            refused; a file without end is read that far and no further
    a file system that hangs           pipeline.system.hang_guard
    another encoding, NUL bytes        named, with what to do: nothing of it is visible in an editor
"""

from __future__ import annotations

import codecs
import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import ConfigError, Problem
from pipeline.system import hang_guard

UTF_16 = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE

QUOTES = "\"'`\u2018\u2019\u201c\u201d\u201e\xab\xbb"
INVISIBLE = "Cf"  # Unicode's category of format characters: byte order mark, zero-width space, soft hyphen

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

Objection = Callable[[os.stat_result], str]
"""Says what is wrong with the owner or mode of a file, "" for nothing."""


def read(path: str | Path, limit: int, what: str = "", objection: Objection = lambda status: "") -> bytes:
    """The content of a regular file of at most `limit` bytes. `what`: the setting that names the file."""
    try:
        found = hang_guard.call(lambda: _read(path, limit, objection))
    except OSError as error:
        raise _problem(path, what, f"cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise _problem(path, what, "cannot be read: its name holds a NUL, which no file name can") from None
    if isinstance(found, str):
        raise _problem(path, what, found)
    return found


def read_text(path: str | Path, limit: int, what: str = "", objection: Objection = lambda status: "") -> str:
    """The content of a regular file as text."""
    try:
        return decode(read(path, limit, what, objection))
    except ValueError as expected:
        raise _problem(path, what, f"expected {expected}") from None


def decode(data: bytes) -> str:
    """Bytes of a file as text. ValueError says what was expected, and what was found."""
    if data.startswith(UTF_16):
        raise ValueError("UTF-8, found UTF-16: save the file as UTF-8")
    if b"\0" in data:
        raise ValueError(f"text, found a NUL byte at {data.index(0)}: is the file damaged, as after a loss of power?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"text, found bytes that are not UTF-8 at {error.start}: save the file as UTF-8") from None


def bare(text: str) -> str:
    """A text without white space, invisible characters, and quotation marks around it."""
    visible = "".join(char for char in text if not char.isspace() and unicodedata.category(char) != INVISIBLE)
    return visible.strip(QUOTES)


def _read(path: str | Path, limit: int, objection: Objection) -> bytes | str:
    """The content, or what is wrong with the file."""
    if kind := _other_kind(os.stat(path)):
        return kind
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())  # the path may lead to another file by now
        if wrong := _other_kind(status) or objection(status):
            return wrong
        data = file.read(limit + 1)
    return data if len(data) <= limit else f"longer than {limit} bytes"


def _other_kind(status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return ""
    return f"expected a regular file, found {KINDS.get(stat.S_IFMT(status.st_mode), 'another kind of file')}"


def _problem(path: str | Path, what: str, text: str) -> ConfigError:
    return ConfigError([Problem(what, text, str(path))])
