"""The version of this program: "0.1.0" of an installed package, "0.1.0+g1a2b3c4" of a checkout.

A checkout is known by the pyproject.toml beside this package; its commit is read from the files of .git, since the
command git may be missing. A commit that cannot be read is left out.

    VERSION             of the files that this process has loaded
    read_version()      of the files that are on disk now
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

NAME = "tunnel-supervisor"
UNKNOWN = "unknown"
COMMIT_DIGITS = 7

_PACKAGE = Path(__file__).parent
_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def read_version(package: Path = _PACKAGE) -> str:
    root = package.parent
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        if project["name"] == NAME:
            return f"{project['version']}{_commit_suffix(root)}"
    except (OSError, KeyError, TypeError, ValueError):
        pass  # an installed package
    import importlib.metadata  # parses mail: a checkout does without

    try:
        return importlib.metadata.version(NAME)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


def _commit_suffix(root: Path) -> str:
    commit = _commit(root / ".git")
    return f"+g{commit[:COMMIT_DIGITS]}" if _COMMIT.fullmatch(commit) else ""


def _commit(git: Path) -> str:
    """The commit that is checked out; "" if it cannot be read (gitrepository-layout(5))."""
    try:
        if git.is_file():  # of a linked working tree: a path to its own directory
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        shared = git / "commondir"
        common = (git / shared.read_text().strip()).resolve() if shared.exists() else git
        return _commit_of(head.removeprefix("ref:").strip(), git, common)
    except (OSError, ValueError):
        return ""


def _commit_of(reference: str, git: Path, common: Path) -> str:
    for directory in (git, common):
        if (directory / reference).is_file():
            return (directory / reference).read_text().strip()
    for line in (common / "packed-refs").read_text().splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return ""


VERSION = read_version()
