"""Numbered UDP packets through a tunnel, both ways at once, and the fate of each.

with Numbered(client, server) as packets:
    packets.wait_for(100)                       so many more have arrived each way
    packets.all_arrive()                        no more are sent; every one has come, and none twice
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.load.flows import UdpFlow

LAST_SECONDS = 10.0
"""Within this the last packet has come, however busy the machine is."""


class Numbered:
    """`rate` packets of `size` payload bytes a second, each way, from the beginning of the block."""

    def __init__(self, client: Instance, server: Instance, *, rate: float = 200.0, size: int = 200) -> None:
        self._stack = ExitStack()
        self.flows = {
            "up": self._stack.enter_context(UdpFlow(client.node, server.node, server.address, rate=rate, size=size)),
            "down": self._stack.enter_context(UdpFlow(server.node, client.node, client.address, rate=rate, size=size)),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def wait_for(self, count: int, seconds: float = 15.0) -> None:
        """Until `count` more have arrived each way."""
        goals = {way: len(flow.arrivals) + count for way, flow in self.flows.items()}
        eventually(
            lambda: all(len(flow.arrivals) >= goals[way] for way, flow in self.flows.items()),
            seconds,
            f"{count} more packets each way",
        )

    def end(self) -> dict[str, int]:
        """No more are sent. How many never came, each way."""
        for flow in self.flows.values():
            flow.end()
        for flow in self.flows.values():
            flow.wait_for_all(time.monotonic() + LAST_SECONDS)
        return {way: flow.missing() for way, flow in self.flows.items()}

    def all_arrive(self) -> None:
        lost = self.end()
        sent = {way: flow.sent for way, flow in self.flows.items()}
        print(f"sent {sent}, longest gap in ms {self.longest_gaps_ms()}")  # pytest -rP shows it
        assert lost == dict.fromkeys(lost, 0), f"lost of {sent}"
        assert self.twice() == dict.fromkeys(lost, 0)

    def twice(self) -> dict[str, int]:
        """How many copies arrived beside the first one."""
        return {
            way: len(flow.arrivals) - len({arrival.number for arrival in flow.arrivals})
            for way, flow in self.flows.items()
        }

    def longest_gaps_ms(self) -> dict[str, int]:
        """The longest time between two arrivals, each way."""
        found = {}
        for way, flow in self.flows.items():
            times = [arrival.time_ns for arrival in flow.arrivals]
            found[way] = round(max((b - a for a, b in itertools.pairwise(times)), default=0) / 1e6)
        return found
