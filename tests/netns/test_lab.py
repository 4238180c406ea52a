"""The lab: two real namespaces and more, what runs in them, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.lab.link_model import LinkSpec
from tools.lab.namespace import LabError
from tools.lab.network import Lab
from tools.lab.waiting import until
from tools.load.flows import ping

pytestmark = pytest.mark.tools
PATIENCE = 5.0
"""Seconds for an echo that has to come back, on a machine that may stand still for two or three."""

EITHER_LINK = pytest.mark.parametrize("link", [None, LinkSpec()], ids=["veth", "emulated"])


def processes_and_interfaces() -> tuple[set[int], set[str]]:
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return pids, set(os.listdir("/sys/class/net"))


def gone(pid: int) -> bool:
    """The process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@EITHER_LINK
def test_both_nodes_reach_each_other_over_ipv4_and_ipv6_from_the_first_packet(link: LinkSpec | None) -> None:
    with Lab(link=link) as lab:
        a, b = lab
        pairs = (a, b.address), (b, a.address), (a, b.address6), (b, a.address6), (a, "127.0.0.1")
        for source, target in pairs:
            assert ping(source, target, count=3, interval=0.01, timeout=PATIENCE).lost == []


@EITHER_LINK
def test_three_nodes_are_in_one_network(link: LinkSpec | None) -> None:
    with Lab(names=("hub", "one", "two"), link=link) as lab:
        for source, target in (("one", "hub"), ("two", "hub"), ("one", "two"), ("hub", "two")):
            for address in (lab[target].address, lab[target].address6):
                assert ping(lab[source], address, count=2, interval=0.01, timeout=PATIENCE).lost == []


def test_the_mtu_is_the_one_asked() -> None:
    with Lab(mtu=1380) as lab:
        for node in lab:
            assert "mtu 1380" in node.run(["ip", "link", "show", node.interface]).stdout


@EITHER_LINK
def test_a_cut_link_carries_nothing_and_a_joined_one_carries_again(link: LinkSpec | None) -> None:
    with Lab(link=link) as lab:
        a, b = lab
        lab.cut()
        assert len(ping(a, b.address, count=3, interval=0.01, timeout=0.1).lost) == 3
        lab.join()
        until(lambda: not ping(a, b.address, count=1, timeout=0.2).lost, "an answer after the join")
        assert ping(b, a.address6, count=2, interval=0.01, timeout=PATIENCE).lost == []


def test_one_of_several_links_is_cut_alone() -> None:
    with Lab(names=("hub", "one", "two"), link=LinkSpec()) as lab:
        lab.cut(lab["one"])
        assert ping(lab["one"], lab["hub"].address, count=1, timeout=0.1).lost
        assert not ping(lab["two"], lab["hub"].address, count=1, timeout=PATIENCE).lost
        with pytest.raises(LabError, match="all but 'hub'"):
            lab.cut(lab["hub"])


def test_a_socket_made_inside_is_inside(lab: Lab) -> None:
    a, b = lab
    with b.socket() as listener, a.socket() as client:
        listener.bind((b.address, 0))
        listener.listen()
        client.connect(listener.getsockname())
        connection, (address, _) = listener.accept()
        with connection:
            assert address == a.address
    with socket.socket() as ours, pytest.raises(OSError):
        ours.bind((a.address, 0))


def test_a_command_that_fails_is_reported_with_its_words(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"ip link show nosuch in 'a': exit status 1: .*does not exist"):
        lab["a"].run(["ip", "link", "show", "nosuch"])


def test_labs_side_by_side_do_not_meet() -> None:
    with Lab() as one, Lab() as other:
        one["b"].ip("link set link0 down")
        assert not ping(other["a"], other["b"].address, count=1, timeout=PATIENCE).lost
        assert ping(one["a"], one["b"].address, count=1, timeout=0.1).lost


@EITHER_LINK
def test_closing_ends_every_process_inside_and_leaves_no_interface(link: LinkSpec | None) -> None:
    _, interfaces_before = processes_and_interfaces()
    with Lab(link=link) as lab:
        child = lab["a"].popen(["sleep", "1000"])
        lab["b"].run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & sleep 1000 >/dev/null 2>&1 &"])
        inside = [pid for node in lab for pid in (node.pid, *node.processes())]
        emulators = [link.pid for link in lab.links]
        assert len(inside) == 5
    assert child.returncode == -signal.SIGTERM
    # a process that ends leaves the namespace, which the lab waits for, a moment before it is a zombie
    until(lambda: all(gone(pid) for pid in inside + emulators), f"the end of {inside + emulators}")
    assert processes_and_interfaces()[1] == interfaces_before


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    with Lab(term_seconds=0.1) as lab:
        deaf = lab["a"].popen(
            ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 100; done"], stdout=subprocess.PIPE
        )
        assert deaf.stdout.readline() == b"deaf\n"
        deaf.stdout.close()
    assert deaf.returncode == -signal.SIGKILL


LIFE = """
import sys
from tools.lab.network import Lab
from tools.lab.link_model import LinkSpec
with Lab(link=LinkSpec() if sys.argv[1] == "emulated" else None) as lab:
    lab["b"].popen(["sleep", "1000"])
    pids = [pid for node in lab for pid in (node.pid, *node.processes())] + [link.pid for link in lab.links]
    print(*pids, flush=True)
    lab["a"].run(["sleep", "1000"], timeout=None)
"""


@pytest.mark.parametrize("kind", ["veth", "emulated"])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_the_program_is_ended_by_a_signal(kind: str, sign: signal.Signals) -> None:
    _, interfaces_before = processes_and_interfaces()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", LIFE, kind], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        pids = [int(word) for word in program.stdout.readline().split()]
        program.send_signal(sign)
        status = program.wait(timeout=20)
    assert (
        status
        == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}[sign]
    )
    assert len(pids) == (3 if kind == "veth" else 4)
    until(lambda: all(gone(pid) for pid in pids), f"the end of {pids}")
    assert processes_and_interfaces()[1] == interfaces_before


def test_a_signal_while_the_lab_closes_takes_effect_afterwards() -> None:
    impatient = f"trap 'kill -INT {os.getpid()}; exit' TERM; echo ready; while :; do sleep 0.01; done"
    with pytest.raises(KeyboardInterrupt), Lab() as lab:
        child = lab["a"].popen(["sh", "-c", impatient], stdout=subprocess.PIPE)
        holders = [node.pid for node in lab]
        assert child.stdout.readline() == b"ready\n"
        child.stdout.close()
    assert child.returncode == 0
    assert all(gone(pid) for pid in holders)


def test_an_error_while_building_leaves_nothing() -> None:
    with pytest.raises(LabError, match=r"TAP|mtu|MTU|Argument|argument"), Lab(mtu=10_000_000):
        pass
    with pytest.raises(LabError, match="different ones"):
        Lab(names=("a", "a"))


def test_the_handlers_of_the_program_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Lab():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
