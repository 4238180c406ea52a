"""A hub behind real proxies that tell the address of each client: limits, status and log have the true one."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub, call, reaches, tls_context
from tests.netns.harness.nginx import Nginx
from tests.support import eventually
from tools.lab.network import Lab, Node

STOP_SECONDS = 10.0
HANDSHAKE_SECONDS = 1.0  # where a test waits for it
USUAL_SECONDS = 10.0

HAPROXY = """\
global
    maxconn 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen tunnel
    bind {front}
    server hub {hub} {options}
"""
NGINX = """\
    server {{
        listen {front};
        ssl_preread on;
        proxy_protocol on;
        proxy_pass {hub};
    }}
"""

FRONTS = {
    "haproxy, version 1": "send-proxy",
    "haproxy, version 2": "send-proxy-v2",
    "haproxy, version 2 with all that it can tell, and health checks": (
        "send-proxy-v2 proxy-v2-options unique-id,crc32c check check-send-proxy inter 100ms"
    ),
    "nginx that reads the name in TLS": "",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "front", "one")) as made:
        yield made


@pytest.fixture(scope="module")
def hub(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    front = lab["front"]
    networks = [f"{front.address}/32", f"{front.address6}/128"]
    directory = tmp_path_factory.mktemp("behind")
    with Hub(lab, directory, proxy_protocol_from=networks) as made:
        yield made


@contextmanager
def running_front(node: Node, kind: str, front: str, hub: str, directory: Path) -> Iterator[None]:
    if kind.startswith("nginx"):
        with Nginx(node, directory / "nginx", stream=NGINX.format(front=front, hub=hub)):
            yield
        return
    program = shutil.which("haproxy")
    if program is None:
        pytest.skip("haproxy is not installed")
    config = directory / "haproxy.cfg"
    config.write_text(HAPROXY.format(front=front, hub=hub, options=FRONTS[kind]))
    process = node.popen([program, "-db", "-f", str(config)], death_signal=signal.SIGTERM)
    try:
        eventually(lambda: listens(node, front), what="haproxy listening")
        yield
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def listens(node: Node, address: str) -> bool:
    return f"{address} " in node.run(["ss", "-Hltn"]).stdout


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", FRONTS)
def test_a_peer_behind_a_proxy_is_in_the_tunnel_and_has_its_own_address(
    hub: Hub, tmp_path: Path, kind: str, six: bool
) -> None:
    front, one = hub.lab["front"], hub.lab["one"]
    addresses = [f"[{node.address6}]" if six else node.address for node in (front, hub.node, one)]
    before = hub.server.counter("tcp.closed_proxy_header")
    where = f"{addresses[0]}:{front.free_port()}"
    with running_front(front, kind, where, f"{addresses[1]}:{hub.port}", tmp_path):
        peer = f"peer-{list(FRONTS).index(kind)}-{six:d}"
        client = hub.start(one, peer, "--address", where, **PLAIN)
        client.wait_until_joined()
        assert reaches(one, hub.server.address)
        (end,) = eventually(lambda: sole_end(hub), what="no connection but that of this client")
        assert end.startswith(f"{addresses[2]}:")
        assert hub.server.counter("tcp.closed_proxy_header") == before
        client.stop()


def sole_end(hub: Hub) -> list[str]:
    """The other end of the only connection; none while there are more, such as that of the client before."""
    ends = [row["address"] for row in hub.server.running()["connections"] if row["state"] == "established"]
    return ends if len(ends) == 1 else []


def test_a_proxy_that_says_nothing_about_its_client_is_closed_counted_and_named(hub: Hub) -> None:
    front = hub.lab["front"]
    before = hub.server.counter("tcp.closed_proxy_header")
    with call(front, hub.node.address, hub.port) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert ended(sock)
    hub.configure(anew=True, handshake_timeout=HANDSHAKE_SECONDS)
    with call(front, hub.node.address, hub.port) as sock:
        assert ended(sock)  # silence, until the time of a handshake is over
    hub.configure(anew=True, handshake_timeout=USUAL_SECONDS)
    eventually(lambda: hub.server.counter("tcp.closed_proxy_header") == before + 2)
    hub.server.wait_for_log(f"{front.address} is in proxy_protocol_from")


def test_a_header_from_any_other_address_is_garbage(hub: Hub) -> None:
    before = hub.server.counter("tcp.closed_hello_invalid")
    with call(hub.lab["one"], hub.node.address, hub.port) as sock:
        sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
        assert ended(sock)
    eventually(lambda: hub.server.counter("tcp.closed_hello_invalid") == before + 1)
    with call(hub.lab["one"], hub.node.address, hub.port, tls_context()):
        pass  # without one it gets its handshake


def test_limits_for_each_address_are_those_of_the_clients_and_not_of_the_proxy(hub: Hub) -> None:
    front = hub.lab["front"]
    before = hub.server.counter("tcp.closed_handshakes_of_address")
    hub.configure(anew=True, handshake_timeout=60.0)  # those that are held are there until the end

    def dial(client: int) -> socket.socket:
        sock = call(front, hub.node.address, hub.port)
        sock.sendall(f"PROXY TCP4 192.0.2.{client} 192.0.2.200 40000 443\r\n".encode())
        return sock

    held = [dial(client) for client in range(1, 13)]
    try:
        eventually(lambda: handshakes(hub) == len(held), what="all are under way")
        assert hub.server.counter("tcp.closed_handshakes_of_address") == before
        more = [dial(1) for _ in range(4)]
        held += more
        eventually(lambda: hub.server.counter("tcp.closed_handshakes_of_address") == before + 1)
        eventually(lambda: sum(ended(sock, 0.05) for sock in more) == 1, what="it is closed")
    finally:
        for sock in held:
            sock.close()
        hub.configure(anew=True, handshake_timeout=USUAL_SECONDS)


def handshakes(hub: Hub) -> int:
    return sum(row["state"] == "handshake" for row in hub.server.running()["connections"])


def ended(sock: socket.socket, seconds: float = 5.0) -> bool:
    sock.settimeout(seconds)
    try:
        while sock.recv(1000):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True
