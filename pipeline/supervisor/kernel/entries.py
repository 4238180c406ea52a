"""All that a running instance has in the kernel beside its processes: the device, tables of the firewall, a server's
listener.

The congestion control of sockets is set here as well.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from pipeline.config import Config
from pipeline.supervisor.kernel import nft
from pipeline.supervisor.kernel.congestion import CongestionControl
from pipeline.supervisor.kernel.listener import listen
from pipeline.supervisor.kernel.mss_clamp import MssClamp
from pipeline.supervisor.kernel.reach_guard import ReachGuard
from pipeline.supervisor.kernel.reach_table import ReachTable
from pipeline.supervisor.kernel.table_keeper import TableKeeper
from pipeline.supervisor.kernel.tun_device import TunDevice


class KernelEntries:
    """Makes all or nothing: TunnelError says what is missing. `listener`: None at a client."""

    def __init__(self, config: Config) -> None:
        with ExitStack() as made:
            self.device = TunDevice(config)
            made.callback(self.device.close)
            self.clamp = TableKeeper(MssClamp(config.tun_name, config.name))
            made.callback(self.clamp.close)
            self.reach: ReachGuard | None = None
            if config.mode == "server" and not config.compat:
                self.reach = ReachGuard(config.tun_name, config.name, lambda: self.device.index, nft.tables())
                made.callback(self.reach.close)
            self.clamp.apply(config.mss_clamp)
            self.congestion = CongestionControl(config)
            self.listener: socket.socket | None = None
            if config.mode == "server":
                self.listener = listen(config.listen_endpoint)
                made.callback(self.listener.close)
                self.congestion.prepare(self.listener)
            self._made = made.pop_all()

    def configure(self, config: Config) -> list[str]:
        """Take over other settings. Returns each thing that the kernel refuses, and that is tried again."""
        self.congestion.configure(config)
        if self.listener is not None:
            self.congestion.prepare(self.listener)
        return [*self.device.configure(config), *self.clamp.apply(config.mss_clamp)]

    def close(self) -> None:
        """Remove them, the last one first."""
        self._made.close()


def remove_remains(name: str) -> None:
    """Remove what a killed run of the instance has left. The device and its routes have gone with the process."""
    for table in (MssClamp("", name), ReachTable(("", 0), name)):
        table.remove()
