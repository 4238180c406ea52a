"""Two clients of a hub behind NATs: whether they talk directly, and what happens where they cannot any more."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.status_keys import KEYS, keys_of
from pipeline.policy import partner_verdict
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.hub import Client, Hub, reaches
from tests.netns.harness.instance import REACHED_SECONDS
from tests.netns.harness.nats import Nat
from tests.support import eventually
from tools.lab.network import Lab
from tools.load import generators

pytestmark = pytest.mark.slow

DIRECT = {"carrier": "auto", "direct": "auto"}
MIB = 1 << 20


class World:
    """A hub, and a client behind each of two NATs. `shared`: both are behind the first one."""

    def __init__(
        self,
        stack: ExitStack,
        directory: Path,
        kinds: tuple[str, str] = ("cone", "cone"),
        shared: bool = False,
        **hub: Any,
    ) -> None:
        self.lab = stack.enter_context(Lab(names=("hub", "left", "right")))
        self.nats = [Nat(self.lab[name], 1 + number, kinds[number]) for number, name in enumerate(("left", "right"))]
        stack.callback(self._close_nats)
        self.hub = stack.enter_context(Hub(self.lab, directory, **{**DIRECT, **hub}))
        machines = self.nats[0].add("one"), self.nats[0 if shared else 1].add("two")
        self.one, self.two = (self.hub.join(machine, **DIRECT) for machine in machines)

    def _close_nats(self) -> None:
        for nat in self.nats:
            nat.close()

    def talk(self) -> bool:
        return reaches(self.one.node, self.two.address, count=1, seconds=1)

    def states(self) -> list[str]:
        """As the clients say it."""
        self.talk()
        return [row["state"] for client in (self.one, self.two) for row in partners(client)]

    def become_direct(self, seconds: float = 30) -> None:
        eventually(lambda: self.states() == ["direct", "direct"], seconds, "a direct path")

    @property
    def relayed(self) -> int:
        return self.hub.server.counter("tun.packets_forwarded")

    def assert_direct(self) -> None:
        before = self.relayed
        assert reaches(self.one.node, self.two.address, count=20) and reaches(self.two.node, self.one.address, count=20)
        assert self.relayed == before


def partners(client: Client) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.running()["direct"]
    return rows


def reasons(client: Client) -> str:
    return "; ".join(row["reason"] for row in partners(client))


def ended(client: Client) -> list[str]:
    return [event["text"] for event in client.running()["events"] if event["kind"] == "direct-ended"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


# -- which NATs let them


@pytest.mark.parametrize(
    "kinds",
    [("cone", "cone"), ("full", "symmetric"), ("restricted", "symmetric"), ("full", "cone")],
    ids="-".join,
)
def test_clients_talk_directly_where_their_nats_let_them(
    stack: ExitStack, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    world = World(stack, tmp_path, kinds)
    world.become_direct()
    world.assert_direct()
    rows = world.hub.server.running()["direct"]
    assert [(sorted(row["peers"]), row["state"]) for row in rows] == [(["one", "two"], "direct")]
    shown = set(keys_of({"direct": [*rows, *partners(world.one)]}))
    assert shown == {name for name in KEYS if name.startswith("direct[]")}, "as they are documented"


@pytest.mark.parametrize("kinds", [("symmetric", "symmetric"), ("cone", "symmetric")], ids="-".join)
def test_where_no_probe_gets_through_the_hub_relays_and_says_so(
    stack: ExitStack, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    world = World(stack, tmp_path, kinds)
    eventually(lambda: world.states() and partner_verdict.NOT_THROUGH in reasons(world.one), 40, "a verdict")
    assert world.states() == ["relayed", "relayed"]
    assert reaches(world.one.node, world.two.address, count=10)
    (row,) = world.hub.server.running()["direct"]
    assert row["state"] == "relayed" and partner_verdict.NOT_THROUGH in row["reason"]


def test_two_clients_behind_one_nat_find_each_other_inside_it(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path, ("symmetric", "cone"), shared=True)
    world.become_direct()
    world.assert_direct()
    (row,) = partners(world.one)
    assert row["endpoint"].startswith(f"{world.two.node.address}:")


def test_a_client_behind_two_nats_is_found(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    inner = Nat(world.nats[1].add("inner"), 9, "cone")
    world.nats.insert(0, inner)
    third = world.hub.join(inner.add("third"), **DIRECT)

    def is_direct() -> bool:
        return reaches(third.node, world.one.address, count=1) and "direct" in [row["state"] for row in partners(third)]

    eventually(is_direct, 30, "a direct path")
    before = world.relayed
    assert reaches(third.node, world.one.address, count=20)
    assert world.relayed == before


# -- a path that was open


def test_a_flow_goes_on_by_the_hub_where_the_nats_change_and_directly_later(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    with Flow(world.one, world.two) as flow:
        flow.wait_for(MIB)
        before = world.relayed
        for nat in world.nats:
            nat.become("symmetric")
        flow.wait_for(4 * MIB)
        assert world.relayed > before
        for nat in world.nats:
            nat.become("cone")
        eventually(lambda: "direct" in world.states(), 60, "a direct path again")
        flow.wait_for(MIB)


def test_a_nat_that_forgets_its_mappings_costs_a_moment(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    world.nats[0].forget()
    world.nats[1].forget()
    eventually(world.talk, 5, "an answer")
    world.become_direct()
    world.assert_direct()


def test_no_packet_is_lost_where_a_direct_path_ends_and_the_hub_takes_over(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    before = world.one.counter("dgram.blocks_returned")
    with ThreadPoolExecutor(1) as pool:
        pings = pool.submit(
            world.one.node.inside, lambda: generators.ping(world.two.address, 500, 0.01, 1000, REACHED_SECONDS)
        )
        eventually(lambda: world.one.counter("tun.packets_read") > 100, what="pings")
        left, right = world.nats
        with left.deaf_to(right.node.address), right.deaf_to(left.node.address):
            result = pings.result()
    assert result.lost == []
    assert world.one.counter("dgram.blocks_returned") > before
    assert "direct" not in world.states()


def test_a_path_that_flaps_is_used_less_and_less_and_no_byte_is_lost(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    left, right = world.nats
    with Flow(world.one, world.two) as flow:
        for _ in range(8):
            with left.deaf_to(right.node.address), right.deaf_to(left.node.address):
                flow.wait_for(MIB)
            flow.wait_for(MIB)
    opened = [event for event in world.one.running()["events"] if event["kind"] == "direct-open"]
    assert 1 <= len(opened) <= 4


def test_a_killed_dgram_worker_keeps_the_path(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    with Flow(world.one, world.two) as flow, Flow(world.two, world.one) as back:
        for client in (world.one, world.two):
            flow.wait_for(MIB)
            back.wait_for(MIB)
            client.wait_until_replaced("dgram-0", client.signal_worker("dgram-0", signal.SIGKILL))
        flow.wait_for(MIB)
    eventually(lambda: world.states() == ["direct", "direct"], 20, "the direct path")


def test_transfers_take_the_direct_path_both_ways(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)

    def none_is_relayed() -> bool:
        """A busy machine may stop a worker for so long that the path goes dark."""
        world.become_direct()
        before = world.relayed
        transfer(world.one, world.two, streams=2, size=2 * MIB)
        transfer(world.two, world.one, streams=2, size=2 * MIB)
        transfer(world.one, world.two, streams=1, size=MIB, six=True)
        return world.relayed - before < 20

    eventually(none_is_relayed, 90, "transfers past the hub")
    transfer(world.one, world.hub.server, streams=1, size=MIB)


# -- the hub keeps its word


def test_a_revoked_client_is_no_partner_from_that_moment_on(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    assert world.hub.server.command("revoke", "one").returncode == 0
    eventually(lambda: ended(world.two), 2, "the end of the pair")
    assert not reaches(world.one.node, world.two.address, count=3, seconds=1)
    assert [row["state"] for row in partners(world.two)] == ["relayed"]


@pytest.mark.parametrize(
    "rule",
    [{"client_isolation": True}, {"may_reach": ["10.99.0.1"]}, {"total_rate_mbit": 50}],
    ids=lambda rule: next(iter(rule)),
)
def test_a_reload_that_forbids_direct_paths_ends_them(stack: ExitStack, tmp_path: Path, rule: dict[str, Any]) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    world.hub.configure(**rule)
    eventually(lambda: ended(world.one) and ended(world.two), 5, "the end of the pair")
    if "total_rate_mbit" not in rule:
        assert not reaches(world.one.node, world.two.address, count=3, seconds=1)


def test_a_partner_sends_from_its_own_addresses_to_ours_alone(stack: ExitStack, tmp_path: Path) -> None:
    world = World(stack, tmp_path)
    world.become_direct()
    refused = world.two.counter("tun.dropped_source_refused"), world.two.counter("tun.dropped_destination_refused")
    for source in ("10.99.0.200", "192.0.2.1"):
        send_udp(world.one, source, world.two.address)
    eventually(lambda: world.two.counter("tun.dropped_source_refused") - refused[0] == 2, what="two refused packets")
    assert world.two.counter("tun.dropped_destination_refused") == refused[1]
    assert reaches(world.one.node, world.two.address)


@pytest.mark.parametrize("who", ["hub", "client"])
def test_with_direct_off_at_one_of_them_nothing_but_the_hub_is_used(stack: ExitStack, tmp_path: Path, who: str) -> None:
    off = {"direct": "off"}
    world = World(stack, tmp_path, **(off if who == "hub" else {}))
    if who == "client":
        third = world.hub.join(world.nats[1].add("third"), carrier="auto")
        assert third.running()["direct"] is None

        def is_refused() -> bool:
            assert reaches(world.one.node, third.address, count=1)
            return "third has" in str(world.hub.server.running()["direct"])

        eventually(is_refused, what="a reason")
        assert partners(world.one) == []
    else:
        for _ in range(8):
            assert world.talk()
        assert world.states() == [] and world.hub.server.running()["direct"] is None


def send_udp(client: Client, source: str, destination: str) -> None:
    """A datagram from an address that is not the client's."""
    payload = struct.pack(">HHHH", 9, 9, 12, 0) + b"test"
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0) + addresses
    with client.node.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(header + payload, (destination, 0))
