"""Small files: content, or one clear error soon, for anything that can stand at a path."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.system import hang_guard, small_file
from tests.harness.hanging import hanging
from tests.support import eventually

LIMIT = 100


def refusal(path: object) -> str:
    with pytest.raises(ConfigError) as caught:
        small_file.read_text(path, LIMIT, "setting")
    said, shown = str(caught.value), str(path).replace("\0", "\\x00")
    assert said.startswith(f"{shown}: setting: ")
    return said.removeprefix(f"{shown}: setting: ")


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_file_is_read_through_links_up_to_its_limit(tmp_path: Path) -> None:
    file = put(tmp_path / "file", b"x" * LIMIT)
    (tmp_path / "link").symlink_to(file)
    assert small_file.read(tmp_path / "link", LIMIT) == b"x" * LIMIT
    assert small_file.read(put(tmp_path / "empty", b""), LIMIT) == b""


def test_anything_but_a_regular_file_is_refused_by_its_kind_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for path, text in (
        (tmp_path / "fifo", "expected a regular file, found a FIFO"),
        (tmp_path / "socket", "expected a regular file, found a socket"),
        (tmp_path, "expected a regular file, found a directory"),
        ("/dev/zero", "expected a regular file, found a device"),
        ("/dev/full", "expected a regular file, found a device"),
        (tmp_path / "loop", "cannot be read: Too many levels of symbolic links"),
        (tmp_path / "dangling", "cannot be read: No such file or directory"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        ("a\0b", "cannot be read: its name holds a NUL, which no file name can"),
    ):
        assert refusal(path) == text


def test_a_fifo_that_takes_the_place_of_the_file_is_no_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "file", b"x")
    regular = os.stat(file)
    file.unlink()
    os.mkfifo(file)
    monkeypatch.setattr(os, "stat", lambda path: regular)
    assert refusal(file) == "expected a regular file, found a FIFO"


def test_a_file_without_end_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert refusal(tmp_path / "sparse") == f"longer than {LIMIT} bytes"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff\xfeh\0i\0", "expected UTF-8, found UTF-16: save the file as UTF-8"),
        ("hi".encode("utf-16-be").join([b"\xfe\xff", b""]), "expected UTF-8, found UTF-16: save the file as UTF-8"),
        (b"good\0\0\0", "expected text, found a NUL byte at 4: is the file damaged, as after a loss of power?"),
        (b"caf\xe9", "expected text, found bytes that are not UTF-8 at 3: save the file as UTF-8"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, data: bytes, text: str) -> None:
    assert refusal(put(tmp_path / "file", data)) == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")))
def test_text_is_read_with_and_without_a_byte_order_mark(text: str) -> None:
    assert small_file.decode(text.encode()) == small_file.decode(text.encode("utf-8-sig")) == text


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_refused(data: bytes) -> None:
    try:
        assert "\0" not in small_file.decode(data)
    except ValueError as expected:
        assert "found" in str(expected)


@pytest.mark.parametrize(
    "wrapped",
    [
        "tunnel1.abc",
        "  tunnel1.\r\n abc\r\n",
        '"tunnel1.abc"',
        "'tunnel1.abc'",
        "\u201ctunnel1.abc\u201d",
        "`tunnel1.abc`",
        "\ufefftunnel1.abc",
        "tunnel1.\u200babc\u2060",
        '\ufeff "tunnel1.abc" \n',
    ],
)
def test_a_line_is_found_within_what_others_put_around_it(wrapped: str) -> None:
    assert small_file.bare(wrapped) == "tunnel1.abc"


@pytest.mark.alone
def test_a_file_system_that_hangs_costs_a_bounded_time_and_no_thread_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang_guard, "ANSWER_SECONDS", 0.05)
    before = threading.active_count()
    good = put(tmp_path / "good", b"x")
    (tmp_path / "mount").mkdir()
    with hanging(tmp_path / "mount") as directory:
        for _ in range(hang_guard.STUCK_MAX):
            assert "is it on a file system whose server has gone?" in refusal(directory / "file")
        begun = time.monotonic()
        assert "earlier accesses to files have not returned yet" in refusal(directory / "file")
        assert threading.active_count() == before + hang_guard.STUCK_MAX
        assert time.monotonic() - begun < 1
    eventually(lambda: threading.active_count() == before, what="the threads have ended")
    assert small_file.read(good, LIMIT) == b"x"
