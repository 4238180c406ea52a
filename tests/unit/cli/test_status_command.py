"""The command `status`: its exit status, JSON, and the look that is repeated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import joined_client, observed, service_manager, status_command
from pipeline.cli.main import main
from pipeline.supervisor import instance
from pipeline.version import VERSION

NAME = "statuscommandtest"
ROW = {
    "worker": "tcp-0",
    "state": "established",
    "address": "192.0.2.1:443",
    "traffic_class": "bulk",
    "sent_bytes": 5,
    "received_bytes": 6,
    "rtt_ms": 41.0,
    "age_seconds": 9.0,
    "last_received_ms_ago": 30,
}
CONNECTED: dict[str, Any] = {
    "schema_version": 2,
    "version": VERSION,
    "name": NAME,
    "mode": "client",
    "state": "running",
    "uptime_seconds": 10.0,
    "server": {"host": "vpn", "port": 443, "connections_wanted": 1, "trouble": [], "failed_attempts": 0},
    "connections": [ROW],
    "workers": [],
    "counters": {},
    "fec": {"mode": "off"},
    "notes": [],
}


class Answers:
    """Snapshots of an instance, in turn, and the last one again and again."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Any]] = [CONNECTED]

    def read(self, which: instance.Instance) -> dict[str, Any]:
        assert which.name == NAME
        return self.snapshots.pop(0) if len(self.snapshots) > 1 else self.snapshots[0]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()
    monkeypatch.setattr(observed, "read_snapshot", made.read)
    return made


def status(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    return main(["status", "--name", NAME, *words]), capsys.readouterr().out


def test_an_instance_that_works_has_status_0_and_one_that_does_not_has_1(
    answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_status, text = status(capsys)
    assert exit_status == 0
    assert text.startswith(f"{NAME}: connected to vpn since 9 s, 41 ms, 0 B in, 0 B out\n\nconnection ")
    answers.snapshots = [CONNECTED | {"connections": []}]
    assert status(capsys) == (1, f"{NAME}: not connected yet: dialing vpn port 443\n")
    answers.snapshots = [CONNECTED | {"state": "starting"}]
    assert status(capsys)[0] == 1


def test_the_json_is_the_snapshot(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    exit_status, text = status(capsys, "--json")
    assert (exit_status, json.loads(text)) == (0, CONNECTED)


def test_each_of_several_uplinks_has_a_row(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    uplink = {"role": "main", "sent_bytes": 5, "received_bytes": 6, "resent_segments": 1, "sent_segments": 50}
    uplinks = [
        uplink
        | {"interface": "eth0", "connections": 5, "connections_wanted": 5, "rtt_ms": 20.0, "trouble": []}
        | {"carries": True},
        {"interface": "wwan0", "role": "backup", "connections": 0, "connections_wanted": 3, "rtt_ms": 0.0}
        | dict.fromkeys(("sent_bytes", "received_bytes", "resent_segments", "sent_segments"), 0)
        | {"carries": False, "trouble": ["wwan0 has no carrier"]},
    ]
    connections = [row | {"uplink": 0} for row in CONNECTED["connections"]]
    server = CONNECTED["server"] | {"uplinks": uplinks}
    answers.snapshots = [CONNECTED | {"server": server, "connections": connections}]
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in status(capsys)[1].splitlines()]
    assert ["eth0", "main", "5 of 5", "yes", "20.0 ms", "2.0 %", "5 B", "6 B", "-"] in rows
    assert ["wwan0", "backup", "0 of 3", "no", "-", "-", "0 B", "0 B", "wwan0 has no carrier"] in rows
    assert [row[:2] for row in rows[-2:]] == [["uplink", "connection"], ["eth0", connections[0]["address"]]]


def test_many_rows_are_cut_and_the_rest_is_counted(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers.snapshots = [CONNECTED | {"connections": [ROW] * 20}]
    text = status(capsys)[1]
    assert text.count("192.0.2.1:443") == 8 and text.endswith("12 more: status --verbose has them all\n")


@pytest.mark.parametrize(("running", "said"), [("0.0.1", "runs 0.0.1, "), (None, "runs an older version, ")])
def test_a_supervisor_of_another_version_than_the_program_on_disk_is_noted(
    running: str | None, said: str, answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.snapshots = [{key: value for key, value in CONNECTED.items() if key != "version"}]
    if running:
        answers.snapshots[0]["version"] = running
    text = status(capsys)[1]
    assert f"note: this instance {said}the program on disk is {VERSION}: `restart --rolling`" in text


def test_peers_of_another_version_are_named(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    peer = {"state": "away", "addresses": [], "endpoint": "", "session_seconds": None}
    peers = [peer | {"name": f"p{n}", "version": version} for n, version in enumerate(("0.0.1",) * 5 + (VERSION, ""))]
    answers.snapshots = [CONNECTED | {"mode": "server", "peers": peers, "peers_max": 9}]
    assert (
        f"note: peers with another version than {VERSION}: p0 0.0.1, p1 0.0.1, p2 0.0.1 and 2 more" in status(capsys)[1]
    )
    answers.snapshots = [CONNECTED | {"mode": "server", "peers": peers[5:], "peers_max": 9}]
    assert "note:" not in status(capsys)[1]


def interrupt_after(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in place of a wait."""
    left = iter(range(frames - 1))

    def sleep(seconds: float) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_command.time, "sleep", sleep)


def test_a_watch_prints_look_behind_look_where_there_is_no_terminal(
    answers: Answers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(3, monkeypatch)
    answers.snapshots = [CONNECTED, CONNECTED | {"connections": []}]
    exit_status, text = status(capsys, "--watch")
    assert exit_status == 1  # of the last look
    assert [each.split(",")[0] for each in text.split("\n\n") if each.startswith(NAME)] == [
        f"{NAME}: connected to vpn since 9 s",
        f"{NAME}: not connected yet: dialing vpn port 443",
        f"{NAME}: not connected yet: dialing vpn port 443",
    ]
    assert "\x1b" not in text


def test_a_watch_on_a_terminal_ends_with_a_line_for_the_prompt(
    answers: Answers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(2, monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert status(capsys, "--watch")[1].endswith("\x1b[J\n")


def test_a_watch_in_json_is_one_object_a_line(
    answers: Answers, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(2, monkeypatch)
    lines = status(capsys, "--watch", "0.5", "--json")[1].splitlines()
    assert [json.loads(line)["name"] for line in lines] == [NAME, NAME]


def test_a_watch_survives_the_end_of_the_instance_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "run")
    interrupt_after(2, monkeypatch)
    exit_status, text = status(capsys, "--watch")
    assert (exit_status, text) == (3, f'instance "{NAME}" does not run\n\n' * 2)


@pytest.mark.parametrize("command", ["events", "status", "top"])
def test_an_instance_that_has_ended_leaves_its_log_and_can_be_started_again(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(instance, "RUN_DIRECTORY", tmp_path / "run")
    monkeypatch.setattr(service_manager, "SYSTEMD", tmp_path / "none")
    monkeypatch.setattr(service_manager, "LOG_DIRECTORY", tmp_path)
    monkeypatch.setattr(joined_client, "ETC", tmp_path / "etc")
    said = f'tunnel-supervisor: instance "{NAME}" does not run'
    for path, hint in (
        (tmp_path / "none yet", ""),
        (tmp_path / f"{NAME}.log", f"; what has happened is in its log: {tmp_path / NAME}.log"),
        (tmp_path / "etc" / NAME / "config.json", f"; to start it: `tunnel-supervisor up {NAME}`"),
    ):
        said += hint
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        assert main([command, "--name", NAME]) == 3
        assert capsys.readouterr().err == f"{said}\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_watch_without_a_pause_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--name", NAME, f"--watch={seconds}"]) == 2
    assert "--watch: given" in capsys.readouterr().err


def test_a_screen_is_cut_to_the_terminal_and_leaves_no_rest() -> None:
    shown = status_command._screen("one line\nanother line\nthird", 5, 3)
    assert shown == "\x1b[Hone l\x1b[K\nanoth\x1b[K\x1b[J"
