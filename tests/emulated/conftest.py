"""An emulated arm64 machine for these tests, if TUNNEL_TEST_ARM64 names the directory that tools/arm64 has made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tools.emulation.machine import EmulatedMachine, EmulatedRoot

DIRECTORY = "TUNNEL_TEST_ARM64"


@pytest.fixture(scope="module")
def arm64() -> Iterator[EmulatedMachine]:
    directory = os.environ.get(DIRECTORY)
    if not directory:
        pytest.skip(f"only by hand: tools/arm64 make DIR, then {DIRECTORY}=DIR")
    root = EmulatedRoot(Path(directory).resolve())
    if not root.is_current(ROOT):
        pytest.fail(f"not there, or older than this checkout: tools/arm64 make {directory}")
    with EmulatedMachine(root, ROOT) as machine:
        yield machine
