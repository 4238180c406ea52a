"""Names of peers, asked of real DNS servers: dnsmasq with the configuration of configs/, and unbound behind it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from pipeline.supervisor.instance import NAMES_DIRECTORY, hosts_path
from tests.netns.harness import dns
from tests.netns.harness.dns import AAAA, NXDOMAIN, PTR, NoAnswer, ask
from tests.netns.harness.hub import INSIDE, PLAIN, Client, Hub
from tests.support import ROOT, eventually
from tools.lab.namespace import stop
from tools.lab.network import Lab, Node

DNSMASQ, UNBOUND = shutil.which("dnsmasq"), shutil.which("unbound")
LOCAL = "listen-address=127.0.0.1\nbind-interfaces\nno-hosts\nno-resolv\n"
HUB, HUB6 = (text.partition("/")[0] for text in INSIDE)

pytestmark = pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is missing: apt-get install dnsmasq-base")


def dnsmasq_config(device: str) -> str:
    """configs/dnsmasq-names.conf for a device of this name."""
    text = (ROOT / "configs/dnsmasq-names.conf").read_text()
    assert "interface=hub\n" in text
    return text.replace("interface=hub\n", f"interface={device}\n")


@contextmanager
def running(node: Node, *argv: str) -> Iterator[subprocess.Popen]:
    process = node.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        stop([process], 10)


@contextmanager
def dnsmasq(node: Node, text: str, directory: Path) -> Iterator[subprocess.Popen]:
    file = directory / "dnsmasq.conf"
    file.write_text(text)
    NAMES_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    with running(node, DNSMASQ, "--keep-in-foreground", f"--conf-file={file}", "--pid-file", "--user=nobody") as made:
        yield made


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub whose DNS server was there first, with one client."""
    directory = tmp_path_factory.mktemp("names")
    with Lab(names=("hub", "one", "two")) as lab:
        name = "hub-names"
        with (
            dnsmasq(lab["hub"], dnsmasq_config(name), directory),
            Hub(lab, directory, name=name, names="tunnel") as made,
        ):
            made.join(lab["one"], "laptop", **PLAIN)
            yield made


def answers(hub: Hub, name: str, *expected: str, kind: int = dns.A, server: str = HUB) -> None:
    """The hub's server gives its clients this answer, soon."""
    laptop = hub["laptop"].node

    def looks() -> bool:
        try:
            return ask(laptop, server, name, kind) == sorted(expected)
        except NoAnswer as error:
            return not expected and error.code == NXDOMAIN
        except TimeoutError:
            return False

    eventually(looks, 10, f"{name} answered with {expected}")


def addresses(client: Client) -> tuple[str, str]:
    return client.address, client.address6


def test_a_client_finds_the_hub_and_itself_by_name_over_ipv4_and_ipv6(hub: Hub) -> None:
    four, six = addresses(hub["laptop"])
    answers(hub, "laptop.tunnel", four)
    answers(hub, "laptop.tunnel", six, kind=AAAA)
    answers(hub, "hub-names.tunnel", HUB)
    answers(hub, "hub-names.tunnel", HUB6, kind=AAAA, server=HUB6)


def test_case_says_nothing_and_addresses_lead_back_to_names(hub: Hub) -> None:
    answers(hub, "LapTop.TUNNEL", hub["laptop"].address)
    answers(hub, ip_address(hub["laptop"].address).reverse_pointer, "laptop.tunnel", kind=PTR)


def test_answers_change_as_a_peer_joins_is_renamed_and_is_revoked(hub: Hub) -> None:
    answers(hub, "anna-pc.tunnel")
    client = hub.start(hub.lab["two"], "Anna_PC", **PLAIN)
    client.wait_until_joined()
    answers(hub, "anna-pc.tunnel", client.address)
    answers(hub, "anna-pc.tunnel", client.address6, kind=AAAA)
    hub.server.command("invite", "anna-pc", "--address", f"{hub.node.address}:{hub.port}")
    eventually(lambda: "anna-pc" in hub.peers())
    answers(hub, "anna-pc.tunnel", client.address)  # a peer without addresses takes no name away
    assert hub.server.command("revoke", "Anna_PC").returncode == 0
    answers(hub, "anna-pc.tunnel")
    hub.clients.pop("Anna_PC").stop()
    again = Client(hub.lab["two"], hub.invite("anna-pc", "--again"), hub.directory, **PLAIN)
    with again:
        again.wait_until_joined()
        answers(hub, "anna-pc.tunnel", again.address)
        answers(hub, "anna-pc.tunnel", again.address6, kind=AAAA)
    assert hub.server.command("revoke", "anna-pc").returncode == 0
    answers(hub, "anna-pc.tunnel")
    answers(hub, "anna-pc.tunnel", kind=AAAA)


def test_a_reload_brings_another_domain_and_fixed_addresses(hub: Hub) -> None:
    fixed = {"name": "printer", "key_file": str(key_file(hub.directory)), "address": "10.99.0.77"}
    hub.configure(peers=[fixed])
    answers(hub, "printer.tunnel", "10.99.0.77")
    hub.configure(peers=[{**fixed, "address": "10.99.0.78"}])
    answers(hub, "printer.tunnel", "10.99.0.78")
    hub.configure(peers=[])
    answers(hub, "printer.tunnel")


def test_no_other_domain_is_answered_and_nobody_outside_the_tunnel_is(hub: Hub) -> None:
    def is_refused() -> bool:
        try:
            found = ask(hub["laptop"].node, HUB, "www.example.org")
        except NoAnswer:
            return True
        except TimeoutError:
            return False
        raise AssertionError(found)

    eventually(is_refused, what="a refusal")
    with pytest.raises((NoAnswer, TimeoutError)):
        ask(hub["laptop"].node, hub.node.address, "laptop.tunnel")


def test_a_file_that_somebody_has_removed_is_back_and_clashes_are_in_the_status(hub: Hub) -> None:
    path = hosts_path(hub.server.name)
    path.unlink()
    eventually(path.exists)
    answers(hub, "laptop.tunnel", hub["laptop"].address)
    key = key_file(hub.directory)
    hub.configure(peers=[{"name": "LAPTOP", "key_file": str(key), "address": "10.99.0.79"}])
    eventually(lambda: any('"LAPTOP"' in note for note in hub.server.running()["notes"]), what="a note")
    answers(hub, "laptop.tunnel", hub["laptop"].address)
    hub.configure(peers=[])


@pytest.mark.skipif(UNBOUND is None, reason="unbound is missing: apt-get install unbound")
def test_unbound_answers_by_way_of_dnsmasq(hub: Hub, tmp_path: Path) -> None:
    document = (ROOT / "docs/names.md").read_text()
    recipe = re.search(r"^    server:\n        interface: 10.0.0.1\n(?:    .*\n)+", document, re.MULTILINE)[0]
    port, behind = hub.node.free_port(), hub.node.free_port()
    text = recipe.replace("10.0.0.1", f"{HUB}@{port}", 1).replace("10.0.0.0/24", "10.99.0.0/24")
    text = text.replace("5300", str(behind)).replace("0.0.10.in", "0.99.10.in")
    (tmp_path / "unbound.conf").write_text(unbound_head(tmp_path) + text)
    inner = dnsmasq_config("").replace("interface=\n", "listen-address=127.0.0.1\n")
    inner = (
        inner.replace("except-interface=lo\n", "").replace("bind-dynamic\n", "bind-interfaces\n") + f"port={behind}\n"
    )
    laptop = hub["laptop"]
    reverse = ip_address(laptop.address).reverse_pointer

    def asks(name: str, kind: int = dns.A) -> Sequence[str]:
        try:
            return ask(laptop.node, HUB, name, kind, port)
        except (NoAnswer, TimeoutError):
            return ()

    with (
        dnsmasq(hub.node, inner, tmp_path),
        running(hub.node, UNBOUND, "-d", "-c", str(tmp_path / "unbound.conf")),
    ):
        eventually(lambda: asks("laptop.tunnel") == [laptop.address], 15, "an answer of unbound")
        eventually(lambda: asks(reverse, PTR) == ["laptop.tunnel"], 15, "a name from unbound")


@pytest.mark.parametrize("program", ["dnsmasq", "unbound"])
def test_a_client_asks_the_hub_for_the_domain_alone(hub: Hub, tmp_path: Path, program: str) -> None:
    """By the recipes of docs/names.md. The usual server of the client knows another domain."""
    if program == "unbound" and UNBOUND is None:
        pytest.skip("unbound is missing: apt-get install unbound")
    client = hub["laptop"]
    port, usual = (client.node.free_port(socket.SOCK_DGRAM) for _ in range(2))
    if program == "dnsmasq":
        lines = recipe("    server=/tunnel/10.0.0.1", 2).replace("10.0.0.", "10.99.0.")
        asked = dnsmasq(client.node, f"{lines}{LOCAL}port={port}\nserver=127.0.0.1#{usual}\n", tmp_path)
    else:
        lines = recipe("    forward-zone:\n", 5).replace("10.0.0.", "10.99.0.")
        (tmp_path / "unbound.conf").write_text(
            f"{unbound_head(tmp_path)}  interface: 127.0.0.1@{port}\n  do-not-query-localhost: no\n{lines}"
            f'forward-zone:\n  name: "."\n  forward-addr: 127.0.0.1@{usual}\n'
        )
        asked = running(client.node, UNBOUND, "-d", "-c", str(tmp_path / "unbound.conf"))

    def asks(name: str) -> Sequence[str]:
        try:
            return ask(client.node, "127.0.0.1", name, port=port)
        except (NoAnswer, TimeoutError):
            return ()

    other = tmp_path / "usual"
    other.mkdir()
    with dnsmasq(client.node, f"{LOCAL}port={usual}\naddress=/example.org/192.0.2.1\n", other), asked:
        eventually(lambda: asks("hub-names.tunnel") == [HUB], 15, "a name of the tunnel")
        eventually(lambda: asks("www.example.org") == ["192.0.2.1"], 15, "another name")


def recipe(first: str, lines: int) -> str:
    """So many lines of docs/names.md from this one on."""
    document = (ROOT / "docs/names.md").read_text()
    return textwrap.dedent("".join(document[document.index(first) :].splitlines(keepends=True)[:lines]))


def unbound_head(directory: Path) -> str:
    """For an unbound that needs nothing of the machine."""
    return f'server:\n  username: ""\n  chroot: ""\n  directory: "{directory}"\n  pidfile: ""\n  use-syslog: no\n'


@pytest.mark.slow
def test_the_names_go_with_the_hub_and_come_back_with_it(tmp_path: Path) -> None:
    name = "hub-again"
    config = dnsmasq_config("lo").replace("except-interface=lo\n", "")
    with (
        Lab() as lab,
        dnsmasq(lab.nodes[0], config, tmp_path),
        Hub(lab, tmp_path, name=name, names="tunnel") as hub,
    ):
        path = hosts_path(name)

        def found() -> list[str]:
            try:
                return ask(hub.node, "127.0.0.1", f"{name}.tunnel")
            except (NoAnswer, TimeoutError):
                return []

        eventually(lambda: found() == [HUB], 10)
        hub.server.kill()
        assert path.exists()
        hub.start_again()
        eventually(lambda: found() == [HUB], 10)
        hub.server.stop()
        assert not path.exists()
        eventually(lambda: not found(), 10, "no answer without the hub")
        hub.start_again()
        eventually(lambda: found() == [HUB], 10)
        hub.server.kill()
        hub.server.config = {key: value for key, value in hub.server.config.items() if key != "names"}
        hub.start_again()
        assert not path.exists(), "a start without names removes what a killed one has left"


def key_file(directory: Path) -> Path:
    path = directory / "printer.key"
    if not path.exists():
        path.touch(0o600)
        path.write_text("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")
    return path
