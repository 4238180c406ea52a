"""A secret on standard output: flushed, and with a warning where other users can read what it goes to."""

from __future__ import annotations

import os
import stat
import sys

STANDARD_OUTPUT = 1


def print_secret(line: str) -> None:
    print(line, flush=True)
    status = os.fstat(STANDARD_OUTPUT)
    if stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        print("note: standard output is a file that other users can read: chmod 600 it", file=sys.stderr)
