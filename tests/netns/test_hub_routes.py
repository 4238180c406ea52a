"""Whose packets go where through a hub: networks behind clients, pushed routes, false sources, client to client."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.netns.harness.checked_flow import transfer
from tests.netns.harness.hub import BOTH, PLAIN, Client, Hub, inside, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.shared_hub import BEHIND_HUB, HOSTS_BEHIND, HostsBehind, networks_behind
from tests.support import eventually
from tools.lab.namespace import Namespace

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h: any source address, for root


# -- routes


@BOTH
def test_networks_that_the_server_pushes_are_reached_through_it(hub: Hub, six: bool) -> None:
    for client in hub.clients.values():
        assert BEHIND_HUB[six] in client.routes()
        assert reaches(client.node, "fd50::1" if six else "10.50.0.1")


def test_pushed_routes_go_when_the_server_pushes_them_no_more(hub: Hub, invitation: str, tmp_path: Path) -> None:
    pushed = hub.server.config["push_routes"]
    with Client(hub.lab["four"], invitation, tmp_path, routes=["10.52.0.0/16"], **PLAIN) as four:
        four.wait_until_joined()
        try:
            for more in (["10.51.0.0/16", "10.52.0.0/16", "fd51::/48"], []):
                hub.configure(push_routes=[*pushed, *more])
                four.command("restart", "tcp-0")
                eventually(lambda: set(more) <= set(four.routes()) and ("fd51::/48" in four.routes()) == bool(more))
                assert {"10.52.0.0/16", *BEHIND_HUB} <= set(four.routes()), "its own stay"
        finally:
            hub.configure(push_routes=pushed)


@pytest.mark.parametrize("known_by", ["address", "name"])
def test_a_pushed_route_that_would_swallow_the_way_to_the_server_is_not_taken(
    hub: Hub, known_by: str, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{hub.node.address} hub.test\n")
    with_hosts = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    pushed = hub.server.config["push_routes"]
    hub.configure(push_routes=[*pushed, "0.0.0.0/0", "10.77.0.0/25"])
    invitation = hub.invite("four", *(["--address", "hub.test"] if known_by == "name" else []))
    try:
        with Client(hub.lab["four"], invitation, tmp_path, wrap=with_hosts, **PLAIN) as four:
            four.wait_until_joined()
            four.wait_for_log("route 0.0.0.0/0 from the server is ignored: it leads too large a part of the Internet")
            four.wait_for_log("route 10.77.0.0/25 from the server is ignored: it would cover 10.77.0.0/24 of link0")
            assert reaches(four.node, hub.server.address) and set(BEHIND_HUB) <= set(four.routes())
            assert not {"default", "10.77.0.0/25"} & set(four.routes())
    finally:
        hub.configure(push_routes=pushed)
        hub.server.command("revoke", "four")


@BOTH
def test_hosts_behind_two_clients_reach_each_other_and_the_hub(hub: Hub, hosts_behind: HostsBehind, six: bool) -> None:
    one, two = (hosts_behind[name] for name in ("one", "two"))
    assert reaches(one.node, two.addresses[six]) and reaches(two.node, one.addresses[six])
    assert reaches(hub.node, one.addresses[six]) and reaches(two.node, inside(hub.server, six))
    assert reaches(two.node, "fd50::1" if six else "10.50.0.1")


def test_a_network_behind_a_client_is_not_pushed_to_itself(hub: Hub) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        assert set(networks_behind(HOSTS_BEHIND[other])) <= set(hub[name].routes())
        assert not set(networks_behind(HOSTS_BEHIND[name])) & set(hub[name].routes())


@BOTH
def test_tcp_from_host_to_host_over_two_clients_arrives(hub: Hub, hosts_behind: HostsBehind, six: bool) -> None:
    one, two = (hosts_behind[name] for name in ("one", "two"))
    transfer(one, two, streams=2, size=1_000_000, six=six)
    transfer(two, one, streams=2, size=1_000_000, six=six)


# -- source addresses

SOURCES = {
    "another-clients": ("10.99.0.3", "fd99::3"),
    "the-servers": ("10.99.0.1", "fd99::1"),
    "nobodys": ("10.99.0.200", "fd99::200"),
    "behind-another-client": ("10.1.2.2", "fd01:2::2"),
    "behind-the-server": ("10.50.0.1", "fd50::1"),
    "of-the-world": ("198.51.100.1", "2001:db8::1"),
}


@BOTH
@pytest.mark.parametrize("whose", SOURCES)
def test_a_source_that_is_not_the_clients_own_reaches_nobody(
    hub: Hub, hosts_behind: HostsBehind, whose: str, six: bool
) -> None:
    one, three = hub["one"], hub["three"]
    assert [hub["two"].address, hub["two"].address6] == list(SOURCES["another-clients"])
    refused = hub.server.counter("tun.dropped_source_refused")
    with receiver(hub.node, six) as at_hub, receiver(three.node, six) as at_three:
        for instance, target in ((hub.server, at_hub), (three, at_three)):
            with sender(one, SOURCES[whose][six], six) as false:
                false.sendto(b"false", (inside(instance, six), target.getsockname()[1]))
        eventually(lambda: hub.server.counter("tun.dropped_source_refused") >= refused + 2, what="both are refused")
        for instance, target in ((hub.server, at_hub), (three, at_three)):
            for source in (inside(one, six), hosts_behind["one"].addresses[six]):
                with sender(one, source, six) as true:
                    true.sendto(b"true", (inside(instance, six), target.getsockname()[1]))
                assert target.recvfrom(100)[0] == b"true"


def receiver(node: Namespace, six: bool) -> socket.socket:
    sock = node.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", 0))
    sock.settimeout(5)
    return sock


def sender(client: Instance, source: str, six: bool) -> socket.socket:
    """A socket that sends into the tunnel from any address."""
    sock = client.node.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(*(socket.IPPROTO_IPV6, IPV6_TRANSPARENT) if six else (socket.SOL_IP, IP_TRANSPARENT), 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, client.tun_name.encode())
    sock.bind((source, 0))
    return sock


@BOTH
def test_multicast_of_a_client_goes_nowhere(hub: Hub, six: bool) -> None:
    before = hub.server.counter("tun.dropped_multicast")
    with sender(hub["one"], inside(hub["one"], six), six) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for group in ("ff02::fb", "ff05::2") if six else ("224.0.0.251", "239.1.1.1", "255.255.255.255"):
            sock.sendto(b"everybody", (group, 9))
    eventually(lambda: hub.server.counter("tun.dropped_multicast") >= before + 3 - six)


# -- client to client


@BOTH
def test_clients_reach_each_other_through_the_hub(hub: Hub, six: bool) -> None:
    for source, sink in (("one", "two"), ("two", "three"), ("three", "one")):
        assert reaches(hub[source].node, inside(hub[sink], six))
    transfer(hub["one"], hub["two"], streams=2, size=3_000_000, six=six)
    transfer(hub["two"], hub["one"], streams=2, size=3_000_000, six=six)


def test_with_client_isolation_they_reach_the_hub_alone(hub: Hub, hosts_behind: HostsBehind) -> None:
    one, two = hub["one"], hub["two"]
    hub.configure(client_isolation=True, anew=True)
    try:
        hub.wait_for_all()
        dropped = hub.server.counter("tun.dropped_isolated")
        for address in (two.address, two.address6, *hosts_behind["two"].addresses):
            assert not reaches(one.node, address, count=1, seconds=0.1)
        eventually(lambda: hub.server.counter("tun.dropped_isolated") >= dropped + 4, what="each was dropped for that")
        assert reaches(one.node, "10.50.0.1")
    finally:
        hub.configure(client_isolation=False, anew=True)
        hub.wait_for_all()
    eventually(lambda: reaches(one.node, two.address, seconds=0.3))
