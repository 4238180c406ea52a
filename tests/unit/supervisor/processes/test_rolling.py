"""A rolling restart carried out with real processes: what it starts, replaces, and why it gives up."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator

import pytest

from pipeline.runtime.assignment import FORMAT
from pipeline.supervisor.processes.precedence import Precedence
from pipeline.supervisor.processes.rolling import Rolling
from pipeline.supervisor.processes.spares import Spares
from tests.support import eventually

Serve = Callable[[selectors.BaseSelector], None]

SECOND = 1_000_000_000
LIMIT_NS = 3600 * SECOND
WAITS = f'printf "%s" "{FORMAT.decode()}" >&"$channel"; exec sleep 60'
WORKERS = [("tcp-0", "tcp"), ("tcp-1", "tcp"), ("tun-0", "tun")]


class Instance:
    """A supervisor's loop. Its workers are names: one that is replaced has taken the spare of its kind."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.selector = selectors.DefaultSelector()
        self.spares = Spares([kind for _, kind in WORKERS], "client", False, self.selector, Precedence())
        self.rolling = Rolling(self.spares, self.replace)
        self.replaced: list[str] = []
        self.now = 1_000 * SECOND
        self.rolling.begin(WORKERS, LIMIT_NS, self.now)

    def replace(self, name: str) -> None:
        self.replaced.append(name)
        spare = self.spares.take(dict(WORKERS)[name])
        spare.send(9)
        spare.reap()

    def run(self) -> None:
        """Until the restart is over."""

        def is_over() -> bool:
            self.now += SECOND // 10
            self.rolling.tick(True, self.now)
            self.serve(self.selector)
            return not self.rolling.is_under_way

        eventually(is_over, 30)


@pytest.fixture
def instance(interpreter: Callable[[str], None], serve: Serve) -> Iterator[Instance]:
    interpreter(WAITS)
    made = Instance(serve)
    yield made
    made.spares.discard()
    made.selector.close()


def test_every_worker_gets_a_process_of_its_own(instance: Instance) -> None:
    assert instance.rolling.status() == {"left": ["tcp-0", "tcp-1", "tun-0"], "error": ""}
    instance.run()
    assert instance.replaced == ["tcp-0", "tcp-1", "tun-0"]
    assert instance.rolling.status() == {"left": [], "error": ""}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("exit 1", "a spare of kind tcp has died"),
        (
            'printf "format 1.00000000" >&"$channel"; exec sleep 60',
            "the program on disk was replaced by one that does not fit this run: start it anew",
        ),
    ],
    ids=["cannot-be-imported", "another-format"],
)
def test_a_program_that_is_of_no_use_costs_no_worker_and_is_tried_once(
    instance: Instance, interpreter: Callable[[str], None], program: str, reason: str
) -> None:
    interpreter(program)
    began = instance.now
    instance.run()
    assert instance.replaced == []
    assert instance.rolling.status()["error"] == f"{reason}; not replaced: tcp-0, tcp-1, tun-0"
    assert instance.now - began < LIMIT_NS
    assert instance.spares.rows() == []


def test_a_process_that_cannot_be_started_ends_the_restart(instance: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    instance.run()
    assert instance.rolling.status()["error"].startswith("a process of kind tcp cannot be started: No such file")


def test_a_restart_begins_without_the_spares_and_the_error_of_before(instance: Instance) -> None:
    instance.rolling.cancel()
    instance.spares.prepare("tun")
    instance.rolling.begin(WORKERS, LIMIT_NS, instance.now)
    assert instance.spares.rows() == []
    assert instance.rolling.status()["error"] == ""


def test_a_stop_ends_the_restart(instance: Instance) -> None:
    instance.rolling.cancel()
    assert instance.rolling.status() == {
        "left": [],
        "error": "the instance stops; not replaced: tcp-0, tcp-1, tun-0",
    }
    instance.rolling.cancel()
