"""The precedence of processes: the supervisor is the last to go when memory is short."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.supervisor.processes import precedence
from pipeline.supervisor.processes.precedence import RAISED_SCORE, Precedence


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.fixture
def worker() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process.pid
        process.kill()


def test_a_protected_supervisor_has_a_lower_score_until_it_ends_and_a_worker_keeps_its_own(
    worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no right to take a score back to what it was."""
    lowest = score(os.getpid())
    own = min(1000, lowest + 300)
    monkeypatch.setattr(precedence, "PROTECTED_SCORE", lowest)
    Path("/proc/self/oom_score_adj").write_text(str(own))
    try:
        order = Precedence()
        order.protect()
        order.set_worker(worker)
        assert (score(os.getpid()), score(worker)) == (lowest, own)
        order.restore_own()
        assert score(os.getpid()) == own
    finally:
        Path("/proc/self/oom_score_adj").write_text(str(lowest))


def test_a_supervisor_that_may_not_lower_its_score_raises_that_of_its_workers(
    worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = score(os.getpid())
    order = Precedence()
    path_of = precedence._score_path
    monkeypatch.setattr(precedence, "_score_path", lambda pid: Path("/") if pid == os.getpid() else path_of(pid))
    order.protect()
    order.set_worker(worker)
    assert score(worker) == min(1000, own + RAISED_SCORE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take a priority back")
def test_the_group_of_a_process_that_was_a_spare_has_the_supervisors_priority_again(worker: int) -> None:
    group = Path(f"/proc/{worker}/autogroup")
    if not group.exists():
        pytest.skip("this kernel has no groups of sessions")
    group.write_text("10")
    Precedence().set_worker(worker)
    assert group.read_text().split()[-1] == str(os.getpriority(os.PRIO_PROCESS, 0))
