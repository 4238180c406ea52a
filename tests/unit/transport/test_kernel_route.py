"""Questions to the kernel about routes and addresses, on the loopback. Real changes: tests/netns/test_underlay.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pipeline.policy.server_addresses import ServerAddress
from pipeline.transport.kernel_route import RTA_OIF, KernelRoutes, Link, RouteAnswer, _attribute, _parse, is_ours
from tests.harness.factory import factory


@pytest.fixture
def routes() -> Iterator[KernelRoutes]:
    with factory(KernelRoutes) as make:
        yield make()


def test_the_way_to_the_loopback_is_its_interface(routes: KernelRoutes) -> None:
    way, interface, _ = routes.find(ServerAddress(socket.AF_INET, ("127.0.0.1", 9000)))
    assert interface == "lo"
    assert way == (socket.if_nametoindex("lo"), b"", True)


def test_an_address_without_a_route_has_no_way(routes: KernelRoutes) -> None:
    assert routes.find(ServerAddress(socket.AF_INET, ("0.0.0.1", 9000))) == RouteAnswer(None)


def test_a_late_answer_is_passed_over(routes: KernelRoutes) -> None:
    routes._netlink.send(routes._request(ServerAddress(socket.AF_INET, ("0.0.0.1", 9000))))
    assert routes.find(ServerAddress(socket.AF_INET, ("127.0.0.1", 9000))).interface == "lo"


def test_without_an_answer_of_the_kernel_there_is_no_way(routes: KernelRoutes) -> None:
    routes.close()
    assert routes.find(ServerAddress(socket.AF_INET, ("127.0.0.1", 9000))) == RouteAnswer(None)


def test_only_an_address_with_an_interface_is_asked_for_by_that_interface(routes: KernelRoutes) -> None:
    def is_asked(address: ServerAddress) -> bool:
        return _attribute(RTA_OIF, (1).to_bytes(4, "little")) in routes._request(address)

    assert is_asked(ServerAddress(socket.AF_INET6, ("fe80::1%lo", 9000, 0, 1)))
    assert not is_asked(ServerAddress(socket.AF_INET6, ("fd00::1", 9000, 0, 0)))
    assert not is_asked(ServerAddress(socket.AF_INET, ("127.0.0.1", 9000)))


def test_a_bound_socket_has_a_way_only_where_a_route_leads_by_its_interface(routes: KernelRoutes) -> None:
    lo = routes.link("lo").device
    way, _, source = routes.find(ServerAddress(socket.AF_INET, ("127.0.0.1", 9000)), lo)
    assert way == (lo, b"", True)
    assert routes.has(lo, source) and not routes.has(lo + 1, source) and not routes.has(lo, b"\xc0\0\2\1")
    assert routes.find(ServerAddress(socket.AF_INET, ("192.0.2.1", 9000)), lo) == RouteAnswer(None)
    assert routes.find(ServerAddress(socket.AF_INET6, ("2001:db8::1", 9000, 0, 0)), lo).way is None


def test_an_interface_that_is_missing_is_none(routes: KernelRoutes) -> None:
    assert routes.link("lo") == (socket.if_nametoindex("lo"), True, True)
    assert routes.link("no-such-link") == Link(0)


def test_an_address_is_ours_or_is_not() -> None:
    assert is_ours(("127.0.0.1", 40000))
    assert not is_ours(("192.0.2.1", 40000))
    assert not is_ours(("2001:db8::1", 40000, 0, 0))


def test_an_answer_that_is_cut_off_leads_nowhere_and_ends() -> None:
    head = bytes(4) + b"\x18\0" + bytes(10) + bytes([2, 32, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0])
    assert _parse(head) == (0, b"", b"")
    assert _parse(head + b"\0\0\0\0") == (0, b"", b"")
    assert _parse(head + b"\x08\0\x04\0\x05\0\0\0") == (5, b"", b"")


def test_a_neighbour_that_the_kernel_does_not_know_has_no_link_address(routes: KernelRoutes) -> None:
    assert routes.neighbour(routes.link("lo").device, bytes([192, 0, 2, 1])) == b""
    assert routes.neighbour(0, bytes(16)) == b""
