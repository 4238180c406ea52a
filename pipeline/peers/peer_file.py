"""Peer files: one in the server's state directory for each peer that `invite` has added.

    STATE_DIR/peers/NAME.json     mode 0600, the directory 0700
    {
      "key": "...",               base64; without it, nobody has joined yet, or the peer has left
      "allowed": ["10.1.0.0/16"], "address": "10.0.0.7", "rate_mbit": 20,      each of these is optional
      "bulk_rate_mbit": 5, "quota_gb": 50, "quota_action": "slow", "quota_rate_mbit": 2,
      "groups": ["office"], "may_reach": ["192.168.10.0/24:443/tcp"],
      "until": 1798758000,                                                     so are these: times are UNIX seconds
      "invitation": {"key": "...", "expires": 1764400000, "uses": 1, "expired": false, "kept": false},
      "agreed": {"invitation": "<key id>", "client": "...", "server": "..."}   hexadecimal
    }

The settings have the meaning that they have in the configuration (pipeline.config.peer). `invitation` and `agreed` are
those of pipeline.peers.enrollment. This file holds the key itself, where the configuration holds a path. Only the
supervisor writes; it replaces a file as a whole, so that no reader sees half a file. After an edit by hand, the
instance must be reloaded. A file that is wrong costs its own peer and no other.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from pipeline.config.peer import check_peer_name
from pipeline.config.quote import quote
from pipeline.config.types import Gigabytes, Mbit, Name, SlowMbit
from pipeline.config.values import parse_address, parse_prefix
from pipeline.credentials import keys, state_dir
from pipeline.credentials.ownership import find_exposure
from pipeline.errors import ConfigError, Problem
from pipeline.plain_text import escaped
from pipeline.policy.quota import QuotaAction
from pipeline.policy.targets import parse_target
from pipeline.system import hang_guard, small_file

DIRECTORY = state_dir.PEERS
DIRECTORY_MODE = state_dir.DIRECTORY_MODE
SUFFIX = ".json"
USES_MAX = 1000
TIME_MAX = 253_402_300_799  # the last second of the year 9999, the last one that can be printed

T = TypeVar("T")


class Issued(NamedTuple):
    """An invitation as the server knows it. It stays after its use, so that a second use can be named."""

    key: bytes
    expires: int = 0  # UNIX time; 0: never
    uses: int = 1  # machines that may join with it, in all
    expired: bool = False  # a clock that is set back afterwards does not revive it
    kept: bool = (
        False  # a client without an exchange of keys uses its key: it is the peer's key now, and does not expire
    )


class Agreed(NamedTuple):
    """The exchange that has made a peer's key, so that it can be answered again. Hexadecimal."""

    invitation: str  # key id of the invitation's key
    client: str  # the client's public value
    server: str  # the server's public value


class InvitedPeer(NamedTuple):
    """The content of a peer file. None for the server's setting; 0 for no limit, and for no quota."""

    name: str
    key: bytes  # b"": nobody has joined yet, or the peer has left
    allowed: tuple[IPv4Network | IPv6Network, ...] = ()
    address: tuple[IPv4Address | IPv6Address, ...] = ()
    rate_mbit: float | None = None
    until: int = 0  # UNIX time from which the peer is excluded; 0: none
    invitation: Issued | None = None
    agreed: Agreed | None = None
    quota_gb: float | None = None
    quota_action: QuotaAction | None = None
    quota_rate_mbit: float | None = None
    groups: tuple[str, ...] = ()
    may_reach: tuple[str, ...] | None = None
    bulk_rate_mbit: float | None = None


class BrokenPeer(NamedTuple):
    """A peer whose file or settings cannot be used."""

    name: str
    problem: Problem


Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MAX)]
Hexadecimal = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{2})*$", max_length=64)]


class _Invitation(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    key: str
    expires: Time = 0
    uses: Annotated[int, msgspec.Meta(ge=0, le=USES_MAX)] = 1
    expired: bool = False
    kept: bool = False


class _Agreed(msgspec.Struct, forbid_unknown_fields=True):
    invitation: Hexadecimal
    client: Hexadecimal
    server: Hexadecimal


class _Content(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A misspelt setting is refused: it may have been meant as a restriction."""

    key: str = ""
    allowed: tuple[str, ...] = ()
    address: str | tuple[str, ...] = ()
    rate_mbit: Mbit | None = None
    until: Time = 0
    invitation: _Invitation | None = None
    agreed: _Agreed | None = None
    quota_gb: Gigabytes | None = None
    quota_action: QuotaAction | None = None
    quota_rate_mbit: SlowMbit | None = None
    groups: tuple[Name, ...] = ()
    may_reach: tuple[str, ...] | None = None
    bulk_rate_mbit: Mbit | None = None


def new_peer(
    name: Any,
    allowed: Any,
    rate_mbit: Any,
    issued: Issued | None = None,
    until: Any = 0,
    quota_gb: Any = None,
    groups: Any = (),
    may_reach: Any = None,
    bulk_rate_mbit: Any = None,
) -> InvitedPeer:
    """A peer, from the request of `invite`. ConfigError if the request is invalid.

    For one machine the key of its invitation is the peer's own for the time being; for several, nobody is the peer yet.
    Without an invitation the key is new.
    """
    check_peer_name(name)
    try:
        networks = _parsed("invite", "allowed", msgspec.convert(allowed, tuple[str, ...]), parse_prefix)
        rate = msgspec.convert(rate_mbit, Mbit | None)
        of_bulk = msgspec.convert(bulk_rate_mbit, Mbit | None)
        end = msgspec.convert(until or 0, Time)
        quota = msgspec.convert(quota_gb, Gigabytes | None)
        of_groups = msgspec.convert(groups or (), tuple[Name, ...])
        targets = _targets("invite", msgspec.convert(may_reach, tuple[str, ...] | None))
    except msgspec.ValidationError as error:
        raise ConfigError([Problem("", str(error), "invite")]) from None
    key = keys.parse(keys.generate()) if issued is None else issued.key * (issued.uses == 1)
    return InvitedPeer(
        *(name, key, networks, (), rate, end, issued),
        quota_gb=quota,
        groups=of_groups,
        may_reach=targets,
        bulk_rate_mbit=of_bulk,
    )


def new_invitation(expires: Any, uses: Any) -> Issued:
    """An invitation with a new key, from the request of `invite`. ConfigError if the request is invalid.

    `expires`: UNIX time, 0 for never; `uses`: machines.
    """
    try:
        moment = msgspec.convert(expires, Time)
        count = msgspec.convert(uses, Annotated[int, msgspec.Meta(ge=1, le=USES_MAX)])
    except msgspec.ValidationError as error:
        raise ConfigError([Problem("", str(error), "invite")]) from None
    return Issued(keys.parse(keys.generate()), moment, count)


def with_until(peer: InvitedPeer, until: Any) -> InvitedPeer:
    """The peer with another end of its time. ConfigError if the request is invalid."""
    try:
        return peer._replace(until=msgspec.convert(until, Time))
    except msgspec.ValidationError as error:
        raise ConfigError([Problem("until", str(error), "enable")]) from None


def exists(state: Path, name: str) -> bool:
    """Whether there is a file of this name, which may not have been read."""
    return os.path.lexists(_path(state, name))


def read_all(state: Path) -> tuple[list[InvitedPeer], list[BrokenPeer]]:
    """All peers of a state directory, by name. ConfigError if it cannot be read, or others can write there."""
    directory = state / DIRECTORY
    try:
        names = hang_guard.call(lambda: sorted(os.listdir(directory)))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror}", str(directory))]) from None
    if exposure := find_exposure(directory):  # who can write there can add peers
        raise ConfigError([Problem("peers", exposure)])
    found, broken = [], []
    for name in names:
        if name.endswith(SUFFIX) and not name.startswith("."):
            try:
                found.append(_read(directory / name))
            except ConfigError as error:
                broken.append(BrokenPeer(escaped(name.removesuffix(SUFFIX)), error.problems[0]))
    return found, broken


def write(state: Path, peer: InvitedPeer, *, replace: bool = False) -> None:
    """Add a peer. LocalError if there is a file of this name, unless it is to be replaced.

    LocalError, too, if the file system does not answer in time. A file that is written after that is removed again.
    ConfigError for a peer that could not be read back.
    """
    check_peer_name(peer.name)
    path, data = _path(state, peer.name), _encoded(peer, state)
    try:
        hang_guard.call(lambda: _write(path, data, replace), undo=lambda: _remove_if_it_has(path, data))
    except OSError as error:
        raise keys.write_error(path, error) from None


def update(state: Path, peer: InvitedPeer, is_known: Callable[[], bool] = lambda: True) -> None:
    """Write the file of a peer anew, as a whole. LocalError if it may not have been written: then it is either.

    A file that is written after that is removed again unless `is_known`: the peer may have been revoked meanwhile.
    """
    path, data = _path(state, peer.name), _encoded(peer, state)
    try:
        hang_guard.call(lambda: _write(path, data, True), undo=lambda: None if is_known() else _remove(path))
    except OSError as error:
        raise keys.write_error(path, error) from None


def remove(state: Path, name: str) -> bool:
    """Remove a peer, and flush that to the disk; False if there is no peer of this name.

    LocalError or PermissionDenied if the system refuses, or does not answer.
    """
    check_peer_name(name)
    path = _path(state, name)
    try:
        hang_guard.call(lambda: _remove(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise keys.write_error(path, error) from None
    return True


def _encoded(peer: InvitedPeer, state: Path) -> bytes:
    issued = peer.invitation
    content = _Content(
        base64.b64encode(peer.key).decode(),
        tuple(map(str, peer.allowed)),
        tuple(map(str, peer.address)),
        peer.rate_mbit,
        peer.until,
        _Invitation(base64.b64encode(issued.key).decode(), *issued[1:]) if issued else None,
        _Agreed(*peer.agreed) if peer.agreed else None,
        peer.quota_gb,
        peer.quota_action,
        peer.quota_rate_mbit,
        peer.groups,
        peer.may_reach,
        peer.bulk_rate_mbit,
    )
    data = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    _decoded(peer.name, data, str(_path(state, peer.name)))
    return data


def _path(state: Path, name: str) -> Path:
    """The file of a peer."""
    return state / DIRECTORY / (name + SUFFIX)


def _write(path: Path, data: bytes, replace: bool) -> None:
    try:
        path.parent.mkdir(DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise keys.write_error(path.parent, error) from None
    keys.write_secret(path, data, replace=replace)


def _remove_if_it_has(path: Path, data: bytes) -> None:
    """Another peer of this name may have been added meanwhile: it has another key."""
    if path.read_bytes() == data:
        _remove(path)


def _remove(path: Path) -> None:
    path.lstat()  # a read-only file system says so even if there is no such file
    path.unlink()
    keys.sync_directory(path.parent)


def _read(path: Path) -> InvitedPeer:
    name = path.name.removesuffix(SUFFIX)
    try:
        check_peer_name(name)
    except ConfigError as error:
        raise ConfigError([Problem("", error.problems[0].text, str(path))]) from None
    try:
        text = small_file.decode(keys.read_secret(path, "peer"))
    except ValueError as expected:
        raise ConfigError([Problem("", f"expected {expected}", str(path))]) from None
    return _decoded(name, text.encode(), str(path))


def _decoded(name: str, data: bytes, source: str) -> InvitedPeer:
    try:
        content = msgspec.json.decode(data, type=_Content)
    except msgspec.ValidationError as error:
        raise ConfigError([Problem("", str(error), source)]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([Problem("", f"not JSON: {error}", source)]) from None
    if not content.key and content.invitation is None:
        raise ConfigError([Problem("key", "missing: without an invitation, a peer needs a key", source)])
    key = _key("key", content.key, source) if content.key else b""
    issued, agreed = content.invitation, content.agreed
    addresses = (content.address,) if isinstance(content.address, str) else content.address
    return InvitedPeer(
        name,
        key,
        _parsed(source, "allowed", content.allowed, parse_prefix),
        _parsed(source, "address", addresses, parse_address),
        content.rate_mbit,
        content.until,
        _issued(issued, source) if issued else None,
        Agreed(agreed.invitation, agreed.client, agreed.server) if agreed else None,
        content.quota_gb,
        content.quota_action,
        content.quota_rate_mbit,
        content.groups,
        _targets(source, content.may_reach),
        content.bulk_rate_mbit,
    )


def _issued(issued: _Invitation, source: str) -> Issued:
    key = _key("invitation.key", issued.key, source)
    return Issued(key, issued.expires, issued.uses, issued.expired, issued.kept)


def _key(setting: str, text: str, source: str) -> bytes:
    try:
        return keys.parse(text)
    except ValueError as expected:
        raise ConfigError([Problem(setting, f"expected {expected}", source)]) from None


def _targets(source: str, texts: Sequence[str] | None) -> tuple[str, ...] | None:
    """Targets stay texts: their groups and peers may change. None: nothing was written."""
    if texts is None:
        return None
    return tuple(target.text for target in _parsed(source, "may_reach", texts, parse_target))


def _parsed(source: str, setting: str, texts: Sequence[str], parse: Callable[[str], T]) -> tuple[T, ...]:
    values = []
    for text in texts:
        try:
            values.append(parse(text))
        except ValueError as expected:
            raise ConfigError([Problem(setting, f"given {quote(text)}, expected {expected}", source)]) from None
    return tuple(values)
