"""Warnings about settings of the other end that do not fit ours."""

from __future__ import annotations

from pipeline.log import LOG
from pipeline.runtime.plan import WorkerSettings
from pipeline.transport.connection import Connection


class PeerSettingsCheck:
    """One for a worker. It warns once of useless forward error correction, and once of an end that takes no padding; of
    an MTU with each connection."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._fec = settings.fec
        self._mtu = settings.mtu
        self._fec_warned = settings.fec == "off"
        self._padding_warned = not settings.padding

    def warn(self, connection: Connection, connections: int, mtu: int) -> None:
        """`connections`: that the client opens in all; `mtu`: of the other end's device."""
        if not self._fec_warned:
            self._warn_of_fec(connection.accepts_shards, connections)
        if not self._padding_warned and connection.send.writer is not None and not connection.takes_padding:
            LOG.warning("padding: %s has a version that takes none, so nothing to it is padded", connection.address)
            self._padding_warned = True
        if mtu != self._mtu:
            LOG.warning(
                "connection %d to %s: its tunnel MTU is %d, ours is %d: set both to the same value",
                connection.serial,
                connection.address,
                mtu,
                self._mtu,
            )

    def _warn_of_fec(self, accepts_shards: bool, connections: int) -> None:
        if not accepts_shards:
            LOG.warning("fec: the other end has fec off, so no packet to it is protected; set fec to on or auto there")
        elif connections == 1:
            LOG.warning(
                "fec is %s, but there is one connection: TCP delivers it in order or stalls, and parity cannot help; "
                "let the client open more (setting: connections)",
                self._fec,
            )
        else:
            return
        self._fec_warned = True
