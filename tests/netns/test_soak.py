"""tools/soak: a short run with every part of it; hours are for a person to run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import ROOT


@pytest.mark.slow
@pytest.mark.tools
def test_a_short_endurance_run_comes_back_from_every_fault_unaltered() -> None:
    quick = [word for name in ("kill -9 of", "up to", "reload", "cut") for word in ("--only", name)]
    words = ["--seconds", "12", "--every", "0.2", "--json", *quick]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.endurance", *words], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    report = json.loads(done.stdout)
    assert report["problems"] == [], done.stderr
    assert done.returncode == 0 and len(report["struck"]) >= 3
    assert all(count > 0 for count in report["flows"].values())
