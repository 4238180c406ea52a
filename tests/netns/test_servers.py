"""A client with several servers, for real: one dies, vanishes, stops as planned, comes back; and the gap each time.

Both servers have one address inside, so a ping to it shows the gap, whichever server the client is at.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.credentials import keys
from tests.netns.harness.hub import Hub, established, hub_config, port_of, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.name_server import NXDOMAIN, NameServer
from tests.support import eventually
from tools.lab.network import Lab
from tools.load.flows import Echoes

INSIDE = "10.99.0.1"
INTERVAL = 0.02
ALL = 8

DIES, VANISHES = 1.0, 3.0
"""Seconds without a packet that are allowed."""


class Site:
    """Servers a and b, each on a node of its own, and a client of both."""

    def __init__(
        self,
        lab: Lab,
        directory: Path,
        stack: ExitStack,
        remotes: Callable[[list[str]], Any] = list,
        wrap: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.lab = lab
        self._stack = stack
        self._key = directory / "key"
        self._directory = directory
        keys.write_secret(self._key, keys.generate().encode())
        peers = [{"name": "laptop", "key_file": str(self._key)}]
        self.servers = {
            name: stack.enter_context(Instance(lab[name], hub_config(lab[name], directory, peers=peers), directory))
            for name in ("a", "b")
        }
        for server in self.servers.values():
            server.wait_until_running()
        self.client = stack.enter_context(
            Instance(
                lab["client"],
                {"mode": "client", "key_file": str(self._key), "reconnect_max": 0.5, "home_after": 600.0}
                | {"remote_addr": remotes(self.addresses), "state_dir": str(directory / "state")} | settings,
                directory,
                wrap=wrap,
            )
        )  # fmt: skip
        self.client.wait_until_running()
        eventually(lambda: established(self.client) == ALL and self.reaches(), 15.0, "all connections")

    @property
    def addresses(self) -> list[str]:
        return [f"{server.node.address}:{port_of(server)}" for server in self.servers.values()]

    def reaches(self) -> bool:
        return reaches(self.lab["client"], INSIDE, count=1, seconds=0.3)

    def start_again(self, name: str) -> None:
        self.servers[name] = self._stack.enter_context(self.servers[name].start_again())
        self.servers[name].wait_until_running()

    def server_of_client(self) -> str:
        """The server that the client is at."""
        host = self.client.running()["server"]["host"]
        return next(name for name, server in self.servers.items() if server.node.address == host)

    def states(self) -> list[str]:
        """Of the servers, as `status` of the client has them."""
        return [each["state"] for each in self.client.running()["server"]["list"]]

    def wait_until_at(self, name: str, seconds: float = 10.0) -> None:
        """With all connections."""
        eventually(
            lambda: self.server_of_client() == name and established(self.client) == ALL, seconds, f"all at {name}"
        )

    def wait_for_standby(self, seconds: float = 10.0) -> None:
        eventually(lambda: "standby" in self.states(), seconds, "a standby connection")

    @contextmanager
    def gap(self, seconds: float) -> Iterator[list[float]]:
        """Ping for so long meanwhile; then the list has the longest gap in seconds, and the packets lost."""
        found: list[float] = []
        echoes = Echoes(self.lab["client"], INSIDE, count=round(seconds / INTERVAL), interval=INTERVAL)
        threading.Event().wait(0.3)  # it is under way
        yield found
        lost = echoes.finish().lost
        runs = itertools.groupby(enumerate(lost), key=lambda pair: pair[1] - pair[0])
        found += [INTERVAL * max((len(list(run)) for _, run in runs), default=0), len(lost)]
        print(f"the longest gap: {found[0]:.2f} s; packets lost: {found[1]}")  # pytest -rP shows it


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(names=("client", "a", "b")) as made:
        yield made


@contextmanager
def site(lab: Lab, directory: Path, **settings: Any) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(lab, directory, stack, **settings)


def test_a_client_is_at_the_first_server_and_one_connection_stands_by_at_the_next(lab: Lab, tmp_path: Path) -> None:
    with site(lab, tmp_path) as here:
        here.wait_for_standby()
        assert here.server_of_client() == "a" and here.states() == ["current", "standby"]
        rows = here.client.running()["connections"]
        assert sum(row["state"] == "standby" for row in rows) == 1
        said = here.client.command("status").stdout.splitlines()[0]
        assert f"connected to {lab['a'].address} " in said and f"{lab['b'].address}:" in said and "stands by" in said
        before = here.client.counter("tcp.connections_established")
        threading.Event().wait(1.0)
        assert here.client.counter("tcp.connections_established") == before == ALL + 1
        assert established(here.servers["b"]) == 1


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("standby", [True, False], ids=["standby", "no-standby"])
def test_a_server_whose_processes_die_costs_less_than_a_second(lab: Lab, tmp_path: Path, standby: bool) -> None:
    with site(lab, tmp_path, standby=standby) as here:
        if standby:
            here.wait_for_standby()
        with here.gap(4.0) as found:
            here.servers["a"].kill()
            here.wait_until_at("b")
        assert found[0] < DIES
        here.client.wait_for_log(f"server {here.addresses[1]}: this client has come here from {here.addresses[0]}")
        assert "here because" in here.client.command("status").stdout.splitlines()[0]


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("standby", [True, False], ids=["standby", "no-standby"])
def test_a_machine_that_vanishes_costs_less_than_three_seconds(lab: Lab, tmp_path: Path, standby: bool) -> None:
    with site(lab, tmp_path, standby=standby) as here:
        if standby:
            here.wait_for_standby()
        with here.gap(6.0) as found:
            lab.cut(lab["a"])
            here.wait_until_at("b")
        assert found[0] < VANISHES
        lab.join(lab["a"])


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("standby", [True, False], ids=["standby", "no-standby"])
def test_a_planned_stop_costs_no_packet(lab: Lab, tmp_path: Path, standby: bool) -> None:
    with site(lab, tmp_path, standby=standby) as here:
        if standby:
            here.wait_for_standby()
        with here.gap(5.0) as found:
            here.servers["a"].stop()
            here.wait_until_at("b")
        assert found == [0, 0]
        assert "about to stop; 1 client(s)" in here.servers["a"].log
        assert "are still here" not in here.servers["a"].log


@pytest.mark.alone
@pytest.mark.slow
def test_a_client_comes_home_without_losing_a_packet(lab: Lab, tmp_path: Path) -> None:
    with site(lab, tmp_path, home_after=2.0) as here:
        here.wait_for_standby()
        here.servers["a"].kill()
        here.wait_until_at("b")
        here.start_again("a")
        with here.gap(9.0) as found:
            here.wait_until_at("a", 15.0)
        assert found == [0, 0]
        eventually(lambda: here.states() == ["current", "standby"], what="b stands by")


@pytest.mark.alone
@pytest.mark.slow
def test_a_reload_with_another_list_costs_no_packet(lab: Lab, tmp_path: Path) -> None:
    with site(lab, tmp_path, home_after=0.5) as here:
        here.wait_for_standby()
        with here.gap(5.0) as found:
            here.client.write({**here.client.config, "remote_addr": here.addresses[::-1]})
            said = here.client.command("reload")
            assert said.returncode == 0 and "replaced" not in said.stdout, said.stdout
            here.wait_until_at("b")
        assert found == [0, 0]


@pytest.mark.slow
def test_a_standby_server_that_stops_does_not_wait_for_its_client(lab: Lab, tmp_path: Path) -> None:
    with site(lab, tmp_path) as here:
        here.wait_for_standby()
        here.servers["b"].stop()
        assert "are still here" not in here.servers["b"].log
        assert here.server_of_client() == "a" and established(here.client) == ALL


@pytest.mark.slow
def test_where_no_server_answers_the_client_stays_and_goes_on_when_one_does(lab: Lab, tmp_path: Path) -> None:
    """The path of the client is broken, and no server is to blame."""
    with site(lab, tmp_path) as here:
        here.wait_for_standby()
        with here.gap(4.5):
            for name in ("a", "b"):
                lab.cut(lab[name])
            threading.Event().wait(2.5)
            assert here.server_of_client() == "a"
            for name in ("a", "b"):
                lab.join(lab[name])
        eventually(here.reaches, 10.0, "a ping")


@pytest.mark.slow
def test_without_encryption_a_client_goes_to_the_next_server_as_well(lab: Lab, tmp_path: Path) -> None:
    with ExitStack() as stack:
        plain = {"encryption": "none", "insecure": True, "tunnel_addr": ["10.99.0.1/24"]}
        servers = []
        for name in ("a", "b"):
            node = lab[name]
            config = {"mode": "server", "local_addr": f"0.0.0.0:{node.free_port()}", **plain}
            servers.append(stack.enter_context(Instance(node, config, tmp_path)))
            servers[-1].wait_until_running()
        config = {
            "mode": "client",
            "encryption": "none",
            "tunnel_addr": "10.99.0.2/24",
            "remote_addr": [f"{each.node.address}:{port_of(each)}" for each in servers],
            "reconnect_max": 0.5,
        }
        client = stack.enter_context(Instance(lab["client"], config, tmp_path))
        client.wait_until_running()
        eventually(lambda: reaches(lab["client"], INSIDE, count=1, seconds=0.3), what="a ping")
        servers[0].kill()
        eventually(lambda: client.running()["server"]["host"] == lab["b"].address, what="the other server")
        eventually(lambda: reaches(lab["client"], INSIDE, count=1, seconds=0.3), what="a ping")


@pytest.mark.slow
def test_srv_records_list_the_servers_and_a_dead_name_server_takes_none_away(lab: Lab, tmp_path: Path) -> None:
    hosts = {"fra.test": lab["a"].address, "ams.test": lab["b"].address}

    def remotes(addresses: list[str]) -> str:
        a, b = (int(each.rpartition(":")[2]) for each in addresses)
        names.tell([(20, b, "ams.test"), (10, a, "fra.test")], hosts)
        return "srv:_tunnel._tcp.example.test"

    with NameServer(lab["client"], tmp_path) as names, site(lab, tmp_path, remotes=remotes, wrap=names.wrap) as here:
        here.wait_for_standby()
        listed = [each["server"].partition(":")[0] for each in here.client.running()["server"]["list"]]
        assert listed == ["fra.test", "ams.test"]
        assert {row["address"].partition(":")[0] for row in here.client.running()["connections"]} == {*hosts.values()}
        names.silence()
        here.servers["a"].kill()
        eventually(lambda: here.client.running()["server"]["host"] == "ams.test", what="the other server")
        eventually(lambda: established(here.client) == ALL and here.reaches(), what="all connections")


@pytest.mark.slow
def test_a_first_server_whose_name_nobody_knows_holds_up_nothing(lab: Lab, tmp_path: Path) -> None:
    def remotes(addresses: list[str]) -> list[str]:
        return ["gone.test:9000", addresses[1]]

    with NameServer(lab["client"], tmp_path) as names:
        names.refuse(NXDOMAIN)
        with site(lab, tmp_path, remotes=remotes, wrap=names.wrap) as here:
            assert here.server_of_client() == "b"
            eventually(lambda: "the name is unknown" in here.client.command("status").stdout, what="why not the first")


def test_a_client_with_one_server_stops_it_as_quickly_as_ever(lab: Lab, tmp_path: Path) -> None:
    with Hub(lab, tmp_path) as hub:
        hub.join(lab["a"])
        hub.server.stop()
        assert "about to stop" not in hub.server.log
