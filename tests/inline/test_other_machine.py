"""Pipelines and shared memory in a process that takes this machine for arm64 with pages of 16 or 64 KiB."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import ROOT

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "tests.harness.other_machine", "-p", "no:cacheprovider"]
OWN_PROCESSES = "not another_process"  # of tests that start processes, which take the machine for what it is


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page_bytes", "tests"),
    [
        (1 << 14, ["tests/unit/shm"]),
        (1 << 16, ["tests/unit/shm"]),
        (1 << 16, ["tests/inline/test_tunnel.py"]),
        (1 << 16, ["tests/inline/test_sealed.py"]),
        (1 << 16, ["tests/inline/test_transit.py"]),
    ],
    ids=str,
)
def test_everything_works_with_fences_and_with_large_pages(page_bytes: int, tests: list[str]) -> None:
    done = subprocess.run(
        [*PYTEST, "-k", OWN_PROCESSES, *tests],
        cwd=ROOT,
        env=os.environ | {"OTHER_MACHINE_PAGE_BYTES": str(page_bytes)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
