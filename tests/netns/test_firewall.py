"""MSS clamping: TCP through a router whose way to one side is narrow, and what is left of the rules afterwards.

    left -- link0, MTU 1500 -- router -- narrow, MTU 1300 -- right

The right end's own device has MTU 1500, so it believes the size in the SYN. A packet that is too long for the router's
device is lost without a word.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.schema import Name, TunName
from pipeline.supervisor.kernel.mss_clamp import MssClamp
from pipeline.supervisor.kernel.nft import SBIN_DIRECTORIES
from tests.support import ROOT, eventually
from tools.lab.namespace import Namespace
from tools.lab.network import LabError, add_veth_pair

WIDE, NARROW = 1500, 1300
HEADERS = {socket.AF_INET: 40, socket.AF_INET6: 60}  # of IP and TCP, without options: what an MSS leaves room for
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
SIDES = pytest.mark.parametrize("origin", ["left", "right"])

NETWORK = {socket.AF_INET: (0x0800, 20, 9), socket.AF_INET6: (0x86DD, 40, 6)}
"""Ether type, and of the header its length and where it has the protocol: linux/if_ether.h, RFC 791, RFC 8200."""

TCP_HEADER_BYTES, TCP_LENGTH_AT, TCP_FLAGS_AT, TCP_SYN = 20, 12, 13, 0x02
TCP_OPTION_NOP, TCP_OPTION_MSS = 1, 2  # RFC 9293

OTHERS = "add table inet filter\nadd chain inet filter forward { type filter hook forward priority 0 ; }"

NFT = shutil.which("nft", path=os.pathsep.join([*os.get_exec_path(), *SBIN_DIRECTORIES])) or ""

pytestmark = pytest.mark.skipif(not NFT, reason="the command nft is missing: install nftables")


class Host(NamedTuple):
    """A host beside the router; its device is link0."""

    node: Namespace
    addresses: dict[int, str]


class Route:
    """The three namespaces."""

    def __init__(self, stack: ExitStack) -> None:
        self.left, self.router, self.right = nodes = [Namespace(name) for name in ("left", "router", "right")]
        for node in nodes:
            stack.callback(node.close)
            node.sysctl("net.ipv6.conf.default.accept_dad=0")  # addresses work at once
        self.hosts = {
            "left": self._join(self.left, "link0", WIDE, 1),
            "right": self._join(self.right, "narrow", NARROW, 2),
        }
        self.router.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def _join(self, node: Namespace, device: str, mtu: int, net: int) -> Host:
        add_veth_pair(self.router, device, node)
        ip(
            self.router,
            f"link set {device} mtu {mtu} up",
            f"address add 10.78.{net}.1/24 dev {device}",
            f"address add fd78:{net}::1/64 dev {device} nodad",
        )
        # single packets: a veth device takes super-packets whatever its MTU is
        ip(
            node,
            f"link set link0 mtu {WIDE} gso_max_segs 1 up",
            f"address add 10.78.{net}.2/24 dev link0",
            f"address add fd78:{net}::2/64 dev link0 nodad",
            f"route add default via 10.78.{net}.1",
            f"route add default via fd78:{net}::1",
        )
        return Host(node, {socket.AF_INET: f"10.78.{net}.2", socket.AF_INET6: f"fd78:{net}::2"})

    def rules(self) -> str:
        return self.router.run([NFT, "list", "ruleset"]).stdout

    def install(self, clamp: MssClamp) -> str:
        return self.router.inside(clamp.install)

    def remove(self, clamp: MssClamp) -> str:
        return self.router.inside(clamp.remove)


def ip(node: Namespace, *commands: str) -> None:
    for version in ("-4", "-6"):
        mine = [command for command in commands if (":" in command) == (version == "-6")]
        node.run(["ip", version, "-batch", "-"], input="\n".join(mine))


@pytest.fixture
def route() -> Iterator[Route]:
    with ExitStack() as stack:
        made = Route(stack)
        try:
            made.rules()
        except LabError as error:
            pytest.skip(f"this kernel has no nf_tables: {error}")
        yield made


@pytest.fixture
def clamped(route: Route) -> Route:
    assert route.install(MssClamp("narrow", "one")) == ""
    return route


class Syns:
    """The MSS that each SYN says which comes in at an end."""

    def __init__(self, host: Host, family: int, stack: ExitStack) -> None:
        ether_type, self._network_bytes, self._protocol_at = NETWORK[family]
        self._socket = stack.enter_context(host.node.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
        self._socket.bind(("link0", ether_type))
        self._socket.setblocking(False)
        self.seen: list[int] = []

    def look(self) -> list[int]:
        while True:
            try:
                packet, (_, _, kind, *_) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return self.seen
            if kind != socket.PACKET_OUTGOING and packet[self._protocol_at] == socket.IPPROTO_TCP:
                segment = packet[self._network_bytes :]
                if segment[TCP_FLAGS_AT] & TCP_SYN:
                    self.seen.append(mss(segment))


def mss(segment: bytes) -> int:
    at, instance = TCP_HEADER_BYTES, segment[TCP_LENGTH_AT] >> 4 << 2
    while at < instance:
        if segment[at] == TCP_OPTION_MSS:
            return struct.unpack_from(">H", segment, at + 2)[0]
        at += 1 if segment[at] == TCP_OPTION_NOP else segment[at + 1]
    return 0


def said(route: Route, origin: str, family: int, own: int = 0) -> tuple[int, int]:
    """Connect through the router: the MSS in the SYN as it arrives, and that in the answer to it."""
    dialler = route.hosts[origin]
    listener = route.hosts["right" if origin == "left" else "left"]
    with ExitStack() as stack:
        seen = [Syns(listener, family, stack), Syns(dialler, family, stack)]
        server = stack.enter_context(listener.node.socket(family))
        server.bind((listener.addresses[family], 0))
        server.listen()
        client = stack.enter_context(dialler.node.socket(family))
        client.settimeout(10)
        if own:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, own)
        client.connect(server.getsockname()[:2])
        eventually(lambda: all(syns.look() for syns in seen), what="a SYN and its answer")
        return seen[0].seen[0], seen[1].seen[0]


@FAMILIES
@SIDES
def test_a_connection_through_the_narrow_device_uses_segments_that_fit(
    clamped: Route, origin: str, family: int
) -> None:
    assert said(clamped, origin, family) == (NARROW - HEADERS[family],) * 2


@FAMILIES
@SIDES
def test_without_the_clamp_it_would_not(route: Route, origin: str, family: int) -> None:
    assert said(route, origin, family) == (WIDE - HEADERS[family],) * 2


def test_a_segment_size_that_fits_already_is_left_as_it_is(clamped: Route) -> None:
    assert said(clamped, "left", socket.AF_INET, own=500)[0] == 500


def test_a_connection_that_goes_by_another_device_is_left_as_it_is(route: Route) -> None:
    route.install(MssClamp("other", "one"))
    assert said(route, "left", socket.AF_INET) == (WIDE - HEADERS[socket.AF_INET],) * 2


@FAMILIES
def test_bytes_arrive_where_packets_that_are_too_long_are_lost_without_a_word(clamped: Route, family: int) -> None:
    left, right = clamped.hosts["left"], clamped.hosts["right"]
    data = os.urandom(1 << 20)
    with right.node.socket(family) as server, left.node.socket(family) as client:
        server.bind((right.addresses[family], 0))
        server.listen()
        client.settimeout(10)
        client.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(10)
            sender = threading.Thread(target=accepted.sendall, args=(data,))
            sender.start()
            arrived = bytearray()
            while len(arrived) < len(data) and (part := client.recv(1 << 20)):
                arrived += part
            sender.join()
    assert arrived == data


def test_the_clamp_holds_for_a_device_that_is_made_later_and_made_again(route: Route) -> None:
    route.install(MssClamp("late", "one"))
    for _ in range(2):
        ip(route.router, "link set narrow down", "link set narrow name late", "link set late up")
        ip(route.router, "address replace fd78:2::1/64 dev late nodad")
        assert said(route, "left", socket.AF_INET)[0] == NARROW - HEADERS[socket.AF_INET]
        ip(route.router, "link set late down", "link set late name narrow", "link set narrow up")


# -- what is there, and what is left


def test_nothing_is_left_after_remove(clamped: Route) -> None:
    clamp = MssClamp("narrow", "one")
    assert "tunnel-one" in clamped.rules()
    assert clamped.remove(clamp) == ""
    assert clamped.rules() == ""


def test_remove_where_nothing_is_does_nothing_and_says_nothing(route: Route) -> None:
    clamp = MssClamp("narrow", "one")
    route.install(clamp)
    route.router.run([NFT, "flush", "ruleset"])
    assert [route.remove(clamp), route.remove(clamp)] == ["", ""]
    assert route.rules() == ""


def test_the_table_of_a_killed_run_is_replaced(clamped: Route) -> None:
    fresh = Namespace("fresh")
    try:
        fresh.inside(MssClamp("new", "one").install)
        expected = fresh.run([NFT, "list", "ruleset"]).stdout
    finally:
        fresh.close()
    assert clamped.install(MssClamp("new", "one")) == ""
    assert clamped.rules() == expected


def test_to_install_again_changes_nothing(clamped: Route) -> None:
    before = clamped.rules()
    assert clamped.install(MssClamp("narrow", "one")) == ""
    assert clamped.rules() == before


def test_the_tables_of_others_and_of_other_instances_stay(route: Route) -> None:
    route.router.run([NFT, "-f", "-"], input=OTHERS)
    route.install(MssClamp("other", "two"))
    before = route.rules()
    clamp = MssClamp("narrow", "one")
    route.install(clamp)
    assert route.rules().startswith(before)
    route.remove(clamp)
    assert route.rules() == before


def pattern(of: object) -> st.SearchStrategy[str]:
    return st.from_regex(get_args(of)[1].pattern.replace("$", r"\Z"))


@pytest.mark.slow
@given(pattern(Name), pattern(TunName))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nft_takes_every_name_that_the_configuration_takes(route: Route, name: str, tun_name: str) -> None:
    clamp = MssClamp(tun_name, name)
    assert route.install(clamp) == ""
    assert f'oifname "{tun_name}"' in route.rules()
    assert route.remove(clamp) == ""
    assert route.rules() == ""


# -- where it cannot work

HASTY = """
from pipeline.supervisor.kernel import nft
nft.NFT_SECONDS = 0.3
"""
INSTALL = """
from pipeline.supervisor.kernel.mss_clamp import MssClamp
clamp = MssClamp("narrow", "one")
print(clamp.install())
"""
REMOVE_BY_ANOTHER_NFT = """
import os, sys
os.environ["PATH"] = sys.argv[1] + ":" + os.environ["PATH"]
print(clamp.remove())
"""


def carry_out(route: Route, script: str, *arguments: object, words: Sequence[str] = (), path: str = "") -> str:
    """The output of a script in a process of its own, started by these words."""
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    argv = [*words, sys.executable, "-c", script, *arguments]
    return route.router.run(argv, cwd=ROOT, env=environment).stdout.strip()


def stub(directory: Path, line: str) -> Path:
    """A directory with a command in the place of nft."""
    (directory / "nft").write_text(f"#!/bin/sh\n{line}\n")
    (directory / "nft").chmod(0o755)
    return directory


def hidden(mount: str) -> list[str]:
    """Words for a process that finds something else in the place of nft."""
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_without_nft_it_says_what_to_install(route: Route) -> None:
    places = sorted(
        {os.path.dirname(os.path.realpath(NFT)), *map(os.path.realpath, SBIN_DIRECTORIES)} - {"/usr/bin", "/bin"}
    )
    words = hidden(" && ".join(f"mount -t tmpfs none {place}" for place in places))
    assert carry_out(route, INSTALL, words=words) == (
        "mss_clamp: the command nft is missing: install nftables. TCP that this machine forwards through narrow may "
        "hang where path MTU discovery does not work; mss_clamp=false ends this warning"
    )


def test_without_the_right_it_says_which(route: Route) -> None:
    sentence = carry_out(route, INSTALL, words=["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"])
    assert "Operation not permitted" in sentence and "CAP_NET_ADMIN" in sentence
    assert route.rules() == ""


def test_an_nft_that_cannot_be_run_is_named_with_the_reason(route: Route) -> None:
    words = hidden(f"mount --bind /dev/null {os.path.realpath(NFT)}")
    assert "nft: Permission denied" in carry_out(route, INSTALL, words=words)


def test_an_nft_that_hangs_does_not_hold_up_the_start(route: Route, tmp_path: Path) -> None:
    path = f"{stub(tmp_path, 'exec sleep 60')}:{os.environ['PATH']}"
    assert "nft has not ended within 0.3 s" in carry_out(route, HASTY + INSTALL, path=path)


def test_nft_is_found_also_where_the_path_has_no_sbin(route: Route) -> None:
    assert carry_out(route, INSTALL, path="/usr/bin:/bin") == ""


def test_a_clamp_that_cannot_be_removed_says_how_to_do_it_by_hand(route: Route, tmp_path: Path) -> None:
    elsewhere = stub(tmp_path, "echo 'Error: Device or resource busy' >&2; exit 1")
    sentence = carry_out(route, INSTALL + REMOVE_BY_ANOTHER_NFT, elsewhere)
    by_hand = sentence.partition("by hand: ")[2]
    assert "Device or resource busy" in sentence
    route.router.run(by_hand.split())
    assert route.rules() == ""


def test_the_removal_of_a_clamp_that_was_not_installed_says_nothing(route: Route, tmp_path: Path) -> None:
    path = f"{stub(tmp_path, 'exit 1')}:{os.environ['PATH']}"
    printed = carry_out(route, INSTALL + "print(repr(clamp.remove()))", path=path)
    assert "exit status 1" in printed and printed.endswith("''")
