"""The recipes of docs/names.md for a client that asks the hub for one domain alone, with what they are for.

machine -- link0 -- network     the DNS server of the LAN
        -- office -- hub        that of the hub; the device stands for that of the tunnel
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.netns.harness.name_server import NameServer
from tests.netns.harness.resolving import PACKAGES, Resolving
from tests.netns.harness.unpacked import unpack
from tests.support import ROOT, eventually
from tools.lab.namespace import Namespace
from tools.lab.network import Lab, add_veth_pair

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")

HUB = "10.0.0.1"  # as in the recipes
OF_LAN, OF_HUB = "192.0.2.1", "192.0.2.2"  # answers


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("packages"), PACKAGES)


class Names(NamedTuple):
    lab: Lab
    machine: Resolving
    lan: NameServer
    hub: NameServer

    def answer(self, name: str) -> str:
        said = self.machine.run("getent", "ahostsv4", name, check=False).split()
        return said[0] if said else ""

    def are_split(self) -> None:
        """Each server hears the questions that are its own. One of before may come twice, and late."""
        eventually(lambda: self.answer("laptop.tunnel") == OF_HUB, 20, "laptop.tunnel leads to the hub")
        eventually(lambda: self.answer("www.test") == OF_LAN, 20, "www.test leads to the LAN")
        of_hub, of_lan = set(self.hub.names), set(self.lan.names)
        for number in range(5):
            assert self.answer(f"host-{number}.test") == OF_LAN
        assert set(self.hub.names) == of_hub
        of_lan = set(self.lan.names)
        for number in range(5):
            assert self.answer(f"peer-{number}.tunnel") == OF_HUB
        assert set(self.lan.names) == of_lan


@pytest.fixture
def names(packages: Path, tmp_path: Path) -> Iterator[Names]:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(names=("network", "machine")))
        hub = Namespace("hub")
        stack.callback(hub.close)
        add_veth_pair(lab["machine"], "office", hub)
        lab["machine"].ip("link set office up", "address add 10.0.0.7/24 dev office")
        hub.run(["ip", "-batch", "-"], input=f"link set lo up\nlink set link0 up\naddress add {HUB}/24 dev link0\n")
        lan = stack.enter_context(NameServer(lab["network"], tmp_path))
        of_hub = stack.enter_context(NameServer(hub, tmp_path, HUB))
        lan.answer(OF_LAN)
        of_hub.answer(OF_HUB)
        yield Names(lab, stack.enter_context(Resolving(lab["machine"], packages, tmp_path)), lan, of_hub)


def recipe(beginning: str) -> str:
    """The indented block of docs/names.md that begins so."""
    text = (ROOT / "docs/names.md").read_text()
    at = text.index(f"    {beginning}")
    return textwrap.dedent(text[at : text.index("\n\n", at)] + "\n")


def test_systemd_resolved_asks_the_hub_for_names_of_the_tunnel_alone(names: Names) -> None:
    names.machine.start_resolved("link0", names.lab["network"].address)
    names.machine.run("env", "TUNNEL_DEVICE=office", "sh", "-e", "-c", recipe("#!/bin/sh"))
    names.are_split()


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is missing: apt-get install dnsmasq-base")
def test_dnsmasq_of_network_manager_asks_the_hub_for_names_of_the_tunnel_alone(names: Names) -> None:
    file = names.machine.path("/etc/NetworkManager/dnsmasq.d/tunnel.conf")
    file.parent.mkdir(exist_ok=True)
    file.write_text(recipe("server=/tunnel/"))
    network = names.lab["network"].address
    address = names.lab["machine"].address
    names.machine.start_network_manager("link0", address, network, network, dns="dnsmasq")
    assert "nameserver 127.0.0.1" in names.machine.resolv_conf
    names.are_split()
