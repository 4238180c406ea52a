"""A command on a terminal of its own, as a person sees it: what it draws, what it is sent, what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tests.support import eventually

FRAME = b"\x1b[H"
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
READ_BYTES = 65536


class Terminal:
    """The process is the leader of a session, and the terminal is its own: a signal character reaches it."""

    def __init__(self, command: Sequence[object], lines: int = 24, columns: int = 80, **environment: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.resize(lines, columns, tell=False)
        self.before = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *map(str, command)],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment},
        )
        self.data = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for fd in (self._ours, self._theirs):
            if fd >= 0:
                os.close(fd)

    def resize(self, lines: int, columns: int, tell: bool = True) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> str:
        """The last whole frame as text, without colours; "" before the first."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self.data += os.read(self._ours, READ_BYTES)
            except OSError:  # the other end was closed
                break
        frames = self.data.split(FRAME)
        return SEQUENCE.sub("", frames[-2].decode(errors="replace")).replace("\r", "") if len(frames) > 2 else ""

    def until(self, text: str, seconds: float = 10.0) -> str:
        """The first frame with this text."""
        return eventually(lambda: self._frame(lambda frame: text in frame), seconds, f'"{text}" on the terminal')

    def until_not(self, text: str, seconds: float = 10.0) -> str:
        """The first frame without this text."""
        return eventually(lambda: self._frame(lambda frame: text not in frame), seconds, f'no "{text}" on the terminal')

    def _frame(self, is_wanted: Callable[[str], bool]) -> str:
        """The last frame, if it is wanted: it is read once."""
        frame = self.read()
        return frame if is_wanted(frame) else ""

    def close(self) -> None:
        """As when its window is closed."""
        os.close(self._theirs)
        os.close(self._ours)
        self._ours = self._theirs = -1

    def is_as_before(self) -> bool:
        """Modes as before the command, the main screen, a cursor."""
        self.read()
        entered, left = self.data.rfind(b"\x1b[?1049h"), self.data.rfind(b"\x1b[?1049l")
        return (
            termios.tcgetattr(self._theirs) == self.before
            and left > entered
            and self.data.rfind(b"\x1b[?25h") > self.data.rfind(b"\x1b[?25l")
        )

    def wait(self, seconds: float = 10.0) -> int:
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            self.read()
            time.sleep(0.01)
        return self.process.wait(0.1)
