"""MSS clamping by nftables: TCP that is forwarded through the TUN device uses segments that fit it.

A SYN says how large a segment its sender accepts. In a SYN that is forwarded to or from the device, that size is
lowered to what the routes of both directions allow (`rt mtu`). It is never raised. So connections work even
where the ICMP messages of path MTU discovery are lost. Connections of this machine know the device's MTU by themselves.

    install()   install the instance's own table, instead of one that a killed run has left; may be repeated at any
                time, such as after `nft flush ruleset`
    remove()    remove the table, also one that a killed run has left
    listing()   the table as the kernel has it

Each is one transaction, and touches no other table. `clamp_keeper` keeps the table in place. The rules name
the device instead of its index: they hold while the device does not exist, and when it is made again. A tunnel runs
without the clamp, so a failure is a text for a warning.

Not here: the rule against CVE-2019-14899, as wg-quick has it when it routes everything into its tunnel,
    type filter hook prerouting priority raw; iifname != TUN ip daddr ADDRESS fib saddr type != local drop
Linux answers to each of its addresses on every interface, and routers rely on that. Hosts and containers reach a hub by
its tunnel address; another interface may have that address too; what a VRF's device receives passes a second time as
the VRF's. The rule would cut all of these off. It is for the administrator of a client without them.
"""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

NFT_SECONDS = 5.0  # nft takes some ms
SBIN_DIRECTORIES = ("/usr/sbin", "/sbin")  # where nft is; after `su`, the PATH of root may lack them

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
"""Deletes a table that need not exist; nft 1.0.7 with Linux 6.3 has `destroy` for that."""


class MssClamp:
    """The clamp of one instance. The configuration allows only names that nft accepts."""

    def __init__(self, tun_name: str, instance_name: str) -> None:
        self.table = f"tunnel-{instance_name}"
        self._tun_name = tun_name
        self._installed = False

    def install(self) -> str:
        """The text of a warning; "" if the table is in place."""
        why_not = _run_script((DELETE_TABLE + CHAIN).format(table=self.table, tun=self._tun_name))
        self._installed = not why_not
        return why_not and (
            f"mss_clamp: {why_not}. TCP that this machine forwards through {self._tun_name} may hang "
            f"where path MTU discovery does not work; mss_clamp=false ends this warning"
        )

    def remove(self) -> str:
        """The text of a warning if this run has installed a table that it cannot remove; else ""."""
        why_not = _run_script(DELETE_TABLE.format(table=self.table))
        was_installed, self._installed = self._installed, False
        return f"mss_clamp: {why_not}; by hand: nft delete table inet {self.table}" if why_not and was_installed else ""

    def listing(self) -> str:
        """The table as nft prints it; "" if it is not there."""
        return _run_nft(["list", "table", "inet", self.table]).output


class _Done(NamedTuple):
    output: str
    why_not: str  # "" for success


def _run_script(script: str) -> str:
    """Run the script as one transaction. Why it failed; "" if it did not."""
    return _run_nft(["-f", "-"], script).why_not


def _run_nft(words: list[str], script: str = "") -> _Done:
    path = os.pathsep.join([*os.get_exec_path(), *SBIN_DIRECTORIES])
    try:
        done = subprocess.run(
            ["nft", *words],
            input=script,
            text=True,
            capture_output=True,
            timeout=NFT_SECONDS,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError:
        return _Done("", "the command nft is missing: install nftables")
    except subprocess.TimeoutExpired:
        return _Done("", f"nft has not ended within {NFT_SECONDS:g} s")
    except OSError as error:
        return _Done("", f"nft: {error.strerror}")
    if done.returncode:
        message = done.stderr.strip().partition("\n")[0] or f"exit status {done.returncode}"
        return _Done("", f"nft: {message}: it needs CAP_NET_ADMIN and a kernel with nf_tables")
    return _Done(done.stdout, "")
