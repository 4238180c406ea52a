"""The wheel: only what runs, built from the files that git has, in a folder of its own.

A build in the checkout itself would take along what an older build has left there. Two builds of one commit give the
same bytes: the time in the archive is that of the commit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests")


class PackageError(Exception):
    """A package cannot be made; the text says why."""


def build(root: Path, out: Path) -> Path:
    """The path of the wheel."""
    with tempfile.TemporaryDirectory(prefix="tunnel-wheel-") as directory:
        source, made = Path(directory, "source"), Path(directory, "made")
        _export(root, source)
        words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(made), str(source)]
        run(words, PIP_CONSTRAINT=str(root / "constraints.txt"), SOURCE_DATE_EPOCH=str(epoch(root)))
        (wheel,) = made.glob("*.whl")
        return Path(shutil.copy(wheel, out))


def epoch(root: Path) -> int:
    """The time that all files of a package get: that of the commit, unless SOURCE_DATE_EPOCH says another."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    if (root / ".git").exists():
        return int(run(["git", "-C", str(root), "log", "-1", "--format=%ct"]))
    return int((root / "pyproject.toml").stat().st_mtime)


def run(words: list[str], **environment: str) -> str:
    """The output of a command. PackageError if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    except OSError as error:
        raise PackageError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        raise PackageError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr or done.stdout}")
    return done.stdout


def _export(root: Path, to: Path) -> None:
    """Copy the files that git has, as they are now; without git, all that look like sources."""
    if not (root / ".git").exists():
        shutil.copytree(root, to, ignore=LEFT_OUT)
        return
    for name in run(["git", "-C", str(root), "ls-files", "-z"]).split("\0"):
        if name and (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
