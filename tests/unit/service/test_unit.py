"""The files of the service: valid for systemd, with the program's own path, and as tight as it can run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.service import unit

SCORE_MAX = 4.0  # systemd-analyze(1): 0 is the tightest, 10 is none at all

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(directory: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    file = directory / unit.UNIT.replace("@", "@name")
    file.write_text(text)
    command = ["systemd-analyze", *words, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"SYSTEMD_COLORS": "0"})


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "a folder" / "tunnel-supervisor"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    done = analyze(tmp_path, unit.unit_text(str(program), []), "verify", "--man=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_does_find_a_word_that_it_does_not_know(tmp_path: Path) -> None:
    text = unit.unit_text("/bin/true", []).replace("WatchdogSec", "WatchdogSecs")
    assert "WatchdogSecs" in analyze(tmp_path, text, "verify", "--man=no").stderr


@needs_systemd
def test_the_unit_is_tight(tmp_path: Path) -> None:
    done = analyze(tmp_path, unit.unit_text("/bin/true", []), "security", "--offline=true", "--no-pager")
    (score,) = re.findall(r"exposure level for .*: ([0-9.]+) ", done.stdout)
    assert float(score) <= SCORE_MAX, done.stdout


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        ([], "yes"),
        (["/usr/lib/python3"], "yes"),
        (["/root/.local/bin/python3"], "read-only"),
        (["/home/x"], "read-only"),
    ],
)
def test_home_directories_are_hidden_unless_the_program_is_in_one(needs: list[str], expected: str) -> None:
    assert f"\nProtectHome={expected}\n" in unit.unit_text("/opt/tunnel-supervisor", needs)


def test_the_unit_names_the_program_by_its_path_with_what_systemd_would_expand_escaped() -> None:
    assert "ExecStart=/usr/bin/tunnel-supervisor start --config" in unit.unit_text("/usr/bin/tunnel-supervisor", [])
    assert 'ExecStart="/opt/50%% off/x" start --config' in unit.unit_text("/opt/50% off/x", [])


def test_no_placeholder_is_left() -> None:
    assert not re.search("@[A-Z_]+@", unit.unit_text("/usr/bin/tunnel-supervisor", []))
