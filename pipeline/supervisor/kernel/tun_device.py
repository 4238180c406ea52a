"""The TUN device as the supervisor owns it: opened, set up, made again if it is deleted; its addresses and routes.

    configure(config)        what the configuration asks for
    take_from_server(...)    what a WELCOME has brought besides, with the address that it came from
    know_clients(addresses)  where the clients of a server are connected from
    repair(now)              look after the device, its addresses and its routes

`reconciler` has the addresses and routes in the kernel. All of them vanish with the device, and the device with this
process: nothing is left after a stop, nor after a kill.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Collection, Iterable
from ipaddress import ip_address
from typing import Any

from pipeline.config import Config
from pipeline.config.schema import PUSHED
from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy import reconcile
from pipeline.policy.bypass import EVERYTHING
from pipeline.policy.bypass import is_needed as is_bypass_needed
from pipeline.policy.client_addresses import ClientAddresses
from pipeline.policy.kernel_entries import Interface, IPAddress, Network
from pipeline.policy.reconcile import FarEnd, Wanted
from pipeline.runtime import tun
from pipeline.supervisor.kernel.reconciler import Entry, Reconciler
from pipeline.supervisor.kernel.rtnetlink import Sender
from pipeline.supervisor.kernel.server_lookup import ServerLookup
from pipeline.system import task_limit

BUSY_SECONDS = 1.0  # how long a dead predecessor's workers may still hold the device
RECREATE_NS = 1_000_000_000  # between attempts to make a deleted device again
SERVERS_MAX = 16
"""Addresses at which a client has found its server: the latest ones stay protected."""


class TunDevice:
    """Open, configured and routed on creation; gone, with addresses and routes, on close().

    `uid`: of the workers, None if it is not theirs alone. Without it there is no bypass.
    """

    def __init__(self, config: Config, uid: int | None = None) -> None:
        self._config = config
        self._uid = uid
        self._pushed: tuple[tuple[Interface, ...], tuple[Network, ...]] = ((), ())
        self.pushed_dns: tuple[IPAddress, ...] = ()
        self.has_heard = False  # a server has said what it pushes
        self._servers: deque[IPAddress] = deque(maxlen=SERVERS_MAX)
        self._clients = ClientAddresses()
        self._lookup: ServerLookup | None = None  # runs, or has ended with all answers
        self._looked_up: set[IPAddress] = set()  # of those, the ones that are protected
        self._behind_peers: tuple[Network, ...] = ()
        self._device = _open(config)
        self.fds = self._device.fds
        self.offloads = self._device.offloads
        # the kernel accepts in writes every packet that it could give in reads
        self.accepted = self.offloads
        self._deleted = select.poll()
        self._deleted.register(self.fds[0], 0)  # POLLERR is always reported: the device was deleted
        self._next_attempt = 0
        try:
            self._reconciler = Reconciler(config.tun_name, self._device.index, config.name, uid)
        except BaseException:
            self._device.close()
            raise
        try:
            self._set_up(time.monotonic_ns())
        except BaseException:
            self.close()
            raise

    @property
    def index(self) -> int:
        """Its present one: another once it was made again."""
        return self._device.index

    def _set_up(self, now: int) -> None:
        self._reconciler.set_link(self._config.mtu, self._config.send_queue_size, up=True)
        self._want()
        left_out = self._reconciler.reconcile(now)
        own = self._config.tunnel_interfaces
        if own and all(interface in left_out for interface in own):
            raise LocalError(f"no tunnel address: {'; '.join(self._reconciler.sentences(left_out))}")

    def _want(self, *, anew: bool = False) -> None:
        config = self._config
        addresses, routes = self._pushed
        self._look_up_server()
        is_server = config.mode == "server"
        protected = self._clients.within(config.route_prefixes) if is_server else self._servers
        inside = {each.version for each in (*config.tunnel_interfaces, *addresses)}
        everything = [EVERYTHING[version] for version in EVERYTHING if self.is_full_tunnel and version in inside]
        wanted = Wanted(
            addresses=config.tunnel_interfaces,
            routes=tuple(dict.fromkeys((*config.route_prefixes, *everything))),
            pushed_addresses=addresses,
            pushed_routes=routes,
            accept_routes=config.accepted_prefixes,
            behind_peers=self._behind_peers,
            far_end=FarEnd.CLIENT if is_server else FarEnd.SERVER,
            is_far_end_known=self._clients.were_any if is_server else self._is_server_known,
        )
        if is_server:
            sender = _listener(config)
        else:
            sender = Sender(uid=self._uid)
            wanted = self._want_bypass(wanted)
        self._reconciler.configure(wanted, protected, sender=sender, anew=anew)

    def _want_bypass(self, wanted: Wanted) -> Wanted:
        """See that the connections to the server go around the tunnel, where it matters."""
        bypass, routes = self._reconciler.bypass, reconcile.asked(wanted)
        is_needed = self.is_full_tunnel or is_bypass_needed(routes, self._servers)
        if self._uid is None or not is_needed:
            bypass.want((), ())
            return wanted
        if self.is_full_tunnel:
            tunnelled = {each.version for each in routes if each in EVERYTHING.values()}
            untunnelled = EVERYTHING.keys() - tunnelled if tunnelled else ()
            bypass.want(EVERYTHING, EVERYTHING if self._config.kill_switch else untunnelled)
        else:
            bypass.want({each.version for each in routes}, ())
        return wanted._replace(tunnel_table=bypass.numbers.table)

    @property
    def is_full_tunnel(self) -> bool:
        """Whether all packets of this machine are to go into the tunnel."""
        given = self._config.wants_full_tunnel if self._uid is not None else False
        return given is True or (given == PUSHED and EVERYTHING[4] in self._pushed[1])

    def _look_up_server(self) -> None:
        """See that the addresses of a client's server are known, or will be."""
        if self._config.mode == "server":
            return
        endpoints = self._config.dialed_endpoints
        self._remember_servers([each.address for each in endpoints if each.address is not None])
        names = [each.host for each in endpoints if each.address is None]
        are_needed = (self._config.routes and not self.is_full_tunnel) or self._config.needs_bridge
        if names and are_needed and self._lookup is None and not (self._servers and len(endpoints) == 1):
            try:
                self._lookup = ServerLookup(names)
            except OSError as error:
                LOG.warning("server %s is not looked up: %s", names[0], task_limit.explain(error))

    @property
    def _is_server_known(self) -> bool:
        """A command connects with what it likes: that it has connected is all that can be known."""
        return bool(self._servers) or (self.has_heard and bool(self._config.proxy_command))

    def _remember_servers(self, addresses: Iterable[IPAddress]) -> None:
        for address in addresses:
            if address.is_link_local:
                continue  # no route of ours can lead there
            if address in self._servers:
                self._servers.remove(address)
            self._servers.append(address)

    # -- what is wanted

    def configure(self, config: Config) -> list[str]:
        """Make the kernel agree with this configuration. Sentences about what the kernel refuses.

        Each step stands by itself. An entry that is refused now, and all of them if the kernel cannot be read, are
        tried again later.
        """
        self._config = config
        self._clients.forget_gone()
        self._want(anew=True)
        return self._set_link() + self._add_entries()

    def _set_link(self) -> list[str]:
        try:
            self._reconciler.set_link(self._config.mtu, self._config.send_queue_size, up=False)
        except LocalError as error:
            LOG.error("%s", error)
            return [str(error)]
        return []

    def _add_entries(self) -> list[str]:
        try:
            left_out = self._reconciler.reconcile(time.monotonic_ns())
        except LocalError as error:
            LOG.error("%s", error)
            return [str(error)]
        own = {*self._config.tunnel_interfaces, *self._config.route_prefixes}
        return self._reconciler.sentences({entry: why for entry, why in left_out.items() if entry in own})

    def take_from_server(
        self, addresses: Iterable[Interface], routes: Iterable[Network], server: str, dns: Iterable[IPAddress] = ()
    ) -> list[Entry]:
        """Add these addresses and routes to the configured ones, instead of those of an earlier call. Which of them
        are in the kernel now. LocalError if the kernel cannot be read. `dns`: servers, for a full tunnel."""
        self._pushed = tuple(addresses), tuple(routes)
        self.pushed_dns, self.has_heard = tuple(dns), True
        if not self._config.needs_bridge:  # which is at a loopback address, and says nothing about the way
            self._remember_servers([ip_address(server.partition("%")[0])])
        self._want()
        left_out = self._reconciler.reconcile(time.monotonic_ns())
        return [entry for entry in (*self._pushed[0], *self._pushed[1]) if entry not in left_out]

    def look_soon(self) -> None:
        """Compare what is wanted with what the kernel has, at the next tick."""
        self._reconciler.look_soon()

    @property
    def has_bypass(self) -> bool:
        """Whether routes of ours are in the tunnel table, or are to be."""
        return self._reconciler.bypass.is_wanted

    def remove_bypass(self) -> None:
        """At the end. LocalError if the kernel cannot be read."""
        self._reconciler.bypass.remove()

    @property
    def near(self) -> tuple[Network, ...]:
        """The networks that other devices are connected to."""
        return self._reconciler.near

    def know_peers(self, networks: Iterable[Network]) -> None:
        """The networks behind the peers of a server, for a warning where the server has one of them itself."""
        behind = tuple(networks)
        if behind != self._behind_peers:
            self._behind_peers = behind
            self._want()
            self._reconciler.look_soon()

    def know_clients(self, addresses: Collection[IPAddress]) -> None:
        """The addresses from which clients are connected to a server: no route of `routes` may lead there."""
        if self._clients.update(addresses):
            self._want()
            self._reconciler.look_soon()

    # -- what becomes of it

    @property
    def addresses(self) -> tuple[Interface, ...]:
        """Those of the configuration, and of the server."""
        return (*self._config.tunnel_interfaces, *self._pushed[0])

    def status(self) -> dict[str, Any]:
        """For `status`: the present name, all that is wrong or in doubt in words, and the entries that are left out."""
        reconciler = self._reconciler
        return {"name": reconciler.present_name, "notes": reconciler.notes, "left_out": reconciler.left_out}

    def repair(self, now: int) -> None:
        """Restore a device that was deleted, and the addresses and routes that others have removed.

        A device that an administrator has set down stays down.
        """
        if self._lookup is not None and not set(self._lookup.addresses) <= self._looked_up:
            self._looked_up |= set(self._lookup.addresses)
            self._remember_servers(self._lookup.addresses)
            self._want()
            self._reconciler.look_soon()
        if self._deleted.poll(0):
            self._recreate(now)
        else:
            self._reconciler.tick(now)

    def _recreate(self, now: int) -> None:
        if now < self._next_attempt:
            return
        self._next_attempt = now + RECREATE_NS
        LOG.error("TUN device %s was deleted: making it again", self._config.tun_name)
        try:
            self._device.rebind(self._config.offload)
            self._reconciler.rebind(self._device.index)
            self._set_up(now)
        except (OSError, LocalError) as error:
            LOG.error("TUN device %s: %s; trying again", self._config.tun_name, error)

    def close(self) -> None:
        if self._lookup is not None:
            self._lookup.close()
        self._reconciler.close()
        self._device.close()


def _listener(config: Config) -> Sender:
    """The socket of a server, from whose port all of its answers go out."""
    endpoint = config.listen_endpoint
    address = endpoint.address
    return Sender(endpoint.port, None if address is None or address.is_unspecified else address)


def _open(config: Config) -> tun.Device:
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return tun.open_device(config.tun_name, config.lanes, config.offload)
        except tun.DeviceBusy:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
