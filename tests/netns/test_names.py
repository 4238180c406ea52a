"""A client whose server is a name, and a DNS server that is slow, dead, wrong, or changes its mind.

a    the tunnel's server and the DNS server
b    the client
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.instance import Instance, client_config, command, reaches, server_config
from tests.netns.harness.name_server import NXDOMAIN, SERVFAIL, NameServer
from tests.support import eventually
from tools.lab.network import Lab

NAME = "hub.test"
SETTINGS = {"fec": "off"}
SOON = 5.0
SLOW_SECONDS = 3.0


@pytest.fixture
def names(lab: Lab, tmp_path: Path) -> Iterator[NameServer]:
    with NameServer(lab.nodes[0], tmp_path) as made:
        yield made


@pytest.fixture
def server(lab: Lab, tmp_path: Path) -> Iterator[Instance]:
    with Instance(lab.nodes[0], server_config(lab.nodes[0], **SETTINGS), tmp_path) as made:
        made.wait_until_running()
        yield made


def client_of(lab: Lab, server: Instance, names: NameServer, directory: Path, **settings: Any) -> Instance:
    config = client_config(server.config, NAME, routes=["10.60.0.0/16"], **SETTINGS, **settings)
    return Instance(lab.nodes[1], config, directory, wrap=names.wrap)


@pytest.mark.parametrize(
    ("error", "said"),
    [(NXDOMAIN, "the name is unknown"), (SERVFAIL, "the DNS server does not answer")],
    ids=["nxdomain", "servfail"],
)
def test_an_error_of_the_resolver_is_said_once_and_its_first_answer_is_used(
    lab: Lab, server: Instance, names: NameServer, tmp_path: Path, error: int, said: str
) -> None:
    names.refuse(error)
    with client_of(lab, server, names, tmp_path) as client:
        client.wait_until_running()
        client.wait_for_log(f"{said}; trying again until it succeeds")
        asked = names.asked
        eventually(lambda: names.asked > asked + 4)
        assert client.log.count(said) == 1
        names.answer(lab.nodes[0].address)
        client.wait_until_connected(seconds=SOON)
        eventually(lambda: "10.60.0.0/16" in lab.nodes[1].run(["ip", "route"]).stdout)


COMPAT = {"compat": True, "mtu": 1400}


@pytest.mark.parametrize("both", [{}, COMPAT], ids=["", "compat"])
def test_a_dead_resolver_holds_up_no_command_and_no_successor_of_a_worker(
    lab: Lab, names: NameServer, tmp_path: Path, both: dict[str, Any]
) -> None:
    """Its DNS server may be behind the tunnel."""
    settings = {**SETTINGS, **both, "multi_client": False, "tunnel_addr": "10.99.0.1/24"}
    with Instance(lab.nodes[0], server_config(lab.nodes[0], **settings), tmp_path) as server:
        server.wait_until_running()
        client = client_of(lab, server, names, tmp_path, tunnel_addr="10.99.0.2/24", **both)
        outlive_a_dead_resolver(server, client, names)


def outlive_a_dead_resolver(server: Instance, client: Instance, names: NameServer) -> None:
    names.silence()
    with client:
        client.wait_until_running()
        said = client.command("status")
        assert said.returncode == 1 and "not connected" in said.stdout
        assert client.command("restart", "tun-0").returncode == 0
        assert command("check", client.file).returncode == 0
        client.wait_for_log("the resolver does not answer: is the DNS server within reach?")
        names.answer(*(f"10.77.0.{number}" for number in range(200, 229)), server.node.address)
        client.wait_until_connected()
        names.silence()
        pid = client.signal_worker("tcp-0", signal.SIGKILL)
        client.wait_until_replaced("tcp-0", pid)
        client.wait_until_connected(2, SOON)
        eventually(lambda: reaches(client, server))


def test_a_name_that_leads_elsewhere_is_followed_though_the_resolver_is_slow(
    lab: Lab, server: Instance, names: NameServer, tmp_path: Path
) -> None:
    node, elsewhere = lab.nodes[0], "10.77.0.50"
    node.ip(f"address add {elsewhere}/24 dev link0")
    names.answer(elsewhere)
    names.delay = SLOW_SECONDS
    with client_of(lab, server, names, tmp_path, timeout=2, keepalive=0.5) as client:
        client.wait_until_connected()
        names.answer(node.address)
        node.ip(f"address del {elsewhere}/24 dev link0")
        client.wait_until_connected(2)
        assert client.running()["connections"][0]["address"].startswith(f"{node.address}:")
