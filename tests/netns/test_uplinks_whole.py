"""A client with several uplinks as a whole: what arrives over two paths, kills, a backup, other ends, other clients.

Each cable is an uplink (tools/lab/cables.py). Every byte of a TCP connection inside is compared.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pipeline.credentials import keys
from tests.netns.harness.altered import altered_workers
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.hub import established, hub_config
from tests.netns.harness.instance import Instance, Instances, client_config, reaches, server_config
from tests.netns.harness.numbered import Numbered
from tests.netns.harness.uplinks import (
    ALL,
    BULK_BYTES,
    EITHER_END,
    QUICK,
    load,
    two_cables,
    uplinks,
    wait_until_carrying,
)
from tests.support import eventually
from tools.lab.cables import DOWN, UP, Cable, Cables, Where
from tools.lab.link_model import LinkSpec
from tools.lab.network import INTERFACE, Node, add_veth_pair

SOON, LATE = LinkSpec(delay_ms=2, rate_mbit=20), LinkSpec(delay_ms=50, rate_mbit=20)
FAR_AWAY = LinkSpec(delay_ms=200, rate_mbit=20)
IDLE_SHARE = 0.02
"""Of the bytes that the main uplink carries meanwhile: keepalives of a backup are less."""

LOOKS, LOOKS_MOST = 3, 20

MAIN, BACKUP = LinkSpec(delay_ms=5, rate_mbit=40), LinkSpec(delay_ms=20, rate_mbit=40)


def bytes_of(cable: Cable) -> int:
    return sum(cable.carried().values())


@pytest.mark.slow
@pytest.mark.parametrize("encryption", ["none", "tls"])
def test_bytes_arrive_in_order_over_two_paths_of_very_different_delay(tmp_path: Path, encryption: str) -> None:
    with two_cables(tmp_path, SOON, LATE, encryption=encryption) as (lab, (server, client)):
        before = [cable.carried() for cable in lab.cables]
        with Flow(client, server) as up, Flow(server, client) as down:
            wait_until_carrying(*lab.cables)
            up.wait_for(BULK_BYTES)
            down.wait_for(BULK_BYTES)
        for cable, then in zip(lab.cables, before, strict=True):
            now = cable.carried()
            assert all(now[way] - then[way] > BULK_BYTES / 10 for way in (UP, DOWN)), f"{cable.interface} {then} {now}"


@pytest.mark.slow
def test_a_far_path_leaves_bulk_to_the_near_one_and_carries_all_of_it_alone(tmp_path: Path) -> None:
    with two_cables(tmp_path, SOON, FAR_AWAY) as (lab, (server, client)):
        near, far = lab.cables
        with Flow(client, server) as up, Flow(server, client) as down:

            def is_left_to_the_near_one() -> bool:
                before = near.carried(), far.carried()
                for flow in (up, down):
                    flow.wait_for(2 * BULK_BYTES)
                return all(
                    far.carried()[way] - before[1][way] < (near.carried()[way] - before[0][way]) / 4
                    for way in (UP, DOWN)
                )

            while_nothing_is_late((server, client), is_left_to_the_near_one)
            near.pull("end")
            for flow in (up, down):
                flow.wait_for(BULK_BYTES // 8, 30.0)
            near.plug()


def test_many_short_connections_arrive_over_two_paths(tmp_path: Path) -> None:
    with two_cables(tmp_path, SOON, LATE) as (_, (server, client)):
        transfer(client, server, streams=8, size=100_000)
        transfer(server, client, streams=8, size=100_000, six=True)


@pytest.mark.slow
@EITHER_END
def test_workers_of_both_ends_that_are_killed_while_a_cable_is_pulled_and_plugged_cost_no_byte(
    tmp_path: Path, where: Where
) -> None:
    with two_cables(tmp_path, restart_intensity=1000) as (lab, instances):
        server, client = instances
        with Flow(client, server) as up, Flow(server, client) as down:
            for number, (instance, name) in enumerate(itertools.product(instances, ("tcp-0", "fec-0", "tun-0"))):
                wait_until_carrying(*lab.cables)
                cable = lab.cables[number % 2]
                cable.pull(where)
                kill(instance, name)
                for flow in (up, down):
                    flow.wait_for(BULK_BYTES)
                cable.plug()
                kill(instance, name)
            wait_until_carrying(*lab.cables)


def kill(instance: Instance, name: str) -> None:
    instance.wait_until_replaced(name, instance.signal_worker(name, signal.SIGKILL))


# -- a backup


@pytest.mark.slow
@EITHER_END
def test_a_backup_carries_keepalives_alone_then_everything_and_then_nothing_again(tmp_path: Path, where: Where) -> None:
    with two_cables(tmp_path, MAIN, BACKUP, client=uplinks("cable1", backup="cable2")) as (lab, instances):
        main, backup = lab.cables
        with load(instances) as (packets, flows):
            while_nothing_is_late(instances, lambda: is_idle(backup, main, packets, flows))
            main.pull(where)
            before = bytes_of(backup)
            packets.wait_for(100)
            for flow in flows:
                flow.wait_for(BULK_BYTES)
            assert bytes_of(backup) - before > BULK_BYTES
            main.plug()
            eventually(lambda: is_idle(backup, main, packets, flows), 30.0, "everything on the main uplink")


def test_a_backup_alone_of_all_uplinks_carries_everything_from_the_start(tmp_path: Path) -> None:
    with Cables(MAIN, BACKUP) as lab, ExitStack() as stack:
        main, backup = lab.cables
        main.pull("end")
        serving = server_config(lab.server, **QUICK)
        server = stack.enter_context(Instance(lab.server, serving, tmp_path))
        settings = client_config(serving, lab.server.address, **QUICK, **uplinks("cable1", backup="cable2"))
        client = stack.enter_context(Instance(lab.client, settings, tmp_path))
        client.wait_until_running()
        eventually(lambda: reaches(client, server, count=1), 15.0, "a ping by the backup")
        packets = stack.enter_context(Numbered(client, server))
        flows = [stack.enter_context(Flow(*ends)) for ends in ((client, server), (server, client))]
        packets.wait_for(50)
        main.plug()
        eventually(lambda: is_idle(backup, main, packets, flows), 30.0, "everything on the main uplink")
        packets.all_arrive()


def is_idle(backup: Cable, main: Cable, packets: Numbered, flows: list[Flow]) -> bool:
    """Whether the backup carried next to nothing while the main uplink carried some load."""
    before = bytes_of(backup), bytes_of(main)
    packets.wait_for(50)
    for flow in flows:
        flow.wait_for(BULK_BYTES)
    used, carried = bytes_of(backup) - before[0], bytes_of(main) - before[1]
    return carried > BULK_BYTES and used < IDLE_SHARE * carried


def while_nothing_is_late(instances: Instances, holds: Callable[[], bool]) -> None:
    """It holds, and goes on to. A machine that stands still for a moment makes the main uplink late: that is no time to
    look."""
    looked = 0
    for _ in range(LOOKS_MOST):
        before = [instance.counter("tcp.uplinks_timed_out") for instance in instances]
        found = holds()
        if before == [instance.counter("tcp.uplinks_timed_out") for instance in instances]:
            assert found
            looked += 1
            if looked == LOOKS:
                return
    pytest.fail(f"the main uplink was late in all but {looked} of {LOOKS_MOST} looks")


# -- other ends


UNAWARE = "from pipeline.wire import messages; messages.UPLINK = 200"


@pytest.mark.slow
@EITHER_END
def test_a_server_that_does_not_know_uplinks_works_and_survives_a_pulled_cable(tmp_path: Path, where: Where) -> None:
    with Cables(MAIN, BACKUP) as lab, ExitStack() as stack:
        serving = server_config(lab.server, **QUICK)
        server = stack.enter_context(Instance(lab.server, serving, tmp_path, wrap=altered_workers(UNAWARE)))
        settings = client_config(serving, lab.server.address, **QUICK, **uplinks("cable1", "cable2"))
        client = stack.enter_context(Instance(lab.client, settings, tmp_path))
        client.wait_until_connected(ALL)
        assert uplinks_of(server) == {None} and uplinks_of(client) == {0, 1}
        with Flow(client, server) as up, Flow(server, client) as down:
            for flow in (up, down):
                flow.wait_for(BULK_BYTES)
            lab.cables[0].pull(where)
            for flow in (up, down):
                flow.wait_for(BULK_BYTES, 30.0)
            lab.cables[0].plug()
            wait_until_carrying(lab.cables[0])


def uplinks_of(instance: Instance) -> set[int | None]:
    """The uplinks of its connections, as far as it knows of them."""
    return {row["uplink"] for row in instance.running()["connections"]}


# -- other clients


@pytest.fixture
def other(cables: Cables) -> Iterator[Node]:
    """A node with a link of its own to the server."""
    with closing(Node("other", 3, 5.0)) as node:
        add_veth_pair(cables.server, "other", node)
        cables.server.ip("address add 10.77.200.1/24 dev other", "link set other up")
        node.ip(
            "link set lo up",
            f"address add 10.77.200.2/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            f"route add {cables.server.address} via 10.77.200.1",
        )
        yield node


@pytest.fixture
def cables() -> Iterator[Cables]:
    with Cables(MAIN, BACKUP) as made:
        yield made


@pytest.mark.slow
@EITHER_END
def test_a_client_with_uplinks_and_one_without_are_served_by_one_hub(
    cables: Cables, other: Node, tmp_path: Path, where: Where
) -> None:
    peers = []
    for name in ("many", "one"):
        keys.write_secret(tmp_path / name, keys.generate().encode())
        peers.append({"name": name, "key_file": str(tmp_path / name)})
    addresses = {"many": "10.99.0.2", "one": "10.99.0.3"}
    peers = [{**peer, "address": addresses[peer["name"]]} for peer in peers]
    with ExitStack() as stack:
        config = hub_config(cables.server, tmp_path, peers=peers, multi_client=True, **QUICK)
        server = stack.enter_context(Instance(cables.server, config, tmp_path))
        server.wait_until_running()
        clients = {}
        for name, node, settings in (("many", cables.client, uplinks("cable1", "cable2")), ("one", other, {})):
            config = {
                "mode": "client",
                "key_file": str(tmp_path / name),
                "remote_addr": server.config["public_addr"],
                "tunnel_addr": [f"{addresses[name]}/24"],
                "reconnect_max": 0.5,
                **QUICK,
                **settings,
            }
            clients[name] = stack.enter_context(Instance(node, config, tmp_path))
            clients[name].wait_until_connected(ALL)
        with (
            Flow(clients["many"], server) as up,
            Flow(server, clients["many"]) as down,
            Numbered(clients["one"], server) as steady,
            Numbered(clients["many"], clients["one"]) as between,
        ):
            wait_until_carrying(*cables.cables)
            cables.cables[0].pull(where)
            for flow in (up, down):
                flow.wait_for(BULK_BYTES)
            for packets in (steady, between):
                packets.wait_for(100)
            cables.cables[0].plug()
            wait_until_carrying(*cables.cables)
            steady.all_arrive()
            between.all_arrive()
        assert established(clients["one"]) == ALL
