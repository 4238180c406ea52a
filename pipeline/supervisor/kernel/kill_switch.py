"""The kill switch, by nftables: nothing but the tunnel leaves this machine, whatever becomes of device and routes.

    leaves, in this order                   because
    by the tunnel, or to this machine       that is what the tunnel is for
    connections of the workers' user        they carry the tunnel; so do those with the mark of the bypass
    (no DNS)                                a resolver of the LAN would ask on the Internet for us
    to private, link-local and near         the LAN stays reachable
    nothing else

It holds for packets of this machine and for those that it forwards, such as those of containers. The table outlives
this process: that is its purpose. An orderly stop and `down` remove it, a crash or a kill does not.

A near network with public addresses counts if it is small. So a DHCP server that gives this machine its address and its
routes leads no more than that around the tunnel (TunnelVision, CVE-2024-3661; TunnelCrack, CVE-2023-36672).

A host in the LAN could send packets to the tunnel's address and learn from the answers which connections there are
(CVE-2019-14899). Such packets are dropped as well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from ipaddress import ip_network

from pipeline.policy.bypass import TO_ALL_IN_LAN, numbers
from pipeline.policy.kernel_entries import Interface, Network, is_within, is_within_any
from pipeline.policy.pushed import PRIVATE
from pipeline.supervisor.kernel.own_table import OwnTable

NEAR: tuple[Network, ...] = (
    *PRIVATE,
    *TO_ALL_IN_LAN,
    *map(ip_network, ("169.254.0.0/16", "fe80::/10", "ff02::/16", "ff05::/16")),
)
"""Networks that are nobody's on the Internet: private, link-local, and multicast that stays near."""

NEAR_LENGTH_MIN = {4: 20, 6: 56}
"""By IP version: the prefix of the largest public network that counts as near."""

NO_DNS = "meta l4proto { tcp, udp } th dport { 53, 853 } drop"

CHAINS = """\
    chain leave {{
        type filter hook postrouting priority filter; policy accept;
        oifname {{ "lo", "{tun}" }} accept
        meta skuid {uid} accept
        ct mark {mark} accept
        meta mark {mark} accept
        {no_dns}
        ip daddr {{ {near4} }} accept
        ip6 daddr {{ {near6} }} accept
        drop
    }}
"""
ARRIVE = """\
    chain arrive {{
        type filter hook prerouting priority raw; policy accept;
{rules}
    }}
"""
ARRIVE_RULE = '        iifname != {{ "lo", "{tun}" }} {ip} daddr {address} fib saddr type != local drop'


class KillSwitch(OwnTable):
    """`uid`: of the workers. `near`: networks that other devices are connected to."""

    def __init__(
        self,
        tun_name: str,
        instance_name: str,
        uid: int = 0,
        near: Iterable[Network] = (),
        inside: Collection[Interface] = (),
        *,
        lan_dns: bool = False,
    ) -> None:
        self.inputs = tun_name, uid, tuple(near), tuple(inside), lan_dns
        near4, near6 = ([str(each) for each in near_networks(near) if each.version == version] for version in (4, 6))
        chains = CHAINS.format(
            tun=tun_name,
            uid=uid,
            mark=numbers(instance_name).table,
            no_dns="" if lan_dns else NO_DNS,
            near4=", ".join(near4),
            near6=", ".join(near6),
        )
        if inside:
            names = {4: "ip", 6: "ip6"}
            rules = [ARRIVE_RULE.format(tun=tun_name, ip=names[each.version], address=each.ip) for each in inside]
            chains += ARRIVE.format(rules="\n".join(rules))
        cost = "Without it packets could leave around the tunnel, so full_tunnel needs nftables, or kill_switch false"
        super().__init__(f"tunnel-{instance_name}/guard", chains, "kill_switch", cost)


def guarded_instance(table: str) -> str:
    """The name of the instance whose kill switch a table is; "" if it is none."""
    found = re.fullmatch("tunnel-([^/]+)/guard", table)
    return found[1] if found else ""


def near_networks(connected: Iterable[Network]) -> list[Network]:
    """The destinations that stay reachable outside the tunnel."""
    public = [
        each for each in connected if each.prefixlen >= NEAR_LENGTH_MIN[each.version] and not is_within_any(each, NEAR)
    ]
    whole = [each for each in public if not any(each != other and is_within(each, other) for other in public)]
    return [*NEAR, *dict.fromkeys(whole)]
