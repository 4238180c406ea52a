"""Machines with nothing but the base system of the distribution, and systemd as their first process.

    base = FreshRoot(directory)                     made by debootstrap from the mirror that this machine's apt uses
    with Machine(base, node, directory) as machine: booted, in the network namespace of a node
        machine.run("systemctl", "start", ...)      a command inside
        machine.reboot()                            without a warning, as after a loss of power; its disk stays

A machine has namespaces of its own for mounts, processes, IPC, host name and control groups, and an overlay over the
base as its disk. Its systemd applies every restriction of a unit for real. When the test process is killed, the kernel
ends the machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support import ROOT, eventually
from tools.lab.network import Node

INCLUDED = ("systemd", "python3", "nftables", "iproute2", "iputils-ping", "procps")
BUILD_SECONDS = 600
BOOT_SECONDS = 60.0
CODENAME = "bookworm"

BOOT = """
set -e
echo $$ > "$2/cgroup.procs"
exec unshare --mount --pid --ipc --uts --cgroup --fork --kill-child --propagation private sh -c '
set -e
cd "$0"
mount --bind . . && cd "$0"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir -p dev/shm dev/net dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777,size=64m tmpfs dev/shm
mknod -m 666 dev/net/tun c 10 200
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
hostname "$1"
mkdir -p mnt && pivot_root . mnt && umount -l /mnt
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=console
' "$1" "$3"
"""
"""The root, a control group of its own, the host name."""


def outside(*words: object, mounts: bool = True) -> list[str]:
    """The words of a command in the network and the mounts of this machine, which the parent of tests still has."""
    spaces = ["--net", *(["--mount"] if mounts else [])]
    return ["nsenter", f"--target={os.getppid()}", *spaces, f"--wd={ROOT}", "--", *map(str, words)]


def mirror() -> str:
    """Where apt gets the packages of this release; "" if it is another release, or is not known."""
    words = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(CREATED_BY) $(REPO_URI)"]
    try:
        said = subprocess.run(outside(*words), capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
    found = [line.split()[-1] for line in said.splitlines() if line.startswith(f"{CODENAME} main Packages ")]
    return found[0] if found else ""


class FreshRoot:
    """`build` begins to make it in the background; `finish` waits. Both skip the test if it cannot be made here."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "root"
        self._log = directory / "debootstrap.log"
        source = mirror()
        if not source:
            pytest.skip(f"no mirror of {CODENAME} is configured here")
        if not shutil.which("debootstrap"):
            pytest.skip("debootstrap is not installed")
        self.path.mkdir()
        _mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", self.path)  # debootstrap waits for a disk again and again
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDED)}", CODENAME, self.path, source]
        with self._log.open("wb") as log:
            self._making = subprocess.Popen(outside(*words, mounts=False), stdout=log, stderr=log)

    def finish(self) -> None:
        if self._making.wait(BUILD_SECONDS):
            pytest.skip(f"no base system can be made here: {' '.join(self._log.read_text().splitlines()[-2:])}")

    def close(self) -> None:
        self._making.kill()
        self._making.wait()
        subprocess.run(["umount", "-l", self.path], check=True)


class Machine:
    """See the head of this file."""

    def __init__(self, base: Path, node: Node, directory: Path) -> None:
        self.node = node
        self._directory = directory / node.name
        self._base = base
        self.root = self._directory / "disk"
        self._groups = self._directory / "groups"
        self._group = self._groups / f"test-{os.getpid()}-{node.name}"
        self._console = self._directory / "console"

    def __enter__(self) -> Self:
        upper, work = self._directory / "upper", self._directory / "work"
        for path in (upper, work, self.root, self._groups):
            path.mkdir(parents=True)
        layers = f"lowerdir={self._base},upperdir={upper},workdir={work}"
        _mount("-t", "overlay", "overlay", "-o", layers, self.root)
        _mount("-t", "cgroup2", "none", self._groups)
        self._group.mkdir()
        self._boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(f"--- {self.node.name}\n{self.journal()}")
        self._power_off()
        for path in (self.root, self._groups):
            subprocess.run(["umount", "-l", path], check=True)

    def run(self, *words: object, check: bool = True, input: str | None = None, seconds: float = 120) -> str:
        """What a command inside has printed."""
        done = self.attempt(*words, input=input, seconds=seconds)
        assert not check or done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode}\n{done.stderr}"
        return done.stdout

    def attempt(
        self, *words: object, input: str | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.inside(*words), input=input or "", capture_output=True, text=True, check=False, timeout=seconds
        )

    def inside(self, *words: object) -> list[str]:
        """The words of a command inside."""
        enter = ["nsenter", f"--target={self._pid}", "--all", "--root", "--wd", "--"]
        return [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *map(str, words)]

    def property(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--quiet", "-n", "200", check=False)

    def write(self, path: str, text: str, mode: int = 0o600) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def reboot(self) -> None:
        self._power_off()
        self._group.mkdir()
        self._boot()

    def _boot(self) -> None:
        with self._console.open("ab") as console:
            words = ["sh", "-c", BOOT, "boot", self.root, self._group, self.node.name]
            self._process = self.node.popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._pid = eventually(lambda: int((children.read_text().split() or ["0"])[0]), BOOT_SECONDS, "a first process")
        eventually(self._is_up, BOOT_SECONDS, f"{self.node.name} booted: {self._console.read_text()[-2000:]}")

    def _is_up(self) -> bool:
        return self.attempt("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _power_off(self) -> None:
        self._process.kill()
        self._process.wait()
        eventually(self._has_no_process, 20, f"the processes of {self.node.name} gone")
        eventually(self._has_no_group, 20, f"the control groups of {self.node.name} gone")

    def _has_no_process(self) -> bool:
        lists = [self._group / "cgroup.procs", *self._group.rglob("cgroup.procs")]
        pids = [pid for each in lists for pid in each.read_text().split()]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        return not pids

    def _has_no_group(self) -> bool:
        """Remove the control groups. One is busy for a moment after its last process is gone from its list."""
        groups = [path for path in self._group.rglob("*") if path.is_dir()]
        with suppress(OSError):
            for group in sorted(groups, key=lambda path: len(path.parts), reverse=True):
                group.rmdir()
            self._group.rmdir()
        return not self._group.exists()


def _mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {shlex.join(map(str, words))}: {done.stderr.strip()}")
