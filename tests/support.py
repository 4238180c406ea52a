"""Needs of many tests: the root of the checkout, and waiting for a condition with a deadline."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tools.lab.waiting import Overdue, until

ROOT = Path(__file__).parents[1]  # of the checkout
POLL_SECONDS = 0.005

needs_iperf3 = pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 is not installed")

Value = TypeVar("Value")


def eventually(condition: Callable[[], Value | None], seconds: float = 10.0, what: str = "") -> Value:
    """The first true value of `condition()`. After `seconds` the test fails, with `what` was expected."""
    try:
        return until(condition, what or repr(condition), seconds, POLL_SECONDS)
    except Overdue as overdue:
        raise AssertionError(str(overdue)) from None
