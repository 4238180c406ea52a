"""A tunnel whose client has an uplink for each cable of a lab, and load on it: numbered packets, and checked bytes.

with two_cables(directory) as (lab, instances), load(instances) as running:
    wait_until_carrying(*lab.cables)       each carries its part
    lab.cables[0].pull("middle")
    go_on(*running)                        more of everything has arrived
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.checked_flow import Flow
from tests.netns.harness.instance import Instances, tunnel
from tests.netns.harness.numbered import Numbered
from tests.support import eventually
from tools.lab.cables import DOWN, UP, WHERES, Cable, Cables
from tools.lab.link_model import LinkSpec

EITHER_END = pytest.mark.parametrize("where", WHERES)

NEAR = LinkSpec(delay_ms=5, rate_mbit=40)
FAR = LinkSpec(delay_ms=25, rate_mbit=20)
QUICK = {"timeout": 3.0, "keepalive": 0.5}
"""A cable that is pulled in the middle has connections for this long, so the tests are shorter."""

ALL = 8
"""Connections of a client with the default settings."""

CARRIES_BYTES = 50_000
"""More than new connections and keepalives need."""

STILL_SECONDS = 0.5
PACKETS = 100
BULK_BYTES = 400_000


@contextmanager
def two_cables(
    directory: Path, *specs: LinkSpec, client: dict[str, Any] | None = None, **settings: Any
) -> Iterator[tuple[Cables, Instances]]:
    """A tunnel whose client has an uplink for each cable; `client`: settings of it alone."""
    with Cables(*(specs or (NEAR, FAR))) as lab:
        client = {"tls_skip_verify": True, **uplinks(*(cable.interface for cable in lab.cables)), **(client or {})}
        with tunnel(lab, directory, client=client, **QUICK, **settings) as instances:
            yield lab, instances


def uplinks(*main: str, backup: str = "") -> dict[str, Any]:
    """The setting of a client."""
    return {"uplinks": [*main, *([{"interface": backup, "role": "backup"}] if backup else [])]}


@contextmanager
def load(instances: Instances) -> Iterator[tuple[Numbered, list[Flow]]]:
    """Numbered packets and one TCP connection each way; all that was sent has arrived at the end of the block."""
    server, client = instances
    with ExitStack() as stack:
        flows = [stack.enter_context(Flow(*ends)) for ends in ((client, server), (server, client))]
        packets = stack.enter_context(Numbered(client, server))
        yield packets, flows
        for flow in flows:
            flow.finish()
        packets.all_arrive()


def go_on(packets: Numbered, flows: list[Flow]) -> None:
    """Until more of everything has arrived."""
    packets.wait_for(PACKETS)
    for flow in flows:
        flow.wait_for(BULK_BYTES)


def wait_until_carrying(*cables: Cable, seconds: float = 20.0) -> None:
    """Until each of these cables has carried more each way than what keeps it."""
    before = [cable.carried() for cable in cables]
    eventually(
        lambda: all(
            now[way] > then[way] + CARRIES_BYTES
            for now, then in zip([cable.carried() for cable in cables], before, strict=True)
            for way in (UP, DOWN)
        ),
        seconds,
        f"{', '.join(cable.interface for cable in cables)} carrying again",
    )


def wait_until_still(*flows: Flow) -> None:
    """Until nothing has arrived inside for a while."""
    last = [0.0, -1]

    def is_still() -> bool:
        arrived = sum(flow.received for flow in flows)
        if arrived != last[1]:
            last[:] = time.monotonic(), arrived
        return time.monotonic() - last[0] > STILL_SECONDS

    eventually(is_still, what="no more bytes inside")
