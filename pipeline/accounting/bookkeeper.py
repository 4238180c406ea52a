"""The bookkeeper: a thread that writes batches into the book, one after the other, while nobody waits for it.

    give(batch, usage_of)    write this next; only while it is idle
    result()                 what has become of it; None while it is under way, or if there was none

A disk may be full, read-only, broken, or on a server that has gone. Then the thread hangs, or the batch has an error,
and its caller keeps what was in it. The book is opened anew after each error, and if another file has taken its place.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.accounting.batch import Batch, Usage
from pipeline.credentials import ownership
from pipeline.policy.quota import Period
from pipeline.system import task_limit

if TYPE_CHECKING:
    from pipeline.accounting.book_file import BookFile  # sqlite3 takes 10 ms to load: the thread does that

DIRECTORY_MODE = 0o700


class Result(NamedTuple):
    """`error`: "" if the batch is in the book. `note`: what a person should know of the book besides.

    `usage`: without what was in the batch if there is an error.
    """

    error: str
    note: str = ""
    usage: Usage | None = None


class Bookkeeper:
    """`path`: of the book; its directory is made if it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_idle = True
        self._asked: queue.SimpleQueue[tuple[Batch, Period | None] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._book: BookFile | None = None

    def give(self, batch: Batch, usage_of: Period | None = None) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="book", daemon=True)
            try:
                task_limit.start(thread)
            except OSError as error:
                self._results.put(Result(task_limit.explain(error)))
                self.is_idle = False
                return
            self._thread = thread
        self.is_idle = False
        self._asked.put((batch, usage_of))

    def result(self, seconds: float = 0.0) -> Result | None:
        """The result, for which there is a wait of at most so many seconds."""
        if self.is_idle:
            return None
        try:
            found = self._results.get(timeout=seconds) if seconds else self._results.get_nowait()
        except queue.Empty:
            return None
        self.is_idle = True
        return found

    def close(self, seconds: float) -> None:
        """Close the book, and wait for that at most so many seconds."""
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(seconds)

    # -- in the thread

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            try:
                found = self._write(*asked)
            except Exception as error:
                self._close_book()
                found = Result(_text(error), usage=self._readable_usage(asked[1]))
            self._results.put(found)
        self._close_book()

    def _write(self, batch: Batch, usage_of: Period | None) -> Result:
        from pipeline.accounting import book_file

        try:
            return Result("", usage=self._opened().write(batch, usage_of))
        except book_file.DamagedBook as damage:
            self._close_book()
            renamed = book_file.move_away(self.path)
            note = f"{self.path} was damaged ({damage}): it is {renamed} now, and a new one begins with nothing"
            return Result("", note, self._opened().write(batch, usage_of))

    def _readable_usage(self, period: Period | None) -> Usage | None:
        """A disk on which nothing can be written may be readable."""
        if period is None:
            return None
        try:
            from pipeline.accounting import book_file

            return book_file.read_usage(self.path, period)
        except Exception:
            return None

    def _opened(self) -> BookFile:
        from pipeline.accounting.book_file import BookFile

        if self._book is not None and not self._book.is_current:
            self._close_book()
        if self._book is None:
            self.path.parent.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
            if exposure := ownership.exposure_of(self.path):
                raise OSError(exposure)
            self._book = BookFile(self.path)
        return self._book

    def _close_book(self) -> None:
        if self._book is not None:
            self._book.close()
            self._book = None


def _text(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"this Python cannot use SQLite ({error}): install the package that brings it"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
