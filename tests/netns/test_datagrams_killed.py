"""A dgram worker dies by `kill -9` under load: its successor goes on with the path of before, and nothing waits for it.

How long the silence is: `bench --only memory --set carrier=udp --kills N`, in docs/performance.md.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.datagram_clients import joined, on_connections
from tests.netns.harness.hub import Hub
from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.flows import UdpFlow

pytestmark = pytest.mark.slow

RATE, SIZE, AFTER = 200.0, 200, 60
KILLS = 3
MIB = 1 << 20
SHORTEST = 1200


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one")) as made:
        yield made


def kill(end: Instance) -> None:
    end.wait_until_replaced("dgram-0", end.signal_worker("dgram-0", signal.SIGKILL))


def numbers(flow: UdpFlow) -> set[int]:
    return {each.number for each in list(flow.arrivals)}


def goes_on(flow: UdpFlow) -> None:
    """AFTER packets that are sent from now on arrive without a gap."""
    seen = max(numbers(flow), default=-1)

    def are_in_a_row() -> bool:
        row = 0
        for number, after in itertools.pairwise(sorted(each for each in numbers(flow) if each > seen)):
            row = row + 1 if after == number + 1 else 0
            if row == AFTER:
                return True
        return False

    eventually(are_in_a_row, what=f"{AFTER} packets in a row")


def datagrams_of(end: Instance) -> dict[str, Any]:
    """What the only peer of an end says of its datagrams."""
    (found,) = (peer["datagrams"] for peer in end.running()["peers"] if peer["datagrams"])
    return found


def knows_its_size(end: Instance) -> bool:
    return datagrams_of(end)["segment_bytes"] > SHORTEST


@pytest.mark.parametrize("of_server", [False, True], ids=["client", "server"])
def test_packets_pass_by_the_successor_and_none_by_a_connection(lab: Lab, tmp_path: Path, of_server: bool) -> None:
    """In both directions, with the carrier udp."""
    with Hub(lab, tmp_path, carrier="udp") as hub:
        client = joined(hub, lab["one"], "udp")
        end = hub.server if of_server else client
        before = on_connections(client) + on_connections(hub.server)
        with (
            UdpFlow(client.node, hub.node, hub.server.address, rate=RATE, size=SIZE) as there,
            UdpFlow(hub.node, client.node, client.address, rate=RATE, size=SIZE) as back,
        ):
            for _ in range(KILLS):
                goes_on(there)
                goes_on(back)
                kill(end)
            goes_on(there)
            goes_on(back)
        assert on_connections(client) + on_connections(hub.server) - before < AFTER * SIZE
        assert end.restarts()["dgram-0"] == KILLS


def test_the_path_of_a_successor_is_that_of_before(lab: Lab, tmp_path: Path) -> None:
    """It leads to where it has led, and carries segments as long."""
    with Hub(lab, tmp_path, carrier="auto") as hub:
        client = joined(hub, lab["one"])
        with Flow(client, hub.server) as flow:
            for end in (client, hub.server):
                eventually(partial(knows_its_size, end), 20, "a path that knows its size")
                known = datagrams_of(end)
                kill(end)
                now = datagrams_of(end)
                assert now["state"] == "open"
                assert (now["endpoint"], now["segment_bytes"]) == (known["endpoint"], known["segment_bytes"])
                flow.wait_for(MIB)
