"""The files of a client that has joined, in a directory of its own, and the order in which they come.

    /etc/tunnel-supervisor/NAME/     mode 0700
        README         what this is, and where all settings are described
        invitation     while a join is under way: the line, and the private value of the exchange. 0600
        key            the key that the server and this client alone have. 0600
        config.json    what `start --config` reads; it names the key file. 0600
        joined         with which invitation: the id of its key, by which the same line is recognised. 0600

    begin(line)        invitation                 before the server is asked for anything
    keep_key(key)      key                        once the server has answered
    finish()           the other files, then the invitation goes

Each file appears as a whole, flushed, or not at all. So whenever this is cut off, the next join goes on where it was:
with the invitation alone, it asks the server again, with the same private value; with a key as well, it only finishes.
pipeline.peers.enrollment has the argument for both ends together.

A failed join removes what it has made, unless the server may have done its part. Files of other names are never
touched, and neither is a directory with such files in it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.credentials import invitation, key_exchange, keys
from pipeline.credentials.invitation import Invitation
from pipeline.credentials.ownership import find_exposure
from pipeline.errors import ConfigError, LocalError, Problem
from pipeline.wire import auth

ETC = Path("/etc/tunnel-supervisor")
DIRECTORY_MODE = 0o700

CONFIG, KEY, PENDING, JOINED, README = "config.json", "key", "invitation", "joined", "README"
OURS = (CONFIG, KEY, PENDING, JOINED, README)

ABOUT = """This directory is the client "{name}" of tunnel-supervisor, made by `tunnel-supervisor join`.

config.json    its settings. All settings: docs/configuration.md, or `tunnel-supervisor schema`.
               After a change: tunnel-supervisor check {path} && tunnel-supervisor reload --name {name}
key            its secret. The server knows it as well; nobody else may read it.

tunnel-supervisor down {name}      stops it, also at boot        tunnel-supervisor up {name}    starts it, also at boot
tunnel-supervisor leave {name}     removes it, here and at the server
"""


def configured_names() -> list[str]:
    """Of all instances that `up` could start, those included that are no clients."""
    try:
        return sorted(each.name for each in ETC.iterdir() if (each / CONFIG).is_file())
    except OSError:  # there are none, or none that this user may see
        return []


class Pending:
    """A join that is under way. `is_open`: the server may have done its part."""

    def __init__(self, line: Invitation, private: bytes, settings: Mapping[str, Any], *, is_open: bool) -> None:
        self.line = line
        self.private = private
        self.settings = dict(settings)
        self.is_open = is_open


class JoinedClient:
    """The directory of one client. Its methods raise LocalError or PermissionDenied if a file cannot be written."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = ETC / name
        self.config_path = self.directory / CONFIG
        self.key_path = self.directory / KEY
        self._pending_path = self.directory / PENDING

    @contextmanager
    def locked(self, *, make: bool = False) -> Iterator[None]:
        """No other command changes this client meanwhile. `make`: the directory, if it is not there."""
        if make:
            self._make()
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(
                f'no instance "{self.name}" has joined here ({self.directory}: {error.strerror})'
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if exposure := find_exposure(self.directory):
                raise LocalError(exposure)
            yield
        except BlockingIOError:
            raise LocalError(f'another command is at work on "{self.name}": wait for its end') from None
        finally:
            os.close(fd)
            if make:
                self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        for directory in (self.directory, ETC):
            with suppress(OSError):  # there is something in it
                directory.rmdir()

    def _make(self) -> None:
        try:
            for directory in (ETC, self.directory):
                directory.mkdir(DIRECTORY_MODE, exist_ok=True)
        except OSError as error:
            raise keys.write_error(self.directory, error) from None

    # -- what is there

    @property
    def is_configured(self) -> bool:
        return os.path.lexists(self.config_path)

    @property
    def has_key(self) -> bool:
        return os.path.lexists(self.key_path)

    @property
    def is_ours(self) -> bool:
        """Whether a join has been at work here, done or not. Elsewhere a config.json is another's."""
        return os.path.lexists(self.directory / JOINED) or os.path.lexists(self._pending_path)

    def pending(self) -> Pending | None:
        """The join that is under way; None if there is none. ConfigError if its file cannot be used."""
        if not os.path.lexists(self._pending_path):
            return None
        source = str(self._pending_path)
        try:
            found = json.loads(keys.read_secret(self._pending_path, "invitation"))
            private = base64.b64decode(found["private"], validate=True)
            key_exchange.public_of(private)
            return Pending(invitation.decode(found["line"]), private, dict(found["settings"]), is_open=True)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError([Problem("", "damaged: remove it, and join with another invitation", source)]) from None

    def key(self) -> bytes:
        return keys.read_key(self.key_path, "key_file")

    def has_joined_with(self, line: Invitation) -> bool:
        """Whether this invitation has made this client."""
        with suppress(ConfigError):
            return self.is_configured and keys.read_secret(self.directory / JOINED, "joined") == _name_of(line)
        return False

    # -- the steps of a join

    def begin(self, line: Invitation, settings: Mapping[str, Any]) -> Pending:
        pending = Pending(line, key_exchange.new_private(), settings, is_open=False)
        self._write_pending(pending)
        return pending

    def change_settings(self, pending: Pending, settings: Mapping[str, Any]) -> None:
        """Another attempt has other settings."""
        pending.settings = dict(settings)
        self._write_pending(pending)

    def _write_pending(self, pending: Pending) -> None:
        content = {
            "line": invitation.encode(pending.line),
            "private": base64.b64encode(pending.private).decode(),
            "settings": pending.settings,
        }
        keys.write_secret(self._pending_path, json.dumps(content).encode() + b"\n", replace=True)

    def keep_key(self, key: bytes) -> None:
        keys.write_secret(self.key_path, base64.b64encode(key) + b"\n", replace=True)

    def finish(self, pending: Pending) -> None:
        keys.write_secret(self.directory / JOINED, _name_of(pending.line), replace=True)
        text = ABOUT.format(name=self.name, path=self.config_path)
        keys.write_secret(self.directory / README, text.encode(), replace=True)
        config = {**self.settings(pending.line), **pending.settings}
        keys.write_secret(self.config_path, json.dumps(config, indent=2).encode() + b"\n", replace=True)
        self._remove(self._pending_path)

    def settings(self, line: Invitation) -> dict[str, Any]:
        """The settings that follow from an invitation."""
        return {
            "mode": "client",
            "name": self.name,
            **line.settings,
            "key_file": str(self.key_path),
        }

    # -- the end

    def remove(self) -> list[str]:
        """Remove the directory; if it has files of others, only ours. Returns the names that stay."""
        try:
            found = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        others = [name for name in found if name not in OURS and not keys.TEMPORARY_NAME.fullmatch(name)]
        for name in found:
            if name not in others:
                self._remove(self.directory / name)
        self._remove_if_empty()
        return sorted(others)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            keys.sync_directory(path.parent)
        except OSError as error:
            raise keys.write_error(path, error) from None


def _name_of(line: Invitation) -> bytes:
    return auth.key_id(line.key).hex().encode() + b"\n"
