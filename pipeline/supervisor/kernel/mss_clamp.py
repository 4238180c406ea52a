"""MSS clamping by nftables: TCP that is forwarded through the TUN device uses segments that fit it.

A SYN says how large a segment its sender accepts. In a SYN that is forwarded to or from the device, that size is
lowered to what the routes of both directions allow (`rt mtu`). It is never raised. So connections work even
where the ICMP messages of path MTU discovery are lost. Connections of this machine know the device's MTU by themselves.

The rules name the device instead of its index: they hold while the device does not exist, and when it is made again. A
tunnel runs without the clamp, so a failure is a text for a warning.

Not here: the rule against CVE-2019-14899, as wg-quick has it when it routes everything into its tunnel,
    type filter hook prerouting priority raw; iifname != TUN ip daddr ADDRESS fib saddr type != local drop
Linux answers to each of its addresses on every interface, and routers rely on that. Hosts and containers reach a hub by
its tunnel address; another interface may have that address too; what a VRF's device receives passes a second time as
the VRF's. The rule would cut all of these off. It is for the administrator of a client without them.
"""

from __future__ import annotations

from pipeline.supervisor.kernel.own_table import OwnTable

CHAIN = """\
    chain clamp {{
        type filter hook forward priority mangle; policy accept;
        oifname "{tun}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        iifname "{tun}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    }}
"""


class MssClamp(OwnTable):
    """The clamp of one instance."""

    def __init__(self, tun_name: str, instance_name: str) -> None:
        cost = (
            f"TCP that this machine forwards through {tun_name} may hang where path MTU discovery does not work; "
            "mss_clamp=false ends this warning"
        )
        super().__init__(f"tunnel-{instance_name}", CHAIN.format(tun=tun_name), "mss_clamp", cost)
