"""Inputs that reach new lines are kept and changed further; one at which a target raises what it must not is a finding.

fuzz(target, corpus, seed, ...)     until so many inputs have been tried, or the clock says so
minimal(target, inputs)             the fewest of them, made shorter, that reach all lines that all of them reach
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from pipeline.log import LOG
from tests.fuzz.line_coverage import Line, Lines
from tests.fuzz.mutate import Mutator

CORPUS = Path(__file__).parent / "corpus"
FOUND = "found-"  # before the name of an input that has shown a bug: it stays, whatever lines it reaches
SLOW_SECONDS = 5.0  # of the processor for one input: a hundred times what the slowest takes under a trace
FINDINGS_MAX = 20  # of one run; after that many the parser is known to be broken

Feed = Callable[[bytes], None]


class Target(NamedTuple):
    """A parser and how it is fed.

    opened     makes what it needs, gives the function that takes an input, and takes all down again
    allowed    what that function may raise: the parser's answer to nonsense. Whatever else it raises is a finding
    files      whose lines count
    seeds      inputs to begin with
    tries      changed inputs that a run of the tests feeds it: so many that it takes about a second
    """

    opened: Callable[[], AbstractContextManager[Feed]]
    allowed: tuple[type[Exception], ...]
    files: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    tries: int = 1000


class Finding(NamedTuple):
    data: bytes
    error: str


class Result(NamedTuple):
    """`kept`: the corpus and every input that has reached a new line; of these `new` was not in the corpus."""

    tried: int
    kept: list[bytes]
    new: list[bytes]
    reached: set[Line]
    findings: list[Finding]


class Unexpected(Exception):
    """A target has raised what it must not, or has taken far too long. `cause`: where it came from."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def name_of(data: bytes) -> str:
    """Of its file."""
    return hashlib.sha1(data).hexdigest()[:12]


def load(target: str, directory: Path = CORPUS) -> list[bytes]:
    return [path.read_bytes() for path in sorted((directory / target).glob("*"))]


def feed(target: Target, take: Feed, data: bytes) -> None:
    """One input. Unexpected if it shows a bug."""
    begun = time.process_time()
    try:
        take(data)
    except target.allowed:
        pass
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise Unexpected(
            f"{type(error).__name__} {place.filename}:{place.lineno}", "".join(traceback.format_exception(error))
        ) from error
    taken = time.process_time() - begun
    if taken > SLOW_SECONDS:
        raise Unexpected("slow", f"took {taken:.1f} s of the processor")


class _Run:
    """A target that is opened anew after each finding: what state it is in then, nobody knows."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.findings: dict[str, Finding] = {}
        self._open: AbstractContextManager[Feed] | None = None
        self._take: Feed | None = None

    def __enter__(self) -> _Run:
        self._was_silent, LOG.disabled = LOG.disabled, True  # or it would tell of every input
        return self

    def __exit__(self, *error: object) -> None:
        LOG.disabled = self._was_silent
        self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    def prepare(self) -> None:
        if self._open is None:
            self._open = self._target.opened()
            self._take = self._open.__enter__()

    def feed(self, data: bytes) -> None:
        try:
            feed(self._target, self._take, data)
        except Unexpected as found:
            self.findings.setdefault(found.cause, Finding(data, str(found)))
            self._close()


def fuzz(
    target: Target, corpus: Iterable[bytes], seed: str, tries: int | None = None, seconds: float = float("inf")
) -> Result:
    """Feed the corpus, then changed inputs: `tries` of them, or for so long."""
    deadline = time.monotonic() + seconds
    lines = Lines(target.files)
    mutator = Mutator(seed)
    kept: list[bytes] = []
    tried = 0
    with _Run(target) as run:

        def look(data: bytes) -> set[Line]:
            run.prepare()
            return lines.new(lambda: run.feed(data))

        for data in corpus:
            look(data)
            kept.append(data)
        given = len(kept)
        while tried != tries and time.monotonic() < deadline and len(run.findings) < FINDINGS_MAX:
            data = mutator.one(kept)
            tried += 1
            if look(data):
                kept.append(data)
        return Result(tried, kept, kept[given:], lines.reached, list(run.findings.values()))


def minimal(target: Target, inputs: Iterable[bytes], tries_each: int = 150) -> list[bytes]:
    """Chosen greedily: the one that adds the most lines, of those the shortest. Those with a finding are left out."""
    lines = Lines(target.files)
    with _Run(target) as run:

        def reached(data: bytes) -> set[Line]:
            run.prepare()
            before = len(run.findings)
            found = lines.all(lambda: run.feed(data))
            return found if len(run.findings) == before else set()

        by_input = {data: reached(data) for data in sorted(set(inputs), key=lambda data: (len(data), data))}
        wanted = set().union(*by_input.values())
        chosen: list[bytes] = []
        while wanted:
            best = max(by_input, key=lambda data: len(by_input[data] & wanted))
            needed = by_input[best] & wanted
            if not needed:
                break
            shorter = _shortened(best, needed, reached, tries_each)
            chosen.append(shorter)
            wanted -= needed | reached(shorter)
        return chosen


def _shortened(data: bytes, needed: set[Line], reached: Callable[[bytes], set[Line]], tries: int) -> bytes:
    """With pieces taken out as long as the needed lines are reached."""
    size = max(1, len(data) // 2)
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            tries -= 1
            shorter = data[:at] + data[at + size :]
            if needed <= reached(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def leave(target: str, inputs: Sequence[bytes], directory: Path = CORPUS) -> None:
    """Remove the others, those excepted that have shown a bug."""
    for path in (directory / target).glob("*"):
        if not path.name.startswith(FOUND) and path.read_bytes() not in inputs:
            path.unlink()


def save(target: str, inputs: Sequence[bytes], directory: Path = CORPUS) -> int:
    """Write those that are not there yet. How many."""
    (directory / target).mkdir(parents=True, exist_ok=True)
    there = load(target, directory)
    new = [data for data in inputs if data not in there]
    for data in new:
        (directory / target / name_of(data)).write_bytes(data)
    return len(new)
