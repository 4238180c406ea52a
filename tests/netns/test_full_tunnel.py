"""A client with `full_tunnel`: everything goes through the tunnel or nowhere, whatever happens; and nothing stays.

client -- link0 -- hub -- outside -- host      the hub is the client's default gateway, too, and has `nat`
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest

from pipeline.config import parse
from pipeline.doctor import routes, uplinks
from pipeline.doctor.finding import Level
from pipeline.doctor.firewall import left_shut
from pipeline.doctor.subject import Subject
from pipeline.policy import bypass
from tests.netns.harness.full_tunnel import SERVING, Tunnel, source_seen
from tests.netns.harness.hub import PLAIN, Client, Hub, established, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.name_server import NameServer
from tests.netns.harness.uplink import (
    GATEWAY,
    GATEWAY6,
    HUB_OUTSIDE,
    HUB_OUTSIDE6,
    OUTSIDE,
    OUTSIDE6,
    SERVER,
    SERVER6,
    Programs,
    Uplink,
    World,
)
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.namespace import Namespace
from tools.lab.network import add_veth_pair

SECONDS = 0.5  # that programs go on sending while nothing happens


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """With a hub that runs all the time. Tests leave both as they are."""
    with ExitStack() as stack:
        made = World(stack)
        made.hub = stack.enter_context(Hub(made.lab, tmp_path_factory.mktemp("hub"), **SERVING))
        yield made


@pytest.fixture
def world() -> Iterator[World]:
    """For a test that changes it."""
    with ExitStack() as stack:
        yield World(stack)


def goes_out_from(world: World, address: str) -> bool:
    """Whether connections of the machine have this source outside. Those of the moment of a change come to nothing."""
    try:
        return source_seen(world, socket.AF_INET, OUTSIDE, seconds=1.0) == address
    except OSError:
        return False


def go_on(seconds: float = SECONDS) -> None:
    """Let the programs send for a while: a leak shows by being there."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > until)


# -- what it is for


def test_the_internet_is_reached_through_the_hub_and_the_lan_as_before(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        tunnel.joined()
        assert source_seen(shared, socket.AF_INET, OUTSIDE) == HUB_OUTSIDE
        assert source_seen(shared, socket.AF_INET6, OUTSIDE6) == HUB_OUTSIDE6
        assert reaches(shared.machine, GATEWAY) and reaches(shared.machine, "fd77::1")
        assert "full tunnel: the kill switch is shut" in tunnel.client.command("status").stdout
        assert tunnel.client.running()["full_tunnel"]["on"]


def test_what_goes_to_everybody_in_the_lan_goes_there_as_before(shared: World, tmp_path: Path) -> None:
    def sources() -> list[str]:
        found = []
        for address in ("224.0.0.251", "239.255.255.250", "255.255.255.255", OUTSIDE):
            with shared.machine.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.connect((address, 1900))
                found.append(sock.getsockname()[0])
        return found

    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        *before, outside = sources()
        tunnel.joined()
        *within, through = sources()
        assert within == before and through != outside


def test_a_reverse_path_filter_keeps_no_answer_of_the_server_out(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        for strength in (2, 1):
            established = tunnel.joined().counter("tcp.connections_established")
            for device in ("all", "link0"):
                world.machine.sysctl(f"net.ipv4.conf.{device}.rp_filter={strength}")
            tunnel.client.command("restart")
            eventually(lambda: tunnel.client.counter("tcp.connections_established") > established, 20)
            tunnel.joined()


REVERSE_PATH = """
table inet firewall {{
    chain filter_PREROUTING {{
        type filter hook prerouting priority {priority}; policy accept;
        icmpv6 type {{ nd-router-advert, nd-neighbor-solicit }} accept
        {condition} counter drop
    }}
}}
"""


@pytest.mark.parametrize(
    ("priority", "condition", "cure"),
    [
        ("filter + 10", "meta nfproto ipv6 fib saddr . mark . iif oif missing", ""),
        ("filter + 10", "fib saddr . mark oif missing", ""),
        ("raw + 10", "meta nfproto ipv6 fib saddr . iif oif missing", f"route add {SERVER6} via {GATEWAY6} dev link0"),
    ],
    ids=["firewalld", "loose", "old firewalld, with a route to the server"],
)
def test_a_reverse_path_filter_of_the_firewall_keeps_no_answer_of_the_server_out(
    world: World, tmp_path: Path, priority: str, condition: str, cure: str
) -> None:
    """As firewalld 1.3 has it with IPv6_rpfilter: it looks at the mark, behind the table that sets it."""
    if cure:
        world.machine.ip(cure)
    world.machine.run(["nft", "-f", "-"], input=REVERSE_PATH.format(priority=priority, condition=condition))
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, host=f"[{SERVER6}]")
        tunnel.joined()
        assert reaches(world.machine, OUTSIDE6) and reaches(world.machine, "fd77::1")
        assert connected_to(tunnel.client) == {f"[{SERVER6}]"}
        assert "counter packets 0" in world.machine.run(["nft", "list", "ruleset"]).stdout


def test_ipv6_is_blocked_at_once_where_the_tunnel_has_none(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, hub={"tunnel_addr": "10.99.0.1/24"})
        tunnel.joined()
        with world.machine.socket(socket.AF_INET6) as sock, pytest.raises(OSError, match=r"unreachable|No route"):
            sock.connect((OUTSIDE6, 80))
        assert reaches(world.machine, "fd77::1")


def test_it_can_be_pushed_and_accepted(world: World, tmp_path: Path) -> None:
    pushing = {"push_routes": ["0.0.0.0/0"]}
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, hub=pushing, full_tunnel="pushed")
        tunnel.joined()
        eventually(lambda: goes_out_from(world, HUB_OUTSIDE))
        eventually(tunnel.is_shut)


def test_what_is_pushed_and_not_accepted_changes_nothing(world: World, tmp_path: Path) -> None:
    pushing = {"push_routes": ["0.0.0.0/0"]}
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, hub=pushing, full_tunnel=False)
        tunnel.client.wait_until_joined()
        assert reaches(world.machine, OUTSIDE) and not tunnel.is_shut()
        assert source_seen(world, socket.AF_INET, OUTSIDE) == world.machine.address


def test_a_reload_begins_and_ends_it(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        client = tunnel.joined()
        for full_tunnel, expected in ((False, shared.machine.address), (True, HUB_OUTSIDE)):
            client.write({**client.config, "full_tunnel": full_tunnel})
            client.command("reload")
            eventually(lambda: tunnel.is_shut() is full_tunnel)
            eventually(lambda: goes_out_from(shared, expected))


# -- nothing leaks


def test_nothing_but_the_tunnel_leaves_by_the_uplink_during_start_kill_reconnect_and_restart(
    world: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        uplink = stack.enter_context(Uplink(world.machine))
        programs = stack.enter_context(Programs(world.machine))
        eventually(lambda: uplink.strange(1), what="programs that are heard without a tunnel")
        tunnel = Tunnel(stack, world, tmp_path)
        eventually(tunnel.is_shut)
        shut = time.monotonic()
        port = tunnel.hub.port
        tunnel.joined()
        go_on()
        assert uplink.strange(port, shut) == set()

        world.lab.cut()
        eventually(lambda: not established(tunnel.client), 20, "the end of its connections")
        go_on()
        world.lab.join()
        world.machine.run(["ip", "route", "replace", "default", "via", GATEWAY])
        world.machine.run(["ip", "-6", "route", "replace", "default", "via", "fd77::1"])
        tunnel.joined()
        assert uplink.strange(port, shut) == set()

        tunnel.kill_everything()
        go_on()
        refused = programs.refused
        assert uplink.strange(port, shut) == set() and tunnel.is_shut()

        tunnel.start()
        tunnel.joined()
        assert uplink.strange(port, shut) == set() and programs.refused >= refused

        tunnel.kill_everything()
        world.machine.run([EXECUTABLE, "down", tunnel.name])
        assert not tunnel.is_shut()
        opened = time.monotonic()
        eventually(lambda: uplink.strange(port, opened), what="programs that are heard again")


def test_what_others_remove_comes_back_and_nothing_leaks_meanwhile(shared: World, tmp_path: Path) -> None:
    machine = shared.machine
    removals: dict[str, Callable[[], object]] = {
        "rules": lambda: machine.ip("rule flush protocol 116"),
        "routes": lambda: machine.ip("route flush table all protocol 116"),
        "firewall": lambda: machine.run(["nft", "flush", "ruleset"]),
    }
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        tunnel.joined()
        during = tunnel.state(tunnel.name)
        for taken, remove in removals.items():
            with Uplink(machine) as uplink, Programs(machine):
                remove()
                eventually(lambda: tunnel.state(tunnel.name) == during, what=f"{taken} are back")
            strange = uplink.strange(tunnel.hub.port)
            if taken == "firewall":  # those that bind themselves to the uplink, and DNS of the LAN, until it is back
                strange = {each for each in strange if each[2] not in (5555, 53)}
            assert strange == set(), taken
        for remove in removals.values():
            remove()
        eventually(lambda: tunnel.state(tunnel.name) == during, what="everything is back")


# -- the end


def test_the_machine_is_after_any_end_as_it_was(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)

        def is_as_it_was() -> bool:
            return tunnel.state(tunnel.name) == tunnel.before and reaches(shared.machine, OUTSIDE)

        tunnel.joined().stop()
        assert is_as_it_was()

        tunnel.start()
        tunnel.joined()
        tunnel.kill_everything()
        assert tunnel.is_shut() and not reaches(shared.machine, OUTSIDE, count=1, seconds=0.3)
        (found,) = shared.machine.inside(lambda: left_shut(Subject()))
        assert f"the kill switch of {tunnel.name} is shut, and {tunnel.name} does not run" in found.text
        settings = {"mode": "client", "remote_addr": f"{SERVER}:9000", "uplinks": ["link0", "link9"]}
        dead = Subject(name=tunnel.name, config=parse({**PLAIN, **settings, "fec": "auto"}))
        (way,) = shared.machine.inside(lambda: routes.loop(dead, [ip_address(SERVER)]))
        assert way.level is Level.OK
        (missing,) = shared.machine.inside(lambda: uplinks.look(dead, [ip_address(SERVER)]))
        assert missing.text == "the uplink link9 does not exist now"  # and link0 leads to the server
        assert f"down: {tunnel.name}" in shared.machine.run([EXECUTABLE, "down", tunnel.name]).stdout
        assert is_as_it_was()

        tunnel.start()
        tunnel.joined()
        tunnel.kill_everything()
        tunnel.start()
        tunnel.joined().stop()
        assert is_as_it_was()


def test_a_kill_switch_until_down_stays_shut_over_an_orderly_stop(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path, kill_switch="until-down")
        tunnel.joined()
        with Uplink(shared.machine) as uplink, Programs(shared.machine):
            tunnel.client.stop()
            tunnel.start()
            tunnel.joined().stop()
            assert tunnel.is_shut() and uplink.strange(tunnel.hub.port) == set()
        shared.machine.run([EXECUTABLE, "down", tunnel.name])
        assert tunnel.state(tunnel.name) == tunnel.before


def test_a_dhcp_server_that_hands_out_routes_or_a_large_network_leads_nothing_around(
    shared: World, tmp_path: Path
) -> None:
    """TunnelVision and TunnelCrack: the route is used, and the packets are dropped."""
    machine = shared.machine
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        tunnel.joined()
        for adding in (f"route {{}} 198.51.100.0/25 via {GATEWAY}", "address {} 198.51.7.7/16 dev link0"):
            machine.ip(adding.format("add"))
            try:
                with Uplink(machine) as uplink, Programs(machine):
                    go_on()
                    assert not reaches(machine, OUTSIDE, count=1, seconds=0.3)
                assert uplink.strange(tunnel.hub.port) == set()
            finally:
                machine.ip(adding.format("del"))
        tunnel.joined()


def test_an_instance_that_fails_leaves_the_kill_switch_shut_and_says_how_to_open_it(
    shared: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path, restart_intensity=0)
        client = tunnel.joined()
        client.signal_worker("tcp-0", signal.SIGKILL)
        assert client.wait() != 0
        assert tunnel.is_shut() and f"tunnel-supervisor down {tunnel.name}" in client.log
        shared.machine.run([EXECUTABLE, "down", tunnel.name])
        assert tunnel.state(tunnel.name) == tunnel.before


def test_a_start_that_fails_shuts_nobody_off(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        tunnel.joined().stop()
        shared.machine.ip(f"link add {tunnel.client.tun_name} type bridge")
        failing = tunnel.start()
        assert failing.wait() != 0
        shared.machine.ip(f"link del {tunnel.client.tun_name}")
        assert tunnel.state(tunnel.name) == tunnel.before


# -- loops


ROUTES_TO_THE_SERVER = [["0.0.0.0/0"], ["198.18.0.0/16"], [f"{SERVER}/32"], ["0.0.0.0/1", "128.0.0.0/1"]]


def test_routes_that_contain_the_server_make_no_loop(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path, full_tunnel=False)
        client = tunnel.client
        client.wait_until_joined()
        established = client.counter("tcp.connections_established")
        for routes in ROUTES_TO_THE_SERVER:
            client.write({**client.config, "routes": routes})
            client.command("reload")
            eventually(lambda: tunnel_table_has(tunnel, routes))
            assert client.running()["left_out"] == [] and not tunnel.is_shut()
            assert reaches(client.node, "10.99.0.1")
            is_whole = len(routes[0]) < len("198.18.0.0/16")
            eventually(lambda: goes_out_from(shared, through(shared, is_whole)))
            assert "leads into the tunnel" not in client.command("doctor").stdout
        assert client.counter("tcp.connections_established") == established
        client.stop()
        assert tunnel.state(tunnel.name) == tunnel.before


def tunnel_table_has(tunnel: Tunnel, routes: list[str]) -> bool:
    table = str(bypass.numbers(tunnel.name).table)
    shown = tunnel.world.machine.run(["ip", "route", "show", "table", table]).stdout
    return all(route.replace("0.0.0.0/0", "default").removesuffix("/32") in shown for route in routes)


def through(world: World, is_whole: bool) -> str:
    return HUB_OUTSIDE if is_whole else world.machine.address


def test_a_loop_that_somebody_else_makes_is_said_and_ends_with_its_route(shared: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path)
        client = tunnel.joined()
        shared.machine.ip(f"route add {SERVER}/32 dev {client.tun_name}")
        client.wait_for_log(f"the way to {SERVER} leads into the tunnel itself, by a route of others")
        assert any("Remove it: ip route del" in note for note in client.running()["notes"])
        shared.machine.ip(f"route del {SERVER}/32 dev {client.tun_name}")
        eventually(lambda: not any("leads into the tunnel" in note for note in client.running()["notes"]))
        tunnel.joined()


# -- the network changes, and others


def test_it_goes_on_in_another_network(world: World, tmp_path: Path) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path)
        tunnel.joined()
        world.gateway.ip("address add 172.20.5.1/24 dev link0")
        world.machine.ip(
            "address flush dev link0 scope global",
            "address add 172.20.5.7/24 dev link0",
            "route add default via 172.20.5.1",
        )
        eventually(lambda: source_seen_or_none(world) == HUB_OUTSIDE, 20, what="the Internet again")
        assert reaches(world.machine, "172.20.5.1") and tunnel.is_shut()


def source_seen_or_none(world: World) -> str:
    return HUB_OUTSIDE if reaches(world.machine, OUTSIDE, count=1, seconds=0.3) else ""


def test_beside_another_instance_both_have_their_rules_and_leave_those_of_the_other(
    shared: World, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        tunnel = Tunnel(stack, shared, tmp_path, full_tunnel=False, routes=["0.0.0.0/1"])
        tunnel.client.wait_until_joined()
        eventually(lambda: "rule" in tunnel.client.log)
        line = tunnel.hub.invite("two", "--address", f"{SERVER}:{tunnel.hub.port}")
        eventually(lambda: tunnel.client.address in tunnel.state(tunnel.name)["-o address"])
        alone = tunnel.state(tunnel.name)
        own = {"tunnel_addr": "10.99.0.50/24", "routes": ["128.0.0.0/1"]}
        with Client(shared.machine, line, tmp_path, **PLAIN, **own) as other:
            other.wait_until_joined()
            eventually(lambda: source_seen_or_none(shared))
            assert shared.machine.run(["ip", "rule"]).stdout.count("goto") == 4
        eventually(
            lambda: tunnel.state(tunnel.name) == alone
        )  # its address returns, which was in a network of the other


def test_connections_of_another_instance_go_through_the_tunnel(shared: World, tmp_path: Path) -> None:
    """With the user `tunnel` of the package, which all instances would have."""
    passwd = tmp_path / "passwd"
    passwd.write_text("root:x:0:0::/root:/bin/sh\ntunnel:x:990:990::/:/usr/sbin/nologin\n")
    wrap = ["unshare", "--mount", "sh", "-c", f'mount --bind {passwd} /etc/passwd && exec "$@"', "sh"]
    serving = {"mode": "server", "local_addr": f"{OUTSIDE}:{shared.host.free_port()}", "tunnel_addr": "10.98.0.1/24"}
    plain = {"encryption": "none", **PLAIN}
    with ExitStack() as stack:
        server = stack.enter_context(Instance(shared.host, {**serving, **plain, "insecure": True}, tmp_path))
        server.wait_until_running()
        tunnel = Tunnel(stack, shared, tmp_path, wrap=wrap)
        tunnel.joined()
        dialing = {"mode": "client", "remote_addr": serving["local_addr"], "tunnel_addr": "10.98.0.2/24", **plain}
        uplink = stack.enter_context(Uplink(shared.machine))
        other = stack.enter_context(Instance(shared.machine, dialing, tmp_path, wrap=wrap))
        other.wait_until_connected()
        (row,) = server.running()["connections"]
        assert row["address"].startswith(f"{HUB_OUTSIDE}:")
        assert uplink.strange(tunnel.hub.port) == set()


def test_what_the_machine_forwards_goes_the_same_way_and_nowhere_else(shared: World, tmp_path: Path) -> None:
    """A container, or a network behind the machine."""
    with ExitStack() as stack:
        container = Namespace("container")
        stack.callback(container.close)
        add_veth_pair(shared.machine, "bridge0", container)
        shared.machine.ip("link set bridge0 up", "address add 172.18.0.1/16 dev bridge0")
        container.run(
            ["ip", "-batch", "-"],
            input="link set link0 up\naddress add 172.18.0.2/16 dev link0\nroute add default via 172.18.0.1\n",
        )
        shared.machine.sysctl("net.ipv4.ip_forward=1")
        masquerade = "table ip docker { chain out { type nat hook postrouting priority srcnat; ip saddr 172.18.0.0/16 "
        shared.machine.run(["nft", "-f", "-"], input=masquerade + 'oifname != "bridge0" masquerade; }; }')
        tunnel = Tunnel(stack, shared, tmp_path)
        tunnel.joined()
        eventually(lambda: reaches(container, OUTSIDE, count=1, seconds=0.3))
        assert reaches(container, GATEWAY)
        uplink = stack.enter_context(Uplink(shared.machine))
        tunnel.kill_everything()
        assert not reaches(container, OUTSIDE, count=3, seconds=0.3)
        assert uplink.strange(tunnel.hub.port) == set()
        tunnel.start()
        tunnel.joined()


READ_ONLY = ["unshare", "--mount", "sh", "-c", 'mount -o bind,ro /proc/sys /proc/sys && exec "$@"', "sh"]


@pytest.mark.parametrize(
    ("rp_filter", "valid_mark", "note"), [(0, 0, False), (2, 1, False), (2, 0, True)], ids=["off", "set", "not set"]
)
def test_read_only_settings_of_the_kernel_matter_only_where_they_are_wrong(
    world: World, tmp_path: Path, rp_filter: int, valid_mark: int, note: bool
) -> None:
    """As in a container: wg-quick stops there."""
    world.machine.sysctl(f"net.ipv4.conf.all.rp_filter={rp_filter}", "net.ipv4.conf.default.rp_filter=0")
    world.machine.sysctl(f"net.ipv4.conf.all.src_valid_mark={valid_mark}", "net.ipv4.conf.link0.rp_filter=0")
    with ExitStack() as stack:
        tunnel = Tunnel(stack, world, tmp_path, wrap=READ_ONLY)
        if note:
            tunnel.client.wait_for_log("On the host: sysctl -w net.ipv4.conf.all.src_valid_mark=1")
            world.machine.sysctl("net.ipv4.conf.all.src_valid_mark=1")
        tunnel.joined()
        assert ("src_valid_mark" in tunnel.client.log) is note


# -- names

SECOND_SERVER = "198.18.0.2"
STUB = "nameserver 127.0.0.53\n"


@pytest.mark.parametrize("resolver", ["direct", "a stub that is shut in"])
def test_a_server_that_moves_is_found_by_its_name_while_the_kill_switch_is_shut(
    world: World, tmp_path: Path, resolver: str
) -> None:
    world.gateway.ip(f"address add {SECOND_SERVER}/32 dev lo")
    with ExitStack() as stack:
        names = stack.enter_context(NameServer(world.gateway, tmp_path))
        names.answer(SERVER)
        wrap = names.wrap if resolver == "direct" else behind_a_stub(tmp_path)
        tunnel = Tunnel(stack, world, tmp_path, wrap=wrap, host="hub.test", dns=["10.99.0.1"])
        tunnel.joined()
        uplink = stack.enter_context(Uplink(world.machine))
        names.answer(SECOND_SERVER)
        world.gateway.ip(f"address del {SERVER}/32 dev lo")
        eventually(lambda: connected_to(tunnel.client) == {SECOND_SERVER}, 40, what="the server at its new address")
        strange = {each for each in uplink.strange(tunnel.hub.port) if each[1] != SECOND_SERVER}
        assert strange <= {(socket.IPPROTO_UDP, GATEWAY, 53)}


def behind_a_stub(directory: Path) -> list[str]:
    """The machine asks a stub of systemd-resolved that does not answer; the server behind it is in resolved's file."""
    stub, behind = directory / "stub.conf", directory / "resolved.conf"
    stub.write_text(STUB + "options timeout:1 attempts:1\n")
    behind.write_text(f"nameserver {GATEWAY}\n")
    place = "/run/systemd/resolve"
    mounts = f"mkdir -p {place} && cp {behind} {place}/resolv.conf && mount --bind {stub} /etc/resolv.conf"
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && {mounts} && exec "$@"',
        "sh",
    ]


def connected_to(client: Client) -> set[str]:
    rows = [row for row in client.running()["connections"] if row["state"] == "established"]
    return {row["address"].rpartition(":")[0] for row in rows}
