"""The entry of the command: another program's package of the same name is noticed, and named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tunnel_supervisor
from tests.support import ROOT


def start(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "tunnel_supervisor", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)


def test_our_own_packages_are_accepted() -> None:
    assert tunnel_supervisor.find_foreign(ROOT) == ""
    assert start("version").returncode == 0


def test_a_package_of_another_program_on_the_search_path_is_named_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").touch()
    done = start("version", path=str(tmp_path))
    assert done.returncode == 1
    assert f"comes first, from {tmp_path / 'pipeline'}" in done.stderr and "PYTHONPATH" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_of_another_program_in_place_of_ours_is_named(tmp_path: Path) -> None:
    for name in ("pipeline", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "tunnel_supervisor.py").write_text((ROOT / "tunnel_supervisor.py").read_text())
    done = start("version", path=str(tmp_path))
    assert done.returncode == 1
    assert "of another program" in done.stderr and "Traceback" not in done.stderr


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "tunnel_supervisor.py").write_text((ROOT / "tunnel_supervisor.py").read_text())
    done = subprocess.run(
        [sys.executable, "-I", "-S", tmp_path / "tunnel_supervisor.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pipeline is missing" in done.stderr and "Traceback" not in done.stderr
