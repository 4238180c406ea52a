"""A hub that takes WebSockets from real web servers in front of it, which end TLS: nginx, HAProxy, Caddy.

hub       the tunnel's server; its tcp port lets nobody in
front     the web server
client    reaches the hub by way of the web server alone
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.tls_ends import issue
from tests.netns.harness.hosts import with_hosts
from tests.netns.harness.instance import Instance, client_config, reaches, server_config
from tests.netns.harness.proxies import RunningProxy
from tests.netns.harness.web_fronts import PATH, web_front
from tests.support import eventually
from tools.lab.network import Lab

BOTH = {"connections": 3, "light_connections": 1, "encryption": "tls"}
ALL = 4
NAME = "www.test"
OTHER = ["10.98.0.1/24"]  # of a second hub beside the first

CLOSED = """
table inet closed {{
    chain in {{
        type filter hook input priority 0;
        iif lo accept
        tcp dport {port} reject with tcp reset
    }}
}}
"""
FRONTS = ("nginx", "haproxy", "caddy")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(names=("hub", "front", "client")) as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the web server: PEM of the certificate and its key, and beside it ca.crt."""
    ca = issue("ca", is_ca=True)
    pair = issue(NAME, ca)
    path = tmp_path_factory.mktemp("certificate") / "site.pem"
    path.write_text(pair.certificate + pair.key)
    (path.parent / "ca.crt").write_text(ca.certificate)
    return path


def hub_config(lab: Lab, **settings: Any) -> dict[str, Any]:
    hub, front = lab["hub"], lab["front"]
    config = server_config(hub, **BOTH)
    return config | {
        "websocket_addr": f"{hub.address}:{hub.free_port()}",
        "websocket_path": PATH,
        "websocket_proxies": [f"{front.address}/32"],
        **settings,
    }


@pytest.fixture(scope="module")
def hub(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    config = hub_config(lab)
    port = config["local_addr"].rpartition(":")[2]
    lab["hub"].run(["nft", "-f", "-"], input=CLOSED.format(port=port))
    with Instance(lab["hub"], config, tmp_path_factory.mktemp("hub")) as made:
        made.wait_until_running()
        yield made


@pytest.fixture(scope="module")
def nginx(
    lab: Lab, hub: Instance, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningProxy]:
    directory = tmp_path_factory.mktemp("nginx")
    with web_front("nginx", lab["front"], certificate, hub.config["websocket_addr"], directory, NAME) as made:
        yield made


def client_of(
    lab: Lab, hub: Instance, front: RunningProxy, certificate: Path, directory: Path, **more: Any
) -> Instance:
    config = client_config(
        hub.config,
        lab["hub"].address,
        websocket=front.url,
        proxy_ca_file=str(certificate.parent / "ca.crt"),
        tls_skip_verify=True,
        tunnel_addr="auto",
        **BOTH,
        **more,
    )
    wrap = with_hosts(directory, f"{lab['front'].address} {NAME}")
    return Instance(lab["client"], config, directory, wrap=wrap)


def sources(hub: Instance) -> set[str]:
    """The addresses from which all connections of a client come, once the server knows of them and of no others."""

    def all_of_them() -> list[str]:
        rows = [row for row in hub.running()["connections"] if row["state"] == "established"]
        return [row["address"].rpartition(":")[0] for row in rows] if len(rows) == ALL else []

    return set(eventually(all_of_them, what=f"{ALL} connections"))


def counts(hub: Instance) -> dict[str, int]:
    found: dict[str, int] = hub.running()["websockets"]
    return found


def bridge_of(instance: Instance) -> int:
    """The pid of its bridge."""
    found = []
    for each in psutil.Process(instance.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # another one, which has ended meanwhile
            if "pipeline.bridge" in each.cmdline():
                found.append(each.pid)
    (pid,) = found
    return pid


@pytest.mark.parametrize("kind", FRONTS)
def test_a_client_behind_a_web_server_is_in_the_tunnel_and_has_its_own_address(
    lab: Lab, hub: Instance, certificate: Path, tmp_path: Path, kind: str
) -> None:
    with (
        web_front(kind, lab["front"], certificate, hub.config["websocket_addr"], tmp_path, NAME) as front,
        client_of(lab, hub, front, certificate, tmp_path) as client,
    ):
        client.wait_until_connected(ALL)
        assert sources(hub) == {lab["client"].address}
        assert reaches(client, hub) and reaches(client, hub, size=1300, count=20)
        assert "Traceback" not in hub.log and "Traceback" not in client.log
        eventually(lambda: counts(hub)["open"] == ALL)


def test_a_bridge_that_dies_comes_back_and_so_do_the_connections(
    lab: Lab, hub: Instance, nginx: RunningProxy, certificate: Path, tmp_path: Path
) -> None:
    with client_of(lab, hub, nginx, certificate, tmp_path) as client:
        client.wait_until_connected(ALL)
        pid, before = bridge_of(hub), client.counter("tcp.connections_established")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: client.counter("tcp.connections_established") >= before + ALL, 20.0)
        assert bridge_of(hub) != pid
        assert reaches(client, hub)
        assert "bridge died: signal 9; it is started again" in hub.log
        assert sources(hub) == {lab["client"].address}


def test_a_worker_that_dies_and_a_web_server_that_is_started_anew_cost_no_more_than_connections(
    lab: Lab, hub: Instance, certificate: Path, tmp_path: Path
) -> None:
    with (
        web_front("haproxy", lab["front"], certificate, hub.config["websocket_addr"], tmp_path, NAME) as front,
        client_of(lab, hub, front, certificate, tmp_path) as client,
    ):
        client.wait_until_connected(ALL)
        before = client.counter("tcp.connections_established")
        hub.signal_worker("tcp-0", signal.SIGKILL)
        eventually(lambda: client.counter("tcp.connections_established") >= before + ALL, 20.0)
        assert reaches(client, hub)
        front.stop()
        front.start()
        eventually(lambda: client.counter("tcp.connections_established") >= before + 2 * ALL, 20.0)
        assert reaches(client, hub)
        eventually(lambda: counts(hub)["open"] == ALL)


@contextmanager
def https(lab: Lab, front: RunningProxy) -> Iterator[ssl.SSLSocket]:
    """A connection to the web server, of somebody without a key."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    port = int(front.url.rpartition(":")[2].partition("/")[0])
    with lab["client"].socket() as plain:
        plain.settimeout(10.0)
        plain.connect((lab["front"].address, port))
        with context.wrap_socket(plain, server_hostname=NAME) as sock:
            yield sock


def request(path: str = PATH, *fields: str) -> bytes:
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    lines = (f"GET {path} HTTP/1.1", f"Host: {NAME}", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *fields)
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.parametrize("kind", FRONTS)
def test_a_client_cannot_say_that_it_is_somebody_else(
    lab: Lab, hub: Instance, certificate: Path, tmp_path: Path, kind: str
) -> None:
    with web_front(kind, lab["front"], certificate, hub.config["websocket_addr"], tmp_path, NAME) as front:
        own = lab["client"].address
        for said in ("X-Forwarded-For: 192.0.2.66", f"X-Forwarded-For: 192.0.2.66, {lab['front'].address}"):
            with https(lab, front) as sock:
                sock.sendall(request(PATH, said, "Forwarded: for=192.0.2.66"))
                assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")
                eventually(lambda: any(row["address"] == f"{own}:0" for row in handshakes(hub)))
                assert not any("192.0.2.66" in row["address"] for row in handshakes(hub))
            eventually(lambda: not handshakes(hub))


def handshakes(hub: Instance) -> list[dict[str, Any]]:
    return [row for row in hub.running()["connections"] if row["state"] == "handshake"]


def test_handshakes_of_one_address_are_limited_behind_a_web_server_too(
    lab: Lab, hub: Instance, nginx: RunningProxy, certificate: Path, tmp_path: Path
) -> None:
    before = hub.counter("tcp.closed_handshakes_of_address")
    with https(lab, nginx) as one, https(lab, nginx) as two, https(lab, nginx) as three, https(lab, nginx) as four:
        for sock in (one, two, three, four):
            sock.sendall(request())
            assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")
        eventually(lambda: len(handshakes(hub)) == 4)
        with https(lab, nginx) as fifth:
            fifth.sendall(request())
            eventually(lambda: hub.counter("tcp.closed_handshakes_of_address") == before + 1)


def test_all_else_is_the_sites_and_the_path_does_not_show(lab: Lab, hub: Instance, nginx: RunningProxy) -> None:
    answers = {}
    for path in ("/", PATH):
        with https(lab, nginx) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
            answers[path] = sock.makefile("rb").read()
    assert b"the site" in answers["/"]
    assert answers[PATH].startswith(b"HTTP/1.1 404 ") and b"tunnel" not in answers[PATH].lower()
    hub.wait_for_log("a request at websocket_path asks for no WebSocket")


def test_no_other_program_of_the_machine_is_taken_for_the_bridge(lab: Lab, hub: Instance) -> None:
    """It finds the port, and names an address."""
    before = hub.counter("tcp.closed_proxy_header")
    words = lab["hub"].run(["ss", "-Hltn"]).stdout.split()
    ports = {int(word.rpartition(":")[2]) for word in words if word.startswith("127.0.0.1:")}
    for said in (b"PROXY TCP4 192.0.2.66 127.0.0.1 1 2\r\n", socket.inet_aton("192.0.2.66") + bytes(200)):
        with lab["hub"].socket() as sock:
            sock.settimeout(10.0)
            sock.connect(("127.0.0.1", *ports))
            sock.sendall(said)
            assert sock.recv(1) == b""
    eventually(lambda: hub.counter("tcp.closed_proxy_header") == before + 2)


def test_a_reload_moves_it_hides_the_old_path_and_takes_it_away(lab: Lab, certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    config = hub_config(lab, tunnel_addr=OTHER)
    web = {name: config.pop(name) for name in list(config) if name.startswith("websocket")}
    with Instance(lab["hub"], config, tmp_path / "hub") as hub:
        hub.wait_until_running()
        assert hub.running()["websockets"] is None
        hub.write(hub.config | web)
        assert "workers are replaced" in hub.command("reload").stderr
        with (
            web_front("nginx", lab["front"], certificate, web["websocket_addr"], tmp_path, NAME) as front,
            client_of(lab, hub, front, certificate, tmp_path) as client,
        ):
            client.wait_until_connected(ALL)
            workers = hub.worker_pids()
            hub.write(hub.config | web | {"websocket_path": "/another"})
            hub.command("reload")
            eventually(lambda: "has nothing at this path (status 404)" in client.command("status").stdout)
            hub.write(hub.config | web)
            hub.command("reload")
            client.wait_until_connected(2 * ALL)
            assert hub.worker_pids() == workers
            hub.write(hub.config)
            hub.command("reload")
            eventually(lambda: "does not reach the tunnel's server behind it" in client.command("status").stdout)
            assert hub.running()["websockets"] is None


def test_an_address_that_is_taken_is_said_and_tried_again(lab: Lab, tmp_path: Path) -> None:
    config = hub_config(lab, tunnel_addr=OTHER)
    host, _, port = config["websocket_addr"].rpartition(":")
    with lab["hub"].socket() as other:
        other.bind((host, int(port)))
        other.listen()
        with Instance(lab["hub"], config, tmp_path) as hub:
            hub.wait_until_running()
            said = "no connection by a WebSocket: websocket_addr"
            assert any(said in note for note in hub.running()["notes"])
            assert said in hub.command("status").stdout
            other.close()
            eventually(lambda: not [note for note in hub.running()["notes"] if said in note], 20.0)
