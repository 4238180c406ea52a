"""Address translation (`nat`): what clients send to networks behind this machine has this machine's address there.

    table     masquerade in a table of our own: of packets that came out of the tunnel, and leave by another device
    Forwarding

So no router behind this machine has to know the tunnel's addresses. Sources of TCP and UDP get ports from PORTS, drawn
at random. A client can choose its ports. With a kept port it could stand before a service of this machine: packets from
some address to that port would go to the client ("port shadow", CVE-2021-3773).

IPv4 is forwarded by the device on which a packet arrives. So each device gets the switch, and the one for all devices
stays as it is: if others set it meanwhile, as Docker does, it shows. IPv6 has one switch for all. It gets a value that
nobody else writes, so that it shows as well (policy.borrowed). A machine that forwards IPv6 takes no routes from
routers' advertisements, unless accept_ra is 2.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from pipeline.log import LOG
from pipeline.policy.borrowed import FORWARDING_OF_ALL, IPV6_FORWARDING_OF_ALL, OFF, ON, ON_BY_US
from pipeline.policy.put_back import REST_TEXT, PutBackLimit
from pipeline.supervisor.kernel.borrowed_sysctls import NET, BorrowedSysctls
from pipeline.supervisor.kernel.own_table import OwnTable

PORTS = "32768-60999"  # the kernel's own range for connections that go out (ip_local_port_range)

CHAIN = """\
    chain nat {{
        type nat hook postrouting priority srcnat; policy accept;
        iifname "{tun}" oifname != "{tun}" meta l4proto {{ tcp, udp }} masquerade to :{ports} fully-random
        iifname "{tun}" oifname != "{tun}" masquerade
    }}
"""

LOOK_NS = 1_000_000_000
NO_DEVICES = {"all", "default", "lo"}
HOST_ONLY, ALSO_ROUTERS = "1", "2"  # of accept_ra
PURPOSE = "nat"
CURES = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}


class HubNat(OwnTable):
    """The translation of one instance."""

    def __init__(self, tun_name: str, instance_name: str) -> None:
        cost = "Clients reach networks behind this machine only where a router knows the way back to the tunnel"
        super().__init__(f"tunnel-{instance_name}/nat", CHAIN.format(tun=tun_name, ports=PORTS), "nat", cost)


class Forwarding:
    """`notes`: sentences about what cannot be set."""

    def __init__(self, instance_name: str) -> None:
        self._sysctls = BorrowedSysctls(instance_name, PURPOSE)
        self._versions: Collection[int] = ()
        self._next_look = 0
        self._limit = PutBackLimit()
        self.notes: list[str] = []

    def apply(self, versions: Collection[int]) -> list[str]:
        """Forward these IP versions from now on; none: put everything back. The notes."""
        self._limit.reset()
        if set(self._versions) - set(versions) or not versions:
            self._sysctls.give_back()
        self._versions = versions
        self._set()
        return self.notes

    def tick(self, now: int) -> None:
        """Devices come, and others may switch forwarding off: `sysctl --system` does, and network managers."""
        if not self._versions or now < self._next_look:
            return
        self._next_look = now + LOOK_NS
        lacking = [name for name in self._wanted() if _read(name) == OFF]
        if not lacking or self.notes or self._limit.is_resting(now):
            return
        if not self._limit.may(now):
            LOG.error(
                "nat: others switch forwarding off again and again: it stays off for %s, or until a reload", REST_TEXT
            )
            return
        LOG.info("nat: forwarding is switched on: %s", ", ".join(lacking))
        self._set()

    def close(self) -> None:
        self._sysctls.give_back()

    def _wanted(self) -> dict[str, str]:
        wanted: dict[str, str] = {}
        if 4 in self._versions and _read(FORWARDING_OF_ALL) != ON:
            wanted |= {f"ipv4/conf/{device}/forwarding": ON for device in _devices(4)}
        if 6 in self._versions:
            is_others = _read(IPV6_FORWARDING_OF_ALL) == ON
            if not is_others:
                names = [f"ipv6/conf/{device}/accept_ra" for device in _devices(6)]
                wanted |= {name: ALSO_ROUTERS for name in names if _read(name) in (HOST_ONLY, ALSO_ROUTERS)}
            wanted[IPV6_FORWARDING_OF_ALL] = ON if is_others else ON_BY_US
        return wanted

    def _set(self) -> None:
        wanted = self._wanted()
        along = {}
        if wanted.get(IPV6_FORWARDING_OF_ALL) == ON_BY_US:
            names = [f"ipv6/conf/{device}/forwarding" for device in _devices(6)]
            along = {name: ON_BY_US for name in names if _read(name) in (ON, ON_BY_US)}
        failed = self._sysctls.borrow(wanted, along)
        reasons = {4 if name.startswith("ipv4") else 6: why for name, why in failed.items()}
        self.notes = [
            f"nat: IPv{version} is not forwarded, as that cannot be switched on here: {why}. On the host: "
            f"sysctl -w {CURES[version]}"
            for version, why in reasons.items()
        ]
        for note in self.notes:
            LOG.warning("%s", note)


def _devices(version: int) -> list[str]:
    try:
        return sorted(set(os.listdir(NET / f"ipv{version}/conf")) - NO_DEVICES)
    except OSError:
        return []  # this kernel has no such version


def _read(name: str) -> str:
    try:
        return (NET / name).read_text().strip()
    except OSError:
        return ""
