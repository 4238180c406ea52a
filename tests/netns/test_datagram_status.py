"""Real instances say by which carrier their blocks go, and when that changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.datagram_clients import joined
from tests.netns.harness.hub import Hub
from tests.netns.harness.instance import Instance
from tests.netns.harness.wall import UDP, fake_tcp_to, wall
from tests.support import eventually
from tools.lab.network import Lab

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two")) as made:
        yield made


def peers(instance: Instance) -> dict[str, dict[str, Any]]:
    """What `status --json` says of each."""
    shown = json.loads(instance.command("status", "--json").stdout)
    return {peer["name"]: peer for peer in shown["peers"]}


def carrier(client: Instance) -> str:
    """That of a client's blocks, as the page has it."""
    found: str = json.loads(client.command("status", "--json").stdout)["server"]["carrier"]
    return found


def changes(instance: Instance) -> list[tuple[str, str]]:
    """The events about datagrams: kind and text."""
    lines = instance.command("events", "--json").stdout.splitlines()
    found = map(json.loads, lines)
    return [(event["kind"], event["text"]) for event in found if event["kind"].startswith("datagrams-")]


def test_both_ends_say_by_which_carrier_blocks_go_and_record_each_change(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        hub.join(lab["two"], carrier="tcp")
        server = f"{lab['hub'].address}:{hub.port}"
        with Flow(client, hub.server) as flow:
            flow.wait_for(2 * MIB)
            (ours,) = peers(client).values()
            assert carrier(client) == "udp"
            theirs = peers(hub.server)
            assert (ours["carrier"], ours["datagrams"]["endpoint"]) == ("udp", server)
            assert ours["datagrams"]["sent_segments"] > 1000 and ours["datagrams"]["sent_bytes"] > 2 * MIB
            assert ours["datagrams"]["segment_bytes"] >= 1200 and ours["datagrams"]["data_rows"] > 1
            assert 0 < ours["datagrams"]["rtt_ms"] < 1000 and ours["datagrams"]["rate_mbit"] > 0
            assert theirs["one"]["carrier"] == "udp" and theirs["one"]["datagrams"]["received_bytes"] > 2 * MIB
            assert theirs["one"]["datagrams"]["endpoint"].startswith(lab["one"].address)
            assert (theirs["two"]["carrier"], theirs["two"]["datagrams"]["state"]) == ("tcp", "off")
            assert "the other end takes none" in theirs["two"]["datagrams"]["reason"]
            with wall(hub.node, UDP, fake_tcp_to(hub.port + 1)):
                eventually(lambda: changes(client)[-1][0] == "datagrams-dark", what="an event of the client")
                flow.wait_for(MIB)
                (ours,) = peers(client).values()
                assert (ours["carrier"], ours["datagrams"]["state"], carrier(client)) == ("tcp", "dark", "tcp")
                assert "blocks go by TCP, no datagram passes since" in client.command("status").stdout
            eventually(lambda: changes(client)[-1] == ("datagrams-open", f"by UDP to {server}"), 20, "datagrams again")
        assert [kind for kind, _ in changes(client)][:3] == ["datagrams-open", "datagrams-dark", "datagrams-open"]
        assert changes(hub.server)[0][0] == "datagrams-open"
        assert "datagrams since" in client.command("status").stdout
        table = hub.server.command("peers").stdout
        assert "carrier" in table and "two: blocks go by TCP, no datagrams: the other end takes none" in table
