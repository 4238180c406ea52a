"""The command `install-service`: an installation that came from no package becomes a service of systemd.

It writes the unit, the system user and a directory of /run (pipeline.service.unit), says each thing that it did, and
changes nothing the second time. A file that is not ours is never replaced or removed.

With --fake-tcp it writes a drop-in for one instance and nothing else, beside the unit of a package as well.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import LocalError, PermissionDenied
from pipeline.log import printable

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand

USER = "tunnel"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
MODE = 0o644
SYSTEMD_RUNS = Path("/run/systemd/system")  # sd_booted(3)
SYSTEM = Path("/")
COMMAND_SECONDS = 60
DIRECTORIES = (  # systemd makes them
    *(Path(each, "tunnel-supervisor") for each in ("/run", "/var/lib", "/etc")),
    Path("/run/tunnel-names"),
)


def add_commands(command: AddCommand) -> None:
    install = command("install-service", _install, "make this installation a service of systemd; a package has done so")
    install.add_argument("--prefix", metavar="DIR", default="/", help="write below DIR, such as an image that is built")
    install.add_argument(
        "--fake-tcp", metavar="NAME", default="", help="only let the instance NAME open packet sockets, for fake TCP"
    )
    install.add_argument("--remove", action="store_true", help="remove what this command has written")


def _install(arguments: argparse.Namespace) -> int:
    from pipeline.service import unit

    root = Path(arguments.prefix).absolute()
    if not root.is_dir():
        raise LocalError(f"--prefix: {root} is no directory")
    if arguments.fake_tcp:
        return _allow_fake_tcp(root, arguments.fake_tcp, arguments.remove)
    if root == SYSTEM:
        _expect_no_package(unit.PACKAGED_UNITS)
    wanted = unit.files(unit.program_path(), unit.needed_paths())
    found = _found(root, wanted)
    with _explained():
        if arguments.remove:
            return _remove(root, [path for path, text in (found | _drop_ins(root)).items() if text])
        changed = _write_changed(root, wanted, found)
    if root == SYSTEM:
        _warn_of_exposure(unit.program_path())
        _make_user(root / unit.SYSUSERS_PATH)
        _make_directory(root / unit.TMPFILES_PATH)
        if changed:
            _reload_systemd()
    print("next: a configuration in /etc/tunnel-supervisor/NAME/config.json, and then")
    print("      systemctl enable --now tunnel-supervisor@NAME")
    return 0


def _allow_fake_tcp(root: Path, name: str, remove: bool) -> int:
    """Let one instance open packet sockets, or no more."""
    from pipeline.service import unit

    if not NAME.fullmatch(name):
        raise LocalError(f"--fake-tcp: expected the name of an instance, found {printable(name)}")
    wanted = unit.fake_tcp_files(name)
    found = _found(root, wanted)
    with _explained():
        if remove:
            changed = _unlink([path for path, text in found.items() if text])
            if not changed:
                print("nothing to remove")
        else:
            changed = _write_changed(root, wanted, found)
    if root == SYSTEM and changed:
        _reload_systemd()
    if changed:
        print(f"next: systemctl restart tunnel-supervisor@{name}")
    return 0


def _found(root: Path, wanted: dict[str, str]) -> dict[Path, str]:
    """The files in the place of these. LocalError if one is another's."""
    from pipeline.service import unit

    found = {root / path: _read(root / path) for path in wanted}
    for path, text in found.items():
        if text and not text.startswith(unit.MARK):
            raise LocalError(f"{path} was not written by this command: move it away, and try again")
    return found


def _write_changed(root: Path, wanted: dict[str, str], found: dict[Path, str]) -> list[Path]:
    changed = [_write(root / path, text) for path, text in wanted.items() if found[root / path] != text]
    for path in found:
        print(f"{'written' if path in changed else 'unchanged'}: {path}")
    return changed


@contextmanager
def _explained() -> Iterator[None]:
    """Errors of files are errors of ours."""
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(f"{error.filename}: {error.strerror}: run as root") from None
    except OSError as error:
        raise LocalError(f"{error.filename}: {error.strerror}") from None


def _drop_ins(root: Path) -> dict[Path, str]:
    """Those that this command has written, for any instance."""
    from pipeline.service import unit

    found = {path: _read(path) for path in root.glob(unit.FAKE_TCP_PATHS.format(name="*"))}
    return {path: text for path, text in found.items() if text.startswith(unit.MARK)}


def _unlink(paths: list[Path]) -> list[Path]:
    for path in paths:
        path.unlink()
        print(f"removed: {path}")
        if path.parent.name.endswith(".service.d"):
            with suppress(OSError):  # there are drop-ins of others
                path.parent.rmdir()
    return paths


def _expect_no_package(units: tuple[Path, ...]) -> None:
    for path in units:
        if path.exists():
            raise LocalError(f"{path} is there already, from a package: use that one, or remove the package")


def _read(path: Path) -> str:
    """The text of a file; "" if there is none."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from None


def _write(path: Path, text: str) -> Path:
    """Replace the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    with open(unfinished, "w", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, MODE)) as file:
        os.fchmod(file.fileno(), MODE)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    return path


def _remove(root: Path, paths: list[Path]) -> int:
    """LocalError while instances are enabled, or run."""
    from pipeline.service import instances

    links = sorted(root.glob("etc/systemd/system/*.wants/tunnel-supervisor@*.service"))
    names = {link.name for link in links} | set(_active_units() if root == SYSTEM else ())
    if names:
        raise LocalError(
            f"still in use by {', '.join(sorted(names))}: first, for each of them, systemctl disable --now NAME"
        )
    _unlink(paths)
    if root == SYSTEM:
        for sentence in instances.remove_remains():
            print(sentence)
        for directory in DIRECTORIES:
            with suppress(OSError):  # there is something in it, or it is not there
                directory.rmdir()
    if not paths:
        print("nothing to remove")
    elif root == SYSTEM:
        _reload_systemd()
        print(f"note: the user {USER}, configurations in /etc/tunnel-supervisor and /var/lib/tunnel-supervisor stay")
    return 0


def _active_units() -> list[str]:
    if not SYSTEMD_RUNS.exists():
        return []
    words = "systemctl list-units --plain --no-legend --full tunnel-supervisor@*"
    return [line.split()[0] for line in _run(words.split()).splitlines() if line.strip()]


def _warn_of_exposure(program: str) -> None:
    """At each boot root runs the program: another user who can change it becomes root."""
    from pipeline.credentials.ownership import find_exposure

    if exposure := find_exposure(Path(program).resolve()) or find_exposure(Path(program)):
        print(f"note: root runs this program from now on, and {exposure}")


def _make_user(sysusers: Path) -> None:
    from pipeline.supervisor.run.worker_account import preferred_misfit

    try:
        pwd.getpwnam(USER)
        print(f"note: {misfit}" if (misfit := preferred_misfit()) else f"unchanged: user {USER}")
        return
    except KeyError:
        pass
    if shutil.which("systemd-sysusers"):
        _run(["systemd-sysusers", str(sysusers)])
        print(f"made: user {USER}")
    else:
        print(f"note: systemd-sysusers is missing: there is no user {USER}, and workers get an id that nobody has")


def _make_directory(tmpfiles: Path) -> None:
    if shutil.which("systemd-tmpfiles"):
        _run(["systemd-tmpfiles", "--create", str(tmpfiles)])


def _reload_systemd() -> None:
    if SYSTEMD_RUNS.exists():
        _run(["systemctl", "daemon-reload"])
        print("done: systemctl daemon-reload")


def _run(words: list[str]) -> str:
    """The output of a command. LocalError if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalError(f"{words[0]}: {error}") from None
    if done.returncode:
        raise LocalError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
