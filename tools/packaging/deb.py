"""The Debian package: the program with all its Python packages, in an environment on the distribution's interpreter.

    /usr/lib/tunnel-supervisor/venv    made here, from wheels with the versions of constraints.txt
    /usr/bin/tunnel-supervisor         leads into it
    units, sysusers.d, tmpfiles.d, man page, completion, examples, documents

It needs exactly the Python of this machine's release, pythonX.Y, by that name: an upgrade within X.Y changes nothing,
and after an upgrade to the next release the program goes on until its own package for that release is there. Nothing
is compiled or downloaded at installation, and nothing is written below /usr afterwards.

Two builds of one commit give the same bytes. Needed: dpkg-deb, and an index of Python packages.
"""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from pipeline.cli.main import make_parser
from pipeline.service import unit
from tools.packaging import manual
from tools.packaging.wheel import PackageError, epoch, run

NAME = "tunnel-supervisor"
PYTHON = "/usr/bin/python3"
HOME = Path("usr/lib", NAME)
VENV = HOME / "venv"
SCRIPTS = Path(__file__).parent / "debian"
MAINTAINER_SCRIPTS = ("postinst", "prerm", "postrm")

MAINTAINER = "The tunnel-supervisor authors <authors@tunnel-supervisor.example.org>"

UNUSED = (
    "**/tests",
    "**/*.pyi",
    "**/*.a",
    "**/*.pxd",
    "numpy/f2py",
    "numpy/_core/_*_tests*.so",
    "numpy/_core/include",
    "numpy/random/lib",
    "numpy/random/_examples",
    "numpy/_core/lib",
    "numpy/_pyinstaller",
    "**/*.dist-info/direct_url.json",
    "**/*.dist-info/RECORD",
    "**/*.dist-info/INSTALLER",
    "**/*.dist-info/REQUESTED",
    "**/*.dist-info/sboms",
)
"""What no process of ours reads: tests, and what only compilers and type checkers need. RECORD would list it."""

LAUNCHER = f"""\
#!/{VENV}/bin/python3 -I
import sys
from tunnel_supervisor import main
sys.exit(main())
"""
"""-I: the environment and the current directory of the caller decide nothing."""

SETTINGS = """\
home = /usr/bin
include-system-site-packages = false
version = {version}
executable = {interpreter}
"""

ORDERED, FENCES = "amd64", "libatomic1"
"""The architecture that needs no fences, and what the others have them from (pipeline.shm.memory_order)."""

CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {needed}
Suggests: iputils-ping, bash-completion
Section: net
Priority: optional
Description: layer-3 tunnel: IP packets inside TCP connections
 It is for paths that block or throttle UDP, or that lose packets. Several
 TLS connections carry the packets of a TUN device, with forward error
 correction between them. A supervisor watches and replaces its worker
 processes; a tunnel survives the end of any of them.
 .
 A hub invites clients by one line each. Each tunnel is an instance of the
 systemd unit tunnel-supervisor@NAME.
"""


def build(root: Path, wheel: Path, version: str, out: Path, python: str = PYTHON) -> Path:
    """The path of the package."""
    if not shutil.which("dpkg-deb"):
        raise PackageError("dpkg-deb is missing: a Debian package is made on Debian, or in a container of it")
    when = epoch(root)
    with tempfile.TemporaryDirectory(prefix="tunnel-deb-") as directory:
        stage = Path(directory, "stage")
        site = _make_venv(root, wheel, stage, python)
        libc = _needed_libc(site)
        _prune(site)
        full = f"{version}-1~{_release()}"
        _write_texts(root, stage, full, when)
        os.utime(stage, (when, when))
        for path in stage.rglob("*"):
            os.utime(path, (when, when), follow_symlinks=False)
        _compile(stage, python)
        package = _pack(stage, full, _minor(python), libc, when)
        return Path(shutil.copy(package, out))


def _make_venv(root: Path, wheel: Path, stage: Path, python: str) -> Path:
    """The environment at its place below `stage`; its site-packages."""
    venv = stage / VENV
    run([python, "-m", "venv", "--without-pip", str(venv)])
    words = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python3"), "install", "--quiet", "--no-compile"]
    run([*words, f"{wheel}[srv]"], PIP_CONSTRAINT=str(root / "constraints.txt"))
    (site,) = venv.glob("lib/python3.*/site-packages")
    for path in (venv / "bin").iterdir():
        path.unlink()
    shutil.rmtree(venv / "include", ignore_errors=True)
    interpreter = f"/usr/bin/{_minor(python)}"
    (venv / "bin/python3").symlink_to(interpreter)
    (venv / "bin/python").symlink_to("python3")
    _write(venv / "bin" / NAME, LAUNCHER, 0o755)
    version = run([python, "-c", "import platform; print(platform.python_version())"]).strip()
    _write(venv / "pyvenv.cfg", SETTINGS.format(version=version, interpreter=interpreter))
    return site


def _needed_libc(site: Path) -> str:
    """The oldest C library that all wheels run with: the newest manylinux tag (PEP 600)."""
    tags = " ".join(path.read_text() for path in site.glob("*.dist-info/WHEEL"))
    found = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", tags)]
    return ".".join(map(str, max(found, default=(2, 17))))


def _prune(site: Path) -> None:
    for pattern in UNUSED:
        for path in list(site.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for path in [*site.rglob("*.so"), *site.rglob("*.so.*")]:
        path.chmod(0o644)  # some wheels have them executable


def _write_texts(root: Path, stage: Path, version: str, when: int) -> None:
    (stage / "usr/bin").mkdir()
    (stage / "usr/bin" / NAME).symlink_to(f"../lib/{NAME}/venv/bin/{NAME}")
    (stage / "etc" / NAME).mkdir(parents=True)
    _write(stage / "usr/lib/systemd/system" / unit.UNIT, unit.unit_text(f"/usr/bin/{NAME}", []))
    _write(stage / f"usr/lib/sysusers.d/{NAME}.conf", unit.sysusers_text())
    _write(stage / f"usr/lib/tmpfiles.d/{NAME}.conf", unit.tmpfiles_text())
    page = manual.man_page(make_parser(), version, when)
    _write_gz(stage / f"usr/share/man/man{manual.SECTION}/{NAME}.{manual.SECTION}.gz", page)
    for shell, path in manual.SHELLS.items():
        _write(stage / path.format(name=NAME), manual.completion(make_parser(), shell))
    documents = stage / "usr/share/doc" / NAME
    shutil.rmtree(stage / VENV / "share", ignore_errors=True)
    shutil.copytree(root / "configs", documents / "examples")
    shutil.copytree(root / "docs", documents / "docs")
    shutil.copy(root / "README.md", documents)
    _write_gz(documents / "changelog.gz", (root / "CHANGELOG.md").read_text())
    date = email.utils.formatdate(when)
    entry = f"{NAME} ({version}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {MAINTAINER}  {date}\n"
    _write_gz(documents / "changelog.Debian.gz", entry)
    _write(documents / "copyright", (SCRIPTS / "copyright").read_text())
    _write(stage / "usr/share/lintian/overrides" / NAME, (SCRIPTS / "lintian-overrides").read_text())
    for each in [stage, *stage.rglob("*")]:
        if not each.is_symlink():
            executable = each.is_dir() or each.parent.name == "bin"
            each.chmod(0o755 if executable else 0o644)


def _compile(stage: Path, python: str) -> None:
    """Byte code beside each module: nobody may write it later. A changed module is compiled anew when it is loaded."""
    words = [python, "-m", "compileall", "-q", "--invalidation-mode", "timestamp", "-s", str(stage), "-p", "/"]
    run([*words, str(stage / VENV / "lib")], PYTHONHASHSEED="0")
    when = stage.stat().st_mtime
    for path in stage.rglob("__pycache__"):
        for each in [path, *path.iterdir(), path.parent]:
            os.utime(each, (when, when))


def _pack(stage: Path, version: str, python: str, libc: str, when: int) -> Path:
    files = sorted(path for path in stage.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum(-(-path.lstat().st_size // 1024) for path in stage.rglob("*") if not path.is_dir())
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(stage)}\n" for path in files)
    architecture = run(["dpkg", "--print-architecture"]).strip()
    facts = {"name": NAME, "version": version, "architecture": architecture, "size": size, "maintainer": MAINTAINER}
    fences = [] if architecture == ORDERED else [FENCES]
    needed = ", ".join([python, "python3", f"libc6 (>= {libc})", "iproute2", "nftables", *fences])
    _write(stage / "DEBIAN/control", CONTROL.format(**facts, needed=needed))
    _write(stage / "DEBIAN/md5sums", sums)
    for script in MAINTAINER_SCRIPTS:
        _write(stage / "DEBIAN" / script, (SCRIPTS / script).read_text(), 0o755)
    for path in [*(stage / "DEBIAN").iterdir(), stage / "DEBIAN", stage]:
        os.utime(path, (when, when))
    package = stage.parent / f"{NAME}_{version}_{architecture}.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(package)], SOURCE_DATE_EPOCH=str(when))
    return package


def _minor(python: str) -> str:
    """ "python3.11" """
    return run([python, "-c", "import sys; print('python%d.%d' % sys.version_info[:2])"]).strip()


def _release() -> str:
    """ "deb12": the release of this machine, in the version of the package."""
    fields = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
    system, number = (fields.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    return {"debian": "deb"}.get(system, system) + number


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _write_gz(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
