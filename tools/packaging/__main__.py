"""The command tools/package: python -m tools.packaging wheel | deb | container | all."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.version import read_version
from tools.packaging import container, deb, wheel

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Exit status: 0, 1 if a package cannot be made."""
    parser = argparse.ArgumentParser(prog="tools/package", description="Make packages of this checkout.")
    parser.add_argument("what", choices=("wheel", "deb", "container", "all"))
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where they come (default: dist)")
    parser.add_argument(
        "--python", default=deb.PYTHON, help="the interpreter of the Debian package (default: %(default)s)"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    version = read_version(ROOT / "pipeline").partition("+")[0]
    try:
        made = [wheel.build(ROOT, arguments.out)]
        if arguments.what != "wheel":
            made.append(deb.build(ROOT, made[0], version, arguments.out, arguments.python))
        if arguments.what in ("container", "all"):
            made.append(container.prepare(ROOT, made[1], arguments.out))
            if image := container.build(made[2], version):
                print(f"image: {image}")
            else:
                print(f"no image is built: neither podman nor docker works here. Elsewhere: docker build {made[2]}")
    except wheel.PackageError as error:
        print(f"tools/package: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
