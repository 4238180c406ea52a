"""An observer finds the run of an instance whose supervisor is alive, and nothing that somebody else has made."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from pipeline.errors import LocalError, NotRunning
from pipeline.events import BY_NAME
from pipeline.observe import run_view
from pipeline.observe.observer import Observer, wait_for
from pipeline.observe.process_stat import CpuMeter, ProcessStat, read_process
from pipeline.shm import layout, segment
from tests.harness.made_run import MadeRun


@pytest.fixture
def name() -> str:
    return f"view{secrets.token_hex(3)}"


@pytest.fixture
def made(name: str) -> Iterator[MadeRun]:
    it = MadeRun(name)
    yield it
    it.memory.unlink()


def test_a_run_is_found_by_the_name_of_its_instance(made: MadeRun, name: str) -> None:
    view = run_view.attach(name)
    made.memory.scoreboard.pages[0].counters[3] = 7
    assert view.plan == made.plan
    assert view.scoreboard.pages[0].counters[3] == 7
    assert set(view.rings) == {each.name for each in made.plan.rings}
    with pytest.raises(TypeError):
        view.scoreboard.pages[0].counters[3] = 8
    with pytest.raises(TypeError):
        view.peer_table.links[0][0] = 8
    view.close()


def test_no_run_of_another_instance_is_taken(made: MadeRun, name: str) -> None:
    for other in ("nobody", name[:-1], f"{name}x", ".*"):
        with pytest.raises(NotRunning, match=r"does not run$"):
            run_view.attach(other)


def test_a_run_that_has_ended_or_whose_supervisor_died_is_none(made: MadeRun, name: str) -> None:
    view = run_view.attach(name)
    assert not view.has_ended
    made.memory.overview.end()
    assert view.has_ended
    view.close()
    with pytest.raises(NotRunning):
        run_view.attach(name)


def test_a_supervisor_whose_pid_another_process_has_now_is_dead(name: str) -> None:
    made = MadeRun(name, began=1)
    try:
        with pytest.raises(NotRunning, match="its last supervisor died"):
            run_view.attach(name)
    finally:
        made.memory.unlink()


def test_of_a_dead_run_and_a_live_one_the_live_one_is_taken(made: MadeRun, name: str) -> None:
    left = MadeRun(name, pid=1 << 22, began=1)
    try:
        view = run_view.attach(name)
        assert view.plan.run_id == made.plan.run_id
        view.close()
    finally:
        left.memory.unlink()


def test_what_another_user_or_nobody_in_particular_has_put_there_is_passed_over(made: MadeRun, name: str) -> None:
    base = f"{segment.SHM_DIRECTORY}/tunnel@{name}@ffffffff@overview"
    os.symlink("/etc/passwd", base)
    os.mkfifo(f"{base}.ab")
    try:
        with open(f"{base}.cd", "wb"):
            os.chown(f"{base}.cd", 12345, 12345)
        view = run_view.attach(name)
        assert view.plan.run_id == made.plan.run_id
        view.close()
    finally:
        for end in ("", ".ab", ".cd"):
            os.unlink(base + end)


@pytest.mark.parametrize("what", ["layout", "format"])
def test_a_run_of_another_version_is_refused_with_what_to_do(made: MadeRun, name: str, what: str) -> None:
    if what == "layout":
        made.memory.overview.memory.words[layout.VERSION_AT // 8] += 1
    else:
        made.about["format"] = "format 99"
        made.publish()
    with pytest.raises(LocalError, match="another version of this program: stop it and start it again"):
        run_view.attach(name)


def test_a_run_that_is_being_made_is_none_yet(made: MadeRun, name: str) -> None:
    made.memory.overview.memory.words[layout.OVERVIEW_COUNT_AT // 8] = 0
    with pytest.raises(NotRunning):
        run_view.attach(name)
    with pytest.raises(NotRunning):
        wait_for(name, None, 0.1)


def test_an_observer_follows_the_instance_into_new_memory(made: MadeRun, name: str) -> None:
    observer = Observer(name)
    taken = observer.snapshot()
    assert (taken["run"], taken["peers"][0]["name"], taken["supervisor"]["state"]) == (
        made.plan.run_id,
        "laptop",
        "silent",
    )
    made.memory.event_log.append(BY_NAME["lost"], "", "one", 1)
    assert [e.text for e in observer.read_events().events] == ["one"]
    assert observer.read_last().events == []
    made.memory.event_log.append(BY_NAME["lost"], "", "two", 1)
    made.memory.end()
    assert [e.text for e in observer.read_last().events] == ["two"]
    with pytest.raises(NotRunning):
        observer.snapshot()
    anew = MadeRun(name)
    try:
        anew.memory.event_log.restore(made.memory.event_log.contents())
        anew.memory.event_log.append(BY_NAME["lost"], "", "three", 1)
        assert observer.snapshot()["run"] == anew.plan.run_id
        assert [e.text for e in observer.read_events().events] == ["three"]
    finally:
        observer.close()
        anew.memory.unlink()


def test_an_overview_is_read_again_when_it_has_changed(made: MadeRun, name: str) -> None:
    observer = Observer(name)
    assert observer.snapshot()["state"] == "running"
    made.about["state"] = "stopping"
    made.publish()
    assert observer.snapshot()["state"] == "stopping"
    observer.close()


def test_the_first_percentage_is_that_since_the_process_began_and_the_next_since_the_last_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    process = ProcessStat("running", 5.0, 100 * ticks, 0, 0)
    meter = CpuMeter()
    monkeypatch.setattr("time.clock_gettime", lambda clock: 110.0)
    assert meter.percent(1, process) == 50.0
    monkeypatch.setattr("time.clock_gettime", lambda clock: 112.0)
    assert meter.percent(1, process._replace(cpu_seconds=5.5)) == 25.0
    assert meter.percent(1, process._replace(cpu_seconds=99)) == 25.0  # at the same moment: as before
    meter.forget_others({2})
    assert meter.percent(1, process) == pytest.approx(41.7)


def test_this_process_is_read_whatever_its_name() -> None:
    own = read_process(os.getpid())
    assert own.rss_bytes > 1_000_000 and own.cpu_seconds > 0 and own.state in ("running", "sleeping")
    assert read_process(1 << 22) is None
