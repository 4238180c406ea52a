"""An instance whose supervisor runs a few lines of a test's first. Its workers are as always.

Instance(..., wrap=altered("from pipeline.policy import epochs; epochs.EPOCH_BYTES = 1"))
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


def altered(lines: str, *arguments: str) -> list[str]:
    """Words in front of the command. The lines find the arguments in the list `arguments`."""
    return [sys.executable, "-I", "-c", PROGRAM, lines, *arguments, "--"]
