"""A rate that all clients of a hub share: no more than it from the first moment on, equal parts for TCP connections
through the tunnel, and a reload of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.policy.token_bucket import BURST_LEAST
from tests.netns.harness.common_start import CommonStart, Way
from tests.netns.harness.hub import PLAIN, Hub
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.flows import Echoes, TcpFlow

RATE_MBIT = 40
SETTLE_BYTES = 5_000_000
"""Bytes of each client until the parts have been found."""

MEASURED_BYTES = 5_000_000

EIGHT = tuple(f"c{number}" for number in range(8))
HUB = "10.99.0.1"

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


@pytest.mark.parametrize("lanes", [1, 2], ids=["one lane", "two lanes"])
def test_eight_clients_that_begin_at_once_pass_the_rate_together_in_equal_parts(tmp_path: Path, lanes: int) -> None:
    with (
        Lab(names=("hub", *EIGHT, "light")) as lab,
        Hub(lab, tmp_path, total_rate_mbit=RATE_MBIT, lanes=lanes, **PLAIN) as hub,
    ):
        for name in (*EIGHT, "light"):
            hub.join(lab[name], **PLAIN)
        gets = {name: Way(hub.node, hub[name].node, hub[name].address) for name in EIGHT}
        sends = {name: Way(hub[name].node, hub.node, HUB) for name in EIGHT}
        for ways in (gets, sends):
            with CommonStart(ways) as flows:
                echoes = Echoes(hub["light"].node, HUB, count=150, interval=0.02)
                flows.run(5)
                pings = echoes.finish()
            rate = RATE_MBIT * 125_000
            for seconds in (0.25, 0.5, 1, 5):
                assert sum(flows.bytes_until(seconds).values()) <= 1.25 * rate * seconds + lanes * BURST_LEAST
            assert sum(flows.between(1, 5).values()) > 0.75 * rate * 4
            passed = flows.between(0, 5).values()
            assert sum(passed) ** 2 > 0.98 * len(passed) * sum(each**2 for each in passed)  # Jain's index of fairness
            assert not pings.lost
            assert sorted(pings.rtts_ms)[len(pings.rtts_ms) // 2] < 50
