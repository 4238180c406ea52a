"""The sockets of fake TCP that need rights. Their use: tests/netns/test_fake_tcp.py."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import LocalError, PermissionDenied
from pipeline.faketcp import filters
from pipeline.runtime.privileges import _set_capabilities
from pipeline.supervisor.kernel.fake_tcp_sockets import open_listeners, open_tap
from pipeline.transport.next_hop import ETH_P_IP, ETH_P_IPV6

SO_DETACH_FILTER = 27  # asm-generic/socket.h
FILTER = filters.tap_of_server(4, 443, 0, 1)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root")


@needs_root
@pytest.mark.parametrize("protocol", [ETH_P_IP, ETH_P_IPV6])
def test_a_tap_is_bound_to_its_protocol_and_its_filter_stays(protocol: int) -> None:
    with open_tap(protocol, FILTER) as tap:
        assert tap.getsockname()[1] == protocol
        with pytest.raises(PermissionError):
            tap.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


@needs_root
def test_a_filter_that_the_kernel_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(LocalError, match="packet socket"):
        open_tap(ETH_P_IP, FILTER[:-8])


def test_without_rights_there_is_no_tap() -> None:
    def attempt() -> None:
        _set_capabilities(0, 0, inheritable=0)  # of this thread alone
        open_tap(ETH_P_IP, FILTER)

    with ThreadPoolExecutor(1) as thread, pytest.raises(PermissionDenied, match="CAP_NET_RAW"):
        thread.submit(attempt).result()


@needs_root
def test_the_lanes_listen_at_one_port() -> None:
    listeners = open_listeners("127.0.0.1", 0, 3)
    try:
        assert len({each.getsockname() for each in listeners}) == 1
        assert not any(each.getblocking() for each in listeners)
    finally:
        for each in listeners:
            each.close()


@needs_root
def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"port {port}: another program has it"):
            open_listeners("127.0.0.1", port, 2)
