"""For the scripts of a package: python -I -m pipeline.service upgraded | stop. It prints what it does."""

from __future__ import annotations

import sys

from pipeline.errors import TunnelError
from pipeline.service import instances


def main() -> int:
    """Exit status 0, whatever happens: a package must be installable and removable."""
    act = {"upgraded": instances.upgraded, "stop": instances.stop_all}[sys.argv[1]]
    try:
        for sentence in act():
            print(sentence, flush=True)
    except TunnelError as error:
        print(error, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
