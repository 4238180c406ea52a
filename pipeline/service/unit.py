"""The files that make an installation a service of systemd: the template of its unit, its system user, and a directory.

    files(program, needs)    the files for a program at this path, by their path beneath the root
    fake_tcp_files(name)     a drop-in for one instance, which needs packet sockets for fake TCP
    program_path()           where the program of this installation is
    needed_paths()           where its files and its interpreter are

The same files are in the Debian package, which puts them below /usr/lib. Those that `install-service` writes go where
an administrator's files belong, and carry MARK. systemd hides home directories from the unit, unless the program is in
one of them.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from pipeline.errors import LocalError
from pipeline.version import NAME

UNIT = "tunnel-supervisor@.service"
UNIT_PATH = f"etc/systemd/system/{UNIT}"
SYSUSERS_PATH = "etc/sysusers.d/tunnel-supervisor.conf"
TMPFILES_PATH = "etc/tmpfiles.d/tunnel-supervisor.conf"
FAKE_TCP_PATHS = "etc/systemd/system/tunnel-supervisor@{name}.service.d/fake-tcp.conf"
PACKAGED_UNITS = (Path("/usr/lib/systemd/system", UNIT), Path("/lib/systemd/system", UNIT))

MARK = "# Written by `tunnel-supervisor install-service`, which replaces and removes this file.\n"
HOMES = ("/home", "/root", "/run/user")  # systemd.exec(5), ProtectHome=


def unit_text(program: str, needs: list[str]) -> str:
    """The unit for a program at this path, which reads these paths."""
    is_at_home = any(Path(path).is_relative_to(home) for path in [program, *needs] for home in HOMES)
    text = resources.files("pipeline.service").joinpath(UNIT).read_text()
    return text.replace("@EXECUTABLE@", _quoted(program)).replace(
        "@PROTECT_HOME@", "read-only" if is_at_home else "yes"
    )


def sysusers_text() -> str:
    return resources.files("pipeline.service").joinpath("sysusers.conf").read_text()


def tmpfiles_text() -> str:
    return resources.files("pipeline.service").joinpath("tmpfiles.conf").read_text()


def files(program: str, needs: list[str]) -> dict[str, str]:
    """The files that `install-service` writes: text by path beneath the root."""
    texts = {UNIT_PATH: unit_text(program, needs), SYSUSERS_PATH: sysusers_text(), TMPFILES_PATH: tmpfiles_text()}
    return {path: MARK + text for path, text in texts.items()}


def fake_tcp_files(name: str) -> dict[str, str]:
    """Both of its lists add to those of the unit (systemd.exec(5))."""
    text = resources.files("pipeline.service").joinpath("fake-tcp.conf").read_text()
    return {FAKE_TCP_PATHS.format(name=name): MARK + text}


def program_path() -> str:
    """The command of this installation. LocalError if it has none."""
    path = Path(sys.executable).with_name(NAME)
    if not path.is_file():
        raise LocalError(f"{path} is missing: install this program with pip, uv tool or pipx, or run it by tools/run")
    return str(path)


def needed_paths() -> list[str]:
    """Where this installation and its interpreter are."""
    here = Path(__file__).parents[2]
    return [str(path.resolve()) for path in (here, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable))]


def _quoted(path: str) -> str:
    """As a word of a command line in a unit: systemd.service(5), systemd.syntax(7)."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != path or " " in path or "'" in path else path
