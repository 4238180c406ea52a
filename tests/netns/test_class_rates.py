"""Rates of a class, and of all that an end sends, at a client and at a hub: TCP through the tunnel keeps to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.flows import TcpFlow

RATE_MBIT = 20
SETTLE_BYTES = 4_000_000
MEASURED_BYTES = 5_000_000
HUB = "10.99.0.1"

pytestmark = [pytest.mark.alone, pytest.mark.slow]


def rate(flow: TcpFlow) -> float:
    """Mbit/s, once the first burst is over."""
    flow.wait_for_bytes(SETTLE_BYTES)
    before = flow.samples[-1]
    flow.wait_for_bytes(MEASURED_BYTES)
    after = flow.samples[-1]
    return (after.bytes - before.bytes) * 8e3 / (after.time_ns - before.time_ns)


@pytest.mark.parametrize("at_hub", [False, True], ids=["client", "hub"])
@pytest.mark.parametrize(
    "limits",
    [{"bulk_rate_mbit": RATE_MBIT, "always_bulk": ["tcp/1-65535"]}, {"send_rate_mbit": RATE_MBIT}],
    ids=["bulk", "all"],
)
def test_an_end_keeps_to_the_rate_for_what_it_sends_and_for_nothing_else(
    tmp_path: Path, at_hub: bool, limits: dict[str, object]
) -> None:
    with Lab() as lab, Hub(lab, tmp_path, **PLAIN, **(limits if at_hub else {})) as hub:
        client = hub.join(lab["b"], **PLAIN, **({} if at_hub else limits))
        ends = (hub.node, client.node, client.address), (client.node, hub.node, HUB)
        limited, other = ends if at_hub else ends[::-1]
        for (source, sink, address), is_limited in ((limited, True), (other, False)):
            with TcpFlow(source, sink, address, seconds=60, interval=0.1) as flow:
                found = rate(flow)
            assert 0.7 * RATE_MBIT < found < 1.15 * RATE_MBIT if is_limited else found > 2 * RATE_MBIT


def test_a_rate_of_bulk_of_a_peer_is_its_own_and_a_reload_changes_it_as_packets_pass(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path, always_bulk=["tcp/1-65535"], **PLAIN) as hub:
        client = hub.join(lab["b"], "", "--bulk-rate", str(RATE_MBIT), **PLAIN)
        workers = hub.server.worker_pids()
        with TcpFlow(hub.node, client.node, client.address, seconds=60, interval=0.1) as flow:
            assert 0.7 * RATE_MBIT < rate(flow) < 1.15 * RATE_MBIT
            assert hub.peers()["b"]["bulk_rate_mbit"] == RATE_MBIT
            file = Path(hub.server.config["state_dir"]) / "peers" / "b.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"bulk_rate_mbit": 0}))
            hub.configure()
            assert hub.peers()["b"]["bulk_rate_mbit"] == 0
            eventually(lambda: rate(flow) > 2 * RATE_MBIT, what="no limit")
        assert hub.server.worker_pids() == workers
