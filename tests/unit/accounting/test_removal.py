"""The removal of a book leaves nothing of ours, and all that is another's."""

from __future__ import annotations

from pathlib import Path

from pipeline.accounting import FILE_NAME
from pipeline.accounting.removal import remove_book


def test_a_book_goes_with_all_its_files_and_with_directories_that_are_empty_then(tmp_path: Path) -> None:
    state = tmp_path / "parent" / "office"
    state.mkdir(parents=True)
    for name in ("", "-wal", "-shm", ".damaged-1", ".damaged-2-wal"):
        (state / f"{FILE_NAME}{name}").touch()
    remove_book(state)
    assert not (tmp_path / "parent").exists()
    remove_book(state)  # once more is no error


def test_files_of_others_stay(tmp_path: Path) -> None:
    state = tmp_path / "office"
    state.mkdir()
    for name in (FILE_NAME, "notes.txt", f"{FILE_NAME}.backup"):
        (state / name).touch()
    remove_book(state)
    assert sorted(path.name for path in state.iterdir()) == [f"{FILE_NAME}.backup", "notes.txt"]
