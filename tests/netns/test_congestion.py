"""The congestion control of the connections of real tunnels, over the emulated link: it follows the path, whatever the
host's own is, and whether workers may choose it themselves or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.policy.congestion import CALM, LOSSY
from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import Instance, tunnel
from tests.support import eventually
from tools.lab import congestion
from tools.lab.link_model import LinkSpec
from tools.lab.network import Lab

PATH = LinkSpec(delay_ms=10.0, rate_mbit=100.0, queue_packets=None, queue_bytes=500_000)
LOSES = LinkSpec(delay_ms=10.0, rate_mbit=100.0, queue_packets=None, queue_bytes=500_000, loss_percent=2.0)
KINDS = {
    "fec": {"fec": "auto"},
    "plain": {"fec": "off", "connections": 2},
    "compat": {"compat": True, "multi_client": False},
}

pytestmark = pytest.mark.skipif(
    not {LOSSY, CALM} <= set(congestion.AVAILABLE.read_text().split()), reason="this kernel has no BBR, or no Cubic"
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The link loses nothing until a test says so."""
    with Lab(link=PATH) as made:
        yield made


def let_hosts_have(lab: Lab, name: str, *, locked: bool = False) -> None:
    """Let the carriers' sockets begin with this algorithm. A namespace's own default may be none that the machine
    keeps from others; that of a route may."""
    for node, other in (lab.nodes, lab.nodes[::-1]):
        how = f"congctl {'lock ' if locked else ''}{name}"
        node.ip(f"route replace {other.address} dev {node.interface} src {node.address} {how}")


def controls(instance: Instance) -> set[str]:
    """The congestion control of all its connections that are established."""
    connections = instance.running()["connections"]
    return {each["congestion"] for each in connections if each["state"] == "established"}


def wait_for(instance: Instance, control: str, seconds: float = 10.0) -> None:
    """Until all its connections have this congestion control."""
    eventually(lambda: controls(instance) == {control}, seconds, f"{control} at {instance.name}")


@pytest.mark.parametrize("host", [CALM, LOSSY, "reno"])
def test_connections_begin_with_what_the_host_has_unless_that_paces(lab: Lab, tmp_path: Path, host: str) -> None:
    let_hosts_have(lab, host)
    with tunnel(lab, tmp_path) as instances:
        for instance in instances:
            wait_for(instance, CALM if host == LOSSY else host)
            assert instance.running()["notes"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_living_connections_of_any_kind_get_bbr_when_their_path_loses(lab: Lab, tmp_path: Path, kind: str) -> None:
    let_hosts_have(lab, CALM)
    with tunnel(lab, tmp_path, **KINDS[kind]) as (server, client), Flow(client, server) as flow:
        flow.wait_for(1_000_000)
        serials = {each["serial"] for each in client.running()["connections"]}
        lab.link.change(LOSES)
        wait_for(client, LOSSY)
        assert client.counter("tcp.controls_changed") == 1
        assert {each["serial"] for each in client.running()["connections"]} == serials
        flow.wait_for(5_000_000)


@pytest.mark.slow
def test_living_connections_get_the_hosts_control_again_once_the_path_is_clean(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path) as (server, client), Flow(client, server):
        lab.link.change(LOSES)
        wait_for(client, LOSSY)
        lab.link.change(PATH)
        wait_for(client, CALM, 60.0)


def test_a_name_is_kept_whatever_the_path_does(lab: Lab, tmp_path: Path) -> None:
    with tunnel(lab, tmp_path, congestion=CALM) as (server, client), Flow(client, server) as flow:
        lab.link.change(LOSES)
        flow.wait_for(1_000_000)
        wait_for(client, CALM)
        assert client.counter("tcp.controls_changed") == 0


def test_a_reload_changes_it(lab: Lab, tmp_path: Path) -> None:
    let_hosts_have(lab, CALM)
    with tunnel(lab, tmp_path) as (server, client):
        for instance in (server, client):
            instance.write({**instance.config, "congestion": "reno"})
            assert instance.command("reload").returncode == 0
        for instance in (server, client):
            wait_for(instance, "reno")


def test_a_route_that_locks_another_control_wins_and_that_is_said(lab: Lab, tmp_path: Path) -> None:
    """`ip route ... congctl lock`: not even root may set another on a socket."""
    let_hosts_have(lab, "reno", locked=True)
    with tunnel(lab, tmp_path) as (server, client), Flow(client, server) as flow:
        flow.wait_for(1_000_000)
        lab.link.change(LOSES)
        eventually(lambda: any(LOSSY in note for note in client.running()["notes"]))
        assert controls(client) == {"reno"}
        flow.wait_for(2_000_000)
