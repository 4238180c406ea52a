"""Findings as text for people and as data for programs."""

from __future__ import annotations

from typing import Any

from pipeline.doctor.examination import CHECKS, Findings, worst
from pipeline.doctor.finding import Finding, Level
from pipeline.plain_text import escaped

LITMUS = "litmus"
"""Its findings are there if the caller asks for that test."""

SCHEMA_VERSION = 1
"""Counts up when a key changes its meaning or goes."""

MARKS = {Level.OK: "ok", Level.NOTE: "note", Level.PROBLEM: "PROBLEM"}


def as_text(findings: Findings, *, everything: bool) -> str:
    """The worst first. `everything`: also what is right."""
    shown = [each for level in (Level.PROBLEM, Level.NOTE) for each in findings if each[1].level is level]
    right = [each for each in findings if each[1].level is Level.OK]
    lines = [line for name, finding in [*shown, *(right if everything else ())] for line in _lines(name, finding)]
    return "\n".join([*lines, *([""] if lines else []), _summary(findings)])


def _lines(name: str, finding: Finding) -> list[str]:
    first = f"{MARKS[finding.level]}: {name}: {finding.text}"
    return list(map(escaped, [first, *([f"    {finding.cure}"] if finding.cure else [])]))


def _summary(findings: Findings) -> str:
    problems, notes, right = (
        sum(finding.level is level for _, finding in findings) for level in (Level.PROBLEM, Level.NOTE, Level.OK)
    )
    wrong = [_count(problems, "problem"), _count(notes, "note")] if problems or notes else []
    return ", ".join([*wrong, f"{_count(right, 'look')} {'finds' if right == 1 else 'find'} nothing wrong"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def as_data(findings: Findings) -> dict[str, Any]:
    looks = {check.name: check.looks_at for check in CHECKS} | {LITMUS: "the order of loads and stores"}
    return {
        "schema_version": SCHEMA_VERSION,
        "worst": worst(findings),
        "findings": [
            {
                "check": name,
                "looks_at": looks.get(name, ""),
                "level": finding.level,
                "text": finding.text,
                "cure": finding.cure,
            }
            for name, finding in findings
        ],
    }
