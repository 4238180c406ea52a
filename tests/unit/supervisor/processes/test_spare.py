"""A spare: what it inherits, how it says that it waits, how it becomes a worker, how it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.runtime.assignment import FORMAT, READY
from pipeline.supervisor.processes.spare import Spare, SpareState

SECONDS = 20.0
WAITS = f'printf "%s" "{FORMAT.decode()}" >&"$channel"; exec sleep 60'


def readable(source: int | socket.socket) -> bool:
    return bool(select.select([source], [], [], SECONDS)[0])


def end(spare: Spare) -> int:
    spare.send(signal.SIGKILL)
    return spare.reap()


def test_a_process_learns_its_kind_and_mode_and_inherits_its_channel_alone(
    tmp_path: Path, interpreter: Callable[[str], None]
) -> None:
    interpreter(f'echo "$@" > {tmp_path}/words; ls -l /proc/self/fd | grep -c socket > {tmp_path}/sockets')
    with socket.socket() as other:
        other.set_inheritable(False)
        spare = Spare("fec", "client")
        assert spare.reap() == 0
    words = (tmp_path / "words").read_text().split()
    assert words[:7] == ["-I", "-m", "workers", "fec", "client", "--parent", str(os.getpid())]
    assert (tmp_path / "sockets").read_text() == "1\n"


def test_a_real_process_of_every_kind_imports_everything_and_waits() -> None:
    for kind in ("tun", "fec", "tcp"):
        spare = Spare(kind, "client")
        try:
            assert spare.state is SpareState.IMPORTING
            assert readable(spare.channel)
            assert spare.read_news() is SpareState.WAITING
            assert not spare.is_dead
        finally:
            assert end(spare) == -signal.SIGKILL


def test_a_process_that_is_needed_no_more_ends_by_itself() -> None:
    spare = Spare("tun", "client")
    assert readable(spare.channel)
    spare.channel.shutdown(socket.SHUT_WR)
    assert readable(spare.pidfd)
    assert spare.is_dead
    assert spare.reap() == 0


def test_a_process_of_another_program_is_told_apart(interpreter: Callable[[str], None]) -> None:
    interpreter('printf "format 1.00000000" >&"$channel"; exec sleep 60')
    spare = Spare("tun", "client")
    assert readable(spare.channel)
    assert spare.read_news() is SpareState.FOREIGN
    end(spare)


def test_a_process_that_ends_before_it_waits_has_no_news(interpreter: Callable[[str], None]) -> None:
    interpreter("exit 3")
    spare = Spare("tun", "client")
    assert readable(spare.channel)
    assert spare.read_news() is None
    assert spare.reap() == 3


def test_without_news_a_process_stays_what_it_is_and_it_is_ready_when_it_says_so(
    tmp_path: Path, interpreter: Callable[[str], None]
) -> None:
    os.mkfifo(hint := tmp_path / "hint")
    says = 'printf "%s" "{}" >&"$channel"'
    interpreter(
        f"read -r _ <{hint}; {says.format(FORMAT.decode())};"
        f"head -c 1 <&$channel >/dev/null; {says.format(READY.decode())}; exec sleep 60"
    )
    spare = Spare("tun", "client")
    assert spare.read_news() is SpareState.IMPORTING
    hint.write_text("go\n")
    assert readable(spare.channel)
    assert spare.read_news() is spare.read_news() is SpareState.WAITING
    with open(os.devnull) as plan:
        spare.assign("tun-0", 1, {"plan": plan.fileno()})
    assert spare.state is SpareState.ASSIGNED
    assert readable(spare.channel)
    assert spare.read_news() is SpareState.READY
    end(spare)


def test_an_assignment_to_a_process_that_has_died_is_an_error(interpreter: Callable[[str], None]) -> None:
    interpreter("exit 0")
    spare = Spare("tun", "client")
    assert readable(spare.pidfd)
    with pytest.raises(BrokenPipeError):
        spare.assign("tun-0", 1, {"plan": 0})
    spare.reap()


def test_a_process_that_cannot_be_spawned_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        Spare("tun", "client")
    assert os.listdir("/proc/self/fd") == before


def test_a_process_that_cannot_be_watched_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, interpreter: Callable[[str], None]
) -> None:
    interpreter("exec sleep 60")

    def refuse(pid: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("os.pidfd_open", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Too many open files"):
        Spare("tun", "client")
    assert os.listdir("/proc/self/fd") == before
    assert psutil.Process().children() == []
    subprocess._cleanup()
