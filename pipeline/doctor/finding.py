"""Findings: what a check has seen, how bad it is, and the cure in one sentence."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    OK = "ok"  # it was looked at, and nothing is wrong
    NOTE = "note"  # in doubt, or wrong only under some condition
    PROBLEM = "problem"  # something does not work, or will not


class Finding(NamedTuple):
    level: Level
    text: str
    cure: str = ""  # what to do; only an ok needs none


def ok(text: str) -> Finding:
    return Finding(Level.OK, text)


def note(text: str, cure: str) -> Finding:
    return Finding(Level.NOTE, text, cure)


def problem(text: str, cure: str) -> Finding:
    return Finding(Level.PROBLEM, text, cure)
