"""Secrets: keys as text, and files that are readable by their owner alone.

    generate() -> text       a new key: 256 random bits in base64, one line of 44 characters; WireGuard's form
    parse(text) -> bytes     such a text, and nothing that a person thought up
    read_secret(path)        what a file holds, if nobody else can read it
    read_key(path)           the key that a file holds
    write_secret(path)       a file of mode 0600, there as a whole or not at all

No text of an error holds any part of a secret. A symbolic link is followed: what counts are the rights of the file
that was opened. A credential of systemd has a group's rights in its mode when the service has a user of its own, which
is the mask of the ACL that names this user (systemd.exec(5), acl(5)).
"""

from __future__ import annotations

import base64
import os
import secrets
import stat
from pathlib import Path

from pipeline.errors import ConfigError, LocalError, PermissionDenied, Problem, TunnelError
from pipeline.wire.auth import KEY_BYTES

KEY_FORM = "a key as `tunnel-supervisor genkey` makes it: 32 random bytes in base64, 44 characters"
KEY_TEXT_LENGTH = 44

SECRET_MODE = 0o600
SECRET_BYTES_MAX = 1 << 16  # a certificate chain with its key has a tenth of that
OF_OTHERS = 0o077  # of the mode
CREDENTIALS = "CREDENTIALS_DIRECTORY"


def generate() -> str:
    """A new key as text."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def parse(text: str) -> bytes:
    """The 32 bytes of a key. ValueError, whose text is what was expected, for anything else."""
    text = text.strip()
    if len(text) != KEY_TEXT_LENGTH:
        raise ValueError(f"{KEY_FORM}; found {len(text)} characters. A password will not do: it can be guessed")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError(f"{KEY_FORM}; found what is no base64") from None
    if len(key) != KEY_BYTES or base64.b64encode(key).decode() != text:
        raise ValueError(f"{KEY_FORM}; found base64 of another length, or with bits behind its end")
    if len(set(key)) == 1:
        raise ValueError(f"{KEY_FORM}; found one byte over and over")
    return key


def read_secret(path: str | Path, what: str) -> bytes:
    """The content of a file that its owner alone can read. `what` it is, for the ConfigError if there is none."""

    def wrong(text: str) -> ConfigError:
        return ConfigError([Problem(what, text, str(path))])

    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise wrong("expected a file, found something else of this name")
            if status.st_mode & (stat.S_IRWXO if _is_credential(path) else OF_OTHERS):
                raise wrong(
                    f"others can read or change it (mode {stat.S_IMODE(status.st_mode):04o}): "
                    f"chmod 600 {path}, and replace it if somebody may have read it"
                )
            data = file.read(SECRET_BYTES_MAX + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise wrong(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > SECRET_BYTES_MAX:
        raise wrong(f"longer than {SECRET_BYTES_MAX} bytes")
    return data


def read_key(path: str | Path, what: str) -> bytes:
    """The 32 bytes of the key in a file. ConfigError if there is none, or others can read it."""
    data = read_secret(path, what)
    try:
        return parse(data.decode(errors="replace"))
    except ValueError as expected:
        raise ConfigError([Problem(what, f"expected {expected}", str(path))]) from None


def write_secret(path: str | Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file of mode 0600 and have it on the disk. Without `replace` there must be none of this name."""
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
        raise LocalError(f"{path} exists and is not overwritten: remove it, or choose another name") from None
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> TunnelError:
    """What to raise when the operating system refuses to write or remove a file."""
    kind = PermissionDenied if isinstance(error, PermissionError) else LocalError
    return kind(f"{path} cannot be written: {error.strerror}")


def sync_directory(directory: Path) -> None:
    """Have the names in it on the disk: fsync(2)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_without_waiting(path: str, flags: int) -> int:
    """A FIFO would wait for its writer for ever."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_credential(path: str | Path) -> bool:
    directory = os.environ.get(CREDENTIALS)
    return bool(directory) and Path(path).parent == Path(directory)
