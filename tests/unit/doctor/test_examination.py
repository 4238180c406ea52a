"""An examination ends in time, whatever a check does; its report."""

from __future__ import annotations

import json
import threading
import time

import pytest

from pipeline.doctor import examination, report
from pipeline.doctor.examination import CHECKS, Check, examine, worst
from pipeline.doctor.finding import Finding, Level, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.errors import LocalError


def fails(subject: Subject) -> list[Finding]:
    raise LocalError("no netlink")


def is_wrong(subject: Subject) -> list[Finding]:
    raise KeyError("tun")


def test_checks_are_side_by_side_and_their_findings_in_the_order_of_the_table() -> None:
    both = threading.Barrier(2, timeout=10)

    def meets(subject: Subject) -> list[Finding]:
        both.wait()
        return [ok("met")]

    found = examine(Subject(), [Check("one", "", meets), Check("two", "", meets)])
    assert found == [("one", ok("met")), ("two", ok("met"))]


def test_a_check_that_hangs_or_fails_costs_no_other() -> None:
    go = threading.Event()

    def hangs(subject: Subject) -> list[Finding]:
        go.wait(60)
        return []

    began = time.monotonic()
    found = examine(
        Subject(),
        [
            Check("hangs", "", hangs),
            Check("fails", "", fails),
            Check("wrong", "", is_wrong),
            Check("x", "", lambda _: [ok("x")]),
        ],
        seconds=0.3,
    )
    go.set()
    assert time.monotonic() - began < 10
    assert [(name, finding.level) for name, finding in found] == [
        ("hangs", Level.NOTE),
        ("fails", Level.NOTE),
        ("wrong", Level.NOTE),
        ("x", Level.OK),
    ]
    assert "no netlink" in found[1][1].text and "KeyError: 'tun'" in found[2][1].text


def test_an_instance_in_another_network_is_not_judged_by_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "is_in_our_network", False)
    subject = Subject("a", None, {"pid": 4711, "mode": "client", "connections": []})
    found = examine(subject, [Check("far", "", is_wrong, network=True), Check("near", "", lambda _: [ok("near")])])
    assert [name for name, _ in found] == ["near", "network"]
    assert "nsenter --net --target 4711" in found[1][1].cure


def test_a_check_has_one_name_and_says_what_it_looks_at() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.looks_at for check in CHECKS)


def test_on_a_machine_without_an_instance_no_check_is_our_mistake() -> None:
    findings = examine(Subject())
    assert [finding for _, finding in findings if "has failed" in finding.text] == []
    assert {"tun", "clock", "shared memory"} <= {name for name, _ in findings}


FOUND = [("a", ok("fine")), ("b", note("odd", "Look.")), ("c", problem("broken", "Mend it."))]


def test_a_report_has_the_worst_first_and_what_is_right_only_if_asked() -> None:
    assert report.as_text(FOUND, everything=False).splitlines() == [
        "PROBLEM: c: broken",
        "    Mend it.",
        "note: b: odd",
        "    Look.",
        "",
        "1 problem, 1 note, 1 look finds nothing wrong",
    ]
    assert "ok: a: fine" in report.as_text(FOUND, everything=True)
    assert report.as_text(FOUND[:1], everything=False) == "1 look finds nothing wrong"


def test_a_report_for_programs() -> None:
    data = json.loads(json.dumps(report.as_data(FOUND)))
    assert (data["schema_version"], data["worst"]) == (1, "problem")
    assert data["findings"][1] == {"check": "b", "looks_at": "", "level": "note", "text": "odd", "cure": "Look."}


@pytest.mark.parametrize(("findings", "level"), [([], Level.OK), (FOUND[:2], Level.NOTE), (FOUND, Level.PROBLEM)])
def test_the_worst_finding_decides(findings: examination.Findings, level: Level) -> None:
    assert worst(findings) is level
