"""A machine in a full tunnel: `Tunnel(stack, world, directory)`, whose client `joined()`; and what is seen of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.netns.harness.hub import PLAIN, Client, Hub, reaches
from tests.netns.harness.instance import traces, unique_name
from tests.netns.harness.uplink import OUTSIDE, SERVER, World
from tests.support import eventually

SERVING = {"nat": True, "push_dns": ["10.99.0.1"]}


class Tunnel:
    """A hub with `nat`, and a client that has joined."""

    def __init__(
        self,
        stack: ExitStack,
        world: World,
        directory: Path,
        *,
        hub: dict[str, Any] | None = None,
        host: str = SERVER,
        wrap: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.world = world
        self._stack = stack
        self.hub = world.hub or stack.enter_context(Hub(world.lab, directory, **SERVING, **(hub or {})))
        self.line = self.hub.invite(unique_name("p"), "--address", f"{host}:{self.hub.port}")
        self._wrap = wrap
        self._directory = directory
        self._settings = {**PLAIN, "full_tunnel": True, "timeout": 5.0, "keepalive": 1.0, **settings}
        self.before = self.state("none")
        self.client = self.start()

    def start(self) -> Client:
        self.client = Client(self.world.machine, self.line, self._directory, wrap=self._wrap, **self._settings)
        self.name = self.client.name
        self._settings["name"] = self.name
        return self._stack.enter_context(self.client)

    def joined(self) -> Client:
        self.client.wait_until_joined()
        eventually(lambda: reaches(self.client.node, OUTSIDE, count=1, seconds=0.3), what="the Internet")
        return self.client

    def state(self, name: str) -> dict[str, Any]:
        node = self.world.machine
        tables = sorted(node.run(["nft", "list", "ruleset"]).stdout.split("table "))
        found = traces(node, name) | {"ruleset": tables}
        found["sysctls"] = node.run(["sysctl", "net.ipv4.conf.all.src_valid_mark"]).stdout
        return {key: value for key, value in found.items() if key != "processes"}

    def is_shut(self) -> bool:
        return f"tunnel-{self.name}/guard" in self.world.machine.run(["nft", "list", "tables"]).stdout

    def kill_everything(self) -> None:
        """The supervisor and every worker at once. The device has gone with the last of them."""
        workers = list(filter(None, self.client.worker_pids().values()))
        for pid in (*workers, self.client.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.client.wait()
        eventually(lambda: all(map(_has_ended, workers)), what="no worker left")


def _has_ended(pid: int) -> bool:
    """Whether or not its new parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def source_seen(world: World, family: int, address: str, *, seconds: float = 10.0) -> str:
    """Where a connection of the machine comes from, as the host outside sees it."""
    with world.host.socket(family) as server, world.machine.socket(family) as sock:
        server.bind((address, 0))
        server.listen()
        server.settimeout(seconds)
        sock.settimeout(seconds)
        sock.connect((address, server.getsockname()[1]))
        accepted, source = server.accept()
        accepted.close()
    return str(source[0])
