"""How an instance is started and stopped for good. systemctl is a script that writes down its arguments."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipeline.cli import service_manager
from pipeline.errors import LocalError
from pipeline.supervisor import instance

SCRIPT = """#!/bin/sh
echo "$*" >> {log}
case "$1 $2" in
"cat tunnel-supervisor@.service") exit {cat} ;;
"is-enabled --quiet") exit {enabled} ;;
"start tunnel-supervisor@bad.service") echo "Job failed" >&2; exit 1 ;;
esac
"""


class Systemd:
    """A machine with systemd, with the unit or without."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        self._log = directory / "calls"
        (directory / "run").mkdir()
        patch.setattr(service_manager, "SYSTEMD", directory / "run")
        patch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        self.install()

    def install(self, *, unit: bool = True, enabled: bool = False) -> None:
        script = self._directory / "systemctl"
        script.write_text(SCRIPT.format(log=self._log, cat=int(not unit), enabled=int(not enabled)))
        script.chmod(0o700)

    def calls(self) -> list[str]:
        """Since the last time, without the questions."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return [line for line in lines if line.split()[0] not in ("cat", "is-enabled")]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "instances")
    return Systemd(tmp_path, monkeypatch)


@pytest.fixture
def without_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "instances")
    monkeypatch.setattr(service_manager, "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(service_manager, "LOG_DIRECTORY", tmp_path / "log")
    return tmp_path


def test_with_systemd_an_instance_is_a_service_that_starts_at_boot(systemd: Systemd) -> None:
    service_manager.start("vpn", Path("/etc/tunnel-supervisor/vpn/config.json"))
    assert systemd.calls() == ["enable tunnel-supervisor@vpn.service", "start tunnel-supervisor@vpn.service"]
    assert service_manager.find_advice("vpn") == ""
    assert service_manager.log_of("vpn") == "journalctl -u tunnel-supervisor@vpn.service"
    assert not service_manager.stop("vpn")
    systemd.install(enabled=True)
    systemd.calls()
    assert service_manager.stop("vpn"), "it was to start at boot"
    assert systemd.calls() == ["disable --now tunnel-supervisor@vpn.service"]


def test_a_service_that_does_not_start_is_an_error_with_the_words_of_systemd(systemd: Systemd) -> None:
    with pytest.raises(LocalError, match=r"systemctl start tunnel-supervisor@bad.service: Job failed"):
        service_manager.start("bad", Path("/none"))


def test_without_the_unit_a_process_is_started_and_the_advice_says_how_to_get_the_unit(
    systemd: Systemd, without_systemd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_manager, "SYSTEMD", without_systemd / "run")
    systemd.install(unit=False)
    monkeypatch.setattr(service_manager, "_start_process", lambda name, config: None)
    service_manager.start("vpn", Path("/none"))
    assert systemd.calls() == [] and "install-service" in service_manager.find_advice("vpn")


def test_a_process_that_ends_at_once_is_an_error_with_its_last_lines(
    without_systemd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = without_systemd / "python"
    interpreter.write_text('#!/bin/sh\nenv; echo "args: $*"; echo "the last line" >&2; exit 78\n')
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setenv("A_SECRET_OF_THE_SHELL", "x")
    for _ in range(2):
        with pytest.raises(LocalError, match=r'instance "vpn" ended at once: [\s\S]*the last line$'):
            service_manager.start("vpn", Path("/etc/x.json"))
    log = without_systemd / "log" / "vpn.log"
    text = log.read_text()
    assert text.count("args: -I -m pipeline.cli.main start --config /etc/x.json") == 2
    assert "A_SECRET_OF_THE_SHELL" not in text and "PATH=" in text
    assert log.stat().st_mode & 0o777 == 0o600
    service_manager.forget("vpn")
    assert not log.parent.exists()


def test_a_stop_removes_what_a_killed_supervisor_has_left(without_systemd: Path) -> None:
    name = f"dead{os.getpid()}"
    dead = instance.Instance(name)
    dead.lock_path.parent.mkdir(mode=0o700)
    dead.lock_path.touch()
    left, others = (Path("/dev/shm", f"tunnel@{each}@0123abcd@plain-0.0") for each in (name, f"{name}x"))
    try:
        for path in (left, others):
            path.touch()
        assert service_manager.stop(name) is True
        assert not left.exists() and others.exists() and not dead.lock_path.parent.exists()
        assert service_manager.stop(name) is False
    finally:
        for path in (left, others):
            path.unlink(missing_ok=True)


def test_a_long_log_is_begun_anew_and_kept_once(without_systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_manager, "LOG_BYTES_MAX", 10)
    log = without_systemd / "log" / "vpn.log"
    log.parent.mkdir()
    log.write_text("a long line\n")
    os.close(service_manager._open_log(log))
    assert log.read_text() == "" and (log.parent / "vpn.log.1").read_text() == "a long line\n"
    link = log.parent / "other.log"
    link.symlink_to(log)
    with pytest.raises(LocalError, match=r"other\.log: Too many levels"):
        service_manager._open_log(link)
    link.unlink()
    service_manager.forget("vpn")
    assert not log.parent.exists()
