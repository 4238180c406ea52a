"""Instances by their lock files: running, dead, starting, and with a lock file that somebody has removed."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import LocalError, NotRunning
from pipeline.supervisor import instance
from pipeline.supervisor.control.run_files import CHECK_NS, RunFiles
from pipeline.supervisor.instance import RUN_DIRECTORY, Instance, find_instances

Make = Callable[..., Instance]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes instances that hold their locks; with `dead`, like one whose supervisor was killed."""
    made = []

    def make(name: str = "", dead: str | None = None) -> Instance:
        held = Instance(name or f"i-{secrets.token_hex(4)}")
        held.acquire()
        if dead is not None:
            fcntl.flock(held._lock_fd, fcntl.LOCK_UN)
            held.lock_path.write_text(dead)
        made.append(held)
        return held

    yield make
    for held in made:
        if held._lock_fd >= 0:
            held.release()


def names_of(*instances: Instance) -> list[str]:
    return sorted(each.name for each in instances)


@pytest.mark.parametrize(
    "content", ["4711\n", "", "not a number\n", "999999999999"], ids=["pid", "", "text", "other-boot"]
)
def test_a_lock_file_that_nobody_holds_is_of_a_dead_instance_whatever_is_in_it(make: Make, content: str) -> None:
    running, dead = make(), make(dead=content)
    found = find_instances()
    assert (found.running, found.dead) == (names_of(running), names_of(dead))
    assert f'"{dead.name}"' in found.note and running.name not in found.note
    with pytest.raises(NotRunning, match="its last supervisor died"):
        dead.supervisor_pid()
    assert running.supervisor_pid() == os.getpid()


def test_a_lock_that_is_held_before_the_pid_is_written_is_of_an_instance_that_starts(make: Make) -> None:
    starting = make()
    starting.lock_path.write_text("")
    assert starting.supervisor_pid() == 0 and find_instances().running == [starting.name]


def test_where_no_instance_has_ever_run_none_is_found() -> None:
    assert find_instances() == ([], []) and find_instances().note == ""


def test_a_dead_instance_starts_again_and_is_running_then(make: Make) -> None:
    dead = make(dead="4711\n")
    again = make(dead.name)
    assert find_instances().running == [again.name]
    os.close(dead._lock_fd)
    dead._lock_fd = -1


def test_a_lock_file_that_was_removed_is_made_again_and_keeps_a_second_supervisor_out(make: Make) -> None:
    held = make()
    assert held.hold_place() is False
    held.lock_path.unlink()
    assert held.hold_place() is True and held.supervisor_pid() == os.getpid()
    with pytest.raises(LocalError, match="runs already"):
        make(held.name)


def test_a_directory_that_was_removed_is_made_again(make: Make) -> None:
    held = make()
    held.lock_path.unlink()
    RUN_DIRECTORY.rmdir()
    assert held.hold_place() is True and find_instances().running == [held.name]


def test_a_supervisor_that_came_second_while_the_lock_file_was_gone_keeps_the_place(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "LOCK_SECONDS", 0.0)
    first = make()
    first.lock_path.unlink()
    second = make(first.name)
    with pytest.raises(LocalError, match=re.escape(f'another supervisor has taken the name "{first.name}"')):
        first.hold_place()
    first.release()
    first._lock_fd = -1
    assert second.supervisor_pid() == os.getpid() and find_instances().running == [second.name]


class Control:
    """Counts how often its socket had to be made again."""

    def __init__(self, held: Instance) -> None:
        self._held = held
        self.made = 0
        self.trouble = ""

    def listen_again(self) -> None:
        self.made += 1
        if self.trouble:
            raise OSError(self.trouble)
        self._held.socket_path.touch()


def test_removed_files_are_made_again_within_a_second_and_said_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    held = make()
    control = Control(held)
    files = RunFiles(held, control)
    now = 0
    for removed in (held.lock_path, held.socket_path):
        files.check(now)
        removed.unlink()
        files.check(now + CHECK_NS // 2)
        assert not removed.exists()
        now += CHECK_NS
        files.check(now)
        assert removed.exists()
        assert caplog.text.count(f"{removed} was removed: made again") == (2 if removed == held.socket_path else 1)
    assert control.made == 2


def test_a_file_that_cannot_be_made_again_is_tried_each_second_and_said_once_for_each_reason(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    held = make()
    control = Control(held)
    files = RunFiles(held, control)
    held.socket_path.unlink(missing_ok=True)
    for second, trouble in enumerate(["full", "full", "read-only", ""]):
        control.trouble = trouble
        files.check(second * CHECK_NS)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["full", "read-only"]
    held.socket_path.unlink()
    control.trouble = "read-only"
    files.check(4 * CHECK_NS)
    assert caplog.messages.count("read-only") == 2 and control.made == 5
