"""The removal of a book, when its instance is given up for good."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from pipeline.accounting import FILE_NAME

OURS = re.compile(re.escape(FILE_NAME) + r"(\.damaged-\d)?(-wal|-shm|-journal)?")


def remove_book(directory: Path) -> None:
    """Remove the book in a state directory, damaged ones too, and then each directory that is empty.

    OSError if a file cannot be removed. Files of others stay.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in list(directory.iterdir()):
            if OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
    for each in (directory, directory.parent):
        with suppress(OSError):  # there is something in it, or it is not there
            each.rmdir()
