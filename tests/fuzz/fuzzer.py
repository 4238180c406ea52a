"""A fuzzer: inputs that reach new lines are kept and changed further; an unexpected exception of a target is a finding.

fuzz(target, corpus, seed, ...)     try inputs, so many or for so long
minimal(target, inputs)             the fewest inputs, made shorter, that reach all lines that all of them reach
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

    opened     a context manager: it makes the surroundings of the parser and yields the function that takes an input
    allowed    exceptions that this function may raise, for inputs that are invalid; every other one is a finding
    files      files whose lines count
    seeds      inputs to begin with
    tries      changed inputs that a run of the tests feeds it: so many that it takes about half a second
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
    """A target has raised an exception that is not allowed, or has taken far too long. `cause`: where."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


def name_of(data: bytes) -> str:
    """The name of the file of an input."""
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
    """A target that is opened again after each finding, since its state is unknown then."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.findings: dict[str, Finding] = {}
        self._open: AbstractContextManager[Feed] | None = None
        self._take: Feed | None = None

    def __enter__(self) -> _Run:
        self._was_silent, LOG.disabled = LOG.disabled, True  # or it would log every input
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
    """Feed the corpus, then `tries` changed inputs, or as many as fit into `seconds`."""
    deadline = time.monotonic() + seconds
    lines = Lines(target.files)
    mutator = Mutator(seed)
    kept: list[bytes] = []
    tried = 0
    with _Run(target) as run:

        def new_lines(data: bytes) -> set[Line]:
            run.prepare()
            return lines.new(lambda: run.feed(data))

        for data in corpus:
            new_lines(data)
            kept.append(data)
        given = len(kept)
        while tried != tries and time.monotonic() < deadline and len(run.findings) < FINDINGS_MAX:
            data = mutator.mutate(kept)
            tried += 1
            if new_lines(data):
                kept.append(data)
        return Result(tried, kept, kept[given:], lines.reached, list(run.findings.values()))


def minimal(target: Target, inputs: Iterable[bytes], tries_each: int = 150) -> list[bytes]:
    """Chosen greedily: the input that adds the most lines, and of several the shortest. Inputs with a finding are left
    out."""
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


def remove_all_but(target: str, inputs: Sequence[bytes], directory: Path = CORPUS) -> None:
    """Remove all other inputs, except those that have shown a bug."""
    for path in (directory / target).glob("*"):
        if not path.name.startswith(FOUND) and path.read_bytes() not in inputs:
            path.unlink()


def save(target: str, inputs: Sequence[bytes], directory: Path = CORPUS) -> int:
    """Write the inputs that are not there yet. The number of them."""
    (directory / target).mkdir(parents=True, exist_ok=True)
    there = load(target, directory)
    new = [data for data in inputs if data not in there]
    for data in new:
        (directory / target / name_of(data)).write_bytes(data)
    return len(new)
