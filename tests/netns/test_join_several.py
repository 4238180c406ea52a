"""A machine that joins with a line that names two hubs, for real: each hub has a certificate of its own.

Both hubs have one subnet. The line is made at the second one; the first one is preferred.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.credentials import invitation
from tests.netns.harness.hub import hub_config, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.name_server import NameServer
from tests.netns.test_join import Machine
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab

INSIDE = "10.99.0.1"
NAMES = ("a", "b")


class Hubs:
    """Hubs a and b, with `public_addr` that names both, and a machine."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        configs = {name: hub_config(lab[name], directory, spares=False, fec="off") for name in NAMES}
        self.addresses = [configs[name]["public_addr"] for name in NAMES]
        self.hubs = {
            name: Instance(lab[name], configs[name] | {"public_addr": self.addresses}, directory) for name in NAMES
        }
        self.machine = Machine(lab["client"])

    def __enter__(self) -> Hubs:
        for name in NAMES:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.clean()
        for hub in self.hubs.values():
            hub.stop()

    def start(self, name: str) -> None:
        self.hubs[name].__enter__()
        self.hubs[name].wait_until_running()

    def invite(self) -> str:
        """The line for the peer laptop, made at b."""
        return self.hubs["b"].command("invite", "laptop").stdout.strip()

    def copy_peer(self) -> None:
        """As docs/servers.md tells it, the peer's file goes from b to a."""
        states = {name: Path(self.hubs[name].config["state_dir"], "peers") for name in NAMES}
        states["a"].mkdir(0o700, exist_ok=True)
        shutil.copy2(states["b"] / "laptop.json", states["a"])
        assert self.hubs["a"].command("reload").returncode == 0

    def server(self) -> dict[str, Any]:
        """What the machine says about its server. The exit status tells whether it is connected at this moment."""
        said = self.machine.type("status", "--json", "--name", self.machine.name, check=False)
        found: dict[str, Any] = json.loads(said.stdout)["server"]
        return found

    def server_of_machine(self) -> str:
        host = self.server()["host"]
        return next(name for name in NAMES if self.lab[name].address == host)

    def said_by_doctor(self) -> list[str]:
        """About the servers, each by its name."""
        found = json.loads(self.machine.type("doctor", "--json", "--name", self.machine.name, check=False).stdout)
        return [each["text"] for each in found["findings"] if each["check"] == "servers"]

    def reaches(self) -> bool:
        return reaches(self.lab["client"], INSIDE, count=1, seconds=0.3)


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[Hubs]:
    with Lab(names=("client", *NAMES)) as lab, Hubs(lab, tmp_path) as made:
        yield made


def test_a_machine_joins_at_the_hub_that_made_the_line_and_is_at_the_other_one_once_that_knows_it(hubs: Hubs) -> None:
    made = hubs.hubs["b"].command("invite", "laptop")
    line = made.stdout.strip()
    assert invitation.decode(line).settings == {"remote_addr": hubs.addresses} and len(line) < 400
    assert "only this server takes the line" in made.stderr and "peers/laptop.json" in made.stderr
    joined = hubs.machine.join(line, "--set", "fec=off")
    assert f"connected to {hubs.lab['b'].address} as" in joined.stdout
    written = json.loads((hubs.machine.directory / "config.json").read_text())
    assert written["remote_addr"] == hubs.addresses and "tls_fingerprint" not in written
    assert hubs.said_by_doctor() == [
        f"server {hubs.addresses[0]}: it does not know this client, or another server is at this address",
        f"server {hubs.addresses[1]} answers with a good certificate, and knows this client",
    ]
    hubs.copy_peer()
    states = lambda: [each["state"] for each in hubs.server()["list"]]  # noqa: E731
    eventually(lambda: states() == ["standby", "current"], 20.0, "the first hub lets it in")
    sessions = hubs.hubs["b"].log.count("connected")
    assert all("knows this client" in line for line in hubs.said_by_doctor())
    assert hubs.hubs["b"].log.count("connected") == sessions and hubs.server_of_machine() == "b", "it disturbs nothing"
    hubs.hubs["b"].stop()
    eventually(lambda: hubs.server_of_machine() == "a" and hubs.reaches(), 10.0, "it has moved")


def test_a_machine_joins_and_leaves_while_the_preferred_hub_is_away(hubs: Hubs) -> None:
    line = hubs.invite()
    hubs.hubs["a"].stop()
    joined = hubs.machine.join(line, "--set", "fec=off")
    assert f"connected to {hubs.lab['b'].address} as" in joined.stdout
    eventually(hubs.reaches, what="the hub is reached")
    left = hubs.machine.type("leave", hubs.machine.name).stderr
    assert f"note: {hubs.addresses[0]} has not been told: connection refused" in left and hubs.addresses[1] not in left


def test_a_machine_does_not_join_while_the_hub_that_made_the_line_is_away_and_says_so(hubs: Hubs) -> None:
    line = hubs.invite()
    hubs.hubs["b"].stop()
    said = hubs.machine.join(line, "--wait", "0", check=False)
    a, b = hubs.addresses
    assert said.returncode == 1
    assert f"{a}: this server has not made the invitation" in said.stderr and f"{b}: connection refused" in said.stderr
    assert "Nothing is left of this attempt" in said.stderr and not hubs.machine.directory.exists()


def test_a_machine_that_leaves_is_forgotten_by_both_hubs(hubs: Hubs) -> None:
    hubs.machine.join(hubs.invite(), "--set", "fec=off")
    hubs.copy_peer()
    left = hubs.machine.type("leave", hubs.machine.name)
    assert "has not been told" not in left.stderr
    for hub in hubs.hubs.values():
        assert hub.ask({"command": "peers"})["peers"] == []


def test_neither_a_name_without_an_answer_nor_a_machine_that_is_gone_keeps_a_machine_from_joining(
    hubs: Hubs, tmp_path: Path
) -> None:
    line = invitation.decode(hubs.invite())
    line = line._replace(server="gone.test:9000", others=tuple(hubs.addresses))
    hubs.lab.cut(hubs.lab["a"])
    with NameServer(hubs.lab["client"], tmp_path) as names:
        names.silence()
        words = ["join", "-", "--name", hubs.machine.name, "--wait", "30", "--set", "fec=off"]
        hubs.lab["client"].run([*names.wrap, EXECUTABLE, *words], input=invitation.encode(line))
    hubs.lab.join(hubs.lab["a"])
    assert hubs.server_of_machine() == "b"
