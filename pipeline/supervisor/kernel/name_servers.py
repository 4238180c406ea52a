"""The DNS servers of this machine, while everything goes into the tunnel: a server that is asked hears where we go.

    NameServers.use(servers)    let this machine ask these alone, and "" or why it cannot be done here
    NameServers.look_again()    the network beneath has changed
    NameServers.restore()       as before
    remove_remains(...)         after a kill

Others manage /etc/resolv.conf, and we ask the one that does: systemd-resolved (`resolvectl`), where that file names its
stub, NetworkManager where it has written the file, or `resolvconf`. Nobody's file is written by us. The settings that
resolved has for the device go with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from pipeline.log import LOG
from pipeline.policy.kernel_entries import IPAddress
from pipeline.supervisor.kernel.name_programs import NMCLI, RESOLVCONF, RESOLVED, present, run
from pipeline.supervisor.kernel.network_manager import GENERATED, NetworkManagerNames
from pipeline.transport.uplink_names import BY_RESOLVCONF, OF_TUNNELS, RESOLV_CONF, resolv_conf, servers_in

STUBS = {"127.0.0.53", "127.0.0.54"}  # systemd-resolved(8)


def tool(resolv_conf: str, link: str, programs: Iterable[str]) -> str:
    """Which program sets DNS servers on this machine, "" if none does. `link`: where /etc/resolv.conf leads."""
    servers = set(servers_in(resolv_conf))
    if RESOLVED in programs and (servers & STUBS or "/systemd/resolve/" in link):
        return RESOLVED
    if NMCLI in programs and resolv_conf.startswith(GENERATED):
        return NMCLI
    if RESOLVCONF in programs:
        return RESOLVCONF
    return ""


def is_by_hand(resolv_conf: str, servers: Iterable[IPAddress]) -> bool:
    """Whether somebody has written these into the file, and no others."""
    asked = set(servers_in(resolv_conf))
    return bool(asked) and asked <= set(map(str, servers))


class NameServers:
    def __init__(self, tun_name: str, instance_name: str) -> None:
        self._tun_name = tun_name
        self._record = _record(instance_name)
        self._network_manager = NetworkManagerNames(instance_name)
        self._tool = ""  # that has been used

    def use(self, servers: Sequence[IPAddress]) -> str:
        listed = ", ".join(map(str, servers))
        found = tool(resolv_conf(), os.path.realpath(RESOLV_CONF), present())
        if self._tool not in ("", found):
            self.restore()
        if not found:
            if is_by_hand(resolv_conf(), servers):
                return ""
            return (
                "none of systemd-resolved, NetworkManager and resolvconf sets the DNS servers of this machine, so they "
                f"stay as they are; in {RESOLV_CONF}, by hand: nameserver {servers[0]}"
            )
        ways = {RESOLVED: self._use_resolved, NMCLI: self._network_manager.use, RESOLVCONF: self._use_resolvconf}
        if why := ways[found](servers):
            return f"the DNS servers {listed} cannot be set: {why}"
        if not self._tool:
            LOG.info("DNS servers: %s, set by %s", listed, found)
        self._tool = found
        return ""

    def look_again(self) -> None:
        self._network_manager.look_again()

    def _use_resolved(self, servers: Sequence[IPAddress]) -> str:
        tun = self._tun_name
        for words in (
            [RESOLVED, "dns", tun, *map(str, servers)],
            [RESOLVED, "domain", tun, "~."],  # all names are looked up there, whatever other devices have
            [RESOLVED, "default-route", tun, "yes"],
        ):
            if why := run(words).why:
                return why
        run([RESOLVED, "flush-caches"])
        return ""

    def _use_resolvconf(self, servers: Sequence[IPAddress]) -> str:
        lines = "".join(f"nameserver {server}\n" for server in servers)
        return run([RESOLVCONF, "-a", self._record, "-m", "0", "-x"], lines).why

    def restore(self) -> None:
        used, self._tool = self._tool, ""
        why = ""
        if used == RESOLVED:
            why = run([RESOLVED, "revert", self._tun_name]).why
        elif used == NMCLI:
            why = self._network_manager.forget()
        elif used == RESOLVCONF:
            why = run([RESOLVCONF, "-d", self._record, "-f"]).why
        if why:
            LOG.warning("the DNS servers cannot be set back: %s", why)


def remove_remains(instance_name: str) -> None:
    NetworkManagerNames(instance_name).forget()
    record = _record(instance_name)
    if any((place / record).exists() for place in BY_RESOLVCONF):
        run([RESOLVCONF, "-d", record, "-f"])


def _record(instance_name: str) -> str:
    """By this prefix resolvconf prefers records of tunnels (interface-order)."""
    return f"{OF_TUNNELS}tunnel-{instance_name}"
