"""Starts and stops an instance for good: as the service tunnel-supervisor@NAME of systemd, or as a process.

    start(name, config)    and from now on at boot, where there is systemd
    stop(name)             and no more at boot
    find_advice(name)      how to have it at boot, where nobody does that; "" if somebody does

Without systemd, or without its unit, the instance is the command `start` in a session of its own. It belongs to no
terminal, and its output goes to a log file. A process that ends soon after its start is an error with its last lines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import LocalError, NotRunning, PermissionDenied
from pipeline.service import remains
from pipeline.supervisor.control import control_socket
from pipeline.supervisor.instance import Instance

SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
LOG_DIRECTORY = Path("/var/log/tunnel-supervisor")
LOG_BYTES_MAX = 16 << 20  # a longer one is begun anew at a start, and kept once
LAST_LINES = 5
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "OPENSSL_CONF", "OPENSSL_MODULES", "LD_LIBRARY_PATH")
"""Variables that a process of its own inherits: it must run as it would at boot, not as in the shell of a person."""

START_SECONDS = 20.0
STOP_SECONDS = 30.0
LOOK_SECONDS = 0.05


def start(name: str, config: Path) -> None:
    """LocalError if it cannot be started, or ends at once. An instance that runs already is left as it is."""
    if _has_unit():
        _systemctl("enable", _unit(name))
        _systemctl("start", _unit(name))
    elif not is_running(name):
        _start_process(name, config)


def stop(name: str) -> bool:
    """Whether it ran, was to start at boot, or had died and left something. LocalError if it does not stop."""
    was_enabled = _has_unit() and _is_enabled(name)
    was_running = is_running(name)
    if _has_unit():
        _systemctl("disable", "--now", _unit(name))
    if is_running(name):  # it was started by hand
        _stop_process(name)
    return remains.remove(name) or was_enabled or was_running


def is_running(name: str) -> bool:
    try:
        Instance(name).supervisor_pid()
    except NotRunning:
        return False
    return True


def find_advice(name: str) -> str:
    if _has_unit():
        return ""
    if SYSTEMD.is_dir():
        return "to have it at boot, install the service first: tunnel-supervisor install-service"
    return f"this machine has no systemd: to have it at boot, let its init run: tunnel-supervisor up {name}"


def log_of(name: str) -> str:
    """Where a person finds the log of an instance."""
    return f"journalctl -u {_unit(name)}" if _has_unit() else str(_log_path(name))


def find_log(name: str, is_configured: bool) -> str:
    """Where the log of an instance is that does not run, if it has one; else ""."""
    return log_of(name) if (_has_unit() and is_configured) or _log_path(name).exists() else ""


def forget(name: str) -> None:
    """Remove the log of an instance that is not there any more, and the directory if it is empty."""
    for path in (_log_path(name), _log_path(name).with_suffix(".log.1")):
        path.unlink(missing_ok=True)
    try:
        LOG_DIRECTORY.rmdir()
    except OSError:
        pass  # other instances have logs


# -- systemd


def _unit(name: str) -> str:
    return f"tunnel-supervisor@{name}.service"


def _has_unit() -> bool:
    return SYSTEMD.is_dir() and _run("systemctl", "cat", "tunnel-supervisor@.service").returncode == 0


def _is_enabled(name: str) -> bool:
    return _run("systemctl", "is-enabled", "--quiet", _unit(name)).returncode == 0


def _systemctl(*words: str) -> None:
    done = _run("systemctl", *words)
    if done.returncode:
        raise LocalError(f"systemctl {' '.join(words)}: {done.stderr.strip() or done.returncode}")


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(words, 1, "", f"{words[0]}: {error.strerror}")


# -- a process of its own


def _log_path(name: str) -> Path:
    return LOG_DIRECTORY / f"{name}.log"


def _start_process(name: str, config: Path) -> None:
    log = _open_log(_log_path(name))
    try:
        began = os.fstat(log).st_size
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", "pipeline.cli.main", "start", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            start_new_session=True,
        )
    finally:
        os.close(log)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise LocalError(f'instance "{name}" ended at once: {_last_lines(name, began)}')
        if _answers(name):
            process.returncode = 0  # it goes on without us: nobody waits for it
            return
        time.sleep(LOOK_SECONDS)
    raise LocalError(f'instance "{name}" does not answer {START_SECONDS:g} s after its start: see {_log_path(name)}')


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        kind = PermissionDenied if isinstance(error, PermissionError) else LocalError
        raise kind(f"{path}: {error.strerror}") from None


def _answers(name: str) -> bool:
    try:
        control_socket.send_request(Instance(name), {"command": "status"})
    except (NotRunning, LocalError):
        return False
    return True


def _last_lines(name: str, began: int) -> str:
    with _log_path(name).open(errors="replace") as file:
        file.seek(began)
        lines: Sequence[str] = file.read().splitlines()
    return "\n".join(lines[-LAST_LINES:]) or f"see {_log_path(name)}"


def _stop_process(name: str) -> None:
    control_socket.send_request(Instance(name), {"command": "stop"})
    until = time.monotonic() + STOP_SECONDS
    while is_running(name):
        if time.monotonic() > until:
            raise LocalError(f'instance "{name}" did not stop within {STOP_SECONDS:g} s')
        time.sleep(LOOK_SECONDS)
