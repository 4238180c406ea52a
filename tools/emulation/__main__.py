"""The commands of tools/arm64. Exit status: that of the command inside."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools.emulation.machine import EmulatedRoot, EmulationError

CHECKOUT = Path(__file__).resolve().parents[2]
LACKING = (  # in the emulator: SO_MAX_PACING_RATE, TCP_INFO, a start without standard files; the wheel of zfec
    "tests/unit/workers/tcp/test_link_monitor.py",
    "tests/unit/transport/test_connection.py::test_the_kernel_tells_of_bytes_that_were_acknowledged",
    "tests/unit/transport/test_connection.py::test_the_kernel_tells_how_long_the_other_ends_window_was_closed",
    "tests/unit/transport/test_connection.py::test_a_pacing_rate_is_set_and_taken_away_and_a_closed_socket_is_no_error",
    "tests/unit/system/test_inherited.py::test_a_file_that_is_opened_later_is_no_standard_file",
    "tests/unit/fec/test_codec.py::test_the_bench_measures_the_code_beside_zfec",
)
PYTEST = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=900"]
PYTEST += [f"--deselect={each}" for each in LACKING]
TESTED = ("tests/unit", "tests/inline")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/arm64", description="This checkout on an emulated arm64 machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("make", "make the machine, or bring it up to date"),
        ("run", "a command inside, in /src, with this machine's network"),
        ("test", f"tests inside, those of {' and '.join(TESTED)} if none are named"),
    ):
        each = commands.add_parser(name, help=text)
        each.add_argument("directory", type=Path, metavar="DIR", help="where the machine is kept")
        each.set_defaults(rest=[])
        if name != "make":
            each.add_argument("rest", nargs=argparse.REMAINDER, help="the command, or arguments of pytest")
    arguments = parser.parse_args()
    machine = EmulatedRoot(arguments.directory.resolve())
    try:
        machine.make(CHECKOUT)
    except EmulationError as error:
        print(f"tools/arm64: {error}", file=sys.stderr)
        return 1
    words = {"make": [], "run": arguments.rest, "test": [*PYTEST, *(arguments.rest or TESTED)]}[arguments.command]
    if words:
        inside = machine.inside(CHECKOUT, "env", "-C", "/src", *words, network=arguments.command == "test")
        os.execvp(inside[0], inside)
    return 0


if __name__ == "__main__":
    sys.exit(main())
