"""The lab of several cables: each is a way of its own, and a pulled one carries nothing, known to the kernel or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tools.lab.cables import DOWN, UP, WHERES, Cable, Cables, Where
from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Node
from tools.lab.waiting import until
from tools.load.flows import ping

pytestmark = pytest.mark.tools
EITHER_END = pytest.mark.parametrize("where", WHERES)


@pytest.fixture
def lab() -> Iterator[Cables]:
    with Cables(LinkSpec(delay_ms=1), LinkSpec(delay_ms=15)) as made:
        yield made


def answers(lab: Cables, cable: Cable, count: int = 1) -> bool:
    """Whether the far end of a cable answers, over either IP version."""
    return not any(
        ping(lab.client, address, count=count, interval=0.01, timeout=3.0).lost
        for address in (cable.far_address, cable.far_address6)
    )


def quickest_ms(node: Node, address: str, less_than: float) -> float:
    """A round trip that is quicker than that, since a busy machine makes some of them longer."""
    found: list[float] = []

    def look() -> bool:
        found.extend(ping(node, address, count=3, interval=0.01).rtts_ms)
        return min(found, default=less_than) < less_than

    until(look, f"an echo of {address} within {less_than:g} ms")
    return min(found)


def test_each_cable_is_a_way_of_its_own_with_its_own_delay(lab: Cables) -> None:
    for cable, rtt_ms in zip(lab.cables, (2, 30), strict=True):
        assert answers(lab, cable)
        assert quickest_ms(lab.client, cable.far_address, rtt_ms + 10) >= rtt_ms


def test_a_node_is_reached_at_its_own_address_by_the_first_cable(lab: Cables) -> None:
    for source, sink in ((lab.client, lab.server), (lab.server, lab.client)):
        for address in (sink.address, sink.address6):
            quickest_ms(source, address, 15)


@EITHER_END
def test_a_pulled_cable_carries_nothing_until_it_is_plugged_and_the_other_one_does(lab: Cables, where: Where) -> None:
    first, second = lab.cables
    assert answers(lab, first)
    first.pull(where)
    before = first.carried()
    assert ping(lab.client, first.far_address, count=3, interval=0.01, timeout=0.1).lost == [0, 1, 2]
    assert ping(lab.server, first.address, count=3, interval=0.01, timeout=0.1).lost == [0, 1, 2]
    assert first.carried() == before and before[UP] > 0 and before[DOWN] > 0
    assert answers(lab, second)
    first.plug()
    until(lambda: answers(lab, first), "an answer by the cable that is plugged again")


@EITHER_END
def test_the_kernel_knows_of_a_cable_that_is_pulled_out_of_its_socket_alone(lab: Cables, where: Where) -> None:
    first, second = lab.cables
    first.pull(where)
    assert first.has_carrier() == (where == "middle") and second.has_carrier()
    assert first.address in lab.client.run(["ip", "address", "show", first.interface]).stdout
    first.plug()
    until(first.has_carrier, "a carrier")


def test_a_number_of_cables_that_cannot_be_is_refused() -> None:
    with pytest.raises(LabError, match="expected 1 to 9, got 0"):
        Cables()
