"""The sockets of fake TCP that need rights. Their use: tests/netns/test_fake_tcp.py."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from pipeline.errors import LocalError, PermissionDenied
from pipeline.faketcp import filters
from pipeline.runtime import tap_channel
from pipeline.runtime.privileges import _set_capabilities
from pipeline.shm.datagram_secrets import DatagramServer
from pipeline.supervisor.kernel.fake_tcp_sockets import (
    ClientFakeTcpSockets,
    ServerFakeTcpSockets,
    open_listeners,
    open_tap,
)
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@needs_root
@pytest.mark.parametrize(("host", "versions"), [("127.0.0.1", {4}), ("::", {4, 6})])
def test_a_server_has_the_versions_of_ip_of_its_listener(host: str, versions: set[int]) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = free_port()
        with closing(ServerFakeTcpSockets(listener, port, 2)) as made:
            assert made.port == port
            for lane in range(2):
                taps = {f"fake_tcp_tap{version}" for version in versions}
                assert made.fds(lane).keys() == taps | {"fake_tcp_listener"}
            with pytest.raises(LocalError, match="another program has it"):
                ServerFakeTcpSockets(listener, port, 2)


@needs_root
def test_the_tap_of_a_client_follows_its_server_and_a_successor_has_it_at_once() -> None:
    first, second = DatagramServer.at("192.0.2.1", 443, 0, 444), DatagramServer.at("2001:db8::1", 0, 0, 555)
    with closing(ClientFakeTcpSockets(2)) as made:
        with socket.socket(fileno=os.dup(made.fds(1)["fake_tcp_channel"])) as worker:
            assert tap_channel.receive(worker) == (tap_channel.NO_SERVER, None)
            for server, protocol in ((first, ETH_P_IP), (second, ETH_P_IPV6)):
                made.lead_to(server)
                made.lead_to(server)
                ((host, port, _), tap) = tap_channel.receive(worker) or ((b"", 0, 0), None)
                assert (host, port) == (server.host, server.fake_tcp_port)
                assert tap is not None and tap.getsockname()[1] == protocol
                tap.close()
                assert tap_channel.receive(worker) is None, "it is told once"
        with socket.socket(fileno=os.dup(made.fds(1)["fake_tcp_channel"])) as successor:
            ((host, _, _), tap) = tap_channel.receive(successor) or ((b"", 0, 0), None)
            assert host == second.host and tap is not None
            tap.close()
            made.lead_to(DatagramServer.at("192.0.2.1", 443))
            assert tap_channel.receive(successor) == (tap_channel.NO_SERVER, None)
