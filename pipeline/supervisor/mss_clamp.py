"""MSS clamping by nftables: TCP that is forwarded through the TUN device uses segments that fit it.

A SYN says how large the segments may be that its sender takes. Where a packet is forwarded to or from the device, that
is lowered to what the routes of both directions have room for (`rt mtu`; never raised). So connections work also where
the ICMP messages of path MTU discovery are lost on their way. Our own connections know the device's MTU by themselves.

    install()   puts the instance's own table in place, of a killed run in its stead; again at any time, such as after
                somebody's `nft flush ruleset`
    remove()    takes it away, also one that a killed run has left

Each is one transaction. Nobody else's table is touched. The rules name the device instead of its index, so they hold
while it is not there and when it is made again. All this is a help, and a tunnel runs without it: what keeps it from
working is a sentence for a warning.

Not here: the rule against CVE-2019-14899, as wg-quick has it when it routes everything into its tunnel,
    type filter hook prerouting priority raw; iifname != TUN ip daddr ADDRESS fib saddr type != local drop
Linux answers to each of its addresses on every interface, and a router is used like that: hosts and containers reach a
hub by its tunnel address, another interface may have that address too, and what a VRF's device receives comes by a
second time as the VRF's. All these would be cut off. It is for the administrator of a client without them.
"""

from __future__ import annotations

import os
import subprocess

NFT_SECONDS = 5.0  # it takes some ms
PLACES = ("/usr/sbin", "/sbin")  # of nft; a root that has come by `su` has not always got them in its PATH

CHAIN = """\
table inet {table} {{
    chain clamp {{
        type filter hook forward priority mangle; policy accept;
        oifname "{tun}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
        iifname "{tun}" tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
    }}
}}
"""

DELETE_TABLE = """\
add table inet {table}
delete table inet {table}
"""
"""Deletes a table that need not be there; `destroy` does so too, from nft 1.0.7 and Linux 6.3 on."""


class MssClamp:
    """The clamp of one instance. Both names are as the configuration allows them, which is within what nft takes."""

    def __init__(self, tun_name: str, instance_name: str) -> None:
        self.table = f"tunnel-{instance_name}"
        self._tun_name = tun_name
        self._installed = False

    def install(self) -> str:
        """ "", or the sentence."""
        why_not = _nft((DELETE_TABLE + CHAIN).format(table=self.table, tun=self._tun_name))
        self._installed = not why_not
        return why_not and (
            f"mss_clamp: {why_not}. TCP that this machine forwards through {self._tun_name} may hang "
            f"where path MTU discovery does not work; mss_clamp=false ends this warning"
        )

    def remove(self) -> str:
        """ "", or the sentence, if this run has installed what it cannot remove."""
        why_not = _nft(DELETE_TABLE.format(table=self.table))
        was_installed, self._installed = self._installed, False
        return f"mss_clamp: {why_not}; by hand: nft delete table inet {self.table}" if why_not and was_installed else ""


def _nft(script: str) -> str:
    """Carry it out as a whole; "" or why it has not been."""
    path = os.pathsep.join([*os.get_exec_path(), *PLACES])
    try:
        done = subprocess.run(
            ["nft", "-f", "-"],
            input=script,
            text=True,
            capture_output=True,
            timeout=NFT_SECONDS,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError:
        return "the command nft is missing: install nftables"
    except subprocess.TimeoutExpired:
        return f"nft has not ended within {NFT_SECONDS:g} s"
    except OSError as error:
        return f"nft: {error.strerror}"
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        return f"nft: {said}: it needs CAP_NET_ADMIN and a kernel with nf_tables"
    return ""
