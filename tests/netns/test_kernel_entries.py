"""The TUN device, its addresses and routes in a host's network that others change as well.

The device is the supervisor's own object, in a namespace of the test and without workers:

    lan -- link0, 192.168.1.0/24 -- host, its default route through the gateway 192.168.1.254, SERVER behind that
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, parse
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy import put_back
from pipeline.supervisor.kernel import reconciler, server_lookup
from pipeline.supervisor.kernel.mss_clamp import MssClamp
from pipeline.supervisor.kernel.rtnetlink import Refusal
from pipeline.supervisor.kernel.table_keeper import TableKeeper
from pipeline.supervisor.kernel.tun_device import TunDevice
from tests.support import eventually
from tools.lab.namespace import LabError, Namespace, stop
from tools.lab.network import add_veth_pair

SERVER = "198.18.0.1"
TUN = "tun-test"
LAN = "192.168.1.0/24"
INSIDE = ["10.99.0.2/24", "fd99::2/64"]
ROUTES = ["10.60.0.0/16", "fd60::/48"]
LIMITED = 5


class Host:
    """A namespace with a network, and what is said in it."""

    def __init__(self, node: Namespace, said: list[str]) -> None:
        self.node = node
        self.said = said

    def ip(self, *commands: str) -> None:
        for command in commands:
            self.node.run(["ip", *command.split()])

    def table(self, *words: str) -> list[str]:
        """Lines of `ip route show table all`, or of what `words` say."""
        shown = ""
        for version in ("-4", "-6"):
            shown += self.node.run(["ip", version, *(words or ["route", "show", "table", "all"])]).stdout
        return sorted(line.strip() for line in shown.splitlines())

    def state(self) -> list[str]:
        """All that this program could leave behind, or take away."""
        return [*self.table(), *self.table("rule"), *self.table("-o", "address"), self.rules()]

    def rules(self) -> str:
        return self.node.run(["nft", "list", "ruleset"], check=False).stdout

    def through_tunnel(self) -> set[str]:
        """Networks that are routed into the device in the main table."""
        found = set()
        for version in ("-4", "-6"):
            shown = self.node.run(["ip", "-j", version, "route", "show", "dev", TUN], check=False).stdout
            found |= {row["dst"] for row in json.loads(shown or "[]")}
        return found

    def addresses(self) -> set[str]:
        (shown,) = json.loads(self.node.run(["ip", "-j", "address", "show", "dev", TUN]).stdout)
        return {f"{row['local']}/{row['prefixlen']}" for row in shown["addr_info"]}

    def goes_to(self, address: str) -> str:
        """The device that a packet to this address leaves by."""
        (shown,) = json.loads(self.node.run(["ip", "-j", "route", "get", address]).stdout)
        return shown["dev"]

    def heard(self, text: str) -> list[str]:
        return [line for line in self.said if text in line]

    @contextmanager
    def device(self, **settings: Any) -> Iterator[Device]:
        made = Device(self, **settings)
        try:
            yield made
        finally:
            self.node.inside(made.tun.close)


class Device:
    """The device of a client, unless the settings say otherwise."""

    def __init__(self, host: Host, **settings: Any) -> None:
        self.host = host
        self.config = config(**settings)
        self.tun = host.node.inside(lambda: TunDevice(self.config))

    def tick(self) -> None:
        self.host.node.inside(lambda: self.tun.repair(time.monotonic_ns()))

    def until(self, condition: Any, seconds: float = 10.0) -> None:
        def turn() -> Any:
            self.tick()
            return condition()

        eventually(turn, seconds, f"{self.host.table()} {self.host.said}")

    def settle(self) -> None:
        """Until all news are dealt with."""
        self.until(lambda: not self.tun._reconciler._due)
        self.host.node.inside(self.tun._reconciler.look_soon)
        self.tick()

    def welcome(self, addresses: list[str], routes: list[str]) -> None:
        pushed = [ip_interface(each) for each in addresses], [ip_network(each) for each in routes]
        self.host.node.inside(lambda: self.tun.take_from_server(*pushed, SERVER))

    def clients(self, *addresses: str) -> None:
        """The clients of a server are connected from there now."""
        self.host.node.inside(lambda: self.tun.know_clients([ip_address(each) for each in addresses]))
        self.tick()

    def reload(self, **settings: Any) -> list[str]:
        self.config = config(**settings)
        return self.host.node.inside(lambda: self.tun.configure(self.config))


def config(**settings: Any) -> Config:
    mode = settings.get("mode", "client")
    basic = {"mode": mode, "name": TUN, "tunnel_addr": INSIDE, "encryption": "none", "insecure": mode == "server"}
    return parse({**basic, **({"remote_addr": f"{SERVER}:9000"} if mode == "client" else {}), **settings})


@pytest.fixture
def host() -> Iterator[Host]:
    lan, node = Namespace("lan"), Namespace("host")
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    before = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        node.sysctl("net.ipv6.conf.default.accept_dad=0")
        add_veth_pair(lan, "port", node)
        lan.run(["ip", "link", "set", "port", "up"])
        made = Host(node, said)
        made.ip(
            "link set lo up",
            "link set link0 addrgenmode none up",
            "address add 192.168.1.2/24 dev link0",
            "address add fd11::2/64 dev link0 nodad",
            "route add default via 192.168.1.254",
            "route add default via fd11::ff",
        )
        yield made
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(before)
        node.close()
        lan.close()


# -- what is another's stays


def test_the_host_is_as_before_whatever_was_asked_for(host: Host) -> None:
    host.ip("route add 10.60.0.0/16 via 192.168.1.254", f"route add {SERVER}/32 via 192.168.1.254")
    before = host.state()
    with host.device(
        routes=["0.0.0.0/0", LAN, *ROUTES], tunnel_addr="auto", accept_routes=["::/0", "10.0.0.0/8"]
    ) as device:
        device.welcome(["10.99.0.2/24", "192.168.1.7/24", "fd99::2/64"], [LAN, "::/0", "10.70.0.0/16"])
        assert {*ROUTES, "default", LAN, "10.70.0.0/16"} <= host.through_tunnel()
        assert [line for line in before if line and line not in host.state()] == []
        device.reload(tunnel_addr="auto")
        assert host.through_tunnel() == {"10.99.0.0/24", "fd99::/64", "10.70.0.0/16"}
    assert host.state() == before


def test_a_route_with_a_better_metric_wins_and_is_named_with_the_cure(host: Host) -> None:
    host.ip("route add 10.60.0.0/16 via 192.168.1.254")
    with host.device(routes=ROUTES) as device:
        device.settle()
        assert host.goes_to("10.60.0.1") == "link0"
        (said,) = host.heard("10.60.0.0/16 via 192.168.1.254 dev link0 has the better metric 0")
        assert "both halves in routes: 10.60.0.0/17, 10.60.128.0/17" in said
        host.ip("route del 10.60.0.0/16 via 192.168.1.254")
        assert host.goes_to("10.60.0.1") == TUN


def test_a_route_of_a_network_manager_is_shadowed_and_back_afterwards(host: Host) -> None:
    host.ip("route add 10.60.0.0/16 via 192.168.1.254 metric 100")
    with host.device(routes=ROUTES):
        assert host.goes_to("10.60.0.1") == TUN
    assert host.goes_to("10.60.0.1") == "link0"


def test_a_pushed_route_never_wins_over_one_of_the_host(host: Host) -> None:
    host.ip("route add 10.60.0.0/16 via 192.168.1.254 metric 600")
    with host.device() as device:
        device.welcome([], ["10.60.0.0/16"])
        device.settle()
        assert host.goes_to("10.60.0.1") == "link0"
        assert host.heard("route 10.60.0.0/16 into the tunnel has no effect")


def test_a_route_whose_network_and_metric_another_has_is_left_out_and_comes_once_that_goes(host: Host) -> None:
    theirs = "10.60.0.0/16 via 192.168.1.254 metric 10"
    host.ip(f"route add {theirs}")
    with host.device(routes=ROUTES) as device:
        assert "10.60.0.0/16" not in host.through_tunnel() and "fd60::/48" in host.through_tunnel()
        assert host.heard("10.60.0.0/16 via 192.168.1.254 dev link0 is there with metric 10, and stays")
        host.ip(f"route del {theirs}")
        device.until(lambda: "10.60.0.0/16" in host.through_tunnel())
        device.settle()
        assert len(host.heard("10.60.0.0/16 is left out")) == 1


def test_halves_of_the_default_route_that_another_tunnel_has_stay(host: Host) -> None:
    host.ip(
        "link add other type veth peer name other-end",
        "link set other up",
        *(f"route add {half} dev other" for half in ("0.0.0.0/1", "128.0.0.0/1")),
        f"route add {SERVER}/32 via 192.168.1.254",
    )
    before = host.table()
    with host.device(routes=["0.0.0.0/0", *ROUTES]) as device:
        device.settle()
        assert host.goes_to("203.0.113.1") == "other" and host.goes_to("10.60.0.1") == TUN
        assert set(before) <= set(host.table())
    assert host.table() == before


# -- the way to the server


def test_a_route_over_the_server_waits_for_a_way_around_and_goes_when_that_goes(host: Host) -> None:
    host.ip("route replace default via 192.168.1.254 metric 100", "route del default via 192.168.1.254 metric 0")
    with host.device(routes=["0.0.0.0/0", "198.18.0.0/15", *ROUTES]) as device:
        assert set(ROUTES) <= host.through_tunnel() and not {"default", "198.18.0.0/15"} & host.through_tunnel()
        (said,) = host.heard("leads to the server itself")
        cure = said.partition("a way around: ip ")[2]
        assert cure == f"route add {SERVER} via 192.168.1.254 dev link0"
        host.ip(cure)
        device.until(lambda: {"default", "198.18.0.0/15"} <= host.through_tunnel())
        assert host.goes_to(SERVER) == "link0" and host.goes_to("198.18.0.2") == TUN
        host.ip(f"route del {SERVER}")
        device.until(lambda: not {"default", "198.18.0.0/15"} & host.through_tunnel())
        assert host.goes_to(SERVER) == "link0"


def test_a_host_without_any_way_to_the_server_does_not_send_to_it_through_the_tunnel(host: Host) -> None:
    host.ip("route del default via 192.168.1.254")
    with host.device(routes=["0.0.0.0/0", *ROUTES]) as device:
        assert "default" not in host.through_tunnel() and set(ROUTES) <= host.through_tunnel()
        host.ip(f"route add {SERVER} via 192.168.1.254")
        device.until(lambda: "default" in host.through_tunnel())


def test_a_default_route_renewed_meanwhile_is_used_and_nothing_is_said(host: Host) -> None:
    with host.device(routes=ROUTES) as device:
        device.welcome([], ["10.70.0.0/16"])
        device.settle()
        before = len(host.said)
        host.ip("route replace default via 192.168.1.253 metric 100", "route del default via 192.168.1.254")
        device.settle()
        assert host.goes_to(SERVER) == "link0" and {*ROUTES, "10.70.0.0/16"} <= host.through_tunnel()
        assert host.said[before:] == []


def test_routes_wait_until_the_name_of_the_server_is_an_address(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []

    def look_up(*words: Any, **options: Any) -> Any:
        if not answers:
            raise OSError("no network yet")
        return answers

    monkeypatch.setattr(server_lookup, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(server_lookup.socket, "getaddrinfo", look_up)
    with host.device(remote_addr="vpn.example.org:9000", routes=["198.18.0.0/15", *ROUTES]) as device:
        assert host.through_tunnel() == {"10.99.0.0/24", "fd99::/64"}
        answers.append((None, None, None, "", (SERVER, 0)))
        device.until(lambda: set(ROUTES) <= host.through_tunnel())
        assert "198.18.0.0/15" not in host.through_tunnel()


# -- the ways to the clients of a server

CLIENT, SIX = "198.18.0.9", "2001:db8:9::9"
EVERYTHING = ["0.0.0.0/0", "::/0"]


def test_a_servers_default_route_waits_for_a_client_and_for_a_way_around_to_it(host: Host) -> None:
    host.ip("route replace default via 192.168.1.254 metric 100", "route del default via 192.168.1.254 metric 0")
    with host.device(mode="server", routes=[*EVERYTHING, *ROUTES]) as device:
        assert not {"default"} & host.through_tunnel() and set(ROUTES) <= host.through_tunnel()
        assert len(host.heard("it waits until a client is connected")) == 1
        device.clients(CLIENT, SIX)
        device.settle()
        said = host.heard("leads to a client itself")
        assert host.goes_to(CLIENT) == host.goes_to(SIX) == "link0" and len(said) == 2
        for cure in (line.partition("a way around: ip ")[2] for line in said):
            host.ip(cure)
        device.until(lambda: host.goes_to("203.0.113.1") == host.goes_to("2001:db8::1") == TUN)
        assert host.goes_to(CLIENT) == host.goes_to(SIX) == "link0"
        assert len(host.heard("leads the answers to most clients into the tunnel")) == 2
        host.ip(f"route del {CLIENT}", f"route del {SIX}")
        device.until(lambda: host.goes_to("203.0.113.1") == host.goes_to("2001:db8::1") == "link0")


def test_a_client_that_has_gone_keeps_its_way_until_a_reload(host: Host) -> None:
    routes = ["198.18.0.0/15"]
    with host.device(mode="server", routes=routes) as device:
        assert host.goes_to(CLIENT) == TUN
        device.clients(CLIENT)
        device.clients()
        device.settle()
        assert host.goes_to(CLIENT) == "link0"
        device.reload(mode="server", routes=routes)
        assert host.goes_to(CLIENT) == TUN


def test_a_rule_for_the_answers_of_a_server_is_a_way_around(host: Host) -> None:
    rule = "rule add ipproto tcp sport 9001 lookup 77"
    host.ip(
        rule, f"-6 {rule}", "route add default via 192.168.1.254 table 77", "-6 route add default dev link0 table 77"
    )
    with host.device(mode="server", routes=["128.0.0.0/1", "2000::/3"], local_addr=":9001") as device:
        device.clients(CLIENT, SIX)
        device.settle()
        assert host.goes_to(CLIENT) == host.goes_to(SIX) == TUN and host.heard("a client itself") == []
        device.reload(mode="server", routes=["128.0.0.0/1", "2000::/3"], local_addr=":9002")
        assert host.goes_to(CLIENT) == host.goes_to(SIX) == "link0"


# -- what a server may do

HARMFUL_ROUTES = {
    "the-network-that-the-host-is-in": LAN,
    "a-part-of-it": "192.168.1.128/25",
    "the-gateway": "192.168.1.254/32",
    "loopback": "127.0.0.0/8",
    "link-local": "169.254.0.0/16",
    "around-link-local": "169.0.0.0/8",
    "multicast": "239.0.0.0/8",
    "everything": "0.0.0.0/0",
    "a-half": "0.0.0.0/1",
    "a-quarter": "64.0.0.0/2",
    "the-server": f"{SERVER}/32",
    "around-the-server": "198.18.0.0/15",
    "ipv6-everything": "::/0",
    "ipv6-internet": "2000::/3",
    "ipv6-link-local": "fe80::/64",
    "ipv6-network-of-the-host": "fd11::/64",
}


@pytest.mark.parametrize("route", HARMFUL_ROUTES.values(), ids=HARMFUL_ROUTES)
def test_a_harmful_route_from_the_server_is_ignored_with_the_reason_and_the_others_are_not(
    host: Host, route: str
) -> None:
    before = host.table()
    with host.device(tunnel_addr="auto") as device:
        device.welcome(INSIDE, [route, "10.70.0.0/16", "192.168.0.0/16"])
        device.settle()
        assert host.through_tunnel() == {"10.99.0.0/24", "fd99::/64", "10.70.0.0/16", "192.168.0.0/16"}
        assert len(host.heard(f"route {route} from the server is ignored: ")) == 1
        assert set(before) <= set(host.table())


def test_the_internet_in_pieces_is_taken_no_further_than_a_sixteenth(host: Host) -> None:
    pieces = [f"{number}.0.0.0/8" for number in range(1, 224) if number not in (10, 127, 169, 198)]
    with host.device() as device:
        device.welcome([], pieces)
        assert len(host.through_tunnel() & set(pieces)) == 8


HARMFUL_ADDRESSES = {
    "the-servers-outside": f"{SERVER}/32",
    "the-gateways": "192.168.1.254/24",
    "one-of-the-network-that-the-host-is-in": "192.168.1.9/24",
    "the-hosts-own": "192.168.1.2/16",
    "loopback": "127.0.0.5/8",
    "link-local": "169.254.3.3/16",
    "multicast": "ff02::1/128",
}


@pytest.mark.parametrize("address", HARMFUL_ADDRESSES.values(), ids=HARMFUL_ADDRESSES)
def test_a_harmful_address_from_the_server_is_ignored_with_the_reason_and_the_others_are_not(
    host: Host, address: str
) -> None:
    before = host.table()
    with host.device(tunnel_addr="auto") as device:
        device.welcome([address, "10.99.0.2/24"], [])
        assert host.addresses() == {"10.99.0.2/24"} and host.through_tunnel() == {"10.99.0.0/24"}
        assert len(host.heard(f"address {address} from the server is ignored: ")) == 1
        assert set(before) <= set(host.table())


def test_an_address_with_the_subnet_of_the_whole_internet_is_an_address_without_a_subnet(host: Host) -> None:
    with host.device(tunnel_addr="auto") as device:
        device.welcome(["10.99.1.1/0"], [])
        assert host.addresses() == {"10.99.1.1/0"} and host.through_tunnel() == set()


@pytest.mark.parametrize(
    ("accept", "taken"),
    [
        (True, {"10.70.0.0/16", "10.71.0.0/16", "198.51.100.0/24"}),
        (False, set()),
        (["10.70.0.0/15"], {"10.70.0.0/16", "10.71.0.0/16"}),
        (["198.51.0.0/16", "10.71.0.0/16"], {"198.51.100.0/24", "10.71.0.0/16"}),
    ],
    ids=["true", "false", "a-list", "another-list"],
)
def test_accept_routes_says_which_routes_are_taken_and_a_reload_changes_it(
    host: Host, accept: Any, taken: set[str]
) -> None:
    every = {"10.70.0.0/16", "10.71.0.0/16", "198.51.100.0/24"}
    with host.device(accept_routes=accept) as device:
        device.welcome([], sorted(every))
        assert host.through_tunnel() & every == taken
        device.reload(accept_routes=True)
        assert every <= host.through_tunnel()
        device.reload(accept_routes=accept)
        assert host.through_tunnel() & every == taken


def test_a_default_route_that_accept_routes_names_is_taken_with_a_way_around(host: Host) -> None:
    host.ip("route replace default via 192.168.1.254 metric 100", "route del default via 192.168.1.254 metric 0")
    with host.device(accept_routes=["0.0.0.0/0"]) as device:
        device.welcome([], ["0.0.0.0/0"])
        assert host.goes_to("203.0.113.1") == "link0"
        host.ip(f"route add {SERVER} via 192.168.1.254")
        device.until(lambda: host.goes_to("203.0.113.1") == TUN)


def test_many_pushes_leave_the_last_one(host: Host) -> None:
    with host.device(tunnel_addr="auto") as device:
        for number in range(30):
            device.welcome([f"10.99.0.{number + 2}/24", f"fd99::{number + 2:x}/64"], [f"10.{number + 100}.0.0/16"])
            assert host.through_tunnel() == {"10.99.0.0/24", "fd99::/64", f"10.{number + 100}.0.0/16"}
            assert host.addresses() == {f"10.99.0.{number + 2}/24", f"fd99::{number + 2:x}/64"}
        device.settle()
        assert host.heard("put back") == []


def test_a_pushed_route_yields_while_the_host_is_in_that_very_network(host: Host) -> None:
    with host.device() as device:
        device.welcome([], ["10.70.0.0/16"])
        host.ip("address add 10.70.3.3/16 dev link0")
        device.until(lambda: "10.70.0.0/16" not in host.through_tunnel())
        assert host.goes_to("10.70.1.1") == "link0"
        assert host.heard("route 10.70.0.0/16 from the server is ignored: it would cover 10.70.0.0/16 of link0")
        host.ip("address del 10.70.3.3/16 dev link0")
        device.until(lambda: "10.70.0.0/16" in host.through_tunnel())


# -- overlaps


def test_an_overlap_of_the_tunnel_with_the_lan_is_said_once_with_both_names_and_the_cure(host: Host) -> None:
    with host.device(tunnel_addr="192.168.1.77/24") as device:
        device.settle()
        (said,) = host.heard("tunnel_addr 192.168.1.77/24 overlaps 192.168.1.0/24 of link0")
        assert "choose another tunnel_addr" in said
        assert host.goes_to("192.168.1.254") == "link0"


def test_two_instances_with_one_subnet_are_named_to_the_second(host: Host) -> None:
    host.ip("tuntap add dev tun-first mode tun", "link set tun-first up", "address add 10.99.0.1/24 dev tun-first")
    with host.device(mode="server", tunnel_addr="10.99.0.1/24"):
        (_said,) = host.heard("tunnel_addr 10.99.0.1/24 overlaps 10.99.0.0/24 of tun-first")


def test_a_network_of_a_peer_that_the_server_has_itself_is_named(host: Host) -> None:
    with host.device(mode="server", routes=[LAN]) as device:
        device.tun.know_peers([ip_network("fd11::/64"), ip_network("10.80.0.0/16")])
        device.settle()
        assert len(host.heard("allowed has fd11::/64, which is part of fd11::/64 of link0")) == 1
        assert len(host.heard(f"route {LAN} into the tunnel has no effect: {LAN} dev link0")) == 1
        assert not host.heard("10.80.0.0/16")


# -- what others take


TAKINGS = {
    "routes-of-the-device": f"route flush dev {TUN}",
    "every-route": "route flush table main",
    "addresses": f"address flush dev {TUN}",
    "ipv4": f"-4 address flush dev {TUN}",
    "ipv6": f"-6 address flush dev {TUN}",
    "one-address": f"address del 10.99.0.2/24 dev {TUN}",
    "our-protocol": "route flush proto 116",
}


@pytest.mark.parametrize("taking", TAKINGS.values(), ids=TAKINGS)
def test_what_others_take_is_put_back_with_one_line_that_says_who_may_do_so(host: Host, taking: str) -> None:
    with host.device(routes=ROUTES) as device:
        device.settle()
        before = host.table("route", "show", "dev", TUN), host.table("-o", "address", "show", "dev", TUN)
        host.ip(*[f"{v} {taking}" for v in ("-4", "-6")] if "route" in taking else [taking])
        device.until(
            lambda: before == (host.table("route", "show", "dev", TUN), host.table("-o", "address", "show", "dev", TUN))
        )
        device.settle()
        said = host.heard("put back")
        assert 1 <= len(said) <= 2 and "systemd-networkd and NetworkManager" in said[0]


NETWORKD = Path("/lib/systemd/systemd-networkd")
NETWORKD_SECONDS = 20.0
NETWORKD_ALONE = """
mount -t tmpfs tmpfs /run && mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /etc/systemd
mkdir -p /run/udev/data /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /etc/systemd/network
for index in /sys/class/net/*/ifindex; do echo I:1 > /run/udev/data/n$(cat $index); done
chown -R systemd-network:systemd-network /run/systemd/netif
printf '%s\n' "[Match]" "Name=*" "[Network]" DHCP=no LinkLocalAddressing=no > /etc/systemd/network/50-all.network
printf '%b' "$0" > /etc/systemd/network/05-tunnel.network
exec "$1"
"""
"""It believes that udev has seen every device. Its argument is one more file of the network."""


@pytest.mark.skipif(not NETWORKD.exists(), reason="there is no systemd-networkd")
@pytest.mark.parametrize("told", [False, True], ids=["not-told", "told-to-leave-it-alone"])
def test_what_systemd_networkd_takes_is_put_back_once_unless_it_leaves_the_device_alone(host: Host, told: bool) -> None:
    host.ip("rule add ipproto tcp sport 9001 lookup 77")
    with host.device(routes=ROUTES) as device:
        device.settle()
        before = host.through_tunnel(), host.addresses()
        cure = f"[Match]\\nName={TUN}\\n[Link]\\nUnmanaged=yes\\n" if told else ""
        networkd = host.node.popen(["unshare", "--mount", "sh", "-c", NETWORKD_ALONE, cure, NETWORKD])
        try:
            # it has done with the devices: it has removed what an administrator had added
            device.until(lambda: not host.node.run(["ip", "route", "show", "default"]).stdout, NETWORKD_SECONDS)
            device.until(lambda: told or host.heard("put back"), NETWORKD_SECONDS)
            device.settle()
        finally:
            stop([networkd], 5.0)
        assert (host.through_tunnel(), host.addresses()) == before
        assert len(host.heard("put back")) == (not told)


def test_a_reload_puts_back_at_once_what_others_have_taken(host: Host) -> None:
    with host.device(routes=ROUTES) as device:
        host.ip(f"address flush dev {TUN}", f"link set {TUN} mtu 1300")
        assert device.reload(routes=ROUTES) == []
        assert set(ROUTES) <= host.through_tunnel() and host.addresses() == set(INSIDE)
        assert "mtu 1400" in host.node.run(["ip", "link", "show", TUN]).stdout


def test_a_contest_is_given_up_for_a_while_and_said_and_a_reload_begins_anew(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(put_back, "REST_NS", 10**18)
    with host.device(routes=ROUTES) as device:
        device.settle()
        for _ in range(LIMITED):
            host.ip("route del 10.60.0.0/16")
            device.until(lambda: "10.60.0.0/16" in host.through_tunnel())
            device.settle()
        host.ip("route del 10.60.0.0/16")
        device.until(lambda: host.heard("others remove it again and again"))
        device.welcome([], ["10.70.0.0/16"])
        device.settle()
        assert {"10.70.0.0/16", "fd60::/48"} <= host.through_tunnel() and "10.60.0.0/16" not in host.through_tunnel()
        assert len(host.heard("put back")) == LIMITED and len(host.heard("again and again")) == 1
        device.reload(routes=ROUTES)
        assert "10.60.0.0/16" in host.through_tunnel()


def test_what_an_administrator_adds_to_the_device_stays_and_so_does_a_device_set_down(host: Host) -> None:
    with host.device(routes=ROUTES) as device:
        host.ip(f"address add 10.5.5.5/24 dev {TUN}", f"route add 10.6.0.0/16 dev {TUN}")
        device.settle()
        device.reload()
        assert "10.5.5.5/24" in host.addresses() and "10.6.0.0/16" in host.through_tunnel()
        host.ip(f"link set {TUN} down")
        device.settle()
        assert device.reload(routes=ROUTES) != []
        assert not host.through_tunnel() and "state DOWN" in host.node.run(["ip", "link", "show", TUN]).stdout
        host.ip(f"link set {TUN} up")
        device.until(lambda: set(ROUTES) <= host.through_tunnel() and set(INSIDE) <= host.addresses())
        assert host.heard("put back") == [] and len(host.heard("is down")) >= 1


# -- IPv6 that is off, and other refusals


def test_without_ipv6_the_rest_is_there_and_one_line_names_what_is_not_until_it_is_on(host: Host) -> None:
    host.node.sysctl("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    with host.device(routes=ROUTES) as device:
        device.welcome([], ["10.70.0.0/16", "fd70::/64"])
        assert host.through_tunnel() == {"10.99.0.0/24", "10.60.0.0/16", "10.70.0.0/16"}
        said = host.heard("IPv6 is off")
        assert all(each in said[-1] for each in ("fd99::2/64", "fd60::/48", "fd70::/64", "disable_ipv6=0"))
        host.node.sysctl(f"net.ipv6.conf.{TUN}.disable_ipv6=0")
        device.until(lambda: {"fd99::/64", "fd60::/48", "fd70::/64"} <= host.through_tunnel())
        host.node.sysctl(f"net.ipv6.conf.{TUN}.disable_ipv6=1")
        device.until(lambda: len(host.heard("IPv6 is off")) > len(said))
        host.node.sysctl(f"net.ipv6.conf.{TUN}.disable_ipv6=0")
        device.until(lambda: {"fd99::/64", "fd60::/48", "fd70::/64"} <= host.through_tunnel())
        assert host.addresses() == set(INSIDE) and host.heard("put back") == []


def test_with_ipv6_alone_and_ipv6_off_the_start_says_what_to_do(host: Host) -> None:
    host.node.sysctl("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    before = host.state()
    with pytest.raises(LocalError, match=r"no tunnel address: IPv6 is off on tun-test.*disable_ipv6=0"):
        Device(host, tunnel_addr="fd99::2/64")
    assert host.state() == before


def test_a_reload_with_one_route_that_cannot_be_applies_the_others_and_says_so(host: Host) -> None:
    host.ip("route add 10.61.0.0/16 via 192.168.1.254 metric 10")
    with host.device(routes=ROUTES) as device:
        (said,) = device.reload(routes=["10.61.0.0/16", "10.62.0.0/16", "fd62::/48"])
        assert said.startswith("route 10.61.0.0/16 is left out")
        assert host.through_tunnel() >= {"10.62.0.0/16", "fd62::/48"} and not host.through_tunnel() & set(ROUTES)


# -- storms


def test_a_device_deleted_in_a_storm_of_events_is_made_again(host: Host) -> None:
    with host.device(routes=ROUTES) as device:
        lines = "".join(f"route add 10.{n >> 8}.{n & 255}.0/24 via 192.168.1.254\n" for n in range(5000))
        host.node.run(["ip", "-batch", "-"], input=lines)
        host.ip(f"link delete {TUN}")
        host.node.run(["ip", "-batch", "-"], input=lines.replace("add", "del"))
        device.until(lambda: set(ROUTES) <= host.through_tunnel())
        assert host.addresses() == set(INSIDE)


def test_a_route_lost_in_a_storm_of_events_is_put_back(host: Host) -> None:
    with host.device(routes=ROUTES) as device:
        device.settle()
        lines = [f"route add 10.{n >> 8}.{n & 255}.0/24 via 192.168.1.254" for n in range(5000)]
        host.node.run(["ip", "-batch", "-"], input="\n".join([*lines[:2500], "route del 10.60.0.0/16", *lines[2500:]]))
        device.until(lambda: "10.60.0.0/16" in host.through_tunnel())


# -- the firewall table


@contextmanager
def clamp(host: Host, name: str) -> Iterator[TableKeeper]:
    made = host.node.inside(lambda: TableKeeper(MssClamp(TUN, name)))
    try:
        host.node.inside(lambda: made.apply(True))
        yield made
    finally:
        host.node.inside(made.close)


def kept(host: Host, *keepers: TableKeeper) -> str:
    """The rules after each keeper has had its turn."""
    for keeper in keepers:
        host.node.inside(lambda: keeper.tick(time.monotonic_ns()))
    return host.rules()


def test_a_flushed_firewall_gets_the_tables_of_all_instances_again_and_nothing_else(host: Host) -> None:
    host.node.run(
        ["nft", "-f", "-"], input="table inet other {\nchain c {\ntype filter hook forward priority 5\n}\n}\n"
    )
    before = host.rules()
    with clamp(host, "one") as one, clamp(host, "two") as two:
        during = host.rules()
        host.node.run(["nft", "flush", "ruleset"])

        eventually(lambda: "tunnel-one" in (rules := kept(host, one, two)) and "tunnel-two" in rules)
        assert (
            len(host.heard("put back table inet tunnel-one")) == len(host.heard("put back table inet tunnel-two")) == 1
        )
        host.node.run(["nft", "-f", "-"], input=before)
        assert sorted(host.rules().split("table")) == sorted(during.split("table"))
        host.node.run(["nft", "flush", "chain", "inet", "tunnel-one", "clamp"])
        eventually(lambda: sorted(kept(host, one, two).split("table")) == sorted(during.split("table")))
    assert host.rules() == before


def test_who_flushes_the_firewall_for_ever_has_peace_after_a_while(host: Host) -> None:
    with clamp(host, "one") as keeper:
        for _ in range(LIMITED):
            host.node.run(["nft", "delete", "table", "inet", "tunnel-one"])
            eventually(lambda: "tunnel-one" in kept(host, keeper))
        host.node.run(["nft", "delete", "table", "inet", "tunnel-one"])
        eventually(lambda: kept(host, keeper) == "" and host.heard("again and again"))
        host.node.inside(lambda: keeper.apply(True))
        assert "tunnel-one" in host.rules()


# -- what the kernel refuses during a reload


def test_a_reload_does_all_that_the_kernel_takes_says_the_rest_and_tries_it_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "RETRY_NS", 100_000_000)
    with host.device() as device:
        ask = device.tun._reconciler._socket
        add, look = ask.add_route, ask.route_to
        with monkeypatch.context() as patched:
            no_room = Refusal(errno.ENOSPC, "No space left on device")
            patched.setattr(ask, "add_route", lambda route: no_room if "10.61." in str(route.prefix) else add(route))
            patched.setattr(ask, "set_link", lambda *wanted, up: no_room)
            said = device.reload(send_queue_size=500_000, routes=[*ROUTES, "10.61.0.0/16"])
        assert len(said) == 2 and "queue 500000: " in said[0]
        assert said[1] == "route 10.61.0.0/16 is left out: the kernel refuses it: No space left on device"
        assert {*ROUTES} <= host.through_tunnel()
        assert said[1] in device.tun.status()["notes"]
        failing = [LocalError("netlink: No buffer space available")] * 2

        def look_or_fail(prefix: Any) -> Any:
            if failing and str(prefix) == "10.70.0.0/16":
                raise failing.pop()
            return look(prefix)

        monkeypatch.setattr(ask, "route_to", look_or_fail)
        assert device.reload(routes=["10.70.0.0/16"]) == ["netlink: No buffer space available"]
        device.until(lambda: host.through_tunnel() >= {"10.70.0.0/16"} and not host.through_tunnel() & {*ROUTES})
        assert device.reload(routes=["10.70.0.0/16"]) == []
        assert device.tun.status()["left_out"] == []


# -- the device has another name


@pytest.mark.parametrize("up", [True, False])
def test_a_renamed_device_is_said_once_shown_by_its_present_name_and_goes_on(host: Host, up: bool) -> None:
    def rename(name: str, to: str) -> None:
        commands = [f"link set {name} name {to}"]
        host.ip(*(commands if up else [f"link set {name} down", *commands, f"link set {to} up"]))

    with host.device(routes=ROUTES) as device:
        if up:
            try:
                rename(TUN, "other")
            except LabError:
                pytest.skip("this kernel renames no device that is up")
        else:
            rename(TUN, "other")
        device.until(lambda: host.heard("was renamed to other"))
        device.until(lambda: len(host.goes_to("10.60.0.1")) and host.goes_to("10.60.0.1") == "other")
        (line,) = host.heard("was renamed to other")
        assert f"TUN device {TUN} was renamed" in line and f"ip link set other name {TUN}" in line
        status = device.tun.status()
        assert status["name"] == "other" and line in status["notes"] and status["left_out"] == []
        host.ip("route del 10.60.0.0/16 dev other")
        device.until(lambda: host.goes_to("10.60.0.1") == "other")
        device.reload(routes=["10.60.0.0/16"])
        device.settle()
        rename("other", TUN)
        device.until(lambda: device.tun.status()["name"] == TUN)
        device.until(lambda: host.goes_to("10.60.0.1") == TUN)
        assert device.tun.status()["notes"] == []
        assert len(host.heard("was renamed to other")) <= 2  # a reload says again what is wrong
