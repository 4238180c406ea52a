"""Talks with the kernel about links, addresses and routes, on the loopback. Whole networks: tests/netns."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from pipeline.errors import LocalError
from pipeline.policy.kernel_entries import Link, Route
from pipeline.supervisor.kernel import rtnetlink as rt
from pipeline.supervisor.kernel.reconciler import Reconciler
from pipeline.supervisor.kernel.route_socket import DUMP_ATTEMPTS, RouteEvents, RouteSocket
from pipeline.supervisor.kernel.rtnetlink import Message, Refusal
from tests.harness.factory import factory

LOOPBACK = socket.if_nametoindex("lo")
NOBODY = 1 << 30  # no device has this index
OTHER = ip_interface("127.9.9.9/32")

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="changes addresses of the loopback")


@pytest.fixture
def kernel() -> Iterator[RouteSocket]:
    with factory(RouteSocket) as make:
        yield make()


@pytest.fixture
def events() -> Iterator[RouteEvents]:
    with factory(RouteEvents) as make:
        yield make()


def test_a_refusal_is_a_value_with_the_kernels_words(kernel: RouteSocket) -> None:
    refused = kernel.set_link(NOBODY, 1400, 1000, up=True)
    assert refused is not None and refused.errno in (errno.ENODEV, errno.EPERM) and refused.text
    assert isinstance(kernel.add_address(NOBODY, OTHER), Refusal)
    assert isinstance(kernel.remove_route(Route(ip_network("198.51.100.0/24"), 7, LOOPBACK)), Refusal)


def test_a_link_that_cannot_be_set_is_an_error_with_what_was_wanted() -> None:
    with factory(Reconciler) as make:
        reconciler = make("tun-test", NOBODY, "one")
        with pytest.raises(LocalError, match="TUN device tun-test: MTU 1400, queue 1000: "):
            reconciler.set_link(1400, 1000, up=True)


def test_the_loopback_its_addresses_and_its_routes_are_seen(kernel: RouteSocket) -> None:
    assert kernel.link(LOOPBACK) == Link(LOOPBACK, "lo", True)
    assert kernel.link(NOBODY) is None
    own = ip_interface("127.0.0.1/8")
    assert [(each.device, each.network) for each in kernel.addresses() if each.interface == own] == [
        (LOOPBACK, own.network)
    ]
    way = kernel.lookup(ip_address("127.0.0.1"))
    assert way is not None and way.is_local and way.device == LOOPBACK
    assert kernel.lookup(ip_address("0.0.0.1")) is None
    assert kernel.route_to(ip_network("127.0.0.0/9")) is None


def test_the_rest_of_an_answer_that_was_given_up_is_passed_over(kernel: RouteSocket) -> None:
    kernel._socket.send(rt.request(rt.RTM_GETLINK, rt.NLM_F_ACK, 99, rt.get_link_body(NOBODY)))
    assert kernel.link(LOOPBACK) == Link(LOOPBACK, "lo", True)


@pytest.mark.parametrize("interrupted", [0, 2, 1000])
def test_a_table_that_changes_while_it_is_read_is_read_again_but_not_for_ever(
    kernel: RouteSocket, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    exchange, times = kernel._exchange, []

    def disturbed(kind: int, flags: int, body: bytes) -> list[Message]:
        times.append(kind)
        found = exchange(kind, flags, body)
        return [each._replace(flags=rt.NLM_F_DUMP_INTR) for each in found] if len(times) <= interrupted else found

    monkeypatch.setattr(kernel, "_exchange", disturbed)
    assert kernel.addresses()
    assert len(times) == min(interrupted + 1, DUMP_ATTEMPTS)


def test_without_an_answer_the_tables_cannot_be_read(kernel: RouteSocket) -> None:
    kernel.close()
    with pytest.raises(LocalError, match="routing tables cannot be read: Bad file descriptor"):
        kernel.addresses()


@ROOT_ONLY
def test_changes_are_news_once_and_more_than_are_kept_are_known_to_be_lost(
    kernel: RouteSocket, events: RouteEvents
) -> None:
    def change(times: int) -> None:
        for _ in range(times):
            assert kernel.add_address(LOOPBACK, OTHER) is None
            assert kernel.remove_address(LOOPBACK, OTHER) is None

    assert events.read() == ([], False)
    change(1)
    news = events.read()
    assert {rt.RTM_NEWADDR, rt.RTM_DELADDR} <= {each.kind for each in news.events} and not news.lost
    assert events.read() == ([], False)
    events._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    change(30)
    assert events.read().lost
    assert events.read() == ([], False)


@ROOT_ONLY
def test_an_address_that_is_there_already_is_refused(kernel: RouteSocket) -> None:
    assert kernel.add_address(LOOPBACK, OTHER) is None
    try:
        refused = kernel.add_address(LOOPBACK, OTHER)
        assert refused is not None and refused.errno == errno.EEXIST
    finally:
        kernel.remove_address(LOOPBACK, OTHER)
