"""The container image: a folder with everything that it is built from, and the image, where something can build it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tools.packaging.wheel import run

SOURCES = Path(__file__).parent / "container"
BUILDERS = {"podman": ["--format", "docker"], "docker": []}
"""Each that may be here, and its options: an image of podman's own format has no health check."""


def prepare(root: Path, package: Path, out: Path) -> Path:
    """The folder: the Containerfile, also by its other name, the Debian package, an example of its use."""
    folder = out / "container"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, folder)
    shutil.copy(package, folder)
    os.symlink("Containerfile", folder / "Dockerfile")
    return folder


def build(folder: Path, version: str) -> str:
    """The name of the image; "" if nothing here can build it. PackageError if that fails."""
    for builder, options in BUILDERS.items():
        if shutil.which(builder) and subprocess.run([builder, "info"], capture_output=True).returncode == 0:
            image = f"tunnel-supervisor:{version}"
            run([builder, "build", *options, "--tag", image, str(folder)])
            return image
    return ""
