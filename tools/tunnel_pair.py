"""A server and a client instance of the tunnel, one in each of two nodes of a lab.

    with TunnelPair(server_node, client_node, {"lanes": 2}) as pair:
        ... pair.server.address, pair.client.status() ...

Without encryption unless `encryption` is set, and open to all. Configuration, state and logs live in a temporary
directory, instances have names of their own. The block begins when both say "running", the client has an established
connection, and a ping has come back. At its end both get SIGTERM and must end with exit status 0; `left_behind` then
says what they have not removed. When this process is killed, only the temporary directory stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tools.instance import EXECUTABLE, RunningInstance
from tools.lab.namespace import LabError
from tools.lab.network import Node
from tools.lab.waiting import Overdue, until
from tools.load.flows import ping

CARRIER_PORT = 9000
"""Fixed, but in a namespace of its own."""

TUN_NAME = "tunnel0"
SERVER_ADDRESS, CLIENT_ADDRESS, PREFIX_LENGTH = "10.78.0.1", "10.78.0.2", 24
READY_SECONDS = 15.0


class TunnelPair:
    """`settings` go to both instances, and so do `overrides`, of the form "key=value"; `client` goes to that one."""

    def __init__(
        self,
        server_node: Node,
        client_node: Node,
        settings: Mapping[str, Any] | None = None,
        *,
        client: Mapping[str, Any] | None = None,
        overrides: Sequence[str] = (),
        command: Sequence[str] = (EXECUTABLE,),
    ) -> None:
        self._client_settings = dict(client or {})
        self._nodes = server_node, client_node
        self._settings = dict(settings or {})
        self._command = command
        self._overrides = overrides
        self._open = ExitStack()
        self.left_behind: list[str] = []

    def __enter__(self) -> TunnelPair:
        with self._open as opening:
            directory = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="tunnel-lab-")))
            server, client = self._nodes
            unique = f"{os.getpid()}-{server.pid}"
            self.server = self._start(
                opening,
                server,
                f"server-{unique}",
                directory,
                {
                    "mode": "server",
                    "local_addr": f"0.0.0.0:{CARRIER_PORT}",
                    "insecure": True,
                    "tunnel_addr": f"{SERVER_ADDRESS}/{PREFIX_LENGTH}",
                    "state_dir": str(directory / "state"),
                },
            )
            self.client = self._start(
                opening,
                client,
                f"client-{unique}",
                directory,
                {
                    "mode": "client",
                    "remote_addr": f"{server.address}:{CARRIER_PORT}",
                    "tls_skip_verify": True,
                    "tunnel_addr": f"{CLIENT_ADDRESS}/{PREFIX_LENGTH}",
                    **self._client_settings,
                },
            )
            self._wait_until_ready()
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def ends(self) -> dict[str, RunningInstance]:
        """Both instances, by "server" and "client"."""
        return {"server": self.server, "client": self.client}

    def _start(
        self, opening: ExitStack, node: Node, name: str, directory: Path, settings: dict[str, Any]
    ) -> RunningInstance:
        config = {"tun_name": TUN_NAME, "encryption": "none", **settings, **self._settings, "name": name}
        words = [word for override in self._overrides for word in ("--set", override)]
        instance = RunningInstance(node, config, directory, command=self._command, words=words)
        opening.callback(self._stop, instance)
        return instance

    def _stop(self, instance: RunningInstance) -> None:
        status = instance.stop()
        self.left_behind += instance.names()
        if status != 0:
            self.left_behind.append(f"{instance.name}: exit status {status}, expected 0")

    def _wait_until_ready(self) -> None:
        try:
            until(lambda: self.server.is_ready(connected=False), "the server running", READY_SECONDS)
            until(lambda: self.client.is_ready(connected=True), "the client connected", READY_SECONDS)
            until(
                lambda: not ping(self.client.node, self.server.address, count=1, timeout=0.5).lost,
                f"a ping through the tunnel to {self.server.address}",
                READY_SECONDS,
            )
        except Overdue as overdue:
            raise LabError(
                f"{overdue}\n--- server\n{self.server.end_of_log()}\n--- client\n{self.client.end_of_log()}"
            ) from None
