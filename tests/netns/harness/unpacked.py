"""Packages of the distribution that are unpacked for a test, and not installed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns.harness.fresh_machine import outside

DOWNLOAD = 'cd "$0" && timeout 60 apt-get download -q -o Acquire::http::Timeout=10 -o Acquire::Retries=2 "$@"'


def unpack(directory: Path, names: Sequence[str]) -> Path:
    """A directory with the files of each package, beneath its name. Without a mirror the test is skipped."""
    done = subprocess.run(outside("sh", "-c", DOWNLOAD, directory, *names), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"packages cannot be had here ({', '.join(names)}): {done.stderr.strip()[-200:]}")
    for name in names:
        (package,) = directory.glob(f"{name}_*.deb")
        subprocess.run(["dpkg", "-x", package, directory / name], check=True)
    return directory
