"""The programs that set the DNS servers of a machine, and how they are run.

present()             those that this machine has
run(words, text)      one of them, to its end; Answer
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.supervisor.kernel.nft import SBIN_DIRECTORIES

RESOLVED, NMCLI, RESOLVCONF = PROGRAMS = "resolvectl", "nmcli", "resolvconf"
COMMAND_SECONDS = 5.0


class Answer(NamedTuple):
    """The output, and why it has failed, "" if it has not."""

    text: str
    why: str = ""


def present() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_path())]


def run(words: Sequence[str], text: str = "") -> Answer:
    environment = {**os.environ, "PATH": _path()}
    try:
        done = subprocess.run(
            words, input=text, text=True, capture_output=True, timeout=COMMAND_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer("", f"{words[0]} has not ended within {COMMAND_SECONDS:g} s")
    except OSError as error:
        return Answer("", f"{words[0]}: {error.strerror}")
    if done.returncode:
        first = done.stderr.strip().partition("\n")[0]
        return Answer("", f"{words[0]}: {first or f'exit status {done.returncode}'}")
    return Answer(done.stdout)


def _path() -> str:
    return os.pathsep.join([*os.get_exec_path(), *SBIN_DIRECTORIES])
