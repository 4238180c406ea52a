"""The support bundle: one compressed archive with all that helps somebody else to find a fault, and without a secret.

Everything in it passes through `secrets_out`: what a program of the system prints, and the end of the log, too.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import mmap
import os
import platform
import stat
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config import to_json
from pipeline.credentials.keys import write_error
from pipeline.doctor.examination import Findings
from pipeline.doctor.programs import run_program
from pipeline.doctor.report import as_data, as_text
from pipeline.doctor.secrets_out import Masks, Secrets, secrets_of
from pipeline.doctor.subject import Subject
from pipeline.doctor.sysctls import read_words
from pipeline.version import VERSION

FILE_MODE = 0o600
MEMBER_BYTES_MAX = 4 << 20  # of a text; the end of a longer one is kept
PROGRAM_SECONDS = 3.0
LOG_LINES = 5000
UNIT = "tunnel-supervisor@{name}.service"

PACKAGES = ("cryptography", "msgspec", "numpy", "posix_ipc", "psutil", "rich", "prometheus_client")
TEXT_FILES = ("/etc/os-release", "/proc/version", "/proc/meminfo", "/proc/loadavg", "/proc/uptime")
SYSCTLS = (
    *("core/somaxconn", "core/rmem_max", "core/wmem_max", "core/default_qdisc"),
    *("ipv4/ip_forward", "ipv4/conf/all/rp_filter", "ipv4/conf/default/rp_filter", "ipv4/tcp_mtu_probing"),
    *("ipv4/tcp_congestion_control", "ipv4/tcp_available_congestion_control", "ipv4/tcp_allowed_congestion_control"),
    *("ipv4/tcp_rmem", "ipv4/tcp_wmem", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6"),
)
PROGRAMS = {
    "links.json": ["ip", "-j", "-s", "link"],
    "addresses.json": ["ip", "-j", "address"],
    "routes4.json": ["ip", "-j", "-4", "route", "show", "table", "all"],
    "routes6.json": ["ip", "-j", "-6", "route", "show", "table", "all"],
    "rules4.json": ["ip", "-j", "-4", "rule"],
    "rules6.json": ["ip", "-j", "-6", "rule"],
    "firewall.txt": ["nft", "list", "ruleset"],
    "connections.txt": ["ss", "--tcp", "--info", "--numeric", "state", "established"],
}


def write_bundle(path: Path, subject: Subject, findings: Findings, *, anonymous: bool) -> list[str]:
    """Write a new file of mode 0600. Its members. LocalError or PermissionDenied if it cannot be written."""
    secrets = Secrets(secrets_of(subject.config) if subject.config is not None else ())
    masks = Masks(_names(subject)) if anonymous else None
    prefix = path.name.partition(".")[0]
    written = []
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in _members(subject, findings):
                data = _as_bytes(content, secrets, masks)
                member = tarfile.TarInfo(f"{prefix}/{name}")
                member.size, member.mode, member.mtime = len(data), FILE_MODE, int(time.time())
                archive.addfile(member, io.BytesIO(data))
                written.append(name)
    except OSError as error:
        raise write_error(path, error) from None
    return written


def _as_bytes(content: Any, secrets: Secrets, masks: Masks | None) -> bytes:
    """A text, or anything else as JSON; without secrets."""
    if isinstance(content, str):
        text = secrets.out_of(content[-MEMBER_BYTES_MAX:])
        return (masks.over(text) if masks is not None else text).encode(errors="replace")
    value = secrets.out_of_value(content)
    if masks is not None:
        value = masks.over_value(value)
    return json.dumps(value, indent=1).encode()


def _names(subject: Subject) -> list[str]:
    """Names of hosts and of peers. Names of instances and devices stay: nothing could be read without them."""
    config = subject.config
    hosts = [platform.node()]
    if config is not None:
        hosts += [config.tls_server_name, *(peer.name for peer in config.peers)]
        if config.mode == "client":
            hosts += [each[0] for each in (*config.remotes, *config.dialed)]
        else:
            hosts += [text.rpartition(":")[0] for text in config.public_addresses]
    return [*hosts, *(peer["name"] for peer in subject.peers or ())]


def _members(subject: Subject, findings: Findings) -> Iterator[tuple[str, Any]]:
    """Name and content of each: a text, or what JSON can hold."""
    yield "doctor.txt", as_text(findings, everything=True) + "\n"
    yield "doctor.json", as_data(findings)
    yield "version.json", _version()
    if subject.config is not None:
        yield "config.json", msgspec.json.decode(to_json(subject.config))
    if subject.snapshot is not None:
        yield "status.json", subject.snapshot
    if subject.events:
        yield "events.json", list(subject.events)
    if log := _end_of_log(subject):
        yield "log.txt", log
    yield "sysctls.json", {name: read_words(name) for name in SYSCTLS}
    for file in TEXT_FILES:
        if text := _read(Path(file)):
            yield f"system/{file.rpartition('/')[2]}.txt", text
    for name, words in PROGRAMS.items():
        if (output := run_program(words, PROGRAM_SECONDS)) is not None:
            yield f"network/{name}", _decoded(output) if name.endswith(".json") else output


def _decoded(text: str) -> Any:
    try:
        return json.loads(text or "[]")
    except ValueError:
        return text


def _version() -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "program": VERSION,
        "python": sys.version,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "page_bytes": mmap.PAGESIZE,
        "packages": packages,
    }


def _end_of_log(subject: Subject) -> str:
    """Of the journal, or of the file that is the standard error of the supervisor."""
    unit = UNIT.format(name=subject.name)
    words = ["journalctl", "--unit", unit, "--lines", str(LOG_LINES), "--output", "short-iso-precise", "--no-pager"]
    if subject.name and Path("/run/systemd/system").is_dir() and (text := run_program(words, PROGRAM_SECONDS)):
        return text
    if subject.snapshot is None:
        return ""
    path = Path(f"/proc/{subject.snapshot['pid']}/fd/2")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MEMBER_BYTES_MAX))
            return file.read(MEMBER_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
