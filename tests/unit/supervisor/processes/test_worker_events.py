"""The events of workers: each successor has the reason why one was needed."""

from __future__ import annotations

from pipeline.policy.lifecycle import Abort, ReportDeath
from pipeline.supervisor.processes.worker_events import WorkerEvents


def test_a_successor_is_an_event_with_the_reason_and_a_first_start_is_none() -> None:
    recorded: list[tuple[str, str, str]] = []
    workers = WorkerEvents(lambda *event: recorded.append(event))
    for worker in ("tcp-0", "tun-0", "fec-0"):
        workers.ready(worker, 1)
    assert recorded == []
    workers.died(ReportDeath("tcp-0", -9, aborted=False))
    workers.ready("tcp-0", 2)
    workers.hung(Abort("tun-0", "no heartbeat for 5.0 s"))
    workers.died(ReportDeath("tun-0", -6, aborted=True))
    workers.ready("tun-0", 3)
    workers.ready("fec-0", 4)
    workers.died(ReportDeath("fec-0", -40, aborted=False))
    assert recorded == [
        ("worker-died", "tcp-0", "SIGKILL (out of memory?)"),
        ("worker-restarted", "tcp-0", "pid 2, its predecessor died (SIGKILL (out of memory?))"),
        ("worker-hung", "tun-0", "no heartbeat for 5.0 s"),
        ("worker-died", "tun-0", "SIGABRT"),
        ("worker-restarted", "tun-0", "pid 3, its predecessor hung (no heartbeat for 5.0 s)"),
        ("worker-restarted", "fec-0", "pid 4, replaced on request"),
        ("worker-died", "fec-0", "signal 40"),
    ]
