"""The files of an instance: who can change them, what is in them, how long certificates hold; and its unit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.config import Config
from pipeline.credentials import certificates, ownership
from pipeline.credentials.state_dir import SERVER_CERTIFICATE
from pipeline.doctor import file_check
from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.programs import run_program
from pipeline.doctor.subject import Subject
from pipeline.errors import ConfigError, TunnelError
from pipeline.log import LOG

UNIT = "tunnel-supervisor@{name}.service"
SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
SYSTEMCTL_SECONDS = 2.0
FREE_BYTES_MIN = 1_000_000  # of the state directory's file system: room for the files of many peers


def contents(subject: Subject) -> list[Finding]:
    """Keys, certificates and peers, read as a start reads them."""
    config = subject.config
    if config is None:
        return []
    try:
        with quiet_log():
            ownership.check(config)
            notes = file_check.check_files(config)
    except ConfigError as error:
        return [problem(str(each), "Mend or replace that file; `check` looks again.") for each in error.problems]
    except TunnelError as error:
        return [problem(str(error), "Mend that; `check` looks again.")]
    return [*(note(text, "Run as root.") for text in notes)] or [ok("keys, certificates and peers can be read")]


@contextmanager
def quiet_log() -> Iterator[None]:
    """Findings say it instead of the log."""
    before, LOG.disabled = LOG.disabled, True
    try:
        yield
    finally:
        LOG.disabled = before


# -- certificates


def expiry(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or config.encryption == "none":
        return []
    now = datetime.now(UTC)
    return [each for path, what in _certificates(config) for each in _judge_file(path, what, now)]


def _certificates(config: Config) -> list[tuple[Path, str]]:
    own = config.tls_cert_file
    if not own and config.mode == "server":
        own = str(Path(config.state_dir) / SERVER_CERTIFICATE)
    named = ((own, "this end's certificate"), (config.tls_ca_file, "the CA in tls_ca_file"))
    return [(Path(path), what) for path, what in named if path]


def _judge_file(path: Path, what: str, now: datetime) -> list[Finding]:
    try:
        pem = certificates.read_certificates(path, what)
        summary = certificates.describe(pem)
    except TunnelError:
        return []  # `contents` says it
    return judge_expiry(f"{what} ({path})", summary.not_before, summary.not_after, now)


def judge_expiry(what: str, begin: datetime, end: datetime, now: datetime) -> list[Finding]:
    anew = "Make a new one (gen-cert, or your CA), and reload."
    if now < begin:
        text = f"{what} is not valid before {begin:%Y-%m-%d %H:%M} UTC"
        return [problem(text, "Set the clock: timedatectl set-ntp true.")]
    if now > end:
        return [problem(f"{what} has expired on {end:%Y-%m-%d}: ends that verify it refuse to connect", anew)]
    if now > end - certificates.EXPIRY_WARNING:
        return [note(f"{what} expires on {end:%Y-%m-%d}, in {(end - now).days} days", anew)]
    return [ok(f"{what} is valid until {end:%Y-%m-%d}")]


# -- the state directory, the unit


def state_directory(subject: Subject) -> list[Finding]:
    config = subject.config
    if config is None or not subject.is_server:
        return []
    path = Path(config.state_dir)
    try:
        found = os.statvfs(path)
    except OSError:
        return []  # the first start makes it
    is_read_only = bool(found.f_flag & os.ST_RDONLY)
    return judge_state_directory(path, found.f_bavail * found.f_frsize, is_read_only=is_read_only)


def judge_state_directory(path: Path, free: int, *, is_read_only: bool) -> list[Finding]:
    if is_read_only:
        return [problem(f"{path} is on a read-only file system: no peer can be invited", "Mount it for writing.")]
    if free < FREE_BYTES_MIN:
        text = f"{path} is on a file system with {free / 1000:.0f} kB free: no peer can be invited"
        return [problem(text, "Make room there.")]
    return [ok(f"{path} can be written")]


def unit(subject: Subject) -> list[Finding]:
    if not subject.name or not SYSTEMD.is_dir():
        return []
    name = UNIT.format(name=subject.name)
    answer = run_program(["systemctl", "show", "--property=UnitFileState,LoadState", name], SYSTEMCTL_SECONDS)
    return judge_unit(name, dict(line.split("=", 1) for line in (answer or "").splitlines() if "=" in line))


def judge_unit(name: str, shown: dict[str, str]) -> list[Finding]:
    """`shown`: what systemctl tells of the unit."""
    if shown.get("LoadState") != "loaded":
        return []
    if shown.get("UnitFileState") in ("enabled", "enabled-runtime", "static"):
        return [ok(f"{name} starts with the machine")]
    return [note(f"{name} does not start with the machine", f"systemctl enable {name}.")]
