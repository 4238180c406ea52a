"""Programs of the system that a look needs: run with a time limit, and without an error of ours when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

SBIN_DIRECTORIES = ("/usr/sbin", "/sbin")  # after `su`, the PATH of root may lack them


def run_program(words: Sequence[str], seconds: float) -> str | None:
    """Its standard output; None if it is missing, fails or takes too long."""
    path = os.pathsep.join([*os.get_exec_path(), *SBIN_DIRECTORIES])
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
