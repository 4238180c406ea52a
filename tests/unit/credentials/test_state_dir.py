"""The state directory: what is read from it, and what a killed write leaves there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pipeline.credentials.state_dir import StateDir
from pipeline.errors import LocalError
from pipeline.system import hang_guard
from tests.harness.hanging import hanging


@pytest.fixture
def state(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    monkeypatch.setattr(logging.getLogger("tunnel"), "propagate", True)
    return StateDir(str(tmp_path / "state"))


def test_addresses_are_read_as_they_were_saved(state: StateDir) -> None:
    assert state.load_addresses() == {}
    state.save_addresses({"ann": ["10.0.0.2", "fd00::2"]})
    assert state.load_addresses() == {"ann": ["10.0.0.2", "fd00::2"]}
    file = state.path / "addresses.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert state.load_addresses() == {"ann": ["10.0.0.2", "fd00::2"]}


@pytest.mark.parametrize("place", ["fifo", "directory", "loop", b"", b"[]", b'{"ann": 7}', b'{"ann": ["x"]}', bytes(9)])
def test_addresses_that_cannot_be_read_are_said_and_cost_nothing_else(
    state: StateDir, place: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = state.path / "addresses.json"
    match place:
        case "fifo":
            os.mkfifo(file)
        case "directory":
            file.mkdir()
        case "loop":
            file.symlink_to(file)
        case bytes():
            file.write_bytes(place)
    assert state.load_addresses() == {}
    assert f"{file}: not used, peers may get other addresses than before: " in caplog.text


def test_the_file_of_another_servers_peer_can_be_copied_before_any_was_invited(state: StateDir) -> None:
    for _ in range(2):
        state.make_peers()
    assert (state.path / "peers").stat().st_mode & 0o777 == 0o700
    (state.path / "peers").rmdir()
    (state.path / "peers").write_text("in its place")
    state.make_peers()  # the start goes on


def test_files_of_writes_that_were_cut_short_are_removed_and_no_others(state: StateDir) -> None:
    (state.path / "peers").mkdir()
    left = [".addresses.json.0123abcd", "peers/.ann.json.89abcdef"]
    kept = ["addresses.json", "peers/ann.json", "peers/.ann.json.swp", ".note", ".keep.12345678x"]
    for name in (*left, *kept):
        (state.path / name).write_text("{}")
    (state.path / ".directory.0123abcd").mkdir()
    (state.path / ".link.0123abcd").symlink_to(state.path / "peers/ann.json")
    state.remove_unfinished()
    found = {str(path.relative_to(state.path)) for path in state.path.rglob("*")}
    assert found == {*kept, "peers", ".directory.0123abcd", ".link.0123abcd"}


def test_a_file_system_that_hangs_holds_up_no_admission(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang_guard, "ANSWER_SECONDS", 0.05)
    with hanging(state.path), pytest.raises(LocalError, match=r"addresses.json cannot be written: no answer within"):
        state.save_addresses({"ann": ["10.0.0.2"]})
