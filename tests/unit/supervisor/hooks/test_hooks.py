"""Hooks: real commands, on a selector that is turned by hand."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline import events
from pipeline.config import parse
from pipeline.events import Event
from pipeline.policy.hook_queue import RUNNING_MAX
from pipeline.supervisor.hooks import hook_process
from pipeline.supervisor.hooks.hook_process import LINES_MAX
from pipeline.supervisor.hooks.hooks import Hooks
from pipeline.supervisor.processes.precedence import Precedence
from tests.harness.no_descriptors import no_descriptor_left

SECONDS = 20.0


def event(kind: str, subject: str = "", text: str = "since the test says so") -> Event:
    return Event(0, events.BY_NAME[kind], subject, text, 0)


class Stage:
    """Hooks, with a selector that is turned while a test waits."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.selector = selectors.DefaultSelector()
        self.facts: dict[str, str] = {}
        self.events: list[tuple[str, str, str]] = []
        self.hooks = Hooks(
            self.selector, Precedence(), lambda event: self.facts, lambda *event: self.events.append(event)
        )
        self.on: dict[str, list[str]] = {}
        self.configure()

    def configure(self, **settings: Any) -> None:
        self.hooks.configure(
            parse({"mode": "server", "name": "office", "local_addr": "127.0.0.1:9", "on": self.on, **settings})
        )

    def script(self, hook: str, text: str, **settings: Any) -> None:
        """This text, run by sh, is the command of the hook."""
        file = self.directory / f"{hook}.sh"
        file.write_text("#!/bin/sh\n" + text)
        file.chmod(0o700)
        self.on[hook] = [str(file), "an argument"]
        self.configure(**settings)

    def turn(self) -> None:
        for key, _ in self.selector.select(0.01):
            if self.selector.get_map().get(key.fd) is key:
                key.data()
        self.hooks.tick(time.monotonic_ns())

    def settle(self) -> None:
        """Until nothing runs or waits."""
        self.until(lambda: not self.hooks.is_waited_for)

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + SECONDS
        self.turn()
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    @property
    def said(self) -> str:
        return (self.directory / "said").read_text()


@pytest.fixture
def stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Stage]:
    caplog.set_level(logging.DEBUG)
    made = Stage(tmp_path)
    yield made
    made.hooks.close()
    assert not made.selector.get_map()
    made.selector.close()
    assert not psutil.Process().children()


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def up(stage: Stage) -> None:
    stage.hooks.handle(event("up"))


def test_a_command_gets_its_words_the_event_and_nothing_else(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the service")
    stage.facts = {"ADDRESSES": "10.0.0.1/24 fd00::1/64", "ENDPOINT": "192.0.2.7"}
    said = stage.directory / "said"
    stage.script("peer-joined", f'echo "$# $1" > {said}; env | sort >> {said}; pwd >> {said}')
    stage.hooks.handle(event("peer-joined", "ann", 'from "somewhere"\n$(reboot)'))
    stage.settle()
    lines = stage.said.splitlines()
    assert lines[0] == "1 an argument" and lines[-1] == "/"
    found = dict(line.partition("=")[::2] for line in lines[1:-1])
    assert {name: found[name] for name in found if name.startswith("TUNNEL_")} == {
        "TUNNEL_EVENT": "peer-joined",
        "TUNNEL_NAME": "office",
        "TUNNEL_MODE": "server",
        "TUNNEL_PEER": "ann",
        "TUNNEL_ADDRESSES": "10.0.0.1/24 fd00::1/64",
        "TUNNEL_ENDPOINT": "192.0.2.7",
        "TUNNEL_REASON": 'from "somewhere"\\n$(reboot)',
    }
    others = {name for name in found if not name.startswith("TUNNEL_")}
    assert {"PATH", "LANG"} <= others <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}  # sh adds some


def test_a_name_from_a_certificate_has_harmless_characters_only(stage: Stage) -> None:
    said = stage.directory / "said"
    stage.script("peer-left", f'echo "$TUNNEL_PEER" > {said}')
    stage.hooks.handle(event("peer-left", "a b;$(reboot)`x`'\"\u00e9"))
    stage.settle()
    assert stage.said == "a_b___reboot__x____\n"


def test_a_command_inherits_no_descriptor_no_signal_setting_no_umask_and_no_limit(stage: Stage) -> None:
    said = stage.directory / "said"
    stage.script(
        "up",
        f"exec > {said}; ls /proc/$$/fd; echo end; grep -E 'Sig(Ign|Blk|Cgt)' /proc/self/status;"
        f" umask; ulimit -n; cat /proc/self/oom_score_adj; readlink /proc/$$/fd/0; ps -o pgid=,sid= -p $$",
    )
    opened = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(opened, True)  # as a careless parent of ours would leave it
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGUSR1)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    umask = os.umask(0o077)
    try:
        up(stage)
        stage.settle()
        assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {signal.SIGTERM, signal.SIGUSR2}
    finally:
        os.umask(umask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(opened)
    lines = stage.said.splitlines()
    fds, rest = lines[: lines.index("end")], lines[lines.index("end") + 1 :]
    assert {"0", "1", "2"} <= set(fds) <= {"0", "1", "2", "10"}  # 10: the script itself, which sh keeps open
    flags = dict(line.split(":\t") for line in rest[:3])
    settable = sum(1 << number - 1 for number in signal.valid_signals())  # libc keeps 32 and 33 for itself
    assert int(flags["SigIgn"], 16) & settable == 0 and int(flags["SigBlk"], 16) & settable == 0
    assert rest[3:5] == ["0022", "1024"] and rest[5] == Path("/proc/self/oom_score_adj").read_text().strip()
    assert rest[6] == "/dev/null"
    group, session = rest[7].split()
    assert group == session != str(os.getpgrp())


def test_output_is_in_the_log_line_by_line_escaped_and_bounded(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.script("up", "echo one; echo two >&2; printf '\\033[31mred\\000\\377'; printf '%2000d' 7")
    up(stage)
    stage.settle()
    texts = [record.message for record in caplog.records if record.message.startswith("hook up: ")]
    assert texts[:2] == ["hook up: one", "hook up: two"]
    assert texts[2].startswith("hook up: \\x1b[31mred\\x00\\xff") and len(texts[2]) < 600
    assert all(text.isprintable() for text in texts)


def test_endless_output_ends_with_its_time_and_takes_no_memory_and_few_lines(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.script("up", "exec yes a line of output", hook_timeout=2)
    before = psutil.Process().memory_info().rss
    up(stage)
    stage.settle()
    assert psutil.Process().memory_info().rss - before < 50_000_000
    shown = [record for record in caplog.records if record.message == "hook up: a line of output"]
    assert len(shown) == LINES_MAX and "more lines of its output are not shown" in caplog.text
    assert "still running after 2 s" in caplog.text


def test_much_output_without_a_line_break_is_read_and_thrown_away(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.script("up", "head -c 5000000 /dev/zero; exit 3", hook_timeout=30)
    up(stage)
    stage.settle()
    assert "hook up: exit status 3" in caplog.text and len(caplog.text) < 1_000_000


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
def test_a_command_that_hangs_is_ended_with_its_whole_group(
    stage: Stage, ignores: str, caplog: pytest.LogCaptureFixture
) -> None:
    stage.script("up", f"{ignores}sleep 1000 & echo $! $$ > {stage.directory}/said; wait; sleep 1000", hook_timeout=2)
    up(stage)
    stage.settle()
    stage.until(
        lambda: (
            not any(
                psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != "zombie"
                for pid in stage.said.split()
            )
        )
    )
    assert "still running after 2 s" in caplog.text and ("SIGKILL" if ignores else "SIGTERM") in caplog.text
    assert stage.hooks.status() == {"running": [], "run": 1, "failed": 1, "dropped": 0}


def test_a_daemon_that_a_command_leaves_behind_goes_on_and_holds_up_nothing(stage: Stage) -> None:
    daemon = f"setsid sh -c 'echo $$ > {stage.directory}/said; while sleep 0.01; do echo alive; done'"
    stage.script("up", f"{daemon} & sleep 0.2")
    began = time.monotonic()
    up(stage)
    stage.settle()
    assert time.monotonic() - began < 5
    stage.until(lambda: (stage.directory / "said").exists() and stage.said)
    pid = int(stage.said)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        stage.turn()
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    stage.until(lambda: not is_alive(pid))


@pytest.mark.parametrize("kind", ["missing", "not executable", "a directory", "no program"])
def test_a_program_that_cannot_be_run_costs_a_line(stage: Stage, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    file = stage.directory / "program"
    if kind == "a directory":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(b"\x7fnothing that the kernel knows")
        file.chmod(0o700 if kind == "no program" else 0o600)
    stage.on = {"up": [str(file)]}
    stage.configure()
    up(stage)
    stage.settle()
    assert f"hook up: {file} cannot be started" in caplog.text and stage.hooks.status()["failed"] == 1


def test_a_program_that_others_can_change_is_not_run(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.script("up", f"touch {stage.directory}/said")
    program = Path(stage.on["up"][0])
    program.chmod(stat.S_IMODE(program.stat().st_mode) | stat.S_IWOTH)
    up(stage)
    stage.settle()
    assert "other users can write to" in caplog.text and not (stage.directory / "said").exists()


def test_a_link_that_comes_and_goes_runs_few_commands_and_the_last_one_tells_how_it_is(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    for hook in ("connected", "lost"):
        stage.script(hook, f"echo $TUNNEL_EVENT >> {stage.directory}/said; sleep 0.2")
    for _ in range(50):
        stage.hooks.handle(event("connected"))
        stage.turn()
        stage.hooks.handle(event("lost"))
    stage.settle()
    assert stage.said.splitlines()[0] == "connected" and stage.said.splitlines()[-1] == "lost"
    assert len(stage.said.splitlines()) < 20
    stage.until(lambda: "events came too fast and ran none" in caplog.text)


def test_down_runs_last_only_after_up_and_what_waits_is_given_up(stage: Stage) -> None:
    for hook in ("up", "connected", "down", "peer-left"):
        stage.script(hook, f"echo $TUNNEL_EVENT >> {stage.directory}/said; sleep 0.1")
    stage.hooks.handle(event("stopping"))
    stage.settle()
    assert not (stage.directory / "said").exists()
    again = Stage(stage.directory)
    again.on = stage.on
    again.configure()
    for kind in ("up", "connected", "stopping", "peer-left"):
        again.hooks.handle(event(kind, "ann"))
        again.turn()
    again.settle()
    assert again.said.split() == ["up", "down"]
    again.hooks.close()
    again.selector.close()


def test_at_the_end_peers_that_wait_for_their_turn_get_none(stage: Stage) -> None:
    for hook in ("up", "peer-joined", "down"):
        stage.script(hook, f"echo $TUNNEL_EVENT >> {stage.directory}/said; sleep 0.2")
    up(stage)
    for number in range(RUNNING_MAX + 5):
        stage.hooks.handle(event("peer-joined", f"peer-{number}"))
    stage.until(lambda: len(stage.hooks.status()["running"]) == RUNNING_MAX)
    stage.hooks.handle(event("stopping"))
    stage.settle()
    said = stage.said.split()
    assert said.count("peer-joined") == RUNNING_MAX - 1 and said[-1] == "down"


def test_at_an_end_that_is_not_waited_for_nothing_runs_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_process, "KILL_NS", 10_000_000_000)  # more than this machine stands still
    stage.script("up", f"echo $$ > {stage.directory}/said; exec sleep 1000")
    up(stage)
    stage.until(lambda: (stage.directory / "said").exists() and stage.said)
    began = time.monotonic()
    stage.hooks.close()
    assert time.monotonic() - began < hook_process.KILL_NS / 1e9 and not psutil.pid_exists(int(stage.said))


def test_events_without_a_command_cost_nothing(stage: Stage) -> None:
    stage.facts = {}
    for kind in ("up", "connected", "lost", "peer-joined", "quota", "reloaded", "stopping"):
        stage.hooks.handle(event(kind))
    assert not stage.hooks.is_waited_for and stage.hooks.status()["run"] == 0


def test_without_a_free_descriptor_a_command_is_not_started_and_nothing_else_happens(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.script("up", "true")
    with no_descriptor_left():
        up(stage)
        stage.hooks.tick(time.monotonic_ns())
    stage.settle()
    assert "cannot be started" in caplog.text


def test_a_command_that_fails_or_cannot_be_started_is_an_event(stage: Stage) -> None:
    stage.script("up", "exit 3")
    stage.script("connected", "true")
    stage.on["lost"] = ["/nowhere/at-all"]
    stage.configure()
    for kind in ("up", "connected", "lost"):
        stage.hooks.handle(event(kind))
        stage.settle()
    (kind, hook, text), other = stage.events
    assert (kind, hook) == ("hook-failed", "up") and text.startswith("exit status 3 after ")
    assert other[:2] == ("hook-failed", "lost") and "cannot be started: " in other[2]
    assert stage.hooks.status()["failed"] == 2
