"""Facts in, findings out: each check says what is wrong, with a cure, and is content where all is well."""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import parse
from pipeline.doctor import clock, ends, files, machine, names, path, port, routes, sysctls, uplinks
from pipeline.doctor.finding import Finding, Level
from pipeline.doctor.path import Echoes, Passed
from pipeline.doctor.routes import Way
from pipeline.doctor.sysctls import Congestion
from pipeline.doctor.uplinks import Ways
from pipeline.transport.kernel_route import Link

OK, NOTE, PROBLEM = Level.OK, Level.NOTE, Level.PROBLEM
NOW = datetime(2027, 1, 31, tzinfo=UTC)
HOST, SIX = ip_address("192.0.2.1"), ip_address("2001:db8::1")
LAN = ip_network("10.1.0.0/16")
ALL_RIGHTS = (1 << 41) - 1
MB = 1_000_000
FAR = ip_address("198.51.100.1")
FIRST = Ways("eth0", Link(2, True, True), (LAN,), (FAR,), (FAR,))
SECOND = Ways("wwan0", Link(3, True, True), (), (FAR,))

SNAPSHOT: dict[str, Any] = {
    "state": "running",
    "mode": "client",
    "uptime_seconds": 9,
    "connections": [],
    "workers": [{"name": "tun-0", "state": "running", "restarts": 0}],
}

CASES: dict[str, tuple[Finding | list[Finding], list[Level], str]] = {
    "tun": (machine.judge_tun(0, True, runs=False), [OK], ""),
    "tun-missing": (machine.judge_tun(errno.ENOENT, True, runs=False), [PROBLEM], "modprobe tun"),
    "tun-forbidden": (machine.judge_tun(errno.EACCES, True, runs=False), [PROBLEM], "--device /dev/net/tun"),
    "tun-file": (machine.judge_tun(0, False, runs=False), [PROBLEM], "mknod"),
    "tun-gone-later": (machine.judge_tun(errno.ENOENT, True, runs=True), [NOTE], "a restart needs it again"),
    "rights": (machine.judge_rights(ALL_RIGHTS, 443, runs=False), [OK], ""),
    "rights-none": (
        machine.judge_rights(0, 443, runs=False),
        [PROBLEM],
        "lacks CAP_NET_ADMIN, CAP_SETUID, ",
    ),
    "rights-high-port": (machine.judge_rights(1 << 12 | 3 << 6, 9000, runs=False), [OK], ""),
    "rights-low-port": (machine.judge_rights(1 << 12 | 3 << 6, 443, runs=False), [PROBLEM], "CAP_NET_BIND_SERVICE"),
    "rights-of-a-looker": (machine.judge_rights(0, 0, runs=True), [NOTE], "sees less"),
    "user": (machine.judge_user(""), [OK], ""),
    "user-of-a-person": (machine.judge_user("The user tunnel can log in"), [NOTE], "an id that nobody has"),
    "shm": (machine.judge_shared_memory(machine.SharedMemory(64 * MB, 60 * MB), 20 * MB, runs=False), [OK], ""),
    "shm-small": (
        machine.judge_shared_memory(machine.SharedMemory(64 * MB, 5 * MB), 20 * MB, runs=False),
        [PROBLEM],
        "has 5.0 MB free of 64.0 MB, this instance needs 20.0 MB",
    ),
    "shm-small-and-in-use": (
        machine.judge_shared_memory(machine.SharedMemory(64 * MB, 5 * MB), 20 * MB, runs=True),
        [OK],
        "",
    ),
    "shm-missing": (
        machine.judge_shared_memory(machine.SharedMemory(0, 0), 0, runs=False),
        [PROBLEM],
        "mount -t tmpfs",
    ),
    "shm-exposed": (
        machine.judge_shared_memory(machine.SharedMemory(64, 64, "others may"), 1, runs=False),
        [OK, NOTE],
        "mode 1777",
    ),
    "offloads": (machine.judge_offloads(True, True), [OK], ""),
    "offloads-unknown": (machine.judge_offloads(True, None), [], ""),
    "offloads-refused": (machine.judge_offloads(True, False), [NOTE], "gVisor"),
    "offloads-unwanted": (machine.judge_offloads(False, False), [NOTE], "offload is false"),
    "clock": (clock.judge_clock(NOW.timestamp(), None), [OK], "2027-01-31"),
    "clock-with-server": (clock.judge_clock(NOW.timestamp(), -3), [OK], "as the server's does"),
    "clock-of-1970": (clock.judge_clock(0.0, None), [PROBLEM], "1970-01-01"),
    "clock-off": (clock.judge_clock(NOW.timestamp(), 90), [NOTE], "90 s ahead of"),
    "clock-far-off": (clock.judge_clock(NOW.timestamp(), -7200), [PROBLEM], "7200 s behind"),
    "rp": (sysctls.judge_reverse_path("tun0", 1, [(LAN, Way("tun0"))]), [OK], ""),
    "rp-off": (sysctls.judge_reverse_path("tun0", 0, [(LAN, Way("eth0")), (LAN, None)]), [OK], ""),
    "rp-strict": (sysctls.judge_reverse_path("tun0", 1, [(LAN, Way("eth0"))]), [PROBLEM], "leads to eth0"),
    "rp-strict-nowhere": (sysctls.judge_reverse_path("tun0", 1, [(LAN, None)]), [PROBLEM], "no way back"),
    "rp-loose": (sysctls.judge_reverse_path("tun0", 2, [(LAN, Way("eth0"))]), [OK], ""),
    "rp-loose-nowhere": (sysctls.judge_reverse_path("tun0", 2, [(LAN, None)]), [PROBLEM], "10.1.0.0/16"),
    "uplink": (sysctls.judge_uplink("eth0", "tun0", 2), [], ""),
    "uplink-strict": (sysctls.judge_uplink("eth0", "tun0", 1), [NOTE], "conf.eth0.rp_filter=2"),
    "note": (ends.judge_note("fd01::/16 is not routed"), [NOTE], "docs/network.md"),
    "note-of-servers": (ends.judge_note("server ams:9000 does not stand by: no answer"), [NOTE], "docs/servers.md"),
    "uplinks": (uplinks.judge([FIRST, SECOND], [FAR]), [OK], "eth0, wwan0"),
    "uplinks-unknown-server": (uplinks.judge([FIRST, SECOND._replace(routed=())], []), [OK], "eth0, wwan0"),
    "uplink-missing": (uplinks.judge([FIRST, SECOND._replace(link=Link(0))], [FAR]), [NOTE], "wwan0 does not exist"),
    "uplink-down": (uplinks.judge([FIRST, SECOND._replace(link=Link(3))], [FAR]), [NOTE], "wwan0 is down"),
    "uplink-pulled": (uplinks.judge([FIRST, SECOND._replace(link=Link(3, True))], [FAR]), [NOTE], "no carrier"),
    "uplink-no-route": (uplinks.judge([FIRST, SECOND._replace(routed=())], [FAR]), [PROBLEM], "dev wwan0 metric"),
    "uplink-no-address": (uplinks.judge([FIRST, SECOND._replace(foreign=(FAR,))], [FAR]), [PROBLEM], "no address"),
    "uplink-rp": (uplinks.judge([FIRST, SECOND._replace(rp_filter=1)], [FAR]), [PROBLEM], "rp_filter drops"),
    "uplink-rp-best": (uplinks.judge([FIRST._replace(rp_filter=1), SECOND], [FAR]), [OK], ""),
    "uplink-rp-loose": (uplinks.judge([FIRST, SECOND._replace(rp_filter=2)], [FAR]), [OK], ""),
    "uplinks-one-subnet": (uplinks.judge([FIRST, SECOND._replace(networks=(LAN,))], [FAR]), [NOTE], "answers ARP"),
    "uplinks-one-subnet-set": (
        uplinks.judge([each._replace(networks=(LAN,), arp_ignore=1) for each in (FIRST, SECOND)], [FAR]),
        [OK],
        "",
    ),
    "kernel-old": (uplinks.judge_kernel((5, 6)), [PROBLEM], "Linux 5.6"),
    "kernel-new": (uplinks.judge_kernel((5, 7)), [], ""),
    "forwarding": (sysctls.judge_forwarding(LAN, []), [], ""),
    "forwarding-off": (sysctls.judge_forwarding(LAN, ["eth0"]), [PROBLEM], "net.ipv4.ip_forward=1"),
    "forwarding-off-6": (
        sysctls.judge_forwarding(ip_network("fd01::/48"), ["eth0"]),
        [PROBLEM],
        "ipv6.conf.all.forward",
    ),
    "congestion": (sysctls.judge_congestion(Congestion("", "cubic", ("cubic",), False)), [OK], "is cubic"),
    "congestion-set": (sysctls.judge_congestion(Congestion("bbr", "cubic", ("bbr",), False)), [OK], "is bbr"),
    "congestion-unknown": (sysctls.judge_congestion(Congestion("bbr", "cubic", (), False)), [OK], "is bbr"),
    "congestion-loadable": (sysctls.judge_congestion(Congestion("bbr", "cubic", ("cubic",), True)), [OK], "is bbr"),
    "congestion-missing": (
        sysctls.judge_congestion(Congestion("bbr", "cubic", ("reno", "cubic"), False)),
        [PROBLEM],
        "modprobe tcp_bbr), or set congestion to one of reno, cubic",
    ),
    "congestion-auto": (
        sysctls.judge_congestion(Congestion("auto", "reno", ("reno", "bbr"), False)),
        [OK],
        "is reno, and bbr while a path loses packets",
    ),
    "congestion-auto-paces": (
        sysctls.judge_congestion(Congestion("auto", "bbr", ("reno", "bbr"), False)),
        [OK],
        "is cubic, and bbr while a path loses packets",
    ),
    "congestion-auto-loadable": (sysctls.judge_congestion(Congestion("auto", "cubic", ("reno",), True)), [OK], "bbr"),
    "congestion-auto-missing": (
        sysctls.judge_congestion(Congestion("auto", "cubic", ("reno", "cubic"), False)),
        [NOTE],
        "bulk gets a sixth of what it could (2 % loss, 40 ms). Load its module on the host (modprobe tcp_bbr)",
    ),
    "backlog": (sysctls.judge_backlog(4096), [], ""),
    "backlog-unknown": (sysctls.judge_backlog(0), [], ""),
    "backlog-short": (sysctls.judge_backlog(128), [NOTE], "core.somaxconn=4096"),
    "way": (routes.judge_ways_to_server([(HOST, Way("eth0"))], "tun0"), [OK], ""),
    "way-of-one-family": (routes.judge_ways_to_server([(SIX, None), (HOST, Way("eth0"))], "tun0"), [OK], ""),
    "ways-none": (routes.judge_ways_to_server([], "tun0"), [], ""),
    "way-none": (routes.judge_ways_to_server([(HOST, None)], "tun0"), [PROBLEM], "no way to the server, 192.0.2.1"),
    "way-loop": (routes.judge_ways_to_server([(HOST, Way("tun0"))], "tun0"), [PROBLEM], "route del 192.0.2.1 dev"),
    "overlaps": (routes.judge_overlaps([LAN], [("eth0", ip_network("192.168.1.0/24"))]), [], ""),
    "overlaps-some": (
        routes.judge_overlaps([LAN], [("eth0", ip_network("10.1.2.0/24"))]),
        [NOTE],
        "10.1.2.0/24 of eth0",
    ),
    "name": (names.judge_name("vpn", names.Lookup([HOST]), [HOST], []), [OK], "vpn is 192.0.2.1"),
    "name-dead": (names.judge_name("vpn", names.Lookup([], names.NO_ANSWER), [], []), [PROBLEM], "/etc/resolv.conf"),
    "name-dead-by-tunnel": (
        names.judge_name("vpn", names.Lookup([], names.NO_ANSWER), [], ["10.1.0.53"]),
        [PROBLEM],
        "10.1.0.53 is reached through the tunnel",
    ),
    "name-moved": (
        names.judge_name("vpn", names.Lookup([ip_address("::1")]), [HOST], []),
        [OK, NOTE],
        "leads elsewhere",
    ),
    "name-by-tunnel": (names.judge_name("vpn", names.Lookup([HOST]), [], ["10.1.0.53"]), [OK, NOTE], "/etc/hosts"),
    "port": (
        port.judge_port("local_addr", ":443", "x", ["nginx (pid 7)"]),
        [PROBLEM],
        ":443 is taken by nginx (pid 7)",
    ),
    "port-unknown": (port.judge_port("metrics_addr", ":9", "local_addr: why", []), [PROBLEM], "metrics_addr: why"),
    "health": (ends.judge_health(SNAPSHOT | {"mode": "server", "peers": []}), [NOTE], "invite NAME"),
    "health-down": (ends.judge_health(SNAPSHOT), [PROBLEM], "not connected yet"),
    "dead": (ends.judge_dead(["hub"]), [PROBLEM], "tunnel-supervisor up hub"),
    "workers": (ends.judge_workers(SNAPSHOT), [], ""),
    "workers-that-die": (
        ends.judge_workers({"workers": [{"name": "tun-0", "restarts": 9, "deaths": 3}], "supervisor_failures": 2}),
        [NOTE, NOTE],
        "tun-0 has died 3 times",
    ),
    "supervisor-stopped": (
        ends.judge_workers({"workers": [], "pid": 7, "supervisor": {"state": "stopped"}}),
        [PROBLEM],
        "kill -CONT 7",
    ),
    "worker-stopped": (
        ends.judge_workers(
            {"workers": [{"name": "tcp-0", "restarts": 9, "deaths": 2, "process": "stopped", "pid": 8}]}
        ),
        [PROBLEM],
        "kill -CONT 8",
    ),
    "loss": (ends.judge_loss([{"resent_segments": 9, "sent_segments": 1000}]), [], ""),
    "loss-of-few": (ends.judge_loss([{"resent_segments": 14, "sent_segments": 100}, {}]), [], ""),
    "loss-of-most": (ends.judge_loss([{"resent_segments": 29, "sent_segments": 100}]), [NOTE], "a black hole"),
    "loss-much": (ends.judge_loss([{"resent_segments": 100, "sent_segments": 1000}]), [NOTE], "10 % of the segments"),
    "unapplied": (ends.judge_unapplied([]), [], ""),
    "unapplied-live": (ends.judge_unapplied([("routes", "live")]), [NOTE], "tunnel-supervisor reload"),
    "unapplied-restart": (ends.judge_unapplied([("routes", "live"), ("mtu", "restart")]), [NOTE], "apply mtu"),
    "versions": (ends.judge_versions("1", "1", [("the server", "1"), ("peer a", "")]), [OK], "version 1"),
    "versions-on-disk": (ends.judge_versions("1", "2", []), [NOTE], "runs 1, the program on disk is 2"),
    "versions-of-peers": (
        ends.judge_versions("2", "2", [(f"peer {n}", "1") for n in range(7)]),
        [NOTE],
        "peer 4 runs 1 and 2 more, this end runs 2",
    ),
    "settings": (ends.judge_settings(1400, "auto", [("the server", 1400, True)]), [OK], "agree"),
    "settings-alone": (ends.judge_settings(1400, "auto", []), [], ""),
    "settings-mtu": (ends.judge_settings(1400, "auto", [("the server", 1300, True)]), [NOTE], "Set mtu to 1300"),
    "settings-fec": (ends.judge_settings(1400, "auto", [("the server", 1400, False)]), [NOTE], "off at the server"),
    "settings-fec-here": (ends.judge_settings(1400, "off", [("the server", 1400, True)]), [NOTE], "off here"),
    "expiry": (files.judge_expiry("it", NOW - timedelta(9), NOW + timedelta(99), NOW), [OK], "2027-05-10"),
    "expiry-soon": (files.judge_expiry("it", NOW - timedelta(9), NOW + timedelta(9), NOW), [NOTE], "in 9 days"),
    "expiry-past": (files.judge_expiry("it", NOW - timedelta(9), NOW - timedelta(1), NOW), [PROBLEM], "has expired on"),
    "expiry-future": (files.judge_expiry("it", NOW + timedelta(1), NOW + timedelta(9), NOW), [PROBLEM], "set-ntp"),
    "state": (files.judge_state_directory(Path("/s"), 5 * MB, is_read_only=False), [OK], ""),
    "state-full": (files.judge_state_directory(Path("/s"), 5000, is_read_only=False), [PROBLEM], "5 kB free"),
    "state-read-only": (files.judge_state_directory(Path("/s"), 5 * MB, is_read_only=True), [PROBLEM], "read-only"),
    "unit": (files.judge_unit("u", {"LoadState": "loaded", "UnitFileState": "enabled"}), [OK], ""),
    "unit-missing": (files.judge_unit("u", {"LoadState": "not-found"}), [], ""),
    "unit-disabled": (
        files.judge_unit("u", {"LoadState": "loaded", "UnitFileState": "disabled"}),
        [NOTE],
        "systemctl enable u",
    ),
    "path": (path.judge_outside(HOST, Passed.WHOLE, {}), [OK], "full packets pass"),
    "path-untried": (path.judge_outside(HOST, Passed.UNTRIED, {}), [], ""),
    "path-hole": (
        path.judge_outside(HOST, Passed.STUCK, {1360: Passed.STUCK, 1240: Passed.WHOLE, 1000: Passed.WHOLE}),
        [PROBLEM],
        "those of 1280 bytes pass",
    ),
    "path-hole-6": (path.judge_outside(ip_address("::1"), Passed.STUCK, {1240: Passed.WHOLE}), [PROBLEM], "mtu 1300"),
    "path-deaf": (path.judge_outside(HOST, Passed.STUCK, {536: Passed.STUCK}), [NOTE], "acknowledges nothing"),
    "tunnel": (path.judge_inside(HOST, 1400, Echoes((100, 1400), frozenset({100, 1400}))), [OK], "up to 1400"),
    "tunnel-hole": (path.judge_inside(HOST, 1400, Echoes((100, 1400), frozenset({100}))), [PROBLEM], "Set mtu to 100"),
    "tunnel-silent": (path.judge_inside(HOST, 1400, Echoes((100,), frozenset())), [NOTE], "does not answer"),
    "tunnel-lossy": (path.judge_inside(HOST, 1400, Echoes((100, 1400), frozenset({1400}))), [NOTE], "1 of 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_facts_are_judged(case: str) -> None:
    found, levels, words = CASES[case]
    findings = [found] if isinstance(found, Finding) else found
    assert [finding.level for finding in findings] == levels
    assert words in " ".join(f"{finding.text}. {finding.cure}" for finding in findings)
    for finding in findings:
        assert bool(finding.cure) is (finding.level is not OK)
        assert not finding.text.endswith(".") and (not finding.cure or finding.cure.endswith("."))


def test_the_shared_memory_of_an_instance_is_what_it_takes() -> None:
    """README.md: 9.8 MB without fec, 19.9 with it."""
    plain, coded = (
        parse({"mode": "client", "remote_addr": "192.0.2.1:9", "encryption": "none", "fec": fec})
        for fec in ("off", "on")
    )
    assert 9 * MB < machine.needed_bytes(plain) < 20 * MB < machine.needed_bytes(coded) < 30 * MB
    known = {"mode": "client", "remote_addr": "192.0.2.1:9", "fec": "off"}
    with_datagrams, without = (machine.needed_bytes(parse(known | {"carrier": each})) for each in ("auto", "tcp"))
    two_rings = 2 * plain.ring_slots * plain.slot_bytes
    assert two_rings < with_datagrams - without < two_rings + MB


def test_the_checksum_of_an_echo_makes_the_sum_of_its_words_all_ones() -> None:
    for length in (28, 29, 1400):
        packet = path._echo(False, 0x1234, length)
        assert len(packet) == length - 20 and path.checksum(packet) == 0


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x45" + bytes(19), b"\x4f" + bytes(40)])
def test_a_reply_that_is_none_is_passed_over(data: bytes) -> None:
    assert path._length_of_reply(data or b"\x45", False, 7) == 0
