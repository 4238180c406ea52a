"""An instance in a control group whose memory runs out: workers die and come back, the supervisor stays."""

from __future__ import annotations

import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.netns.harness.instance import Instance, client_config, reaches, server_config
from tests.support import eventually
from tools.lab.network import Lab

ENTER = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"']
"""Followed by the group's directory and a command: it runs in the group."""


class Group(NamedTuple):
    """A control group, of version 1 or 2."""

    path: Path
    usage: str
    limit: str

    def used(self) -> int:
        return int((self.path / self.usage).read_text())

    def limit_to(self, size: int) -> bool:
        """False if more than that is in use, and cannot be taken away (version 1)."""
        try:
            (self.path / self.limit).write_text(str(size))
        except OSError:
            return False
        return True


VERSIONS = (
    (["cgroup", "-o", "memory"], "memory.usage_in_bytes", "memory.limit_in_bytes"),
    (["cgroup2"], "memory.current", "memory.max"),
)


def removed(group: Path) -> bool:
    """A control group is busy for a moment after its last process has gone from its list."""
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    mounted = tmp_path / "cgroup"
    mounted.mkdir()
    for kind, usage, limit in VERSIONS:
        if subprocess.run(["mount", "-t", *kind, "tests", mounted], capture_output=True).returncode:
            continue
        path = mounted / f"tunnel-{secrets.token_hex(4)}"
        path.mkdir()
        try:
            if (path / limit).exists():
                yield Group(path, usage, limit)
                return
        finally:
            eventually(lambda: not (path / "cgroup.procs").read_text())
            eventually(lambda: removed(path), what=f"{path} is not busy any more")
            subprocess.run(["umount", mounted], check=True)
    pytest.skip("no control group with a limit of memory can be made here")


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.slow
def test_without_memory_workers_die_and_come_back_and_the_supervisor_stays(
    lab: Lab, tmp_path: Path, group: Group
) -> None:
    a, b = lab
    settings = {"restart_intensity": 1000}
    serving = server_config(a, **settings)
    with (
        Instance(a, serving, tmp_path) as server,
        Instance(b, client_config(serving, a.address, **settings), tmp_path, wrap=[*ENTER, str(group.path)]) as client,
    ):
        server.wait_until_running()
        client.wait_until_connected()
        supervisor = client.running()["pid"]
        assert all(score(pid) > score(supervisor) for pid in client.worker_pids().values())

        whole = group.used()
        for name in client.workers():
            client.signal_worker(name, signal.SIGKILL)
        eventually(lambda: group.limit_to(whole * 3 // 4))  # not enough for the successors
        own = len(client.workers())
        eventually(lambda: client.log.count("SIGKILL (out of memory?)") > own, 20.0)

        assert group.limit_to(1 << 40)
        eventually(lambda: client.is_running() and reaches(client, server), 20.0)
        assert client.running()["pid"] == supervisor == client.process.pid
