"""All that a running instance has in the kernel beside its processes: the device, tables of the firewall, a server's
listener, the sockets of datagrams.

The congestion control of sockets is set here as well, and forwarding.
"""

from __future__ import annotations

import re
import selectors
import socket
from contextlib import ExitStack

from pipeline.config import Config
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.supervisor.kernel import bypass_keeper, full_tunnel, nft
from pipeline.supervisor.kernel.congestion import CongestionControl
from pipeline.supervisor.kernel.datagram_carriers import DatagramCarriers
from pipeline.supervisor.kernel.full_tunnel import FullTunnel
from pipeline.supervisor.kernel.hub_nat import Forwarding, HubNat
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.kernel.mss_clamp import MssClamp
from pipeline.supervisor.kernel.reach_guard import ReachGuard
from pipeline.supervisor.kernel.reach_table import ReachTable
from pipeline.supervisor.kernel.table_keeper import TableKeeper
from pipeline.supervisor.kernel.tun_device import TunDevice

NO_DATAGRAMS = "the sockets for datagrams could not be had at the start, as the log says: all blocks travel by TCP"
OWN_TABLE = re.compile(r"tunnel-([^/]+)/(?:nat|guard|bypass|reach)")


class KernelEntries:
    """Makes all or nothing: TunnelError says what is missing. `listener`: None at a client. `datagrams`: those of no
    kind, where blocks travel by TCP alone.

    `uid`: of the workers, None if it is not theirs alone. `stays_shut`: whether a full tunnel is left shut at the end,
    as after a failure. A start that fails leaves one as it was. `selector`: of the supervisor, for news about guards.
    """

    def __init__(self, config: Config, uid: int | None = None, selector: selectors.BaseSelector | None = None) -> None:
        there = nft.tables()
        with ExitStack() as made:
            self.full_tunnel = FullTunnel(config, uid, there, selector)
            self.stays_shut = self.full_tunnel.found_shut
            made.callback(lambda: self.full_tunnel.end(leave=self.stays_shut))
            self.full_tunnel.begin()
            self.device = TunDevice(config, uid)
            made.callback(self._close_device)
            self.clamp = TableKeeper(MssClamp(config.tun_name, config.name))
            made.callback(self.clamp.close)
            self.reach: ReachGuard | None = None
            if config.mode == "server" and not config.compat:
                self.reach = ReachGuard(config.tun_name, config.name, lambda: self.device.index, there, selector)
                made.callback(self.reach.close)
            nat = HubNat(config.tun_name, config.name)
            self.nat = TableKeeper(nat, may_be_there=nat.table in there)
            made.callback(self.nat.close)
            self.forwarding = Forwarding(config.name)
            made.callback(self.forwarding.close)
            self._apply(config)
            self.congestion = CongestionControl(config)
            self.listener: socket.socket | None = None
            if config.mode == "server":
                self.listener = listen(config.listen_endpoint)
                made.callback(self.listener.close)
                self.congestion.prepare(self.listener)
            self.datagrams = DatagramCarriers(config, self.listener)
            made.callback(self.datagrams.close)
            self._lacks_datagrams = config.carrier != "tcp" and not self.datagrams.kinds
            self._made = made.pop_all()

    def configure(self, config: Config) -> list[str]:
        """Take over other settings. Returns each thing that the kernel refuses, and that is tried again."""
        self.congestion.configure(config)
        if self.listener is not None:
            self.congestion.prepare(self.listener)
        try:
            self.full_tunnel.configure(config)
        except LocalError as error:
            LOG.error("%s", error)
            return [str(error)]
        return [*self.device.configure(config), *self._apply(config)]

    def _apply(self, config: Config) -> list[str]:
        """The tables of the firewall, and forwarding."""
        versions = {each.version for each in config.tunnel_interfaces} if config.nat else set()
        return [
            *self.clamp.apply(config.mss_clamp),
            *self.nat.apply(config.nat),
            *self.forwarding.apply(versions),
        ]

    def tick(self, now: int) -> None:
        """Put back what others have taken."""
        self.device.repair(now)
        self.full_tunnel.follow(self.device, now)
        self.datagrams.follow(self.device.has_bypass)
        for keeper in (self.clamp, self.nat):
            keeper.tick(now)
        self.forwarding.tick(now)

    @property
    def notes(self) -> list[str]:
        """For `status`: sentences about what cannot be had, beside those about the device."""
        lack = [*self.datagrams.lacks, *([NO_DATAGRAMS] if self._lacks_datagrams else [])]
        return [*self.congestion.notes, *self.forwarding.notes, *self.full_tunnel.notes, *lack]

    def ended(self, *, well: bool) -> None:
        """`well`: by an orderly stop. Then a kill switch is opened, unless it is to wait for `down`."""
        self.stays_shut = not well or self.full_tunnel.waits_for_down

    def close(self) -> None:
        """Remove them, the last one first."""
        self._made.close()

    def _close_device(self) -> None:
        try:
            if not (self.stays_shut and self.full_tunnel.is_shut):
                self.device.remove_bypass()
        except LocalError as error:
            LOG.warning("the bypass cannot be removed: %s", error)
        self.device.close()


def instances_with_tables() -> set[str]:
    """The names of instances that have such a table in the firewall, whether they run or not."""
    return {found[1] for table in nft.tables() if (found := OWN_TABLE.fullmatch(table))}


def remove_remains(name: str) -> None:
    """Remove what a killed run of the instance has left. The device and its routes have gone with the process."""
    bypass_keeper.remove_remains(name)
    full_tunnel.remove_remains(name)
    for table in (MssClamp("", name), ReachTable(("", 0), name), HubNat("", name)):
        table.remove()
    Forwarding(name).close()
