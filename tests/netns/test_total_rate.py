"""A rate that all clients of a hub share: equal parts for TCP connections through the tunnel, and a reload of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.flows import TcpFlow

RATE_MBIT = 40
SETTLE_BYTES = 5_000_000
"""Bytes of each client until the parts have been found."""

MEASURED_BYTES = 5_000_000

pytestmark = [pytest.mark.alone, pytest.mark.slow]


def rates(hub: Hub, *plan: tuple[str, float | None]) -> dict[str, float]:
    """Mbit/s of connections from the hub to these clients at once, each with the rate that its source keeps to."""
    with ExitStack() as stack:
        flows = {
            name: stack.enter_context(
                TcpFlow(hub.node, hub[name].node, hub[name].address, seconds=60, rate_mbit=rate, interval=0.1)
            )
            for name, rate in plan
        }
        first = flows[plan[0][0]]
        first.wait_for_bytes(SETTLE_BYTES)
        before = {name: flow.samples[-1] for name, flow in flows.items()}
        first.wait_for_bytes(MEASURED_BYTES)
        after = {name: flow.samples[-1] for name, flow in flows.items()}
    return {
        name: (after[name].bytes - before[name].bytes) * 8e3 / (after[name].time_ns - before[name].time_ns)
        for name in flows
    }


def test_clients_that_want_more_get_equal_parts_and_one_that_wants_less_has_what_it_wants(
    tmp_path: Path,
) -> None:
    with (
        Lab(names=("hub", "one", "two", "three")) as lab,
        Hub(lab, tmp_path, total_rate_mbit=RATE_MBIT, **PLAIN) as hub,
    ):
        for name in ("one", "two", "three"):
            hub.join(lab[name], **PLAIN)
        found = rates(hub, ("one", None), ("two", None), ("three", 4))
        assert found["one"] == pytest.approx(found["two"], rel=0.3)
        assert found["three"] == pytest.approx(4, rel=0.3)
        assert 0.75 * RATE_MBIT < sum(found.values()) < 1.15 * RATE_MBIT
        hub.configure(total_rate_mbit=RATE_MBIT / 2)
        eventually(lambda: rates(hub, ("one", None))["one"] < 0.6 * RATE_MBIT, 20, "half of the rate")
        hub.configure(total_rate_mbit=0)
        assert rates(hub, ("one", None))["one"] > 1.3 * RATE_MBIT
