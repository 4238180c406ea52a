"""A benchmark as a command: needs root, shows its progress, prints its result, and ends with an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import msgspec

from tools.lab.namespace import LabError
from tools.lab.waiting import Overdue

DONE, FAILED, NO_PERMISSION, INTERRUPTED = 0, 1, 77, 130

Log = Callable[[str], None]


class Result(Protocol):
    @property
    def failed(self) -> bool: ...


AnyResult = TypeVar("AnyResult", bound=Result)
Printed = TypeVar("Printed")


def run_command(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace], AnyResult],
    table: Callable[[AnyResult], str],
) -> int:
    """Measure, and print the result as the options say. LabError and Overdue are printed. The exit status."""
    if os.geteuid() != 0:
        print(f"{name}: needs root (network namespaces, TUN); run it with sudo", file=sys.stderr)
        return NO_PERMISSION
    try:
        result = measure(options)
    except (LabError, Overdue) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print(f"{name}: interrupted; everything is taken down", file=sys.stderr)
        return INTERRUPTED
    print_result(options, result, table)
    return FAILED if result.failed else DONE


def print_result(options: argparse.Namespace, result: Printed, table: Callable[[Printed], str]) -> None:
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        print(table(result))


@contextmanager
def progress(options: argparse.Namespace) -> Iterator[Log]:
    """A log of one line on the terminal, which is empty at the end of the block; of none if a program reads."""
    quiet = options.json or not sys.stderr.isatty()

    def log(text: str) -> None:
        if not quiet:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield log
    finally:
        log("")
