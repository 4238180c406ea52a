"""Other programs for `bench peers`: where they are, and how to have them for one run without installing them.

    Programs.find       the path of a command: one that was named, one that was fetched, one that is installed
    Programs.argv       the words that start it; NotHere says what to do if it is nowhere
    fetched             packages of the distribution, unpacked into a directory for the length of a block

fetched() asks apt to download packages, with the libraries that this machine lacks, and unpacks them. It installs
nothing: no service is started, nothing is configured, dpkg knows of nothing. At the end the directory is removed; only
`kill -9` of this process leaves it, in the folder for temporary files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tools.lab.namespace import LabError

PACKAGES = {"openvpn": "openvpn", "wireguard-go": "wireguard-go", "wg": "wireguard-tools", "fastd": "fastd"}
"""By command: the Debian package that has it."""

SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Daemons are often in folders that a user's PATH lacks."""

ANSWER_SECONDS = 10.0
FETCH_SECONDS = 300.0
APT = (
    "apt-get install --yes --quiet --download-only --no-install-recommends "
    "-o Debug::NoLocking=1 -o APT::Sandbox::User=root -o Dir::Cache::archives={archives} {package}"
)


class NotHere(LabError):
    """This machine lacks what a contender needs: no failure, but a row that says so."""


class Programs:
    """`named`: paths by command, which come first. `root`: where packages are unpacked."""

    def __init__(self, named: Mapping[str, str] | None = None, root: Path | None = None) -> None:
        self._named = dict(named or {})
        self._root = root
        self.problems: dict[str, str] = {}
        """By package: why it could not be fetched."""

    def find(self, command: str) -> str | None:
        if command in self._named:
            return shutil.which(os.path.abspath(self._named[command]))
        unpacked = [f"{self._root}{folder}" for folder in SYSTEM_FOLDERS] if self._root else []
        path = filter(None, [*unpacked, os.environ.get("PATH"), *SYSTEM_FOLDERS])  # nothing would be this folder
        found = shutil.which(command, path=os.pathsep.join(path))
        return found and os.path.abspath(found)

    def argv(self, command: str) -> list[str]:
        """The words that start it; NotHere if it is nowhere."""
        path = self.find(command)
        if path is None:
            raise NotHere(self._advice(command))
        return [path]

    def environment(self) -> dict[str, str]:
        """This process's, and the libraries that were fetched."""
        if self._root is None:
            return dict(os.environ)
        folders = sorted({str(library.parent) for library in self._root.rglob("*.so.*")})
        before = [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([*folders, *before])}

    def say(self, command: str, *arguments: str, given: str = "") -> str:
        """What it prints; LabError with that if it ends badly."""
        try:
            done = subprocess.run(
                [*self.argv(command), *arguments],
                input=given,
                capture_output=True,
                text=True,
                timeout=ANSWER_SECONDS,
                env=self.environment(),
            )
        except OSError as error:
            raise LabError(f"{command} {' '.join(arguments)}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise LabError(f"{command} {' '.join(arguments)}: no end within {ANSWER_SECONDS:g} s") from None
        if done.returncode != 0 and not done.stdout:
            raise LabError(f"{command} {' '.join(arguments)}: exit status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _advice(self, command: str) -> str:
        package = PACKAGES[command]
        if command in self._named:
            return f"--program {command}: no program at {self._named[command]}"
        if package in self.problems:
            return self.problems[package]
        return f"{command} not found: --fetch gets it for this run; or apt install --no-install-recommends {package}"


@contextmanager
def fetched(named: Mapping[str, str], commands: Iterable[str]) -> Iterator[Programs]:
    """Programs with these commands, from packages of the distribution if they are nowhere yet. One that cannot be had
    is in `problems`."""
    with tempfile.TemporaryDirectory(prefix="tunnel-peers-") as directory:
        root = Path(directory) / "root"
        root.mkdir()
        programs = Programs(named, root)
        for command in commands:
            package = PACKAGES[command]
            if command in named or programs.find(command) or package in programs.problems:
                continue
            try:
                _fetch(package, Path(directory) / package, root)
                if programs.find(command) is None:
                    raise LabError(f"no {command} in it that runs from {directory}; TMPDIR names another folder")
            except (LabError, OSError, subprocess.TimeoutExpired) as error:
                programs.problems[package] = f"--fetch {package}: {error}"
        yield programs


def _fetch(package: str, archives: Path, root: Path) -> None:
    (archives / "partial").mkdir(parents=True)
    _run(APT.format(archives=archives, package=package).split())
    for archive in archives.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(archive), str(root)])


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=FETCH_SECONDS, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise LabError(f"{words[0]}: {last}")
