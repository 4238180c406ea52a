"""The check of the network beneath: when a kernel is asked, and about what. The kernel is one of the test's own.

The consequences of a change: tests/unit/policy/test_underlay.py. Real changes: tests/netns/test_underlay.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.policy.server_addresses import ServerAddress
from pipeline.policy.underlay import SOURCE_GONE, WAY_CHANGED, Changes, Way
from pipeline.transport.kernel_route import Link, RouteAnswer
from workers.tcp import underlay_check
from workers.tcp.underlay_check import LOOK_NS, NEWS_NS, RETRANSMITS_MAX, STALLS_NS, UnderlayCheck

TICK = 100_000_000
TUN = "tun-test"
SERVER, OTHER = (ServerAddress(socket.AF_INET, (host, 9000)) for host in ("198.51.100.1", "198.51.100.2"))
UPLINK = RouteAnswer(Way(2, b"", True), "eth0")
WLAN = RouteAnswer(Way(3, b"\x0a\0\0\1", True), "wlan0")
NOWHERE = RouteAnswer(None)
LOOP = RouteAnswer(Way(9, b"", True), TUN)


class Kernel:
    """Stands for KernelRoutes and RouteNews; `way`: that to every address which has none of its own in `ways`."""

    def __init__(self) -> None:
        self.way = UPLINK
        self.ways: dict[str, RouteAnswer] = {}
        self.gone: set[str] = set()
        self.has_news = False
        self.asked: list[str] = []
        self.devices: set[int] = set()
        self.state = Link(2, True, True)
        self.own: set[bytes] = set()
        self.closed = 0

    def find(self, address: ServerAddress, device: int = 0) -> RouteAnswer:
        self.asked.append(address.host)
        self.devices.add(device)
        return self.ways.get(address.host, self.way)

    def link(self, name: str) -> Link:
        return self.state

    def has(self, device: int, address: bytes) -> bool:
        return address in self.own

    def take(self) -> bool:
        had, self.has_news = self.has_news, False
        return had

    def close(self) -> None:
        self.closed += 1


class Made:
    """A connection: its number, the address that it was dialed from, and how often the kernel has sent in vain."""

    def __init__(self, serial: int, source: str = "192.0.2.7") -> None:
        self.serial = serial
        self.source = source
        self.retransmits = 0

    @property
    def socket(self) -> Made:
        return self

    def getsockname(self) -> tuple[str, int]:
        if not self.source:
            raise OSError("it has ended")
        return self.source, 40000

    def tcp_info(self) -> Made:
        return self


class Client:
    """The check, at a clock that the test moves."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.check = UnderlayCheck(TUN)
        self.now = 1_000_000_000_000
        self.known = [SERVER]

    def connect(self, serial: int, server: ServerAddress = SERVER, **options: Any) -> Any:
        made: Any = Made(serial, **options)
        self.check.begin(made, server)
        return made

    def tick(self) -> Changes:
        self.now += TICK
        return self.check.changes(self.known, self.now)

    def run(self, ticks: int = 50) -> list[Changes]:
        """The changes that there were."""
        return [changes for changes in (self.tick() for _ in range(ticks)) if changes]

    def looks(self, ticks: int) -> int:
        """In how many of so many ticks the kernel is asked."""
        count = 0
        for _ in range(ticks):
            self.kernel.asked.clear()
            self.tick()
            count += bool(self.kernel.asked)
        return count


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(underlay_check, "KernelRoutes", lambda: made)
    monkeypatch.setattr(underlay_check, "RouteNews", lambda: made)
    monkeypatch.setattr(underlay_check, "is_ours", lambda sockaddr: sockaddr[0] not in made.gone)
    return made


@pytest.fixture
def client(kernel: Kernel) -> Iterator[Client]:
    made = Client(kernel)
    yield made
    made.check.close()
    assert kernel.closed == 2


def test_the_kernel_is_asked_once_a_second_and_for_a_second_after_news_at_every_call(client: Client) -> None:
    client.tick()
    assert client.looks(30) == 30 * TICK // LOOK_NS
    client.kernel.has_news = True
    assert client.looks(10) == 10
    assert client.looks(10) == 1


def test_a_connection_whose_way_has_changed_is_dialed_anew_once(client: Client) -> None:
    client.connect(1)
    assert client.run() == []
    client.kernel.way = WLAN
    assert client.run() == [Changes(renew={1: WAY_CHANGED}, hurry=True)]


def test_an_address_that_a_connection_was_dialed_at_is_watched_although_the_name_has_others_now(client: Client) -> None:
    client.connect(1, OTHER)
    client.run()
    client.kernel.ways[OTHER.host] = WLAN
    assert client.run() == [Changes(renew={1: WAY_CHANGED}, hurry=True)]


def test_a_connection_whose_local_address_is_gone_is_closed(client: Client) -> None:
    client.connect(1)
    client.connect(2, source="192.0.2.8")
    client.kernel.gone = {"192.0.2.8"}
    assert client.run(25)[0] == Changes(close={2: SOURCE_GONE})


def test_addresses_are_watched_until_the_last_connection_that_has_them_ends(client: Client) -> None:
    first, second = client.connect(1, OTHER), client.connect(2, OTHER)
    client.check.end(first)
    client.kernel.gone = {first.source}
    assert client.run(25)[0] == Changes(close={2: SOURCE_GONE})
    client.kernel.asked.clear()
    client.check.end(second)
    client.check.end(second)
    assert client.run() == [] and set(client.kernel.asked) == {SERVER.host}


def test_a_connection_that_has_ended_already_is_not_watched(client: Client) -> None:
    client.connect(1, OTHER, source="")
    client.run()
    assert set(client.kernel.asked) == {SERVER.host}


def test_a_way_into_the_tunnel_itself_is_none_and_hinders_a_dial(client: Client) -> None:
    assert client.check.hindrance(SERVER) == ""
    client.connect(1)
    client.run()
    client.kernel.way = LOOP
    assert client.run() == []
    assert f"leads into the tunnel itself ({TUN})" in client.check.hindrance(SERVER)
    assert f"a route to {SERVER.host}" in client.check.hindrance(SERVER)


def test_before_the_name_is_resolved_a_network_that_appears_makes_the_dials_due(client: Client) -> None:
    client.known = []
    client.kernel.way = NOWHERE
    assert client.run() == []
    client.kernel.way = UPLINK
    assert client.run() == [Changes(hurry=True)]


def test_a_connection_on_which_the_kernel_sends_in_vain_is_said_once_and_once_more_when_it_recovers(
    client: Client,
) -> None:
    one, other = client.connect(1), client.connect(2)

    def stalls() -> list[Any]:
        client.now += STALLS_NS
        return client.check.stalls([one, other], client.now)

    one.retransmits = RETRANSMITS_MAX - 1
    assert stalls() == []
    one.retransmits = RETRANSMITS_MAX
    assert client.check.stalls([one, other], client.now + STALLS_NS - 1) == []
    assert stalls() == [(one, True)] and stalls() == []
    one.retransmits = 1
    assert stalls() == []
    one.retransmits = 0
    assert stalls() == [(one, False)] and stalls() == []


def test_for_a_moment_after_news_of_the_kernels_one_timeout_is_a_stall(kernel: Kernel, client: Client) -> None:
    one = client.connect(1)
    one.retransmits = 1
    client.now += STALLS_NS
    assert client.check.stalls([one], client.now) == []
    kernel.has_news = True
    client.tick()
    assert client.check.stalls([one], client.now) == [(one, True)]
    one.retransmits = 0
    assert client.check.stalls([one], client.now + 1) == [(one, False)]
    client.now += NEWS_NS + STALLS_NS
    one.retransmits = 1
    assert client.check.stalls([one], client.now) == []


def test_a_connection_that_ends_while_it_stalls_is_forgotten(client: Client) -> None:
    one = client.connect(1)
    one.retransmits = RETRANSMITS_MAX
    assert client.check.stalls([one], client.now) == [(one, True)]
    client.check.end(one)
    assert client.check.stalls([one], client.now + STALLS_NS) == [(one, True)]


def refuse() -> None:
    raise OSError(93, "Protocol not supported")


def test_without_news_of_the_kernel_it_is_asked_once_a_second(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(underlay_check, "RouteNews", refuse)
    client = Client(kernel)
    assert "by asking once a second: no netlink: Protocol not supported" in caplog.text
    client.tick()
    assert client.looks(30) == 30 * TICK // LOOK_NS
    client.check.close()
    assert kernel.closed == 1


def test_without_netlink_nothing_is_asked_and_nothing_hinders(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(underlay_check, "KernelRoutes", refuse)
    client = Client(kernel)
    assert "by timeouts alone" in caplog.text
    made = client.connect(1)
    assert client.run() == [] and client.check.hindrance(SERVER) == "" and kernel.asked == []
    client.check.end(made)
    client.check.close()


# -- one uplink of several


@pytest.fixture
def uplink(kernel: Kernel) -> Iterator[UnderlayCheck]:
    made = UnderlayCheck(TUN, "eth0")
    yield made
    made.close()


def test_an_uplink_is_asked_for_by_its_own_interface(kernel: Kernel, uplink: UnderlayCheck) -> None:
    uplink.changes([SERVER], 1)
    assert kernel.devices == {2}


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        (Link(0), "this machine has no interface eth0"),
        (Link(2, False, False), "eth0 is down"),
        (Link(2, True, False), "eth0 has no carrier"),
    ],
)
def test_an_uplink_without_a_carrier_is_cut_off_and_hinders(
    kernel: Kernel, uplink: UnderlayCheck, link: Link, reason: str
) -> None:
    assert uplink.cut_off() == uplink.hindrance(SERVER) == ""
    kernel.state = link
    assert uplink.cut_off() == uplink.hindrance(SERVER) == reason


def test_an_uplink_without_a_route_or_an_address_of_its_own_hinders(kernel: Kernel, uplink: UnderlayCheck) -> None:
    kernel.way = NOWHERE
    assert uplink.hindrance(SERVER) == "this machine has no route to it by eth0"
    kernel.way = UPLINK._replace(source=b"\x0a\0\0\x07")
    assert uplink.hindrance(SERVER) == "eth0 has no address of this family"
    kernel.own = {b"\x0a\0\0\x07"}
    assert uplink.hindrance(SERVER) == ""


def test_a_link_local_server_is_reached_by_its_own_link_alone(uplink: UnderlayCheck) -> None:
    def server(zone: int) -> ServerAddress:
        return ServerAddress(socket.AF_INET6, ("fe80::1", 9000, 0, zone))

    assert uplink.hindrance(server(2)) == ""
    assert uplink.hindrance(server(3)) == "it is on another link than eth0"


def test_a_way_that_is_the_old_one_is_news_after_the_uplink_was_lost(kernel: Kernel, uplink: UnderlayCheck) -> None:
    now = 1_000_000_000_000
    for _ in range(30):
        now += TICK
        assert not uplink.changes([SERVER], now)
    uplink.lose()
    kernel.has_news = True
    found = []
    for _ in range(3):
        now += TICK
        found.append(uplink.changes([SERVER], now))
    assert [each for each in found if each] == [Changes(hurry=True)]
