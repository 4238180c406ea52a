"""The entry of the installed command: it makes sure that the packages `pipeline` and `workers` are ours.

Other projects have packages of these names as well, and so do packages on the public index. One of them may have been
installed over ours, or come first on the search path (PYTHONPATH). Without this check, the command would end in a
traceback, or do something else.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

OURS = ("pipeline", "workers")
PART = "py.typed"  # in each of ours


def find_foreign(here: Path, names: tuple[str, ...] = OURS) -> str:
    """What is wrong with the packages beside this file; "" if nothing is."""
    for name in names:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).parent if spec and spec.origin else None
        if found is None:
            return f"its package {name} is missing from {here}: install it again, into an environment of its own"
        if found.resolve() != (here / name).resolve():
            return (
                f"the package {name} of another program comes first, from {found}: unset PYTHONPATH, and install this "
                "program into an environment of its own, with uv tool or pipx"
            )
        if not (found / PART).is_file():
            return (
                f"{found} is the package {name} of another program: both were installed into one environment. Install "
                "this program into one of its own, with uv tool or pipx"
            )
    return ""


def main() -> int:
    """Run the command."""
    if wrong := find_foreign(Path(__file__).parent):
        print(f"tunnel-supervisor: {wrong}", file=sys.stderr)
        return 1
    from pipeline.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
