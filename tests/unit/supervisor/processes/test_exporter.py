"""The care for the exporter, with a shell script in its place: it starts, dies, hangs, moves, is given up."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from pipeline.config.values import Endpoint
from pipeline.supervisor.processes.companion import HANG_NS, STOPPED_NS
from pipeline.supervisor.processes.exporter import INTENSITY, LISTEN_AGAIN_NS, Exporter, ExporterSettings
from pipeline.supervisor.processes.precedence import SPARE_NICE
from tests.harness.companion_care import DIES, SECOND, WORKS, CompanionCare, Interpreter, Serve
from tests.support import eventually

SILENT = "exec sleep 60"


class Care(CompanionCare):
    OWNER = Exporter

    def configure(self, settings: ExporterSettings | None) -> list[str]:
        """As a reload does it."""
        self.owner._prepared = settings
        return self.owner.apply()


@pytest.fixture
def care(interpreter: Interpreter, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Care]:
    with Care.run(interpreter, serve, monkeypatch) as made:
        yield made


def settings(port: int = 0, **plan: object) -> ExporterSettings:
    return ExporterSettings(Endpoint("127.0.0.1", port or free_port()), plan)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def takes(port: int) -> bool:
    """Whether connections are accepted there, by the kernel."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_without_the_setting_there_is_no_process(care: Care) -> None:
    assert care.configure(None) == []
    care.step()
    assert care.owner.pid == 0


def test_it_listens_and_runs_behind_the_workers(care: Care, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    wanted = settings()
    assert care.configure(wanted) == []
    care.until(lambda: "exporter ready" in caplog.text)
    assert takes(wanted.endpoint.port)
    if os.geteuid() == 0:
        assert os.getpriority(os.PRIO_PROCESS, care.owner.pid) >= SPARE_NICE


def test_one_that_is_killed_comes_back_with_one_event_and_the_port_stays(care: Care) -> None:
    wanted = settings()
    care.configure(wanted)
    pid = care.owner.pid
    os.kill(pid, signal.SIGKILL)
    care.until(lambda: care.owner.pid not in (0, pid))
    assert care.events == [("exporter-died", "signal 9")]
    assert takes(wanted.endpoint.port)


def test_one_that_dies_again_and_again_is_given_up_and_a_reload_tries_again(
    care: Care, interpreter: Interpreter
) -> None:
    interpreter(DIES)
    wanted = settings()
    care.configure(wanted)
    care.until(lambda: care.owner.notes, step=1)
    assert care.kinds() == ["exporter-died"] * INTENSITY + ["exporter-given-up"]
    assert "given up" in care.owner.notes[0] or "died" in care.owner.notes[0]
    eventually(lambda: not takes(wanted.endpoint.port))  # the script has children
    interpreter(WORKS)
    care.step(3600)
    assert care.owner.pid == 0
    assert care.configure(wanted) == []
    assert care.owner.pid
    assert care.owner.notes == []


@pytest.mark.parametrize("script", [SILENT, WORKS], ids=["silent from the start", "stopped"])
def test_one_that_hangs_is_killed_and_started_anew(care: Care, interpreter: Interpreter, script: str) -> None:
    interpreter(script)
    care.configure(settings())
    pid = care.owner.pid
    if script is WORKS:
        care.until(lambda: care.owner._ready_ns)
        os.kill(pid, signal.SIGSTOP)
        care.step()
    began = care.now
    care.until(lambda: care.owner.pid != pid, step=0.5)
    limit = STOPPED_NS if script == WORKS else HANG_NS
    assert limit - SECOND <= care.now - began < limit + 5 * SECOND
    silence = "no sign of life for 5 s, since it is stopped" if script == WORKS else "no sign of life for 20 s"
    assert care.events == [("exporter-died", silence)]


def test_a_pause_of_the_supervisor_is_no_hang(care: Care) -> None:
    care.configure(settings())
    pid = care.owner.pid
    care.until(lambda: care.owner._ready_ns)
    for _ in range(3):
        care.step(3600)
    assert care.owner.pid == pid


def test_a_port_that_is_taken_is_said_once_and_tried_again(care: Care, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        wanted = settings(other.getsockname()[1])
        (problem,) = care.configure(wanted)
        assert "metrics_addr" in problem
        assert "another program listens there" in problem
        for _ in range(20):
            care.step(1)
        assert care.owner.notes == [problem]
        assert caplog.text.count("another program listens there") == 1
    care.step(LISTEN_AGAIN_NS / SECOND)
    assert care.owner.pid
    assert care.owner.notes == []


def test_settings_that_change_replace_the_process_and_a_new_address_moves_it(care: Care) -> None:
    first = settings(token="one")
    care.configure(first)
    pid = care.owner.pid
    assert care.configure(first) == []
    assert care.owner.pid == pid
    care.configure(first._replace(plan={"token": "two"}))
    assert care.owner.pid not in (0, pid)
    second = settings()
    care.configure(second)
    assert takes(second.endpoint.port)
    eventually(lambda: not takes(first.endpoint.port))  # the script has children
    care.configure(None)
    assert care.owner.pid == 0
    eventually(lambda: not takes(second.endpoint.port))  # the script has children
    assert care.events == []


def test_another_token_in_the_same_file_is_noticed(care: Care) -> None:
    care.configure(settings(token="one"))
    assert not care.owner.has_another_token
    care.owner._prepared = settings(token="two")
    assert care.owner.has_another_token


def test_new_shared_memory_takes_a_new_process(care: Care) -> None:
    care.configure(settings())
    pid = care.owner.pid
    care.owner.renew()
    care.step()
    assert care.owner.pid not in (0, pid)
    assert care.events == []


def test_a_process_that_cannot_be_made_is_no_end(care: Care, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    care.configure(settings())
    assert care.kinds() == ["exporter-died"]
    assert "cannot be started" in care.events[0][1]
