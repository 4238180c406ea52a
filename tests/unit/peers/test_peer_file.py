"""Peer files, which `invite` writes."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.peer import check_peer_name
from pipeline.errors import ConfigError, LocalError
from pipeline.peers.peer_file import Agreed, InvitedPeer, Issued, new_peer, read_all, remove, write
from pipeline.system import hang_guard
from tests.support import eventually

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()
FULL = InvitedPeer(
    "alice",
    KEY,
    (ip_network("10.1.0.0/16"), ip_network("fd01::/48")),
    (ip_address("10.0.0.7"), ip_address("fd00::7")),
    20.0,
    1_798_758_000,
    Issued(bytes(range(1, 33)), 1_764_400_000, 3, True, True),
    Agreed("ab" * 8, "cd" * 32, "ef" * 32),
    bulk_rate_mbit=0.0,
)


def put(state: Path, name: str, content: Any, mode: int = 0o600) -> Path:
    """A file as a person would have written it."""
    path = state / "peers" / name
    path.parent.mkdir(0o700, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def problems(state: Path) -> list[str]:
    found, broken = read_all(state)
    assert {peer.name for peer in found}.isdisjoint(name for name, _ in broken)
    return [str(problem) for _, problem in broken]


def test_a_peer_is_read_as_it_was_written(tmp_path: Path) -> None:
    bare = InvitedPeer("bob", KEY)
    write(tmp_path, bare)
    write(tmp_path, FULL)
    assert read_all(tmp_path) == ([FULL, bare], [])


def test_only_their_owner_can_read_the_files_and_their_directory(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        write(tmp_path, FULL)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "peers").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "peers" / "alice.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "peers") == ["alice.json"]


def test_a_peer_that_is_written_again_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    with (tmp_path / "peers" / "alice.json").open() as reader:
        with pytest.raises(LocalError, match="exists already"):
            write(tmp_path, FULL._replace(rate_mbit=0.0))
        write(tmp_path, FULL._replace(rate_mbit=0.0), replace=True)
        assert json.load(reader)["rate_mbit"] == 20
    assert read_all(tmp_path) == ([FULL._replace(rate_mbit=0.0)], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"key": b"short"},
        {"key": bytes(32)},
        {"rate_mbit": -1.0},
        {"rate_mbit": 1e9},
        {"bulk_rate_mbit": -1.0},
        {"allowed": ("10.1.0.1/16",)},
    ],
    ids=repr,
)
def test_a_peer_that_could_not_be_read_back_is_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"alice.json"):
        write(tmp_path, FULL._replace(**changes))
    assert not os.listdir(tmp_path)


def test_a_peer_can_be_removed_only_once(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    assert remove(tmp_path, "alice") is True
    assert read_all(tmp_path) == ([], [])
    assert remove(tmp_path, "alice") is False


def test_without_a_directory_there_is_no_peer(tmp_path: Path) -> None:
    assert read_all(tmp_path) == ([], []) and remove(tmp_path, "alice") is False


def test_a_failed_write_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be written: No such file or directory"):
        write(tmp_path / "missing", FULL)


def test_a_file_may_be_written_by_hand_and_leave_out_settings_with_a_default(tmp_path: Path) -> None:
    put(tmp_path, "alice.json", {"key": TEXT})
    put(tmp_path, "bob.json", {"key": TEXT, "address": "10.0.0.8", "rate_mbit": 0.5})
    put(tmp_path, ".carol.json", "being written")
    put(tmp_path, "dave.json~", "of an editor")
    assert read_all(tmp_path) == (
        [InvitedPeer("alice", KEY), InvitedPeer("bob", KEY, (), (ip_address("10.0.0.8"),), 0.5)],
        [],
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "not JSON: Input data was truncated"),
        ("[]", "Expected `object`"),
        ('{"key": ', "not JSON: Input data was truncated"),
        ("[" * 60_000, "Expected `object`"),
        ({}, "key: missing: without an invitation, a peer needs a key"),
        ({"key": "hunter2"}, "key: expected a key as `tunnel-supervisor genkey` makes it"),
        ({"key": TEXT, "allowd": []}, "unknown field `allowd`"),
        ({"key": TEXT, "allowed": "10.1.0.0/16"}, "Expected `array`, got `str` - at `$.allowed`"),
        (
            {"key": TEXT, "allowed": ["10.1.0.0/16", "10.1.0.1/16"]},
            'allowed: given "10.1.0.1/16", expected a network without bits',
        ),
        ({"key": TEXT, "address": "10.0.0.7/24"}, 'address: given "10.0.0.7/24", expected '),
        ({"key": TEXT, "address": ["fd00::7", "x"]}, 'address: given "x", expected '),
        ({"key": TEXT, "rate_mbit": -1}, "Expected `float` >= 0"),
        ({"key": TEXT, "bulk_rate_mbit": -1}, "Expected `float` >= 0"),
        ({"key": TEXT, "rate_mbit": True}, "Expected `float | null`, got `bool`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_problem_names_the_file_and_not_the_key(tmp_path: Path, content: Any, text: str) -> None:
    path = put(tmp_path, "alice.json", content)
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{path}: ") and text in problem
    assert TEXT not in problem and "hunter2" not in problem


def test_a_file_that_is_wrong_is_reported_and_costs_no_other_peer(tmp_path: Path) -> None:
    put(tmp_path, "alice.json", {})
    put(tmp_path, "bob.json", {"key": TEXT})
    put(tmp_path, "carol.json", {"key": TEXT}, 0o644)
    put(tmp_path, "not a name.json", {"key": TEXT})
    said = problems(tmp_path)
    assert len(said) == 3
    for problem, name, text in zip(
        said,
        ("alice", "carol", "not a name"),
        ("without an invitation", "chmod 600", "expected 1 to 32 letters"),
        strict=True,
    ):
        assert problem.startswith(f"{tmp_path}/peers/{name}.json: ") and text in problem


def test_a_directory_to_which_other_users_can_add_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    (tmp_path / "peers").chmod(0o770)
    with pytest.raises(ConfigError, match="chmod go-w"):
        read_all(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../alice", "a/b", "/etc/passwd", ".hidden", "-x", "a b", "a\n", "a\0", "ä", "a" * 33, None, 5],
    ids=repr,
)
def test_a_name_that_could_be_a_path_or_an_option_is_refused(tmp_path: Path, name: Any) -> None:
    for attempt in (
        lambda: check_peer_name(name),
        lambda: write(tmp_path, InvitedPeer(name, KEY)),
        lambda: remove(tmp_path, name),
        lambda: new_peer(name, [], None),
    ):
        with pytest.raises(ConfigError, match=r"name of a peer: given .*, expected 1 to 32 letters"):
            attempt()
    assert not os.listdir(tmp_path)


@given(st.text(max_size=40))
def test_a_name_that_passes_names_a_file_in_its_directory(name: str) -> None:
    try:
        check_peer_name(name)
    except ConfigError:
        return
    path = Path("/state/peers") / (name + ".json")
    assert path.parent == Path("/state/peers") and path.name == name + ".json" and name.isascii()


def test_a_new_peer_has_a_key_of_its_own_and_the_requested_settings() -> None:
    first, second = new_peer("alice", ["10.1.0.0/16"], 20), new_peer("alice", [], None)
    assert first == InvitedPeer("alice", first.key, (ip_network("10.1.0.0/16"),), (), 20.0)
    assert second == InvitedPeer("alice", second.key) and first.key != second.key


@pytest.mark.parametrize(
    ("allowed", "rate", "text"),
    [
        (["10.1.0.1/16"], None, "allowed: given"),
        ("10.1.0.0/16", None, "Expected `array`"),
        ([5], None, "Expected `str`"),
        (None, None, "Expected `array`"),
        ([], "fast", "Expected `float | null`"),
        ([], -1, ">= 0"),
        ([], float("nan"), "float"),
        ([], float("inf"), "<= 1000000"),
    ],
)
def test_a_new_peer_with_invalid_settings_is_refused(allowed: Any, rate: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        new_peer("alice", allowed, rate)
    assert text in str(caught.value)


# -- a disk that hangs while a file is written


class HangingDisk:
    """Nothing is flushed to it until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self._fsync = os.fsync

    def fsync(self, fd: int) -> None:
        assert self.released.wait(10)
        self._fsync(fd)


@pytest.fixture
def hanging_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingDisk]:
    disk = HangingDisk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(hang_guard, "ANSWER_SECONDS", 0.05)
    threads = threading.active_count()
    yield disk
    disk.released.set()
    eventually(lambda: threading.active_count() == threads)


@pytest.mark.parametrize("replace", [False, True])
def test_a_write_that_ends_after_its_caller_has_given_up_leaves_no_file(
    hanging_disk: HangingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    threads = threading.active_count()
    with pytest.raises(LocalError, match=r"alice.json cannot be written: no answer within"):
        write(tmp_path, FULL, replace=replace)
    hanging_disk.released.set()
    eventually(lambda: threading.active_count() == threads)
    monkeypatch.setattr(hang_guard, "ANSWER_SECONDS", 10)
    assert list((tmp_path / "peers").iterdir()) == []
    write(tmp_path, FULL)
    assert read_all(tmp_path) == ([FULL], [])


def test_the_file_of_a_peer_that_was_added_meanwhile_stays(
    hanging_disk: HangingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = threading.active_count()
    later = FULL._replace(key=KEY[::-1])
    with pytest.raises(LocalError):
        write(tmp_path, FULL)
    monkeypatch.setattr(hang_guard, "ANSWER_SECONDS", 10)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", hanging_disk._fsync)
        write(tmp_path, later)
    hanging_disk.released.set()
    eventually(lambda: threading.active_count() == threads)
    assert read_all(tmp_path) == ([later], [])
