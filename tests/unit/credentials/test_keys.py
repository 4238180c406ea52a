"""Keys as text, and files that only their owner can read."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.credentials import keys
from pipeline.credentials.keys import generate, parse, read_key, read_secret, write_secret
from pipeline.errors import ConfigError, LocalError

KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()


def secret(directory: Path, data: bytes = b"content", mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_secret(path, "key_file")
    return str(caught.value)


# -- as text


def test_generated_keys_are_lines_that_parse_and_differ() -> None:
    first, second = generate(), generate()
    assert len(first) == 44 and first.isascii() and first.isprintable()
    assert len(parse(first)) == 32 and parse(first) != parse(second)


@given(st.binary(min_size=32, max_size=32).filter(lambda key: len(set(key)) > 1))
def test_every_key_is_read_as_it_was_written(key: bytes) -> None:
    assert parse(base64.b64encode(key).decode() + "\n") == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        "correct horse battery staple",
        TEXT[:-1],
        TEXT + "A",
        TEXT[:-2] + "9=",
        "-" * 44,
        "é" * 44,
        TEXT[:20] + " " + TEXT[21:],
        base64.b64encode(bytes(31)).decode(),
        base64.b64encode(bytes(33)).decode(),
        base64.b64encode(bytes(32)).decode(),
        KEY.hex(),
    ],
    ids=repr,
)
def test_a_text_that_is_no_key_is_refused_with_the_form_of_a_key_and_not_printed(text: str) -> None:
    with pytest.raises(ValueError, match="genkey") as caught:
        parse(text)
    assert not text or text not in str(caught.value)


@given(st.text(max_size=50))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        assert base64.b64encode(parse(text)).decode() == text.strip()
    except ValueError as error:
        assert "genkey" in str(error)


def test_a_password_is_refused_as_a_password() -> None:
    with pytest.raises(ValueError, match=r"found 7 characters. A password is no key"):
        parse("hunter2")


# -- files that are read


def test_a_secret_that_only_its_owner_can_read_is_read(tmp_path: Path) -> None:
    assert read_secret(secret(tmp_path), "key_file") == b"content"
    assert read_secret(secret(tmp_path, mode=0o400), "key_file") == b"content"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o666, 0o660], ids=oct)
def test_a_secret_that_other_users_can_read_or_change_is_refused_with_advice(tmp_path: Path, mode: int) -> None:
    path = secret(tmp_path, mode=mode)
    text = refusal(path)
    assert text.startswith(f"{path}: key_file: ") and f"mode {mode:04o}" in text and f"chmod 600 {path}" in text


def test_a_systemd_credential_may_have_the_rights_of_an_acl_in_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_secret(secret(tmp_path, mode=0o440), "key_file") == b"content"
    assert "other users can read" in refusal(secret(tmp_path, mode=0o444))
    (tmp_path / "below").mkdir()
    assert "other users can read" in refusal(secret(tmp_path / "below", mode=0o440))


def test_a_link_is_followed_and_the_mode_of_its_target_counts(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(secret(tmp_path))
    assert read_secret(link, "key_file") == b"content"
    secret(tmp_path, mode=0o644)
    assert "other users can read" in refusal(link)


def test_a_path_without_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "expected a regular file, found a FIFO" in refusal(tmp_path / "fifo")
    assert "expected a regular file, found a directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "missing")
    assert "cannot be read" in refusal("a\0b")


def test_a_file_without_end_is_refused(tmp_path: Path) -> None:
    assert "longer than" in refusal(secret(tmp_path, bytes(keys.SECRET_BYTES_MAX + 1)))
    assert len(read_secret(secret(tmp_path, bytes(keys.SECRET_BYTES_MAX)), "key_file")) == keys.SECRET_BYTES_MAX


def test_the_key_in_a_file_is_read_and_other_content_is_refused_without_printing_it(tmp_path: Path) -> None:
    assert read_key(secret(tmp_path, TEXT.encode() + b"\n"), "key_file") == KEY
    for data, text in (
        (b"hunter2", "key_file: expected a key as"),
        (b"", "key_file: expected a key as"),
        (b"\xff" * 44, "key_file: expected text, found bytes that are not UTF-8"),
        (TEXT.encode("utf-16"), "key_file: expected UTF-8, found UTF-16"),
        (bytes(44), "key_file: expected text, found a NUL byte"),
    ):
        with pytest.raises(ConfigError, match=text) as caught:
            read_key(secret(tmp_path, data), "key_file")
        assert "hunter2" not in str(caught.value)


# -- files that are written


def test_only_the_owner_can_read_a_written_secret_under_any_umask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        write_secret(tmp_path / "secret", b"content")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert read_secret(tmp_path / "secret", "key_file") == b"content"


def test_a_file_that_exists_is_not_overwritten_without_replace(tmp_path: Path) -> None:
    path = secret(tmp_path)
    with pytest.raises(LocalError, match=f"{path} exists already and is not overwritten"):
        write_secret(path, b"other")
    assert path.read_bytes() == b"content" and os.listdir(tmp_path) == ["secret"]


def test_a_dangling_link_counts_as_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LocalError, match="not overwritten"):
        write_secret(tmp_path / "link", b"content")
    assert os.listdir(tmp_path) == ["link"]


def test_a_file_is_replaced_as_a_whole_and_gets_the_right_mode(tmp_path: Path) -> None:
    path = secret(tmp_path, mode=0o644)
    with path.open("rb") as reader:
        write_secret(path, b"other", replace=True)
        assert reader.read() == b"content"
    assert read_secret(path, "key_file") == b"other" and os.listdir(tmp_path) == ["secret"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be written: No such file or directory"):
        write_secret(tmp_path / "missing" / "secret", b"content")
    (tmp_path / "taken" / "full").mkdir(parents=True)
    with pytest.raises(LocalError, match="cannot be written"):
        write_secret(tmp_path / "taken", b"content", replace=True)
    assert os.listdir(tmp_path) == ["taken"]
