"""An Ethernet segment over the tunnel, by configs/vxlan.sh as a hook: what is not IP passes, and frames are as long as
the script and docs/network.md say."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.netns.harness.hub import PLAIN, Hub, reaches
from tests.netns.harness.instance import Instance
from tests.support import ROOT, eventually
from tools.lab.namespace import LabError, Namespace
from tools.lab.network import Lab

HUB, ONE, TWO = "10.99.0.1", "10.99.0.2", "10.99.0.3"
HUB6, ONE6, TWO6 = "fd99::1", "fd99::2", "fd99::3"
DEVICE = "vx42"
ETHERTYPE = 0x88B5  # for experiments: IEEE 802
ICMP_BYTES = 28
TRANSFER_BYTES = 5_000_000


pytestmark = pytest.mark.slow


def script(directory: Path) -> str:
    """The script as an administrator installs it."""
    path = directory / "vxlan.sh"
    path.write_text((ROOT / "configs/vxlan.sh").read_text())
    path.chmod(0o755)
    return str(path)


Ends = dict[str, Instance]


@pytest.fixture(scope="module", params=["ipv4", "ipv6"])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """A hub and two clients in one segment. The MTU of the tunnel is what 1500 bytes in the segment need."""
    four = request.param == "ipv4"
    hub_at, one_at, two_at = (HUB, ONE, TWO) if four else (HUB6, ONE6, TWO6)
    directory = tmp_path_factory.mktemp("vxlan")
    program, mtu = script(directory), 1550 if four else 1570

    def hook(event: str, *others: str) -> dict[str, object]:
        return {"on": {event: [program, "42", *others]}, "mtu": mtu}

    with Lab(names=("hub", "one", "two")) as lab, ExitStack() as stack:
        try:
            lab["hub"].ip("link add probe type vxlan id 1 dstport 4789", "link delete probe")
        except LabError:
            pytest.skip("this kernel has no VXLAN (CONFIG_VXLAN)")
        hub = stack.enter_context(Hub(lab, directory, **hook("up", one_at, two_at), **PLAIN))
        found = {"hub": hub.server}
        for name, other in (("one", two_at), ("two", one_at)):
            found[name] = hub.join(lab[name], **hook("connected", hub_at, other), **PLAIN)
        for number, end in enumerate(found.values(), 1):
            eventually(lambda: device(end.node).get("operstate") in ("UP", "UNKNOWN"), 15, f"{DEVICE} of {end.name}")
            end.node.ip(f"address add 192.168.77.{number}/24 dev {DEVICE}")
        yield found


def device(node: Namespace) -> dict[str, object]:
    shown = json.loads(node.run(["ip", "-j", "-d", "link", "show"]).stdout)
    return next((each for each in shown if each.get("ifname") == DEVICE), {})


def frames_of(stack: ExitStack, end: Instance) -> socket.socket:
    """A socket for frames of the segment."""
    sock = stack.enter_context(end.node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)))
    sock.bind((DEVICE, ETHERTYPE))
    sock.settimeout(5)
    return sock


def test_every_end_reaches_every_other_by_arp(ends: Ends) -> None:
    for source, sink in (("hub", 2), ("one", 1), ("one", 3), ("two", 2)):
        assert reaches(ends[source].node, f"192.168.77.{sink}")
    neighbours = ends["one"].node.run(["ip", "neighbour", "show", "dev", DEVICE]).stdout
    assert "192.168.77.3 lladdr" in neighbours


def test_a_broadcast_that_is_not_ip_is_heard_by_all_others(ends: Ends) -> None:
    with ExitStack() as stack:
        one, hub, two = (frames_of(stack, ends[name]) for name in ("one", "hub", "two"))
        address = one.getsockname()[4]
        frame = b"\xff" * 6 + address + struct.pack(">H", ETHERTYPE) + b"hello".ljust(46, b"\0")
        one.send(frame)
        assert hub.recv(2000) == two.recv(2000) == frame


def test_a_frame_of_1500_bytes_passes_whole_and_the_device_says_so(ends: Ends) -> None:
    assert device(ends["one"].node)["mtu"] == 1500
    for sink in (1, 3):
        whole = ["ping", "-c1", "-W3", "-Mdo", f"-s{1500 - ICMP_BYTES}", f"192.168.77.{sink}"]
        assert ends["one"].node.run(whole).returncode == 0
    longer = ["ping", "-c1", "-W1", "-Mdo", f"-s{1500 - ICMP_BYTES + 1}", "192.168.77.1"]
    with pytest.raises(LabError):
        ends["one"].node.run(longer)


def test_a_tcp_connection_in_the_segment_carries_every_byte(ends: Ends) -> None:
    data = random.Random(1).randbytes(TRANSFER_BYTES)
    with ends["hub"].node.socket() as listener, ends["one"].node.socket() as sending:
        listener.bind(("192.168.77.1", 0))
        listener.listen()
        sending.settimeout(20)
        sending.connect(listener.getsockname())
        receiving, _ = listener.accept()
        writer = threading.Thread(target=sending.sendall, args=(data,))
        writer.start()
        with receiving, receiving.makefile("rb") as file:
            receiving.settimeout(20)
            assert file.read(TRANSFER_BYTES) == data
        writer.join()


def test_a_second_run_changes_nothing_and_the_segment_goes_and_comes_with_the_tunnel(
    ends: Ends, tmp_path: Path
) -> None:
    one = ends["one"]
    before = device(one.node)["ifindex"]
    assert one.command("restart").returncode == 0
    eventually(lambda: reaches(one.node, "192.168.77.1"), 15, "the hub in the segment")
    assert device(one.node)["ifindex"] == before
    with Lab() as lab, Hub(lab, tmp_path, on={"up": [script(tmp_path), "42", ONE]}, **PLAIN) as hub:
        eventually(lambda: device(lab.nodes[0]), 15, DEVICE)
        hub.server.stop()
        assert not device(lab.nodes[0])
