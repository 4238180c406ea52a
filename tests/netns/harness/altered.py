"""An instance with a few lines of a test in front: of its supervisor, whose workers are as always, or of its workers.

Instance(..., wrap=altered("from pipeline.policy import epochs; epochs.EPOCH_BYTES = 1"))
Instance(..., wrap=altered_workers("from pipeline.wire import messages; messages.LANE = 99"))
"""

from __future__ import annotations

import sys

PROGRAM = """
import sys
lines, *words = sys.argv[1:]
arguments, sys.argv = words[: words.index("--")], words[words.index("--") + 1 :]
exec(lines)
import tunnel_supervisor
sys.exit(tunnel_supervisor.main())
"""

WORKER = """
import runpy, sys
lines, module, *words = sys.argv[1:]
exec(lines)
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

SPAWN = """
import subprocess, types
from pipeline.supervisor.processes import spawn
real = subprocess.Popen

def start(command, **options):
    python, isolated, _, *words = command
    return real([python, isolated, "-c", *arguments, *words], **options)

spawn.subprocess = types.SimpleNamespace(**{**vars(subprocess), "Popen": start})
"""


def altered(lines: str, *arguments: str) -> list[str]:
    """Words in front of the command. The lines find the arguments in the list `arguments`."""
    return [sys.executable, "-I", "-c", PROGRAM, lines, *arguments, "--"]


def altered_workers(lines: str) -> list[str]:
    """Words in front of the command, after which every process that the supervisor starts begins with these lines."""
    return altered(SPAWN, WORKER, lines)
