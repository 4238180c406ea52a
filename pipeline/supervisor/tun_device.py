"""The TUN device as the supervisor owns it, with its addresses and routes; made again if it is deleted."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable

from pipeline.config import Config
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.runtime import tun
from pipeline.supervisor import ip_route

RTMGRP_LINK = 1  # linux/rtnetlink.h
BUSY_SECONDS = 1.0  # how long a dead predecessor's workers may still hold the device
RECREATE_SECONDS = 1.0  # between attempts to make a deleted device again


class TunDevice:
    """Open, configured and routed on creation; gone, with addresses and routes, on close()."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._from_server: tuple[list[str], list[str]] = ([], [])  # addresses and routes from the server
        self._device = _open(config)
        self.fds = self._device.fds
        self.offloads = self._device.offloads
        # the kernel accepts in writes every packet that it could give in reads
        self.accepted = self.offloads
        self._deleted = select.poll()
        self._deleted.register(self.fds[0], 0)  # POLLERR is always reported: the device was deleted
        self._next_attempt = 0.0
        self._links = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._links.bind((0, RTMGRP_LINK))
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    def _set_up(self) -> None:
        ip_route.set_up(self._config.tun_name, self._config.mtu, self._config.send_queue_size)
        self._add_addresses_and_routes()

    def _add_addresses_and_routes(self) -> None:
        config = self._config
        addresses, routes = self._from_server
        ip_route.add_addresses(config.tun_name, [*map(str, config.tunnel_interfaces), *addresses])
        ip_route.add_routes(config.tun_name, [*map(str, config.route_prefixes), *routes])

    def apply_server_settings(self, interfaces: Iterable[object], routes: Iterable[object]) -> bool:
        """Add these addresses and routes to the configured ones; remove those of an earlier call. False if nothing
        has changed. LocalError if the system refuses."""
        addresses, prefixes = [str(interface) for interface in interfaces], [str(route) for route in routes]
        old_addresses, old_prefixes = self._from_server
        if (addresses, prefixes) == self._from_server:
            return False
        configured = {str(prefix) for prefix in self._config.route_prefixes}
        self._from_server = addresses, prefixes
        tun_name = self._config.tun_name
        ip_route.remove_routes(tun_name, [p for p in old_prefixes if p not in prefixes and p not in configured])
        ip_route.remove_addresses(tun_name, [a for a in old_addresses if a not in addresses])
        self._add_addresses_and_routes()
        return True

    def _links_changed(self) -> bool:
        changed = False
        while True:
            try:
                changed = bool(self._links.recv(65536))
            except BlockingIOError:
                return changed
            except OSError:  # ENOBUFS: the kernel has dropped messages
                changed = True

    def repair(self) -> None:
        """Restore a device that was deleted, or the addresses and routes that it lost while it was down.

        A device that an administrator has set down stays down.
        """
        if self._deleted.poll(0):
            self._recreate()
        elif self._links_changed() and ip_route.is_up(self._config.tun_name):
            try:
                self._add_addresses_and_routes()
            except LocalError as error:  # set down again, or deleted, in the meantime
                LOG.error("TUN device %s: %s", self._config.tun_name, error)

    def _recreate(self) -> None:
        if time.monotonic() < self._next_attempt:
            return
        self._next_attempt = time.monotonic() + RECREATE_SECONDS
        LOG.error("TUN device %s was deleted: making it again", self._config.tun_name)
        try:
            self._device.rebind(self._config.offload)
            self._set_up()
        except (OSError, LocalError) as error:
            LOG.error("TUN device %s: %s; trying again", self._config.tun_name, error)

    def change_routes(self, config: Config) -> None:
        """Replace the routes of the present configuration by those of `config`."""
        old = {str(prefix) for prefix in self._config.route_prefixes}
        new = {str(prefix) for prefix in config.route_prefixes}
        ip_route.add_routes(config.tun_name, sorted(new - old))
        ip_route.remove_routes(config.tun_name, sorted(old - new))
        self._config = config

    def close(self) -> None:
        self._links.close()
        self._device.close()


def _open(config: Config) -> tun.Device:
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return tun.open_device(config.tun_name, config.lanes, config.offload)
        except tun.DeviceBusy:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
