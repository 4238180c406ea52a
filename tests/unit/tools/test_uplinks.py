"""bench uplinks: its settings, and its tables."""

from __future__ import annotations

import msgspec
import pytest

from tools.bench import uplinks
from tools.bench.loss_report import Delays
from tools.bench.machine import Machine
from tools.bench.uplinks_report import Aggregate, Backup, Idle, Path, Pull, UplinksResult, table

MACHINE = Machine(cores=2, cpu="CPU", kernel="6", python="3")


def result(**parts: object) -> UplinksResult:
    return msgspec.convert(
        {"machine": MACHINE, "seconds": 5, "settings": [], "paths": {}, **parts}, UplinksResult, from_attributes=True
    )


def test_a_queue_holds_a_tenth_of_a_second_at_the_rate_of_its_cable() -> None:
    spec = uplinks.spec(Path(40, 20, 2.0))
    assert (spec.queue_bytes, spec.queue_packets, spec.delay_ms, spec.loss_percent) == (500_000, None, 10, 2.0)


def test_a_share_is_that_of_the_sum_of_the_paths() -> None:
    row = Aggregate(paths="40+10", congestion="cubic", way="up", bare=38.1, alone=[37.0, 9.1], sum_mbit=50)
    assert row.share is None
    row.together = 45.0
    said = table(result(aggregate=[row], paths={"40+10": [Path(40, 20), Path(10, 60, 2.0)]}))
    assert "40 Mbit/s 20 ms, 10 Mbit/s 60 ms, 2 % loss" in said
    assert said.splitlines()[-1].split() == ["40+10", "cubic", "up", "38.1", "37.0", "9.1", "45.0", "0.90"]


def test_every_part_has_a_table_and_a_cell_that_was_not_measured_is_a_dash() -> None:
    parts = {
        "pull": [Pull(where="end", traffic="tcp", way="up", gap_ms=12.4, back_seconds=0.51)],
        "backup": [Backup(where="middle", way="down", backup_bytes=512)],
        "idle": [Idle(by="tunnel, both", ping=Delays(sent=50, lost=0, p50=21.0, p99=30.2, max=None))],
    }
    pull, backup, idle = (table(result(**{name: rows})).splitlines()[-1].split() for name, rows in parts.items())
    assert pull == ["end", "tcp", "up", "-", "-", "-", "-", "-", "12", "-", "0.51"]
    assert backup == ["middle", "down", "-", "512", "-", "-", "-", "-", "-"]
    assert idle == ["tunnel,", "both", "21.0", "30.2", "-", "50", "0"]


@pytest.mark.parametrize("part", ["aggregate", "pull", "backup", "idle"])
def test_a_failure_of_any_part_is_said_in_the_table_and_by_the_exit_status(part: str) -> None:
    rows = {
        "aggregate": Aggregate(paths="p", congestion="c", way="up", sum_mbit=1, error="no route"),
        "pull": Pull(where="end", traffic="tcp", way="up", error="no route"),
        "backup": Backup(where="end", way="up", error="no route"),
        "idle": Idle(by="all", error="no route"),
    }
    found = result(**{part: [rows[part]]})
    assert found.failed and "FAILED: no route" in table(found)
    assert not result().failed and result(left_behind=["x"]).failed
