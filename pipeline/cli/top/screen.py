"""The terminal of `top`: entered, drawn on, and left as it was found, whatever ends the command.

    with Screen() as screen:         the alternate screen, without a cursor, keys as they are pressed
        screen.show(lines)
        screen.wait(seconds)         keys that were pressed, or none; a resize and a continuation end the wait

SIGINT, SIGTERM and SIGHUP end the wait, and `is_over` is true from then on. SIGTSTP leaves the terminal, stops the
process as usual, and enters it again when it is continued. A terminal that was closed ends it as well. Keys are read as
bytes. Nothing is drawn while the terminal does not take it, since it was paused: the process can still be ended.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from pipeline.cli.top.keys import decode

ENTER = b"\x1b[?1049h\x1b[?25l\x1b[?7l"  # alternate screen, no cursor, no wrapping
LEAVE = b"\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, END_OF_SCREEN = b"\x1b[H", b"\x1b[K", b"\x1b[J"

READ_BYTES = 1024
WRITE_SECONDS = 2.0  # for the rest of a frame, of a terminal that is slow

SIZE_OTHERWISE = os.terminal_size((80, 24))


class Screen:
    """`is_over`: a signal has come, or the terminal was closed."""

    def __init__(self) -> None:
        self.is_over = False
        self._input, self._output = sys.stdin.fileno(), sys.stdout.fileno()
        self._console = Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False, markup=False)
        self._saved: list[object] | None = None
        self._handlers: dict[signal.Signals, object] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._end)
        for number in (signal.SIGWINCH, signal.SIGCONT):
            self._handlers[number] = signal.signal(number, lambda *_: None)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            self._take_terminal()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        self._leave_terminal()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it was its handler before
        for fd in (self._wake_read, self._wake_write):
            os.close(fd)

    # -- signals

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.is_over = True

    def _suspend(self, number: int, frame: FrameType | None) -> None:
        """Stop as usual, with the terminal as it was; go on from here."""
        self._leave_terminal()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._suspend)
        if not self.is_over:
            self._take_terminal()

    # -- the terminal

    def _take_terminal(self) -> None:
        try:
            self._saved = termios.tcgetattr(self._input)
            tty.setcbreak(self._input, termios.TCSADRAIN)
            self._write(ENTER)
        except (termios.error, OSError):
            self.is_over = True  # it was closed

    def _leave_terminal(self) -> None:
        """Once: what was saved is there again."""
        if self._saved is None:
            return
        try:
            termios.tcsetattr(self._input, termios.TCSANOW, self._saved)  # type: ignore[arg-type]  # of tcgetattr
        except (termios.error, OSError):
            pass  # it was closed
        self._saved = None
        self._write(LEAVE)

    def size(self) -> os.terminal_size:
        try:
            found = os.get_terminal_size(self._output)
        except OSError:
            return SIZE_OTHERWISE
        return found if found.columns > 0 and found.lines > 0 else SIZE_OTHERWISE

    @property
    def is_unicode(self) -> bool:
        return not self._console.options.ascii_only

    def show(self, lines: Sequence[Text]) -> None:
        """Draw a frame over the one before."""
        self._console.width = self.size().columns
        rows = [self._render(line).encode(sys.stdout.encoding, errors="replace") for line in lines]
        self._write(HOME + b"\r\n".join(row + END_OF_LINE for row in rows) + END_OF_SCREEN)

    def _render(self, line: Text) -> str:
        with self._console.capture() as capture:
            self._console.print(line, end="", no_wrap=True, crop=True, overflow="crop")
        return capture.get()

    def _write(self, data: bytes) -> None:
        """As much as the terminal takes in time; the next frame begins anew."""
        view = memoryview(data)
        try:
            while view:
                _, writable, _ = select.select([], [self._output], [], WRITE_SECONDS)
                if not writable:
                    return
                view = view[os.write(self._output, view[:4096]) :]
        except OSError:
            self.is_over = True

    def wait(self, seconds: float) -> list[str]:
        """Keys that were pressed. A signal ends the wait."""
        if self.is_over:
            return []
        try:
            readable, _, _ = select.select([self._input, self._wake_read], [], [], max(0.0, seconds))
            if self._wake_read in readable:
                os.read(self._wake_read, READ_BYTES)
            if self._input not in readable:
                return []
            data = os.read(self._input, READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self.is_over = True  # the terminal was closed
        return decode(data)
