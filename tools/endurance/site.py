"""The site of an endurance run: a hub and two clients over TLS, each in a node of its own; what may be done to them.

    hub    its supervisor survives the run; its workers are struck
    one    is struck in every way
    two    is never struck: all of its processes are the same all the run long, so whatever grows shows in it

Configurations, keys, states and logs are in a directory of the caller's.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.credentials import keys
from tools.bench.loss_testbed import carriers, cut
from tools.instance import EXECUTABLE, RunningInstance
from tools.lab.namespace import LabError
from tools.lab.network import Lab, Node
from tools.lab.waiting import until
from tools.tunnel_pair import CARRIER_PORT, TUN_NAME

HUB_ADDRESSES = ("10.82.0.1", "fd82::1")
CLIENT_ADDRESSES = {"one": ("10.82.0.2", "fd82::2"), "two": ("10.82.0.3", "fd82::3")}
ROUTE = "10.83.0.0/16"
SETTINGS = {"restart_intensity": 1000, "restart_period": 60.0, "heartbeat_timeout": 2.0, "fec": "auto"}
READY_SECONDS = 30.0


class Site:
    """Made by open_site(). `instances` are by the names of the nodes."""

    def __init__(self, lab: Lab, directory: Path, settings: Mapping[str, Any], stack: ExitStack) -> None:
        self.lab = lab
        self.left_behind: list[str] = []
        self._directory = directory
        self._settings = {**SETTINGS, **settings}
        self._unique = f"{os.getpid()}-{lab['hub'].pid}"
        self._keys = {name: directory / f"{name}.key" for name in CLIENT_ADDRESSES}
        for path in self._keys.values():
            keys.write_secret(path, keys.generate().encode())
        self.instances: dict[str, RunningInstance] = {}
        stack.callback(self._stop_all)
        for name in ("hub", *CLIENT_ADDRESSES):
            self.start(name)

    # -- instances

    def start(self, name: str) -> None:
        """Start the instance of this node, and wait until it is connected."""
        config = {**self._settings, **self._config(name), "tun_name": TUN_NAME, "name": f"{name}-{self._unique}"}
        self.instances[name] = RunningInstance(self.lab[name], config, self._directory)
        self.wait_until_connected(name)

    def wait_until_connected(self, name: str) -> None:
        instance = self.instances[name]
        until(lambda: instance.is_ready(connected=name != "hub"), f"{name} connected", READY_SECONDS, every=0.1)

    def node(self, name: str) -> Node:
        return self.lab[name]

    def worker_pids(self, name: str, kind: str = "") -> list[int]:
        """Of the workers of one kind, or of all, that run now."""
        workers = self.instances[name].running()["workers"]
        return [each["pid"] for each in workers if each["pid"] and kind in ("", each["kind"])]

    def command(self, name: str, *words: str) -> str:
        """The output of `tunnel-supervisor WORDS` for the instance of this node. LabError if it fails."""
        done = subprocess.run(
            [EXECUTABLE, *words, "--name", self.instances[name].name], capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise LabError(f"{' '.join(words)} at {name}: exit status {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def cut_connections(self, name: str) -> None:
        """End every connection of a client by `ss --kill`: an error for the client, a reset for the hub."""
        for port in carriers(self.lab[name]):
            cut(self.lab[name], port)

    def _config(self, name: str) -> dict[str, Any]:
        if name == "hub":
            return {
                "mode": "server",
                "local_addr": f"0.0.0.0:{CARRIER_PORT}",
                "tunnel_addr": [f"{HUB_ADDRESSES[0]}/24", f"{HUB_ADDRESSES[1]}/64"],
                "state_dir": str(self._directory / "state"),
                "push_routes": [ROUTE],
                "peers": [
                    {"name": peer, "key_file": str(path), "address": list(CLIENT_ADDRESSES[peer])}
                    for peer, path in self._keys.items()
                ],
            }
        return {
            "mode": "client",
            "remote_addr": f"{self.lab['hub'].address}:{CARRIER_PORT}",
            "key_file": str(self._keys[name]),
        }

    def _stop_all(self) -> None:
        for name, instance in self.instances.items():
            try:
                status = instance.stop()
            except LabError as error:
                self.left_behind.append(f"{name}: {error}")
                continue
            self.left_behind += instance.names()
            if status not in (0, -signal.SIGKILL):
                self.left_behind.append(f"{name}: exit status {status}, expected 0")


@contextmanager
def open_site(directory: Path, settings: Mapping[str, Any]) -> Iterator[Site]:
    """A hub and two clients, all connected. `settings` go to each."""
    with Lab(names=("hub", *CLIENT_ADDRESSES)) as lab, ExitStack() as stack:
        yield Site(lab, directory, settings, stack)
