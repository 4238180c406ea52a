"""The full tunnel: everything that this machine sends goes into the tunnel, or nowhere.

    begin()               before the device is there: shut the kill switch
    follow(device, now)   once a turn: as the device and the server's wishes have become
    end(leave)            open everything, or leave it shut
    status(), notes       what is in force; what is in doubt

Here are its parts in the firewall (`kill_switch`, `bypass_marks`) and in DNS (`name_servers`). The rules and routes
are the device's (`bypass_keeper`, `reconciler`). Each part stands by itself: if others remove one, the rest keeps
packets in.

A kill switch that is shut stays shut until an orderly stop, or `down`. A run that was killed leaves it so, and its
successor takes it over in one transaction. With full_tunnel "pushed" it stays until the server has said what it pushes.
"""

from __future__ import annotations

import selectors
from collections.abc import Collection
from typing import Any

from pipeline.config import Config
from pipeline.config.schema import AUTO, UNTIL_DOWN
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy.kernel_entries import IPAddress, Network
from pipeline.supervisor.kernel import name_servers
from pipeline.supervisor.kernel.bypass_marks import BypassMarks
from pipeline.supervisor.kernel.kill_switch import KillSwitch
from pipeline.supervisor.kernel.name_servers import NameServers
from pipeline.supervisor.kernel.table_keeper import TableKeeper
from pipeline.supervisor.kernel.tun_device import TunDevice
from pipeline.version import NAME

NO_USER = (
    "full_tunnel needs workers with a user of their own, whose connections go around the tunnel: remove the setting "
    "user, or let it name a system user that nothing else runs as"
)
RETRY_NS = 5_000_000_000
NETWORK_SETTLE_NS = 2_000_000_000
LAN_DNS = (
    "full_tunnel: no DNS server inside the tunnel is known, so names are looked up where the LAN says, outside the "
    "tunnel. Set push_dns on the server, or dns here"
)


class FullTunnel:
    """`uid`: of the workers, None if it is not theirs alone. `there`: the tables of the firewall before the start."""

    def __init__(
        self,
        config: Config,
        uid: int | None,
        there: Collection[str],
        selector: selectors.BaseSelector | None = None,
    ) -> None:
        self._config = config
        self._uid = uid
        self._switch = KillSwitch(config.tun_name, config.name)
        self.is_shut = False
        self.found_shut = self._switch.table in there
        self._guard = TableKeeper(self._switch, may_be_there=self.found_shut, is_guard=True, selector=selector)
        self._marks = BypassMarks(config.name, uid, there)
        self._names = NameServers(config.tun_name, config.name)
        self._asked: tuple[IPAddress, ...] = ()  # DNS servers that have been set
        self._asked_for = 0  # index of the device for which; 0: they are to be set again
        self._refused = ""  # why they could not be
        self._near: tuple[Network, ...] = ()
        self._look_at = 0  # when to look at the DNS servers of the network beneath again; 0: it has not changed
        self._next_try = 0  # to shut a kill switch that could not be shut
        self._lan_dns = False
        self._is_on = False

    def begin(self) -> None:
        """LocalError if the kill switch cannot be shut."""
        given = self._config.wants_full_tunnel
        if given and self._uid is None:
            raise LocalError(NO_USER)
        if self._config.kill_switch and (given is True or (given and self.found_shut)):
            if not self._shut(self._wanted_switch(None)):
                raise LocalError("full_tunnel: the kill switch cannot be shut")
        elif self.found_shut:
            self._guard.apply(False)

    def configure(self, config: Config) -> None:
        """Other settings; the next turn follows them. LocalError as at a start."""
        if config.wants_full_tunnel and self._uid is None:
            raise LocalError(NO_USER)
        self._config = config
        self._asked_for = 0

    @property
    def waits_for_down(self) -> bool:
        return self._config.kill_switch == UNTIL_DOWN

    # -- once a turn

    def follow(self, device: TunDevice, now: int) -> None:
        self._marks.follow(device.has_bypass, now)
        is_awaited = bool(self._config.wants_full_tunnel) and not device.has_heard and self.is_shut
        self._is_on = device.is_full_tunnel or is_awaited
        if self._is_on and self._config.kill_switch:
            switch = self._wanted_switch(device)
            is_there = self.is_shut and switch.inputs == self._switch.inputs
            if not is_there and now >= self._next_try:
                self._next_try = 0 if self._shut(switch) else now + RETRY_NS
        elif self.is_shut:
            self._guard.apply(False)
            self.is_shut = False
        self._guard.tick(now)
        self._set_names(device)
        self._follow_network(tuple(device.near), now)

    def _follow_network(self, near: tuple[Network, ...], now: int) -> None:
        """Another network has other DNS servers, a moment after its addresses."""
        if near != self._near:
            self._near, self._look_at = near, now + NETWORK_SETTLE_NS
        elif self._look_at and now >= self._look_at:
            self._look_at = 0
            self._names.look_again()

    def _wanted_switch(self, device: TunDevice | None) -> KillSwitch:
        config = self._config
        return KillSwitch(
            config.tun_name,
            config.name,
            self._uid or 0,
            device.near if device is not None else (),
            device.addresses if device is not None else config.tunnel_interfaces,
            lan_dns=self._may_ask_lan(device),
        )

    def _may_ask_lan(self, device: TunDevice | None) -> bool:
        """The server may still name one; that of the original program never does."""
        is_known = self._config.dns != AUTO or self._config.compat or (device is not None and device.has_heard)
        return is_known and not self._servers(device)

    def _servers(self, device: TunDevice | None) -> tuple[IPAddress, ...]:
        if self._config.dns != AUTO:
            return self._config.dns_addresses
        return device.pushed_dns if device is not None else ()

    def _shut(self, switch: KillSwitch) -> bool:
        """Whether it is in place. If not, an earlier one stays."""
        if self._guard.replace(switch):
            return False
        if not self.is_shut:
            LOG.info("the kill switch is shut: table inet %s", switch.table)
        self._switch, self.is_shut = switch, True
        return True

    def _set_names(self, device: TunDevice) -> None:
        servers = self._servers(device) if self._is_on else ()
        self._lan_dns = self._is_on and self._may_ask_lan(device)
        if (servers, device.index) == (self._asked, self._asked_for) or servers == self._asked == ():
            return
        self._asked, self._asked_for = servers, device.index
        if not servers:
            self._refused = ""
            self._names.restore()
            return
        self._refused = self._names.use(servers)
        if self._refused:
            LOG.warning("%s", self._refused)

    # -- what is said

    @property
    def notes(self) -> list[str]:
        lan = [LAN_DNS] if self._lan_dns else []
        refused = [self._refused] if self._refused else []
        return [*self._marks.notes, *lan, *refused]

    def status(self) -> dict[str, Any]:
        return {
            "on": self._is_on,
            "kill_switch": self.is_shut,
            "dns": [] if self._refused else [str(server) for server in self._asked],
            "lan_dns": self._lan_dns or not self.is_shut,
        }

    # -- the end

    def end(self, *, leave: bool) -> None:
        stays = leave and self.is_shut
        self._names.restore()
        self._guard.close(leave=stays)
        self._marks.close(leave=stays)
        if stays:
            name = self._config.name
            LOG.warning("the kill switch stays shut: `%s down %s` opens it, and a start takes it over", NAME, name)


def remove_remains(instance_name: str) -> None:
    """Of a killed run."""
    KillSwitch("", instance_name).remove()
    BypassMarks(instance_name, None, ()).remove_remains()
    name_servers.remove_remains(instance_name)
