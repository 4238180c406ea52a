"""The doctor finds each planted fault, names its cure, and has nothing to say where all is well."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.credentials import certificates, keys
from tests.netns.harness.hub import Hub
from tests.netns.harness.instance import Instance, client_config, command, server_config, unique_name
from tests.netns.harness.name_server import NameServer
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab, Node

SECONDS_MAX = 10.0
SHORT_MTU = 1300
HOLE = "table ip hole {{\n chain in {{\n type filter hook input priority 0\n {rule}\n }}\n}}\n"


class Said(NamedTuple):
    """The answer of the doctor."""

    exit_status: int
    findings: list[dict[str, Any]]

    def about(self, check: str, level: str) -> list[str]:
        found = [row for row in self.findings if (row["check"], row["level"]) == (check, level)]
        assert all(row["cure"] for row in found)
        return [f"{row['text']}. {row['cure']}" for row in found]

    @property
    def wrong(self) -> list[str]:
        return [f"{row['check']}: {row['text']}" for row in self.findings if row["level"] != "ok"]

    @property
    def problems(self) -> list[str]:
        return [f"{row['check']}: {row['text']}" for row in self.findings if row["level"] == "problem"]


def doctor(node: Node, *words: object, wrap: list[str] | None = None) -> Said:
    began = time.monotonic()
    asked = [*(wrap or []), EXECUTABLE, "doctor", "--json", *map(str, words)]
    process = node.popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 1), errors
    assert time.monotonic() - began < SECONDS_MAX + 5  # the start of Python beside other tests
    said = json.loads(output)
    assert said["schema_version"] == 1
    assert bool(said["worst"] == "problem") is bool(process.returncode)
    return Said(process.returncode, said["findings"])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A server with a client that has joined. What a test plants here it takes away again."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        for node in lab:
            node.sysctl("net.core.somaxconn=4096")
        hub = stack.enter_context(Hub(lab, tmp_path_factory.mktemp("doctor"), tls_min_version="1.3"))
        hub.join(lab.nodes[1])
        yield hub


def test_where_all_is_well_the_doctor_finds_nothing(hub: Hub) -> None:
    client = hub["b"]
    for instance in (hub.server, client):
        said = doctor(instance.node, "--name", instance.name)
        assert (said.exit_status, said.wrong) == (0, [])
        looked_at = {row["check"] for row in said.findings}
        assert looked_at >= {"instance", "tun", "shared memory", "clock", "firewall", "versions", "settings", "tunnel"}
    assert looked_at >= {"way", "path"}


def test_a_route_of_anothers_that_leads_the_connections_into_the_tunnel_is_found(hub: Hub) -> None:
    client, server = hub["b"], hub.node.address
    client.node.ip(f"route add {server}/32 dev {client.tun_name}")
    try:
        said = doctor(client.node, "--name", client.name)
        (found,) = said.about("way", "problem")
        assert f"leads into the tunnel itself ({client.tun_name})" in found
        assert f"ip route del {server} dev {client.tun_name}" in found and said.exit_status == 1
    finally:
        client.node.ip(f"route del {server}/32 dev {client.tun_name}")


def test_a_black_hole_for_long_packets_is_found_with_the_length_that_passes(hub: Hub) -> None:
    client = hub["b"]
    client.node.ip("link set link0 gso_max_segs 1")
    hub.node.run(
        ["nft", "-f", "-"],
        input=HOLE.format(rule=f"tcp dport {hub.port} ip length > {SHORT_MTU} drop"),
    )
    try:
        said = doctor(client.node, "--name", client.name)
        (found,) = said.about("path", "problem")
        assert "a black hole" in found and "mtu 1280" in found and "tcp_mtu_probing" in found
    finally:
        hub.node.run(["nft", "delete", "table", "ip", "hole"])
        client.node.ip("link set link0 gso_max_segs 65535")
    assert doctor(client.node, "--name", client.name).about("path", "problem") == []


def test_a_firewall_that_drops_long_packets_of_the_tunnel_is_found(hub: Hub) -> None:
    client = hub["b"]
    hub.node.run(
        ["nft", "-f", "-"],
        input=HOLE.format(rule=f'iifname "{hub.server.tun_name}" ip length > 1100 drop'),
    )
    try:
        (found,) = doctor(client.node, "--name", client.name).about("tunnel", "problem")
        assert "packets of 1280 bytes through the tunnel" in found and "Set mtu to 1000" in found
        (rule,) = doctor(hub.node, "--name", hub.server.name).about("firewall", "problem")
        assert f"drops packets of {hub.server.tun_name}" in rule and "ip hole in" in rule
    finally:
        hub.node.run(["nft", "delete", "table", "ip", "hole"])


def test_a_strict_reverse_path_filter_is_found_where_it_drops_packets(hub: Hub) -> None:
    node, tun = hub.node, hub.server.tun_name
    node.sysctl(f"net.ipv4.conf.{tun}.rp_filter=1")
    try:
        assert doctor(node, "--name", hub.server.name).wrong == []  # it drops nothing yet
        hub.invite("behind", "--allow", "10.61.0.0/16")
        (found,) = doctor(node, "--name", hub.server.name).about("rp_filter", "problem")
        assert "10.61.0.0/16" in found and f"net.ipv4.conf.{tun}.rp_filter" in found
    finally:
        node.sysctl(f"net.ipv4.conf.{tun}.rp_filter=0")
        hub.server.command("revoke", "behind")


def test_a_table_of_ours_that_others_have_flushed_is_put_back_or_missed(hub: Hub) -> None:
    """The supervisor puts it back within a second, unless it stands still."""
    table = f"tunnel-{hub.server.name}"
    said = doctor(hub.node, "--name", hub.server.name)
    assert any(table in row["text"] for row in said.findings if row["check"] == "firewall")


def test_a_server_that_does_not_forward_that_has_not_read_its_file_or_that_hangs_is_found(
    tmp_path: Path,
) -> None:
    with Lab() as lab:
        node = lab.nodes[0]
        node.sysctl("net.ipv4.ip_forward=0")  # a new namespace may have it from the machine
        node.ip("address add 10.50.0.1/16 dev lo")
        config = server_config(node, push_routes=["10.50.0.0/16", "10.62.0.0/16"], routes=[])
        node.ip("route add 10.62.0.0/16 via 10.77.0.2")
        with Instance(node, config, tmp_path) as server:
            server.wait_until_running()
            (found, *_) = doctor(node, "--name", server.name).about("forwarding", "problem")
            assert "10.62.0.0/16" in found and "net.ipv4.ip_forward=1" in found
            node.sysctl(*(f"net.ipv4.conf.{device}.forwarding=1" for device in ("link0", server.tun_name)))
            assert doctor(node, "--name", server.name).about("forwarding", "problem") == []
            server.write({**server.config, "push_routes": []})
            (found,) = doctor(node, "--config", server.file).about("unapplied", "note")
            assert "push_routes" in found and "tunnel-supervisor reload" in found
            server.signal(signal.SIGSTOP)
            try:
                eventually(lambda: "supervisor is stopped" in command("status", "--name", server.name).stdout)
                assert "kill -CONT" in doctor(node, "--name", server.name).about("instance", "problem")[0]
            finally:
                server.signal(signal.SIGCONT)


def test_a_port_that_another_program_has_is_found_with_its_owner(lab: Lab, tmp_path: Path) -> None:
    node = lab.nodes[0]
    config = server_config(node, name=unique_name("s"))
    port = int(config["local_addr"].rpartition(":")[2])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    script = f"import socket, time; s = socket.create_server(('', {port})); print(flush=True); time.sleep(60)"
    listener = node.popen(["python3", "-c", script], stdout=subprocess.PIPE)
    try:
        listener.stdout.readline()
        (found,) = doctor(node, "--config", file).about("port", "problem")
        assert f":{port} is taken by " in found and f"(pid {listener.pid})" in found
        said = node.run([EXECUTABLE, "check", str(file)], check=False)
        assert said.returncode == 1 and f"problem: 0.0.0.0:{port} is taken by" in said.stderr
        assert node.run([EXECUTABLE, "check", "--offline", str(file)], check=False).returncode == 0
        file.write_text(json.dumps({**config, "local_addr": f"0.0.0.0:{node.free_port()}", "metrics_addr": str(port)}))
        (found,) = doctor(node, "--config", file).about("port", "problem")
        assert f"127.0.0.1:{port} is taken by " in found and "in metrics_addr" in found
        file.write_text(json.dumps(config))
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
    assert doctor(node, "--config", file).problems == []
    assert node.run([EXECUTABLE, "check", str(file)], check=False).returncode == 0


def test_a_running_server_has_its_own_port(hub: Hub) -> None:
    said = hub.node.run([EXECUTABLE, "check", str(hub.server.file)], check=False)
    assert (said.returncode, "taken" in said.stderr) == (0, False)


def test_shared_memory_that_is_too_small_is_found(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(server_config(lab.nodes[0], name=unique_name("s"))))
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8m,mode=1777 tmpfs /dev/shm && exec "$@"', "sh"]
    (found,) = doctor(lab.nodes[0], "--config", file, wrap=small).about("shared memory", "problem")
    assert "8.4 MB" in found and "mount -o remount,size=" in found


def test_a_certificate_that_has_expired_is_found_and_one_that_soon_will_is_noted(lab: Lab, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    ca = certificates.make_ca("ca", now - timedelta(days=900))
    file = tmp_path / "config.json"
    for age, level, words in ((826, "problem", "has expired on"), (810, "note", "expires on")):
        pair = certificates.issue(ca, "vpn", server=True, now=now - timedelta(days=age))
        for name, data in (("vpn.crt", pair.certificate), ("vpn.key", pair.key)):
            keys.write_secret(tmp_path / name, data, replace=True)
        config = server_config(
            lab.nodes[0],
            name=unique_name("s"),
            encryption="tls",
            insecure=False,
            tls_cert_file=str(tmp_path / "vpn.crt"),
            tls_key_file=str(tmp_path / "vpn.key"),
            state_dir=str(tmp_path / "state"),
        )
        file.write_text(json.dumps(config))
        (found,) = doctor(lab.nodes[0], "--config", file).about("expiry", level)
        assert words in found and "gen-cert" in found
        said = lab.nodes[0].run([EXECUTABLE, "check", str(file)], check=False)
        assert said.returncode == (1 if level == "problem" else 0) and words in said.stderr


def test_a_dead_dns_server_is_found_and_holds_nothing_up(lab: Lab, tmp_path: Path) -> None:
    a, b = lab
    with NameServer(a, tmp_path) as names:
        names.silence()
        file = tmp_path / "config.json"
        file.write_text(json.dumps(client_config(server_config(a), "hub.test", name=unique_name("c"))))
        (found,) = doctor(b, "--config", file, wrap=names.wrap).about("name", "problem")
        assert "hub.test, cannot be looked up: the DNS server does not answer" in found
        said = b.run([*names.wrap, EXECUTABLE, "check", str(file)], check=False)
        assert said.returncode == 0 and "note: the server's name, hub.test, cannot be looked up" in said.stderr


def test_a_client_that_cannot_connect_is_told_why_and_what_to_do(lab: Lab, tmp_path: Path) -> None:
    a, b = lab
    with Instance(b, client_config(server_config(a), a.address), tmp_path) as client:
        client.wait_until_running()
        eventually(lambda: client.running()["server"]["failed_attempts"])
        (found,) = doctor(b, "--name", client.name).about("instance", "problem")
        assert "not connected" in found and "connection refused" in found and "Check that the server runs" in found
        said = client.command("status")
        assert said.returncode == 1
        first, advice, *_ = said.stdout.splitlines()
        assert first.startswith(f"{client.name}: not connected: {a.address} port ") and "failed attempt" in first
        assert advice.startswith("Check that the server runs")


def test_from_another_network_the_doctor_says_that_it_looks_elsewhere(hub: Hub) -> None:
    said = command("doctor", "--json", "--name", hub.server.name)
    findings = Said(said.returncode, json.loads(said.stdout)["findings"])
    (found,) = findings.about("network", "note")
    assert f"nsenter --net --target {hub.server.process.pid}" in found and findings.problems == []


def test_settings_that_do_not_fit_at_both_ends_are_noted(tmp_path: Path) -> None:
    with Lab() as lab, Hub(lab, tmp_path, fec="off") as hub:
        client = hub.join(lab.nodes[1], mtu=1380)
        for node, instance in ((hub.node, hub.server), (client.node, client)):
            found = doctor(node, "--name", instance.name).about("settings", "note")
            assert any("mtu is" in each and "Set mtu to 1380 at both ends" in each for each in found)
            assert any("nothing is coded" in each for each in found)


def test_the_ends_of_a_tunnel_know_each_others_versions(hub: Hub) -> None:
    version = command("version").stdout.strip()
    assert hub.peers()["b"]["version"] == version
    assert hub["b"].running()["server"]["version"] == version
    assert abs(hub["b"].running()["server"]["clock_ahead_seconds"]) <= 1
