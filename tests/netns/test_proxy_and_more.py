"""Clients behind a proxy, and something else beside it: several servers, a full tunnel, a port shared with a site."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.tls_ends import issue
from tests.netns.harness.hosts import with_hosts
from tests.netns.harness.hub import established, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.name_server import NameServer
from tests.netns.harness.proxies import haproxy, microsocks, squid, tinyproxy
from tests.netns.harness.uplink import GATEWAY, SERVER, Programs, Uplink, World
from tests.netns.test_full_tunnel import Tunnel, connected_to, go_on
from tests.netns.test_port_443 import shared_port
from tests.netns.test_servers import ALL, Site
from tests.support import eventually
from tools.lab.network import Lab

PROXY_NAME = "proxy.test"


# -- several servers


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("client", "a", "b", "proxy")) as made:
        yield made


def sources(server: Instance) -> set[str]:
    rows = server.running()["connections"]
    return {row["address"].rpartition(":")[0] for row in rows if row["state"] == "established"}


def expect_all_by_the_proxy(here: Site) -> None:
    """All connections to the first server, and that which stands by at the second one."""
    for name, count in (("a", ALL), ("b", 1)):
        eventually(lambda: established(here.servers[name]) == count, what=f"{count} connection(s) at {name}")
        assert sources(here.servers[name]) == {here.lab["proxy"].address}


@pytest.mark.alone
def test_a_client_of_two_servers_has_both_through_the_proxy_and_goes_to_the_one_that_is_left(
    lab: Lab, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(tinyproxy(lab["proxy"], tmp_path))
        here = Site(lab, tmp_path, stack, proxy=proxy.url)
        here.wait_for_standby()
        assert here.states() == ["current", "standby"]
        expect_all_by_the_proxy(here)
        with here.gap(3.0) as found:
            here.servers["a"].kill()
            here.wait_until_at("b")
        assert found[0] < 1.5
        eventually(lambda: established(here.servers["b"]) == ALL, what="all connections at b")
        assert sources(here.servers["b"]) == {lab["proxy"].address}
        said = here.client.command("status").stdout.splitlines()[0]
        assert f"connected to {lab['b'].address} through proxy {proxy.url} since " in said and "here because" in said


@pytest.mark.alone
def test_a_server_that_vanishes_behind_the_proxy_is_left_long_before_the_timeout(lab: Lab, tmp_path: Path) -> None:
    """The proxy goes on acknowledging what it cannot deliver, and answers no question."""
    with ExitStack() as stack:
        proxy = stack.enter_context(microsocks(lab["proxy"], tmp_path))
        here = Site(lab, tmp_path, stack, proxy=proxy.url)
        here.wait_for_standby()
        with here.gap(6.0) as found:
            lab["a"].ip("link set link0 down")
            here.wait_until_at("b", 15.0)
        assert found[0] < 5.0


def test_servers_of_srv_records_are_dialed_by_their_names_through_the_proxy(lab: Lab, tmp_path: Path) -> None:
    """The proxy alone has addresses for these names."""
    hosts = {"fra.test": lab["a"].address, "ams.test": lab["b"].address}

    def remotes(addresses: list[str]) -> str:
        a, b = (int(each.rpartition(":")[2]) for each in addresses)
        names.tell([(20, b, "ams.test"), (10, a, "fra.test")], {})
        return "srv:_tunnel._tcp.example.test"

    with ExitStack() as stack:
        own = with_hosts(tmp_path, *(f"{address} {host}" for host, address in hosts.items()))
        proxy = stack.enter_context(tinyproxy(lab["proxy"], tmp_path, wrap=own))
        names = stack.enter_context(NameServer(lab["client"], tmp_path))
        here = Site(lab, tmp_path, stack, remotes, names.wrap, proxy=proxy.url)
        here.wait_for_standby()
        expect_all_by_the_proxy(here)


def test_a_command_leads_to_the_server_that_the_client_goes_to(lab: Lab, tmp_path: Path) -> None:
    """nc stays when the proxy has closed its connection."""
    with ExitStack() as stack:
        proxy = stack.enter_context(microsocks(lab["proxy"], tmp_path))
        here = Site(lab, tmp_path, stack, proxy_command=relay(proxy.url), timeout=2.0, keepalive=0.5)
        here.wait_for_standby()
        here.servers["a"].kill()
        here.wait_until_at("b", 20.0)
        eventually(lambda: established(here.servers["b"]) == ALL, what="all connections at b")
        assert sources(here.servers["b"]) == {lab["proxy"].address} and established(here.client) == ALL


# -- a full tunnel


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack)


Way = Callable[[World, Path, ExitStack], tuple[dict[str, Any], int]]
"""Settings of the client, and the port of the proxy, which is at SERVER."""


def plain(world: World, directory: Path, stack: ExitStack) -> tuple[dict[str, Any], int]:
    proxy = stack.enter_context(tinyproxy(world.gateway, directory, host=SERVER))
    return {"proxy": proxy.url}, port_in(proxy.url)


def by_tls(world: World, directory: Path, stack: ExitStack) -> tuple[dict[str, Any], int]:
    _, port = plain(world, directory, stack)
    ca = issue("ca", is_ca=True)
    pair = issue(PROXY_NAME, ca)
    (directory / "ca.crt").write_text(ca.certificate)
    pem = directory / "proxy.pem"
    pem.write_text(pair.certificate + pair.key)
    proxy = stack.enter_context(haproxy(world.gateway, pem, f"{SERVER}:{port}", directory, PROXY_NAME, host=SERVER))
    return {"proxy": proxy.url, "proxy_ca_file": str(directory / "ca.crt")}, port_in(proxy.url)


def by_command(world: World, directory: Path, stack: ExitStack) -> tuple[dict[str, Any], int]:
    proxy = stack.enter_context(microsocks(world.gateway, directory, host=SERVER))
    return {"proxy_command": relay(proxy.url)}, port_in(proxy.url)


def relay(url: str) -> list[str]:
    if not Path("/usr/bin/nc").exists():
        pytest.skip("netcat-openbsd is not installed")
    return ["/usr/bin/nc", "-X", "5", "-x", url.removeprefix("socks5://"), "%h", "%p"]


def port_in(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("way", [plain, by_tls, by_command])
def test_nothing_but_the_connections_to_the_proxy_leaves_by_the_uplink(world: World, tmp_path: Path, way: Way) -> None:
    with ExitStack() as stack:
        settings, port = way(world, tmp_path, stack)
        wrap = with_hosts(tmp_path, f"{SERVER} {PROXY_NAME}")
        uplink = stack.enter_context(Uplink(world.machine))
        stack.enter_context(Programs(world.machine))
        tunnel = Tunnel(stack, world, tmp_path, wrap=wrap, **settings)
        eventually(tunnel.is_shut, 30)
        shut = time.monotonic()
        tunnel.joined()
        go_on()
        assert uplink.strange(port, shut) == set()

        for child in psutil.Process(tunnel.client.process.pid).children():
            if "pipeline.bridge" in child.cmdline():
                child.kill()
        tunnel.kill_everything()
        go_on()
        assert uplink.strange(port, shut) == set() and tunnel.is_shut()

        tunnel.start()
        client = tunnel.joined()
        opening = time.monotonic()
        client.stop()
        assert uplink.strange(port, shut, opening) == set()
        assert tunnel.state(tunnel.name) == tunnel.before


@pytest.mark.parametrize("way", [plain, by_tls])
def test_the_name_of_the_proxy_is_looked_up_around_the_tunnel(world: World, tmp_path: Path, way: Way) -> None:
    with ExitStack() as stack:
        settings, port = way(world, tmp_path, stack)
        names = stack.enter_context(NameServer(world.gateway, tmp_path))
        names.answer(SERVER)
        settings["proxy"] = settings["proxy"].replace(SERVER, PROXY_NAME)
        tunnel = Tunnel(stack, world, tmp_path, wrap=names.wrap, dns=["10.99.0.1"], **settings)
        tunnel.joined()
        before = tunnel.client.counter("tcp.connections_established")
        uplink = stack.enter_context(Uplink(world.machine))
        world.lab.cut()
        eventually(lambda: not established(tunnel.client), 30, "no connection is left")
        world.lab.join()
        world.machine.run(["ip", "route", "replace", "default", "via", GATEWAY])
        eventually(lambda: tunnel.client.counter("tcp.connections_established") > before, 30)
        tunnel.joined()
        assert uplink.strange(port) <= {(socket.IPPROTO_UDP, GATEWAY, 53)}


# -- a port that is shared with a web site


@pytest.mark.parametrize("run", [tinyproxy, squid, microsocks], ids=lambda run: run.__name__)
def test_a_server_behind_a_web_site_knows_a_client_that_comes_through_a_proxy(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    with (
        Lab(names=("hub", "one", "proxy")) as lab,
        shared_port(lab, tmp_path, tls_alpn=["h2", "http/1.1"]) as site,
        run(lab["proxy"], tmp_path) as proxy,
    ):
        client = site.hub.join(lab["one"], proxy=proxy.url)
        assert reaches(lab["one"], site.hub.server.address)
        eventually(lambda: established(site.hub.server) == ALL, what="all connections at the hub")
        assert connected_to(client) == {lab["proxy"].address} == sources(site.hub.server)
        assert site.curl("shared")[0] == 0
