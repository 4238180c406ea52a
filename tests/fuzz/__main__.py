"""Fuzz for longer than the tests do: python -m tests.fuzz --seconds 600 [--target NAME] [--seed WORD]

Inputs that reach new lines go to tests/fuzz/corpus/TARGET; --minimise leaves the fewest there that reach all lines that
have been reached. A finding is shown and saved, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.fuzzer import fuzz, load, minimal, name_of, remove_all_but, save
from tests.fuzz.line_coverage import Line, Lines
from tests.fuzz.targets import TARGETS


def main() -> int:
    options = _options()
    names = [options.target] if options.target else list(TARGETS)
    crashers = Path(options.crashers or tempfile.mkdtemp(prefix="fuzz-"))
    found = 0
    reached: set[Line] = set()
    for name in names:
        target = TARGETS[name]
        result = fuzz(
            target, [*load(name), *target.seeds()], f"{options.seed} {name}", seconds=options.seconds / len(names)
        )
        kept = minimal(target, result.kept) if options.minimise else result.new
        saved = save(name, kept)
        if options.minimise:
            remove_all_but(name, kept)
        print(
            f"{name}: {result.tried} inputs tried, {len(result.reached)} lines reached, {saved} inputs saved",
            flush=True,
        )
        reached |= result.reached
        for finding in result.findings:
            found += 1
            crashers.mkdir(parents=True, exist_ok=True)
            path = crashers / f"{name}-{name_of(finding.data)}"
            path.write_bytes(finding.data)
            print(f"{name}: FOUND, input in {path}: {finding.data[:200]!r}\n{finding.error}", flush=True)
    if options.missing:
        _show_missing(Lines({file for name in names for file in TARGETS[name].files}).possible() - reached)
    return 1 if found else 0


def _show_missing(lines: set[Line]) -> None:
    by_file: dict[str, list[str]] = {}
    for file, line in sorted(lines):
        by_file.setdefault(file, []).append(str(line))
    for file, numbers in by_file.items():
        print(f"{file}: not reached: {' '.join(numbers)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads a peer's bytes.")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all targets together (default 600)")
    parser.add_argument("--target", choices=TARGETS, help="this one alone")
    parser.add_argument("--seed", default="0", help="another one tries other inputs (default 0)")
    parser.add_argument("--minimise", action="store_true", help="leave the fewest inputs in the corpus")
    parser.add_argument("--missing", action="store_true", help="show the lines that no input has reached")
    parser.add_argument("--crashers", help="directory for inputs that show a bug (default: a new temporary one)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
