"""The TUN device as the supervisor owns it: addresses and routes as configured, made again if it is
deleted."""

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
MEND_SECONDS = 1.0  # between attempts to make a deleted device anew


class TunDevice:
    """Open, configured and routed on creation; gone, with addresses and routes, on close()."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._given: tuple[list[str], list[str]] = ([], [])  # addresses and routes from the server
        self._device = _open(config)
        self.fds = self._device.fds
        self.offloads = self._device.offloads
        # the kernel takes back in writes whatever it would hand out in reads
        self.accepted = self.offloads
        self._watch = select.poll()
        self._watch.register(self.fds[0], 0)  # POLLERR is always reported: the device was deleted
        self._next_mend = 0.0
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
        self._address()

    def _address(self) -> None:
        config = self._config
        addresses, routes = self._given
        ip_route.add_addresses(config.tun_name, [*map(str, config.tunnel_interfaces), *addresses])
        ip_route.add_routes(config.tun_name, [*map(str, config.route_prefixes), *routes])

    def adopt(self, interfaces: Iterable[object], routes: Iterable[object]) -> bool:
        """Have these addresses and routes beside the configured ones, instead of those adopted before. False if they
        are the same. LocalError if the system refuses."""
        given = [str(interface) for interface in interfaces], [str(route) for route in routes]
        before = self._given
        if given == before:
            return False
        configured = {str(prefix) for prefix in self._config.route_prefixes}
        self._given = given
        ip_route.remove_routes(
            self._config.tun_name, [r for r in before[1] if r not in given[1] and r not in configured]
        )
        ip_route.remove_addresses(self._config.tun_name, [a for a in before[0] if a not in given[0]])
        self._address()
        return True

    def _links_changed(self) -> bool:
        changed = False
        while True:
            try:
                changed = bool(self._links.recv(65536))
            except BlockingIOError:
                return changed
            except OSError:  # ENOBUFS: more than we could take
                changed = True

    def mend(self) -> None:
        """Put back what others took: the device, or the addresses and routes that a moment of "down" cost it.

        A device that was set down stays down: that is the administrator's word.
        """
        if self._watch.poll(0):
            self._make_again()
        elif self._links_changed() and ip_route.is_up(self._config.tun_name):
            try:
                self._address()
            except LocalError as error:  # down again, or deleted, since we looked
                LOG.error("TUN device %s: %s", self._config.tun_name, error)

    def _make_again(self) -> None:
        if time.monotonic() < self._next_mend:
            return
        self._next_mend = time.monotonic() + MEND_SECONDS
        LOG.error("TUN device %s was deleted: making it again", self._config.tun_name)
        try:
            self._device.rebind(self._config.offload)
            self._set_up()
        except (OSError, LocalError) as error:
            LOG.error("TUN device %s: %s; trying again", self._config.tun_name, error)

    def route(self, config: Config) -> None:
        """Change the routes from the present configuration's to those of `config`."""
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
