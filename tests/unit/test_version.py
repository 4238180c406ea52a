"""The version of the program, of an installed package and of checkouts of each kind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipeline.version import VERSION, read_version

PROJECT = '[project]\nname = "tunnel-supervisor"\nversion = "7.8.9"\n'


def git(directory: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test", *words]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text(PROJECT)
    git(root, "init", "--quiet", "--initial-branch", "main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "first")
    return root


def test_a_checkout_has_its_commit_in_the_version(checkout: Path) -> None:
    assert read_version(checkout / "pipeline") == f"7.8.9+g{git(checkout, 'rev-parse', 'HEAD')[:7]}"


@pytest.mark.parametrize("words", [["pack-refs", "--all"], ["checkout", "--quiet", "--detach"]], ids=lambda w: w[0])
def test_the_commit_is_found_wherever_git_keeps_it(checkout: Path, words: list[str]) -> None:
    git(checkout, *words)
    assert read_version(checkout / "pipeline") == f"7.8.9+g{git(checkout, 'rev-parse', 'HEAD')[:7]}"


def test_a_linked_working_tree_has_its_own_commit(checkout: Path) -> None:
    linked = checkout.parent / "linked"
    git(checkout, "worktree", "add", "--quiet", "-b", "other", str(linked))
    git(linked, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert read_version(linked / "pipeline") == f"7.8.9+g{git(linked, 'rev-parse', 'HEAD')[:7]}"
    assert read_version(linked / "pipeline") != read_version(checkout / "pipeline")


def test_without_git_a_checkout_has_the_version_alone(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    assert read_version(tmp_path / "pipeline") == "7.8.9"


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none\n", "ref: ../../etc/passwd\n", "\0", "0123\n"])
def test_what_cannot_be_read_of_git_is_left_out(tmp_path: Path, head: str) -> None:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert read_version(tmp_path / "pipeline") == "7.8.9"


@pytest.mark.parametrize("project", ["", "[project]\n", PROJECT.replace("tunnel-", "other-"), "not TOML"])
def test_beside_another_projects_file_the_installed_package_has_the_version(tmp_path: Path, project: str) -> None:
    (tmp_path / "pyproject.toml").write_text(project)
    assert read_version(tmp_path / "pipeline") == VERSION.partition("+")[0]


def test_a_version_fits_into_a_handshake_message() -> None:
    assert 0 < len(VERSION) <= 64 and VERSION.isascii() and VERSION.isprintable()
