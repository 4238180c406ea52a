"""The root of an emulated arm64 machine, and the words of commands inside it. Root makes it, on Debian.

    root = EmulatedRoot(directory)
    root.make(checkout)                            some minutes: debootstrap, its second stage emulated; the wheels
    subprocess.run(root.inside(checkout, "python3", "-V"))
    with EmulatedMachine(root, checkout) as machine:
        machine.run("python3", "-V")               several commands, in the same namespaces

A command inside has namespaces of its own for users, mounts, processes, IPC and, if asked for, the network. It sees the
checkout at /src, to read, and has its own /dev/shm, /run and /tmp. When it ends, all of that is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ARCHITECTURE = "arm64"
EMULATOR_PACKAGE = "qemu-user-static"
EMULATOR = "usr/bin/qemu-aarch64-static"  # in that package
CODENAME = "bookworm"
INCLUDED = ("python3", "iproute2", "iputils-ping", "nftables", "libatomic1", "procps", "ca-certificates")
PYTHON_TAG = "3.11"  # of that release

EXTRAS = "test"
GLIBC = range(36, 16, -1)  # of manylinux tags that run with this release's C library, 2.36
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC] + ["manylinux2014_aarch64"]
NOT_NEEDED = ("zfec",)  # no wheel for arm64; only a benchmark's baseline

MAGIC = (
    r":aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{emulator}:OCF"
)
"""For /proc/sys/fs/binfmt_misc/register (Documentation/admin-guide/binfmt-misc.rst): programs for arm64, little endian.
F: the emulator is opened now, so it need not be in the root. O, C: it gets the open program, and its rights."""

USERS = """
set -e
unshare --user sleep 60 &
until [ "$(readlink /proc/$!/ns/user)" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.02; done
echo 0 0 65536 > /proc/$!/uid_map
echo 0 0 65536 > /proc/$!/gid_map
exec 9< /proc/$!/ns/user
kill $!
wait $! 2> /dev/null || true
exec nsenter --user=/proc/self/fd/9 --setuid=0 --setgid=0 -- "$@"
"""
"""A user namespace with all the users of a base system, which unshare(1) makes only for those of /etc/subuid."""

ENTER = """
set -e
exec 9<&-
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf %s "$MAGIC" > /proc/sys/fs/binfmt_misc/register
cd "$ROOT"
mount --rbind . . && cd "$ROOT"
mount -t proc proc proc
mount -t sysfs sysfs sys 2>/dev/null || mount --rbind /sys sys
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir -p dev/shm dev/net dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
touch dev/net/tun
mount --bind /dev/net/tun dev/net/tun
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p src
mount --rbind -o ro "$CHECKOUT" src
[ -z "$NETWORK" ] || chroot . /sbin/ip link set lo up
exec chroot . /usr/bin/env -i $ENVIRONMENT /bin/sh -c '"$@"; exit $?' first "$@"
"""
"""The shell inside is the first process: it reaps what others leave behind, which a program would take for its own."""

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",
    "PYTHONDONTWRITEBYTECODE": "1",  # the checkout is another machine's
    "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
}


HIDE_EMULATOR = """
import builtins
import os

_listdir, _open = os.listdir, builtins.open
_TASKS = "/proc/self/task"
_emulators = set(_listdir(_TASKS)) - {str(os.getpid())}


def listdir(path="."):
    return [name for name in _listdir(path) if path != _TASKS or name not in _emulators]


def open(file, *arguments, **named):
    if file == f"/proc/{os.getpid()}/stat":
        file = f"/proc/./{os.getpid()}/stat"
    return _open(file, *arguments, **named)


os.listdir, builtins.open = listdir, open
"""
"""Each process inside has a thread of the emulator, which gives up no rights when the program inside does. A worker
looks for such threads and refuses to run: so outside of tests the program does not run in this emulator. And what a
process reads about itself in /proc is made up: another begin than the one that all others read."""


class EmulationError(Exception):
    """The machine cannot be made here."""


class EmulatedRoot:
    """`directory`: holds the root, the emulator and what was downloaded; some 800 MB."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "root"
        self._directory = directory
        self._emulator = directory / "emulator" / EMULATOR
        self._made = directory / "made"  # from what

    def make(self, checkout: Path) -> None:
        """Make it, or bring it up to the checkout's packages. Nothing is done if it is there."""
        if os.geteuid():
            raise EmulationError("root makes it: run it with sudo")
        if self.is_current(checkout):
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        if not self._emulator.exists():
            self._unpack_emulator()
        if not (self.path / "usr/bin/python3").exists() or (self.path / "debootstrap").exists():
            self._bootstrap(checkout)
        self._install(checkout)
        self._made.write_text(_made_from(checkout))

    def is_current(self, checkout: Path) -> bool:
        """Whether it is there, with the packages of the checkout."""
        return self._made.exists() and self._made.read_text() == _made_from(checkout)

    def inside(self, checkout: Path, *words: object, network: bool = False) -> list[str]:
        """The words of a command inside. `network`: it has a network of its own."""
        spaces = ["--mount", "--pid", "--ipc", *(["--net"] if network else [])]
        facts = {
            "MAGIC": MAGIC.format(emulator=self._emulator),
            "ROOT": str(self.path),
            "CHECKOUT": str(checkout),
            "NETWORK": "own" if network else "",
            "ENVIRONMENT": " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items()),
        }
        return [
            "env",
            *(f"{name}={value}" for name, value in facts.items()),
            *["sh", "-c", USERS, "users"],
            *["unshare", *spaces, "--fork", "--kill-child", "--mount-proc", "--propagation=private"],
            *["sh", "-c", ENTER, "enter", *map(str, words)],
        ]

    def _unpack_emulator(self) -> None:
        download = self._directory / "download"
        shutil.rmtree(download, ignore_errors=True)
        download.mkdir()
        _run("apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", EMULATOR_PACKAGE, cwd=download)
        (package,) = download.glob("*.deb")
        _run("dpkg-deb", "-x", package, self._directory / "emulator")

    def _bootstrap(self, checkout: Path) -> None:
        if not shutil.which("debootstrap"):
            raise EmulationError("debootstrap is missing: apt-get install debootstrap")
        shutil.rmtree(self.path, ignore_errors=True)
        _run(
            *("debootstrap", "--foreign", f"--arch={ARCHITECTURE}", "--variant=minbase"),
            *(f"--include={','.join(INCLUDED)}", CODENAME, self.path, _mirror()),
        )
        container = "container=lxc"  # debootstrap(8) makes device nodes elsewhere, and a user namespace may not
        _run(*self.inside(checkout, "env", container, "/debootstrap/debootstrap", "--second-stage"))

    def _install(self, checkout: Path) -> None:
        """The wheels are chosen and unpacked here: pip would take minutes inside."""
        site = self.path / "usr/local/lib" / f"python{PYTHON_TAG}" / "dist-packages"
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir(parents=True)
        _run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, "--no-compile"),
            *("--only-binary=:all:", f"--python-version={PYTHON_TAG}", "--implementation=cp"),
            *(f"--platform={platform}" for platform in PLATFORMS),
            *("--constraint", checkout / "constraints.txt", *_requirements(checkout)),
        )
        (self.path / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        (site / "hide_emulator.py").write_text(HIDE_EMULATOR)
        (site / "checkout.pth").write_text("/src\nimport hide_emulator\n")
        _run(*self.inside(checkout, "python3", "-c", "import pipeline.supervisor.supervisor, workers"))


class EmulatedMachine:
    """A machine that runs until the block ends, with a network of its own. Its files outside the root are gone then.

    `pid`: of its first process, for the names of its namespaces.
    """

    def __init__(self, root: EmulatedRoot, checkout: Path) -> None:
        self._words = root.inside(checkout, "sh", "-c", "echo; exec cat", network=True)

    def __enter__(self) -> Self:
        # its first process reads until this process ends, however that happens
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.close()
            raise EmulationError("the machine does not start; what it says is above")
        (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.pid = int(child)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def inside(self, *words: object) -> list[str]:
        """The words of a command inside."""
        spaces = ["--user", "--mount", "--pid", "--ipc", "--net", "--root", "--wd"]
        return ["nsenter", f"--target={self.pid}", *spaces, "--", "/usr/bin/env", *map(str, words)]

    def run(self, *words: object, check: bool = True, input: str = "") -> str:
        """What a command inside has printed. EmulationError if it fails."""
        done = subprocess.run(
            self.inside(*words), input=input, capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        if check and done.returncode:
            raise EmulationError(f"{' '.join(map(str, words))}: exit status {done.returncode}: {done.stderr.strip()}")
        return done.stdout


def _made_from(checkout: Path) -> str:
    return "".join((checkout / name).read_text() for name in ("pyproject.toml", "constraints.txt")) + HIDE_EMULATOR


def _requirements(checkout: Path) -> Sequence[str]:
    """Of the program and of its tests."""
    import tomllib

    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][EXTRAS]]
    return [each for each in wanted if not each.startswith(NOT_NEEDED)]


def _mirror() -> str:
    """Where apt gets the packages of this release."""
    words = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(CREATED_BY) $(REPO_URI)"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = [line.split()[-1] for line in said.splitlines() if line.startswith(f"{CODENAME} main Packages ")]
    return found[0] if found else "http://deb.debian.org/debian"


def _run(*words: object, cwd: Path | None = None) -> None:
    done = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise EmulationError(f"{' '.join(map(str, words[:3]))}...: exit status {done.returncode}: {' / '.join(said)}")
