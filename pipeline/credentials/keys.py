"""Secrets: keys as text, and files that only their owner can read.

    generate() -> text       a new key: 256 random bits in base64, one line of 44 characters; WireGuard's form
    parse(text) -> bytes     the key in such a text; any other text is refused, a password above all
    read_secret(path)        the content of a file, if no other user can read it or owns it
    read_key(path)           the key in a file
    write_secret(path)       a file of mode 0600; it appears as a whole or not at all

No text of an error holds any part of a secret. A symbolic link is followed: the rights of the opened file count. If a
service has a user of its own, its systemd credentials have group rights in their mode. These are the mask of the ACL
that names this user (systemd.exec(5), acl(5)).
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import stat
from pathlib import Path

from pipeline.credentials.ownership import is_trusted, owner_advice
from pipeline.errors import ConfigError, LocalError, PermissionDenied, Problem, TunnelError
from pipeline.system import small_file
from pipeline.wire.auth import KEY_BYTES

KEY_FORM = "a key as `tunnel-supervisor genkey` makes it: 32 random bytes in base64, 44 characters"
KEY_TEXT_LENGTH = 44

SECRET_MODE = 0o600
SECRET_BYTES_MAX = 1 << 16  # a certificate chain with its key has a tenth of that
GROUP_AND_OTHERS = stat.S_IRWXG | stat.S_IRWXO
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # systemd.exec(5)


TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{8}", re.DOTALL)
"""Names of the files that write_secret() writes before they get their own name."""


def generate() -> str:
    """A new key as text."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def parse(text: str) -> bytes:
    """The 32 bytes of a key. ValueError says what was expected."""
    text = text.strip()
    if len(text) != KEY_TEXT_LENGTH:
        raise ValueError(f"{KEY_FORM}; found {len(text)} characters. A password is no key: it can be guessed")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(f"{KEY_FORM}; found a text that is not base64") from None
    if len(key) != KEY_BYTES or base64.b64encode(key).decode() != text:
        raise ValueError(f"{KEY_FORM}; found base64 of another length, or with bits after its end")
    if len(set(key)) == 1:
        raise ValueError(f"{KEY_FORM}; found one byte repeated")
    return key


def read_secret(path: str | Path, what: str) -> bytes:
    """The content of a file that only its owner can read. `what`: the path of the problem in a ConfigError."""

    return small_file.read(path, SECRET_BYTES_MAX, what, _is_private(path))


def read_key(path: str | Path, what: str) -> bytes:
    """The 32 bytes of the key in a file. ConfigError if the file holds no key, or other users can read it."""
    data = read_secret(path, what)
    try:
        return parse(small_file.bare(small_file.decode(data)))
    except ValueError as expected:
        raise ConfigError([Problem(what, f"expected {expected}", str(path))]) from None


def write_secret(path: str | Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file of mode 0600 and flush it to the disk. Without `replace`, no file of this name may exist."""
    path = Path(path)
    new = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SECRET_MODE)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            if replace:
                os.replace(new, path)
            else:
                os.link(new, path)
        finally:
            new.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError:
        raise LocalError(f"{path} exists already and is not overwritten: remove it, or choose another name") from None
    except OSError as error:
        raise write_error(path, error) from None


def write_error(path: Path, error: OSError) -> TunnelError:
    """The error to raise when the operating system refuses to write or remove a file."""
    kind = PermissionDenied if isinstance(error, PermissionError) else LocalError
    return kind(f"{path} cannot be written: {error.strerror}")


def sync_directory(directory: Path) -> None:
    """Flush the names in a directory to the disk: fsync(2)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_private(path: str | Path) -> small_file.Objection:
    """The objection to a file that other users can read or change, or that belongs to one of them."""
    forbidden = stat.S_IRWXO if _is_credential(path) else GROUP_AND_OTHERS

    def objection(status: os.stat_result) -> str:
        if not is_trusted(status.st_uid):
            return owner_advice(path, status.st_uid)
        if not status.st_mode & forbidden:
            return ""
        return (
            f"other users can read or change it (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"chmod 600 {path}, and replace the secret if another user may have read it"
        )

    return objection


def _is_credential(path: str | Path) -> bool:
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    return directory is not None and directory != "" and Path(path).parent == Path(directory)
