"""Who may reach what, with real packets: to a network behind the hub, to the hub, from peer to peer.

lan ---- hub ---- one: peer laptop
              '-- two: peer gateway, and a host behind it
"""

from __future__ import annotations

import errno
import json
import random
import re
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from pipeline.policy.reach import PeerFacts, Terms, compile_policies
from pipeline.policy.targets import hosts
from pipeline.supervisor.kernel.reach_table import Guarded, ReachTable
from tests.netns.harness.hub import BOTH, PLAIN, Client, Hub, inside, reaches
from tests.netns.harness.shared_hub import HostBehind, add_host_behind, networks_behind
from tests.support import eventually
from tools.lab.namespace import LabError, Namespace
from tools.lab.network import Lab, add_veth_pair

pytestmark = pytest.mark.skipif(not shutil.which("nft"), reason="the command nft is missing: install nftables")

LAN = ("192.168.10.5", "fd10::5")
LAN_NETWORKS = ["192.168.10.0/24", "fd10::/64"]
BEHIND_GATEWAY = 2
SECONDS = 5.0
PROHIBITED = (errno.EHOSTUNREACH, errno.EACCES)
"""The errno of what ICMP has refused: of IPv4, of IPv6."""


class Site:
    """The hub, its two peers, a host in the network behind it, and one behind the gateway."""

    def __init__(self, stack: ExitStack, directory: Path, lanes: int = 1) -> None:
        self.lab = stack.enter_context(Lab(names=("hub", "one", "two")))
        self.router = self.lab["hub"]
        self.lan = Namespace("lan")
        stack.callback(self.lan.close)
        add_veth_pair(self.router, "lan", self.lan)
        for node, device, last in ((self.router, "lan", 1), (self.lan, "link0", 5)):
            node.run(
                ["ip", "-batch", "-"],
                input=f"link set {device} up\naddress add 192.168.10.{last}/24 dev {device}\n"
                f"address add fd10::{last}/64 dev {device} nodad\n",
            )
        self.lan.run(["ip", "-batch", "-"], input="route add default via 192.168.10.1\nroute add default via fd10::1\n")
        self.router.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.behind: HostBehind = add_host_behind(stack, self.lab["two"], BEHIND_GATEWAY)
        networks = list(networks_behind(BEHIND_GATEWAY))
        self.hub = stack.enter_context(
            Hub(self.lab, directory, routes=networks, push_routes=[*LAN_NETWORKS, *networks], fec="off", lanes=lanes)
        )
        self.hub.configure(groups={"office": ["10.99.0.3", "fd99::3"], "servers": ["any"]})
        self.laptop: Client = self.hub.join(self.lab["one"], "laptop", **PLAIN)
        allow = [f"--allow={network}" for network in networks]
        self.gateway: Client = self.hub.join(self.lab["two"], "gateway", *allow, "--group", "servers", **PLAIN)

    @property
    def table(self) -> str:
        return f"tunnel-{self.hub.server.name}/reach"

    def limit(self, peer: str, targets: Sequence[str] | None, **settings: object) -> None:
        """Give a peer these rules, None for none, in its file, and reload."""
        file = Path(self.hub.server.config["state_dir"]) / "peers" / f"{peer}.json"
        content = json.loads(file.read_text())
        content.pop("groups", None)
        content.pop("may_reach", None)
        content |= settings | ({} if targets is None else {"may_reach": list(targets)})
        file.write_text(json.dumps(content))
        self.hub.configure()

    def rules(self) -> str:
        return self.router.run(["nft", "list", "ruleset"]).stdout

    def refused(self, peer: str) -> int:
        return self.hub.peers()[peer]["refused_packets"]

    def explain(self, peer: str, target: str) -> tuple[bool, str]:
        done = self.hub.server.command("check", "--explain", peer, target)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        made = Site(stack, tmp_path_factory.mktemp("reach"))
        try:
            made.rules()
        except LabError as error:
            pytest.skip(f"this kernel has no nf_tables: {error}")
        yield made


@pytest.fixture(autouse=True)
def unlimited(site: Site) -> Iterator[None]:
    yield
    for peer in ("laptop", "gateway"):
        site.limit(peer, None)
    eventually(lambda: site.table not in site.rules())


@contextmanager
def listener(
    node: Namespace, port: int, kind: int = socket.SOCK_STREAM, *, six: bool = False
) -> Iterator[socket.socket]:
    with node.socket(socket.AF_INET6 if six else socket.AF_INET, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
        sock.settimeout(SECONDS)
        if kind == socket.SOCK_STREAM:
            sock.listen()
        yield sock


@contextmanager
def dialed(node: Namespace, address: str, port: int, seconds: float = SECONDS) -> Iterator[socket.socket]:
    with node.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        sock.connect((address, port))
        yield sock


def outcome(node: Namespace, address: str, port: int, seconds: float = SECONDS) -> int:
    """The errno of a TCP connection, 0 if it is established; -1 if nobody has answered.

    Linux loses the errno of one refusal in some thousands (SO_ERROR says 0 of a socket that is closed): asked again.
    """
    try:
        with dialed(node, address, port, seconds) as sock:
            try:
                sock.getpeername()
            except OSError:
                return outcome(node, address, port, seconds)
            return 0
    except TimeoutError:
        return -1
    except OSError as error:
        return error.errno or -1


def asks(node: Namespace, address: str, port: int, answering: socket.socket, size: int = 10) -> bool:
    """Whether a datagram arrives there, and the answer here."""
    with node.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect((address, port))
        try:
            sock.send(bytes(size))
            _, back = answering.recvfrom(65536)
            answering.sendto(bytes(size), back)
            return len(sock.recv(65536)) == size
        except TimeoutError:
            return False
        except OSError as error:
            assert error.errno in PROHIBITED, error
            return False


# -- behind the hub


@BOTH
def test_a_peer_reaches_behind_the_hub_what_its_rules_name_and_nothing_else(site: Site, six: bool) -> None:
    address = LAN[six]
    host = f"[{address}]" if six else address
    site.limit("laptop", [f"{host}:8443/tcp", f"{host}:5353/udp", f"{address}/icmp"])
    node = site.laptop.node
    with (
        listener(site.lan, 8443, six=six),
        listener(site.lan, 8022, six=six),
        listener(site.lan, 5353, socket.SOCK_DGRAM, six=six) as answering,
    ):
        assert outcome(node, address, 8443) == 0
        assert asks(node, address, 5353, answering) and reaches(node, address)
        assert outcome(node, address, 8022) in PROHIBITED, "it is told at once"
        assert not reaches(node, "192.168.10.1" if not six else "fd10::1", count=1, seconds=0.3)
        site.limit("laptop", None)
        assert outcome(node, address, 8022) == 0


def test_a_refusal_is_counted_named_and_explained(site: Site) -> None:
    site.limit("laptop", ["192.168.10.0/24:8443/tcp"])
    before = site.refused("laptop")
    assert outcome(site.laptop.node, LAN[0], 8022) in PROHIBITED
    site.hub.server.wait_for_log(
        f"peer laptop: may not reach {LAN[0]}:8022/tcp; it may reach 192.168.10.0/24:8443/tcp", SECONDS
    )
    eventually(lambda: site.refused("laptop") > before, what="the refusal is counted")
    may, text = site.explain("laptop", f"{LAN[0]}:8022")
    assert not may and f"laptop may not reach {LAN[0]}:8022/tcp: no rule of it names that" in text
    may, text = site.explain("laptop", f"{LAN[0]}:8443")
    assert may and 'by "192.168.10.0/24:8443/tcp" its own' in text and "nftables" in text
    shown = site.hub.server.command("peers", "laptop").stdout
    assert "laptop: may reach 192.168.10.0/24:8443/tcp" in shown and re.search("laptop: [0-9]+ packets? refused", shown)


@BOTH
def test_a_peer_without_any_right_answers_what_others_begin(site: Site, six: bool) -> None:
    site.limit("laptop", [])
    address = inside(site.laptop, six)
    with (
        listener(site.laptop.node, 7001, six=six),
        listener(site.laptop.node, 7002, socket.SOCK_DGRAM, six=six) as answering,
    ):
        assert outcome(site.lan, address, 7001) == 0 and asks(site.lan, address, 7002, answering)
        assert outcome(site.router, address, 7001) == 0, "from the hub itself"
        assert outcome(site.gateway.node, address, 7001) == 0 and asks(site.gateway.node, address, 7002, answering)
        assert reaches(site.lan, address) and reaches(site.gateway.node, address)
    assert not reaches(site.laptop.node, LAN[six], count=1, seconds=0.3)
    assert not reaches(site.laptop.node, inside(site.gateway, six), count=1, seconds=0.3)
    assert outcome(site.laptop.node, inside(site.hub.server, six), 22) in PROHIBITED


@BOTH
def test_site_to_site_goes_on_beside_rules_of_the_peers(site: Site, six: bool) -> None:
    """A rule by the address of the peer alone would drop what comes from the network behind it."""
    behind = site.behind.addresses[six]
    networks = networks_behind(BEHIND_GATEWAY)
    site.limit("laptop", [*networks, *LAN_NETWORKS])
    site.limit("gateway", [])
    with listener(site.behind.node, 7001, six=six), listener(site.lan, 7001, six=six):
        assert outcome(site.laptop.node, behind, 7001) == 0, "from peer to peer"
        assert outcome(site.lan, behind, 7001) == 0, "through the hub's kernel"
        assert outcome(site.behind.node, LAN[six], 7001) in PROHIBITED, "its network has its rules"
        site.limit("gateway", LAN_NETWORKS)
        assert outcome(site.behind.node, LAN[six], 7001) == 0


@pytest.mark.parametrize("between", [False, True], ids=["behind-the-hub", "peer-to-peer"])
def test_a_connection_that_is_no_longer_allowed_is_reset_and_others_go_on(site: Site, between: bool) -> None:
    node, address = (site.gateway.node, site.gateway.address) if between else (site.lan, LAN[0])
    site.limit("laptop", [f"{address}:7001-7002/tcp"])
    with (
        listener(node, 7001) as first,
        listener(node, 7002) as second,
        dialed(site.laptop.node, address, 7001) as ends,
        dialed(site.laptop.node, address, 7002) as stays,
        first.accept()[0],
        second.accept()[0] as accepted,
    ):
        site.limit("laptop", [f"{address}:7002/tcp"])
        stays.sendall(b"on")
        assert accepted.recv(2) == b"on"
        ends.sendall(b"off")
        with pytest.raises(ConnectionResetError):
            ends.recv(1)


@pytest.mark.alone
def test_rules_that_others_flush_are_put_back_and_hardly_anything_passes_meanwhile(site: Site) -> None:
    site.limit("laptop", [f"{LAN[0]}:8443/tcp"])
    site.router.run(
        ["nft", "add table inet others; add chain inet others forward { type filter hook forward priority 0; }"]
    )
    with listener(site.lan, 8022), listener(site.lan, 8443):
        site.router.run(["nft", "flush ruleset"])
        eventually(lambda: outcome(site.laptop.node, LAN[0], 8022) != 0, 1, "the tun worker closes the way")
        eventually(lambda: site.table in site.rules(), what="the table is back")
        site.router.run(["nft", "add table inet others"])
        eventually(lambda: outcome(site.laptop.node, LAN[0], 8443) == 0, what="what is allowed passes again")
        assert outcome(site.laptop.node, LAN[0], 8022) in PROHIBITED
    site.limit("laptop", None)
    assert "table inet others" in site.rules(), "what is another's stays"
    site.router.run(["nft", "delete table inet others"])


def test_rules_hold_for_a_device_that_others_rename_or_delete(site: Site) -> None:
    name = site.hub.server.tun_name
    site.limit("laptop", [f"{LAN[0]}:8443/tcp"])

    def rename(before: str, after: str) -> None:
        for words in (f"{before} down", f"{before} name {after}", f"{after} up"):
            site.router.run(["ip", "link", "set", *words.split()])

    def holds() -> bool:
        passes = outcome(site.laptop.node, LAN[0], 8443, seconds=0.5) == 0
        assert outcome(site.laptop.node, LAN[0], 8022, seconds=0.5) != 0
        return passes

    with listener(site.lan, 8443), listener(site.lan, 8022):
        rename(name, "renamed")
        try:
            eventually(holds, what="what is allowed passes under another name")
        finally:
            rename("renamed", name)
        site.router.run(["ip", "link", "del", name])
        eventually(holds, what="what is allowed passes through the new device")


def test_an_accept_of_anothers_table_opens_nothing_and_a_drop_of_it_stays(site: Site) -> None:
    site.limit("laptop", [f"{LAN[0]}:8443/tcp"])
    for verdict, allowed in (("accept", True), ("drop", False)):
        chain = f"{{ type filter hook forward priority -10; policy {verdict}; }}"
        patience = SECONDS if allowed else 1
        site.router.run(["nft", f"add table inet docker; add chain inet docker forward {chain}"])
        try:
            with listener(site.lan, 8443), listener(site.lan, 8022):
                assert (outcome(site.laptop.node, LAN[0], 8443, seconds=patience) == 0) is allowed
                assert outcome(site.laptop.node, LAN[0], 8022, seconds=1) != 0
        finally:
            site.router.run(["nft", "delete table inet docker"])


def test_nft_takes_rules_that_overlap_in_any_way(site: Site) -> None:
    chosen = random.Random(1)
    networks = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "0.0.0.0/0", "::/0", "fd00::/8", "fd00::/64", "fd00::5"]
    services = ["", "/icmp", "/tcp", ":80", ":1-65535/tcp", ":443,80,81-90/udp", ":443,90-95", "/gre", ":5/sctp"]
    places = [*(f"[{each}]" if ":" in each else each for each in networks), "any", "internet", "hub", "peer:p1"]
    for _ in range(15):
        facts = [
            PeerFacts(
                name,
                (ip_address(f"10.99.0.{last}"),),
                may_reach=tuple({chosen.choice(places) + chosen.choice(services) for _ in range(12)} - {"any"}),
            )
            for last, name in enumerate(("p1", 'p2"; }', "p3"), 2)
        ]
        policies = compile_policies(facts, Terms(own=(ip_address("10.99.0.1"),)))
        guarded = [Guarded(each.name, hosts(each.addresses), policies[each.name]) for each in facts]
        table = ReachTable(("tun0", 1), "try", guarded)
        assert site.router.inside(table.install) == ""
        assert site.router.inside(table.remove) == "" and table.table not in site.rules()


def test_the_internet_alone_is_a_target(site: Site) -> None:
    """Nothing private, such as other peers and the networks of the hub, without a rule that denies."""
    site.router.run(["ip", "address", "add", "198.51.100.1/32", "dev", "lan"])
    site.laptop.node.run(["ip", "route", "add", "198.51.100.1/32", "dev", site.laptop.tun_name])
    try:
        site.limit("laptop", ["internet"])
        assert reaches(site.laptop.node, "198.51.100.1", count=1)
        for address in (LAN[0], site.gateway.address, site.hub.server.address):
            assert not reaches(site.laptop.node, address, count=1, seconds=0.3)
    finally:
        site.router.run(["ip", "address", "del", "198.51.100.1/32", "dev", "lan"])


def test_without_nft_peers_with_rules_reach_no_network_and_others_do(tmp_path: Path) -> None:
    empty = tmp_path / "nft"
    empty.touch(0o755)
    hidden = shutil.which("nft")
    without = ["unshare", "--mount", "sh", "-c", f'mount --bind {empty} {hidden} && exec "$@"', "sh"]
    with Lab(names=("hub", "one")) as lab, Hub(lab, tmp_path, fec="off", wrap=without) as hub:
        laptop = hub.join(lab["one"], "laptop", "--may-reach", "hub", **PLAIN)
        assert not reaches(laptop.node, hub.server.address, count=2, seconds=0.3)
        eventually(lambda: hub.server.counter("tun.dropped_unguarded") >= 2, what="both were dropped")
        said = "Peers with rules reach nothing beyond other peers until the table is there"
        hub.server.wait_for_log(said)
        eventually(lambda: any(said in note for note in hub.server.running()["notes"]), what="it is a note")


# -- from peer to peer


@BOTH
def test_from_peer_to_peer_the_same_rules_hold(site: Site, six: bool) -> None:
    address = inside(site.gateway, six)
    site.limit("laptop", ["peer:gateway:8443/tcp", "peer:gateway:5353/udp"])
    node = site.laptop.node
    dropped = site.hub.server.counter("tun.dropped_not_reachable")
    with (
        listener(site.gateway.node, 8443, six=six),
        listener(site.gateway.node, 8022, six=six),
        listener(site.gateway.node, 5353, socket.SOCK_DGRAM, six=six) as answering,
    ):
        assert outcome(node, address, 8443) == 0 and asks(node, address, 5353, answering)
        assert outcome(node, address, 8022) in PROHIBITED, "it is told at once"
        assert not reaches(node, address, count=1, seconds=0.3)
    site.hub.server.wait_for_log(f"may not reach {f'[{address}]' if six else address}:8022/tcp", SECONDS)
    eventually(lambda: site.hub.server.counter("tun.dropped_not_reachable") >= dropped + 2, what="both were dropped")
    eventually(lambda: site.refused("laptop") > 0)
    may, text = site.explain("laptop", "peer:gateway:8443")
    assert may and "which is peer gateway" in text and "tun worker" in text


@BOTH
def test_fragments_go_with_their_first_one(site: Site, six: bool) -> None:
    address = inside(site.gateway, six)
    site.limit("laptop", ["peer:gateway:5353/udp"])
    site.limit("gateway", [])
    with listener(site.gateway.node, 5353, socket.SOCK_DGRAM, six=six) as answering:
        assert asks(site.laptop.node, address, 5353, answering, size=5000)
    with listener(site.gateway.node, 5354, socket.SOCK_DGRAM, six=six) as answering:
        answering.settimeout(0.3)
        assert not asks(site.laptop.node, address, 5354, answering, size=5000)


def test_a_group_is_reached_as_its_members_come_and_go(site: Site) -> None:
    site.limit("laptop", ["group:servers:8443/tcp"])
    with listener(site.gateway.node, 8443):
        assert outcome(site.laptop.node, site.gateway.address, 8443) in PROHIBITED
        site.limit("gateway", None, groups=["servers"])
        assert outcome(site.laptop.node, site.gateway.address, 8443) == 0
        site.hub.configure(groups={"office": [], "servers": []})
        try:
            assert outcome(site.gateway.node, site.laptop.address, 9) in PROHIBITED, "groups changed live"
        finally:
            site.hub.configure(groups={"office": ["10.99.0.3", "fd99::3"], "servers": ["any"]})


def test_an_answer_passes_after_the_tun_worker_was_killed(site: Site) -> None:
    site.limit("gateway", [])
    with listener(site.gateway.node, 7001) as waiting, dialed(site.laptop.node, site.gateway.address, 7001) as begun:
        accepted, _ = waiting.accept()
        with accepted:
            names = [name for name in site.hub.server.worker_pids() if name.startswith("tun")]
            pids = {name: site.hub.server.signal_worker(name, signal.SIGKILL) for name in names}
            for name, pid in pids.items():
                site.hub.server.wait_until_replaced(name, pid)
            accepted.sendall(b"answer")
            begun.settimeout(15)
            assert begun.recv(6) == b"answer"
            assert outcome(site.gateway.node, site.laptop.address, 9) in PROHIBITED


def test_an_invitation_says_what_the_peer_reaches(site: Site) -> None:
    for words, said in (
        ([], "the peer reaches all other peers, and they reach it"),
        (["--group", "office"], "the peer may reach 10.99.0.3, fd99::3, and answers what others begin"),
        (["--may-reach", ""], "the peer may reach nothing"),
        (["--may-reach", "hub:53/udp"], "the peer may reach hub:53/udp"),
    ):
        done = site.hub.server.command("invite", "third", *words)
        assert done.returncode == 0 and said in done.stderr, done.stderr
        site.hub.server.command("revoke", "third")
    done = site.hub.server.command("invite", "third", "--group", "ofice")
    assert done.returncode != 0 and 'no group "ofice": the setting groups has office, servers' in done.stderr
    done = site.hub.server.command("invite", "third", "--may-reach", "10.0.0.5:https")
    assert done.returncode != 0 and "ports from 1 to 65535" in done.stderr


def test_nothing_is_left_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    with Lab(names=("hub", "one")) as lab, Hub(lab, tmp_path, may_reach=["hub"]) as hub:
        hub.invite("laptop")
        table = f"tunnel-{hub.server.name}/reach"

        def rules() -> str:
            return lab["hub"].run(["nft", "list", "ruleset"]).stdout

        eventually(lambda: table in rules())
        hub.server.kill()
        assert table in rules(), "nobody could remove it"
        hub.start_again()
        eventually(lambda: table in rules())
        hub.server.stop()
        assert table not in rules()
