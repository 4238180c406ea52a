"""Hooks of real instances: what they get, that they may use the commands, and that none of them holds up a packet."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.hub import PLAIN, Hub
from tests.netns.harness.instance import Instance, command, server_config
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab

KINDS = ("up", "down", "connected", "lost", "peer-joined", "peer-left", "quota")


class Recorder:
    """A hook that writes its environment into a file of its own, one for each run, and then does something more."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self.directory = directory / "runs"
        self.directory.mkdir(parents=True)
        self.script = directory / "hook.sh"
        self.script.write_text(
            f"#!/bin/sh\ncd {self.directory}\nexec 3>.$$\nenv | grep ^TUNNEL_ >&3\n"
            f"ip -br link show dev $TUNNEL_DEVICE >&3 2>&1\n{more}\nmv .$$ $(date +%s%N)\n"
        )
        self.script.chmod(0o700)

    @property
    def on(self) -> dict[str, list[str]]:
        return {kind: [str(self.script)] for kind in KINDS}

    def runs(self) -> list[dict[str, str]]:
        """The variables of each run, without TUNNEL_, the first run first; under "device" the state of the device."""
        found = []
        for file in sorted(path for path in self.directory.iterdir() if not path.name.startswith(".")):
            *variables, device = file.read_text().splitlines()
            pairs = (line.removeprefix("TUNNEL_").partition("=")[::2] for line in variables)
            found.append({**dict(pairs), "device": device})
        return found

    def events(self) -> list[str]:
        return [run["EVENT"] for run in self.runs()]

    def wait_for(self, kind: str, times: int = 1) -> dict[str, str]:
        eventually(lambda: self.events().count(kind) >= times, 15, f"{times} x {kind}: {self.events()}")
        return [run for run in self.runs() if run["EVENT"] == kind][times - 1]


def test_hooks_of_a_hub_and_its_client_tell_what_happens_with_all_that_a_script_needs(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    hubs, clients = Recorder(tmp_path / "hub"), Recorder(tmp_path / "client")
    with Lab(names=("hub", "one")) as lab, Hub(lab, tmp_path / "hub", on=hubs.on) as hub:
        run = hubs.wait_for("up")
        assert (run["NAME"], run["MODE"], run["DEVICE"]) == (hub.server.name, "server", hub.server.tun_name)
        assert run["ADDRESSES"] == "10.99.0.1/24 fd99::1/64" and hub.server.tun_name in run["device"]
        one = hub.join(lab["one"], "", "--quota", "0.005", on=clients.on, **PLAIN)
        run = hubs.wait_for("peer-joined")
        assert (run["PEER"], run["ENDPOINT"]) == ("one", lab["one"].address)
        assert run["PEER_ADDRESSES"] == "10.99.0.2 fd99::2"
        run = clients.wait_for("connected")
        assert (run["ENDPOINT"], run["MODE"]) == (lab.nodes[0].address, "client")
        assert run["SERVER"] == f"{lab.nodes[0].address}:{hub.port}"
        assert set(run["ADDRESSES"].split()) == {"10.99.0.2/24", "fd99::2/64"}

        with pytest.raises((OSError, AssertionError)), Flow(one, hub.server, limit=1 << 40):
            eventually(lambda: hub.peers()["one"]["quota_state"] != "open", what="the quota is used up")
            raise AssertionError("the stream ends with the session")
        run = hubs.wait_for("quota")
        assert run["PEER"] == "one" and "of its quota of 5 MB is used up" in run["REASON"]
        assert "quota" in hubs.wait_for("peer-left")["REASON"]
        assert clients.wait_for("lost")["REASON"]

        assert one.stop() == 0
        assert "up" in clients.events()[:2] and clients.events()[-1] == "down"
        run = clients.wait_for("down")
        assert one.tun_name in run["device"] and "does not exist" not in run["device"]  # it is there to the end
        assert run["REASON"] == "signal SIGTERM"


def test_a_hook_may_use_the_commands_hang_and_fail_and_holds_up_nothing(tmp_path: Path) -> None:
    said = tmp_path / "said"
    slow = tmp_path / "slow.sh"
    slow.write_text(
        f"#!/bin/sh\n{EXECUTABLE} status --name $TUNNEL_NAME > {said} 2>&1\n"
        f"{EXECUTABLE} restart tun-0 --name $TUNNEL_NAME >> {said} 2>&1\necho done >> {said}\nsleep 1000\n"
    )
    slow.chmod(0o700)
    with (
        Lab(names=("hub", "one")) as lab,
        Hub(lab, tmp_path, on={"up": [str(slow)], "peer-joined": ["/no/such/program"]}, hook_timeout=12) as hub,
    ):
        one = hub.join(lab["one"], **PLAIN)
        with Flow(one, hub.server) as flow:
            eventually(lambda: said.exists() and said.read_text().endswith("done\n"), 15, "a hook that uses commands")
            flow.wait_for(1_000_000)
        assert f"{hub.server.name}: " in said.read_text() and "workers: tun-0" in said.read_text()
        hub.server.wait_for_log("hook peer-joined: /no/such/program cannot be started: No such file or directory")
        hub.server.wait_for_log("hook up: still running after 12 s: it is ended, with its process group")
        # a reload brings other hooks, and refuses wrong ones
        other = Recorder(tmp_path / "other", "sleep 1")
        hub.configure(on=other.on)
        hub.server.config = {**hub.server.config, "on": {"up": ["relative"], "no-such": ["/bin/true"]}}
        hub.server.write(hub.server.config)
        refused = hub.server.command("reload")
        assert refused.returncode == 1 and "on" in refused.stderr
        began = time.monotonic()
        assert hub.server.stop() == 0
        assert time.monotonic() - began >= 1, "down is waited for"
        assert other.events()[-1] == "down"


def test_a_second_request_to_stop_waits_for_no_hook(tmp_path: Path) -> None:
    with Lab() as lab:
        config = server_config(lab.nodes[0], on={"down": ["/bin/sleep", "1000"]}, hook_timeout=30)
        with Instance(lab.nodes[0], config, tmp_path) as server:
            server.wait_until_running()
            server.signal(signal.SIGTERM)
            server.wait_for_log("stopping: signal SIGTERM")
            eventually(lambda: (server.status() or {}).get("state") == "stopped", what="it waits for down alone")
            server.signal(signal.SIGTERM)
            assert server.wait() == 0


def test_commands_that_others_could_change_refuse_the_start_the_check_and_a_reload(lab: Lab, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    config: dict[str, Any] = server_config(lab.nodes[0], on={"up": [str(program)]})
    with Instance(lab.nodes[0], config, tmp_path) as server:
        assert server.wait() == 78
        assert f"on.up: other users can write to {program}" in server.log
        program.chmod(0o700)
        os.chmod(server.file, 0o666)
        checked = command("check", server.file)
        assert (
            checked.returncode == 78 and "its commands run with our rights, but other users can write" in checked.stderr
        )
