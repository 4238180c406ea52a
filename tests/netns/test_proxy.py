"""Clients behind proxies of the distribution: tinyproxy, squid, microsocks.

server    the tunnel's server
proxy     the proxy, and the only one who knows the server's name
client    the client, which reaches the server by way of the proxy alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.netns.harness.instance import Instance, client_config, reaches, server_config
from tests.netns.harness.proxies import RunningProxy, login_file, microsocks, squid, tinyproxy
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab

LOGIN = ("user", "word")
BOTH = {"connections": 3, "light_connections": 1, "encryption": "tls"}
OWN = {"tls_skip_verify": True, "tunnel_addr": "auto"}  # of the client
ALL = 4
NAME = "hub.test"

CLOSED = """
table inet closed {{
    chain in {{
        type filter hook input priority 0;
        ip saddr {four} meta l4proto tcp reject with tcp reset
        ip6 saddr {six} meta l4proto tcp reject with tcp reset
    }}
}}
"""

Run = Callable[..., AbstractContextManager[RunningProxy]]
PROXIES = pytest.mark.parametrize("run", [tinyproxy, squid, microsocks], ids=lambda run: run.__name__)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The server lets nobody in but the proxy."""
    with Lab(names=("server", "proxy", "client")) as made:
        client = made["client"]
        made["server"].run(["nft", "-f", "-"], input=CLOSED.format(four=client.address, six=client.address6))
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    config = server_config(lab["server"], **BOTH)
    config["local_addr"] = config["local_addr"].replace("0.0.0.0", "")
    with Instance(lab["server"], config, tmp_path_factory.mktemp("server")) as made:
        made.wait_until_running()
        yield made


def client_of(lab: Lab, server: Instance, proxy: str, directory: Path, host: str = "", **settings: Any) -> Instance:
    config = client_config(server.config, host or lab["server"].address, proxy=proxy, **BOTH, **OWN, **settings)
    return Instance(lab["client"], config, directory)


def knows(directory: Path, lab: Lab) -> list[str]:
    """Words in front of a proxy, which then knows the server's name."""
    hosts = directory / "hosts"
    hosts.write_text(f"{lab['server'].address} {NAME}\n")
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]


def sources(server: Instance) -> set[str]:
    rows = server.running()["connections"]
    return {row["address"].rpartition(":")[0] for row in rows if row["state"] == "established"}


@PROXIES
def test_all_connections_go_through_the_proxy_and_packets_pass(
    lab: Lab, server: Instance, tmp_path: Path, run: Run
) -> None:
    login = login_file(tmp_path, LOGIN)
    with (
        run(lab["proxy"], tmp_path, login=LOGIN) as proxy,
        client_of(lab, server, proxy.url, tmp_path, proxy_login_file=login) as client,
    ):
        client.wait_until_connected(ALL)
        assert sources(server) == {lab["proxy"].address}
        assert reaches(client, server) and reaches(client, server, six=True)
        assert f" through {proxy.url} since " in client.command("status").stdout


def test_the_proxy_looks_up_a_name_that_the_client_does_not_know(lab: Lab, server: Instance, tmp_path: Path) -> None:
    with (
        tinyproxy(lab["proxy"], tmp_path, wrap=knows(tmp_path, lab)) as proxy,
        client_of(lab, server, proxy.url, tmp_path, NAME) as client,
    ):
        client.wait_until_connected(ALL)


@pytest.mark.parametrize("run", [tinyproxy, microsocks], ids=lambda run: run.__name__)
def test_proxy_and_server_are_reached_by_ipv6(lab: Lab, server: Instance, tmp_path: Path, run: Run) -> None:
    with (
        run(lab["proxy"], tmp_path, host=lab["proxy"].address6) as proxy,
        client_of(lab, server, proxy.url, tmp_path, f"[{lab['server'].address6}]") as client,
    ):
        client.wait_until_connected(ALL)
        assert sources(server) == {f"[{lab['proxy'].address6}]"}


def test_a_proxy_that_dies_ends_connections_and_one_that_returns_brings_them_back(
    lab: Lab, server: Instance, tmp_path: Path
) -> None:
    with tinyproxy(lab["proxy"], tmp_path) as proxy, client_of(lab, server, proxy.url, tmp_path) as client:
        client.wait_until_connected(ALL)
        proxy.stop()
        client.wait_for_log(f"proxy {proxy.url} to server {lab['server'].address} port ")
        client.wait_for_log("connection refused: nothing listens on this port there; trying again")
        proxy.start()
        client.wait_until_connected(2 * ALL)
        eventually(lambda: reaches(client, server, count=1))


@pytest.mark.slow
def test_idle_connections_outlive_a_proxy_that_cuts_idle_ones(lab: Lab, server: Instance, tmp_path: Path) -> None:
    with (
        tinyproxy(lab["proxy"], tmp_path, idle_seconds=2) as proxy,
        client_of(lab, server, proxy.url, tmp_path, keepalive=0.5, timeout=5) as client,
    ):
        client.wait_until_connected(ALL)
        sent = client.counter("tcp.keepalives_sent")
        eventually(lambda: client.counter("tcp.keepalives_sent") >= sent + 6 * ALL)
        assert client.counter("tcp.connections_lost") == 0


@pytest.mark.parametrize(
    ("run", "settings", "said"),
    [
        (squid, {"ports": [443]}, "many proxies allow port 443 alone (403 Forbidden, ERR_ACCESS_DENIED 0"),
        (microsocks, {"login": LOGIN}, "wants a user and a password (setting: proxy_login_file)"),
    ],
    ids=["squid", "microsocks"],
)
def test_a_refusal_is_said_in_the_log_by_status_and_by_the_doctor(
    lab: Lab, server: Instance, tmp_path: Path, run: Run, settings: dict[str, Any], said: str
) -> None:
    with run(lab["proxy"], tmp_path, **settings) as proxy, client_of(lab, server, proxy.url, tmp_path) as client:
        client.wait_for_log(f"{said}")
        eventually(lambda: said in client.command("status").stdout)
        found = lab["client"].run([EXECUTABLE, "doctor", "--name", client.name], check=False)
        assert said in found.stdout and found.returncode == 1


def test_a_wrong_login_is_said_and_a_reload_reads_the_right_one(lab: Lab, server: Instance, tmp_path: Path) -> None:
    path = login_file(tmp_path, ("user", "wrong"))
    with (
        squid(lab["proxy"], tmp_path, login=("user", "right")) as proxy,
        client_of(lab, server, proxy.url, tmp_path, proxy_login_file=path) as client,
    ):
        client.wait_for_log("does not accept this user and password (407)")
        login_file(tmp_path, ("user", "right"))
        assert "new contents: proxy_login_file" in client.command("reload").stdout
        client.wait_until_connected(ALL)
        assert "wrong" not in client.log and "right" not in client.log


def test_a_server_that_the_proxy_does_not_reach_is_told_from_a_proxy_that_is_not_there(
    lab: Lab, server: Instance, tmp_path: Path
) -> None:
    config = {**server.config, "local_addr": f"0.0.0.0:{lab['server'].free_port()}"}
    with (
        squid(lab["proxy"], tmp_path) as proxy,
        Instance(
            lab["client"], client_config(config, lab["server"].address, proxy=proxy.url, **BOTH, **OWN), tmp_path
        ) as client,
    ):
        client.wait_for_log("the proxy cannot connect to the server, or not find its name (503")
        eventually(lambda: "ask the proxy's administrator" in client.command("status").stdout)


def test_the_environment_counts_when_it_is_asked_for(lab: Lab, server: Instance, tmp_path: Path) -> None:
    with tinyproxy(lab["proxy"], tmp_path, login=("user", "a_b")) as proxy:
        variables = {"HTTPS_PROXY": proxy.url.replace("://", "://user:a%5Fb@")}
        config = client_config(server.config, lab["server"].address, proxy="environment", **BOTH, **OWN)
        with Instance(lab["client"], config, tmp_path, environment=variables) as client:
            client.wait_until_connected(ALL)
            assert sources(server) == {lab["proxy"].address}


def test_the_proxy_is_protected_from_our_own_routes_and_the_server_is_not(
    lab: Lab, server: Instance, tmp_path: Path
) -> None:
    routes = [f"{lab['server'].address}/32", f"{lab['proxy'].address}/32"]
    with (
        tinyproxy(lab["proxy"], tmp_path) as proxy,
        client_of(lab, server, proxy.url, tmp_path, routes=routes) as client,
    ):
        client.wait_until_connected(ALL)
        left_out = {each["entry"] for each in client.running()["left_out"]}
        assert left_out == {f"{lab['proxy'].address}/32"}


def test_check_tries_the_proxy_and_leaves_the_exit_status_alone(lab: Lab, server: Instance, tmp_path: Path) -> None:
    with tinyproxy(lab["proxy"], tmp_path, ports=[443]) as proxy:
        config = client_config(server.config, lab["server"].address, proxy=proxy.url, **BOTH, **OWN)
        words = [f"--set={name}={value}" for name, value in config.items() if isinstance(value, str)]
        said = lab["client"].run([EXECUTABLE, "check", *words, "--set=name=proxied"], check=False)
        assert "the proxy forbids this server or this port" in said.stderr
        assert said.returncode == 0, said.stderr
