"""Pools of IPv6 addresses: alone, added to a hub that has clients, and out of the /64 of a provider."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub, reaches
from tests.support import ROOT, eventually
from tools.lab.network import Lab

pytestmark = pytest.mark.slow

LINK = "2001:db8:1:2::"
"""The /64 of the hub's provider: its router is ::1, the hub ::2, and the clients have a /80 in it."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "one", "two")) as made:
        yield made


def addresses(hub: Hub, name: str) -> list[str]:
    return hub.peers()[name]["addresses"]


def test_a_hub_with_ipv6_alone_serves_clients_that_get_and_keep_an_address(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path, tunnel_addr="fd99::1/64", **PLAIN) as hub:
        one, two = (hub.join(lab[name], **PLAIN) for name in ("one", "two"))
        before = {name: addresses(hub, name) for name in ("one", "two")}
        assert before == {"one": ["fd99::2"], "two": ["fd99::3"]}
        assert reaches(one.node, "fd99::3") and reaches(two.node, "fd99::1")
        hub.server.stop()
        hub.server = hub._stack.enter_context(hub.server.start_again())
        hub.server.wait_until_running()
        eventually(lambda: reaches(one.node, "fd99::3"), 15, "the clients back")
        assert {name: addresses(hub, name) for name in ("one", "two")} == before


def test_clients_that_were_there_before_get_addresses_of_a_pool_that_is_added_and_lose_those_of_one_that_has_gone(
    lab: Lab, tmp_path: Path
) -> None:
    with Hub(lab, tmp_path, tunnel_addr="10.99.0.1/24", **PLAIN) as hub:
        one = hub.join(lab["one"], **PLAIN)
        for pools, expected in (
            (["10.99.0.1/24", "fd99::1/64"], ["10.99.0.2", "fd99::2"]),
            (["fd98::1/112"], ["fd98::2"]),
        ):
            hub.server.stop()
            hub.server.config = {**hub.server.config, "tunnel_addr": pools}
            hub.server = hub._stack.enter_context(hub.server.start_again())
            hub.server.wait_until_running()
            eventually(lambda: hub.connected() == {"one"}, 15, "the client back")
            assert sorted(addresses(hub, "one")) == expected
            eventually(lambda: reaches(one.node, pools[-1].partition("/")[0]), 15, "the hub by IPv6")


def test_clients_have_public_addresses_out_of_the_link_of_the_hub(lab: Lab, tmp_path: Path) -> None:
    """`two` is the provider's router: it knows nothing but that the /64 is on the link."""
    script = tmp_path / "ndp-proxy.sh"
    script.write_text((ROOT / "configs/ndp-proxy.sh").read_text())
    script.chmod(0o755)
    hub_node, router = lab["hub"], lab["two"]
    router.ip(f"address add {LINK}1/64 dev link0 nodad")
    hub_node.ip(f"address add {LINK}2/64 dev link0 nodad")
    hub_node.run(["sysctl", "-w", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.link0.proxy_ndp=1"])
    hook = [str(script), "link0"]
    settings = {"tunnel_addr": ["10.99.0.1/24", f"{LINK[:-1]}7::1/80"], "on": {"peer-joined": hook, "peer-left": hook}}
    with Hub(lab, tmp_path, **settings, **PLAIN) as hub:
        one = hub.join(lab["one"], **PLAIN, routes=[f"{LINK}/64"])
        public = f"{LINK[:-1]}7::2"
        assert public in addresses(hub, "one")
        eventually(lambda: reaches(router, public, count=1), 15, "the client from the provider's router")
        assert reaches(one.node, f"{LINK}1")
        assert "overlaps" not in " ".join(hub.server.running()["notes"])
        one.stop()
        eventually(lambda: not proxies(hub_node), 15, "no proxy entry left")
        assert not reaches(router, public, count=1, seconds=0.3)


def proxies(node: object) -> list[dict[str, object]]:
    return json.loads(node.run(["ip", "-j", "-6", "neighbour", "show", "proxy"]).stdout or "[]")
