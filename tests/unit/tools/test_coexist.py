"""bench coexist: how fair two rates are, and its table."""

from __future__ import annotations

import msgspec
import pytest

from tools.bench.coexist import OTHERS, OURS, Cell, CoexistResult, jain, main, table
from tools.bench.machine import Machine


def result(*cells: Cell) -> CoexistResult:
    there = Machine(cores=2, cpu="Some CPU", kernel="6.18", python="3.11.7")
    return CoexistResult(machine=there, seconds=8, rounds=3, settings=["fec=on"], cells=list(cells))


def cell(**fields) -> Cell:
    return Cell(queue=0.5, ours_is="udp", other_is="bbr", **fields)


def test_equal_rates_are_fair_and_one_for_all_is_not() -> None:
    assert jain((24, 24)) == 1 and jain((0, 48)) == 0.5 and jain((0, 0)) == 1
    assert jain((30, 10)) == pytest.approx(1600 / 2000)


def test_the_table_has_the_medians_of_the_rounds_the_share_and_the_fairness() -> None:
    lines = table(result(cell(ours=[30, 12, 90], other=[10, 11, 10]))).splitlines()
    assert lines[-1].split() == ["0.5", "udp", "bbr", "30.0", "10.0", "75", "0.80"]
    assert "settings: fec=on" in lines


def test_a_measurement_that_failed_says_so_and_the_others_stay() -> None:
    found = result(cell(error="no path"), cell(ours=[30], other=[10], error="the second round"))
    assert found.failed and not result(cell(ours=[1], other=[1])).failed
    said = table(found)
    assert "FAILED: no path" in said and "a round FAILED: the second round" in said and " 0.80" in said


def test_the_json_carries_its_schema_version_and_comes_back_the_same() -> None:
    found = result(cell(ours=[30], other=[10]))
    text = msgspec.json.encode(found)
    assert msgspec.json.decode(text)["schema_version"] == 1
    assert msgspec.json.decode(text, type=CoexistResult) == found


def test_the_bare_flow_and_each_carrier_stand_beside_both_kinds(capsys: pytest.CaptureFixture) -> None:
    assert OURS[:3] == ("bare", "tcp", "udp") and "auto" not in OURS and OTHERS == ("cubic", "bbr")
    with pytest.raises(SystemExit) as refused:
        main(["--only", "six"])
    assert refused.value.code == 2
    assert "--only" in capsys.readouterr().err
