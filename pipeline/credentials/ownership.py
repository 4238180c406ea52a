"""The files that this program trusts: only we and root may change them, and nobody else.

    check(config)          the state directory, the files of keys and certificates, and the programs that settings name
    check_source(...)      the file of a configuration that names programs
    find_exposure(path)    who else could change or replace a file or directory, and the cure; "" for nobody
    is_trusted(uid)        root, the user that we run as, the user who has called sudo

The rules are those of StrictModes (sshd_config(5)), for each directory from / down and each symbolic link on the way. A
user who may write to one of them can put another file in place. A sticky directory such as /tmp is an exception: nobody
can rename or remove an entry of another's there, so that the entry itself decides.

In a user namespace all ids from outside look like one, which is trusted: the host's root is among them.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, Problem
from pipeline.system import hang_guard

if TYPE_CHECKING:
    from pipeline.config import Config  # msgspec would double the time of commands that read no configuration

LINKS_MAX = 40  # MAXSYMLINKS, linux/namei.h
OVERFLOW_ID = Path("/proc/sys/fs/overflowuid")  # the owner of files whose own is not mapped; NFS gives them to nobody
EVERY_ID_MAPPED = "0 0 4294967295"

NAMED_FILES = (
    *("tls_cert_file", "tls_key_file", "tls_ca_file", "key_file"),
    *("proxy_login_file", "proxy_ca_file", "metrics_token_file"),
)


def check(config: Config) -> None:
    """ConfigError names every path that another user could change. A path that does not exist is not looked at."""
    paths = {name: path for name in NAMED_FILES if (path := getattr(config, name))}
    paths |= {f"peers[{i}].key_file": peer.key_file for i, peer in enumerate(config.peers) if peer.key_file}
    paths |= {f"on.{event}": argv[0] for event, argv in config.on.items()}
    if config.proxy_command:
        paths["proxy_command"] = config.proxy_command[0]
    if config.mode == "server":
        paths |= dict.fromkeys(("state_dir",), config.state_dir)
    found: dict[str, Problem] = {}  # a directory that several paths pass is one problem
    for name, path in paths.items():
        if exposure := find_exposure(Path(path)):
            found.setdefault(exposure, Problem(name, exposure))
    if found:
        raise ConfigError(list(found.values()))


def check_source(config: Config, file: str | None) -> None:
    """ConfigError if another user could change a configuration whose commands we run."""
    setting = "on" if config.on else "proxy_command"
    if getattr(config, setting) and file and (exposure := find_exposure(Path(file))):
        raise ConfigError([Problem(setting, f"its commands run with our rights, but {exposure}", file)])


def find_exposure(path: Path) -> str:
    """Why another user could change what is at `path`, or put something else there; "" if only the trusted could."""
    try:
        return hang_guard.call(lambda: exposure_of(path))
    except OSError as error:
        return f"{path}: cannot be looked at: {error.strerror}"


def exposure_of(path: Path) -> str:
    """find_exposure() for a caller that may wait as long as the file system does."""
    here = Path("/")
    parts = list(path.absolute().parts[1:])
    exposure = _exposure(here, os.lstat(here))
    links = 0
    while parts and not exposure:
        part = parts.pop(0)
        if part == "..":
            here = here.parent
            continue
        entry = here / part
        try:
            status = os.lstat(entry)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                target = Path(os.readlink(entry))
        except (OSError, ValueError):  # it does not exist, or cannot be looked at; ValueError: a NUL in the path
            break
        exposure = _exposure(entry, status)
        if not stat.S_ISLNK(status.st_mode):
            here = entry
        elif links > LINKS_MAX:
            break
        else:
            here = Path("/") if target.is_absolute() else here
            parts[:0] = target.parts[target.is_absolute() :]
    return exposure


def is_trusted(uid: int) -> bool:
    """Whether files of this user may decide what we do."""
    return uid in (0, os.geteuid()) or uid == _sudo_user() or _is_from_outside(uid)


def owner_advice(path: Path | str, uid: int) -> str:
    """The text about a file or directory of a user who is not trusted."""
    text = f"{path} belongs to {_name(uid)}, who can change it: chown {_name(os.geteuid())} {path}"
    if uid == _overflow_id():
        text += "; if it is on NFS, which makes root's files nobody's (root_squash), move it to a disk of this machine"
    return text


def _exposure(entry: Path, status: os.stat_result) -> str:
    if not is_trusted(status.st_uid):
        return owner_advice(entry, status.st_uid)
    mode = status.st_mode
    if stat.S_ISLNK(mode) or not mode & (stat.S_IWGRP | stat.S_IWOTH) or (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
        return ""
    return f"other users can write to {entry} (mode {stat.S_IMODE(mode):04o}): chmod go-w {entry}"


def _sudo_user() -> int:
    """The user that sudo(8) has let become root; -1 for none. The environment of a process of root is from root."""
    called_by = os.environ.get("SUDO_UID", "")
    return int(called_by) if os.geteuid() == 0 and called_by.isdecimal() else -1


def _is_from_outside(uid: int) -> bool:
    try:
        mapped = Path("/proc/self/uid_map").read_text().split()
    except OSError:  # a kernel without user namespaces
        return False
    return uid == _overflow_id() and " ".join(mapped) != EVERY_ID_MAPPED


def _overflow_id() -> int:
    try:
        return int(OVERFLOW_ID.read_text())
    except OSError:
        return -1


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
