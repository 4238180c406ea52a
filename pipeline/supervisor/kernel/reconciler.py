"""Keeps the addresses and routes of the TUN device in the kernel as they are wanted, and looks again on every change.

    configure(wanted, ...)        what is wanted from now on, and addresses of the other end, which stay reachable
    reconcile(now)                look and act; whatever is left out, or is in doubt, is said once
    tick(now)                     the same, if the kernel has news that concern us
    notes, left_out               what was said at the last look, and the entries that are not there, for `status`
    present_name                  the device's, which others may change

`pipeline.policy.reconcile` decides; this is its edge. A change that others make is looked at SETTLE_NS later, since
few changes come alone. An entry that others have removed is put back, within a limit. While the device is down nothing
is done: an administrator has set it down.

The state of the kernel is read at each look and never remembered. Remembered is only what this program has put there,
so that it can tell what others have removed, and removes nothing that others have added.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import LocalError
from pipeline.log import LOG
from pipeline.policy.kernel_entries import (
    MAIN_TABLE,
    ROUTE_PROTOCOL,
    Address,
    Interface,
    IPAddress,
    Link,
    Network,
    Route,
    contains,
)
from pipeline.policy.put_back import REST_TEXT, PutBackLimit
from pipeline.policy.reconcile import IPV6_OFF, Plan, Seen, Wanted, plan
from pipeline.supervisor.kernel import rtnetlink
from pipeline.supervisor.kernel.bypass_keeper import BypassKeeper
from pipeline.supervisor.kernel.route_socket import RouteEvents, RouteSocket
from pipeline.supervisor.kernel.rtnetlink import Message, Refusal, Sender

SETTLE_NS = 150_000_000
OVERFLOW_SETTLE_NS = 1_000_000_000  # after more news than the kernel keeps for us
RETRY_NS = 5_000_000_000  # after the kernel could not be read
NAMED_MAX = 8  # entries that a log line names
IPV6_SETTINGS = Path("/proc/sys/net/ipv6/conf")
WHO_MAY = "systemd-networkd and NetworkManager do so unless they are told to leave the device alone (docs/network.md)"
TAKEN_AGAIN = f"others remove it again and again, so it stays away for {REST_TEXT}, or until a reload"

Entry = Interface | Network


class Reconciler:
    """`uid`: of the workers, if they have one of their own: then there can be a bypass."""

    def __init__(self, name: str, index: int, instance_name: str, uid: int | None = None) -> None:
        self._name = self.present_name = name
        self._index = index
        self._wanted = Wanted()
        self._far_ends: tuple[IPAddress, ...] = ()
        self._sender: Sender | None = None
        self._on_way: frozenset[IPAddress] = frozenset()  # protected addresses at the last look
        self._put: set[Entry] = set()
        self._told: dict[str, str] = {}
        self._left_out: dict[Entry, str] = {}  # at the last look
        self._limit = PutBackLimit()
        self._due = 0  # when to look; 0: there is no reason to
        self._socket = RouteSocket()
        self._events = RouteEvents()
        self.bypass = BypassKeeper(instance_name, uid, self._socket)
        self.near: tuple[Network, ...] = ()  # networks that other devices are connected to, at the last look

    def close(self) -> None:
        self._events.close()
        self._socket.close()

    def set_link(self, mtu: int, queue_packets: int, *, up: bool) -> None:
        """Set MTU and queue length; `up`: and set the device up. LocalError if the kernel refuses."""
        refused = self._socket.set_link(self._index, mtu, queue_packets, up=up)
        if refused is not None:
            raise LocalError(f"TUN device {self._name}: MTU {mtu}, queue {queue_packets}: {refused.text}")
        self._events.read()  # our own changes; everything is looked at afterwards

    def rebind(self, index: int) -> None:
        """The device was made again: nothing of ours is on it."""
        self._index = index
        self._put.clear()

    def configure(
        self, wanted: Wanted, far_ends: Collection[IPAddress], *, sender: Sender | None = None, anew: bool = False
    ) -> None:
        """`far_ends`: addresses of the server, or of clients. `sender`: the socket that sends to them, if it is one.

        `anew`: an administrator has asked for it, so everything is tried and said again.
        """
        self._wanted = wanted
        self._far_ends = tuple(far_ends)
        self._sender = sender
        if anew:
            self._limit.reset()
            self._told.clear()

    def look_soon(self) -> None:
        """At the next tick."""
        self._due = 1

    # -- when to look

    def tick(self, now: int) -> None:
        news = self._events.read()
        if any(self._is_going_down(message) for message in news.events):
            self._put.clear()  # the kernel removes what is ours; nobody else has done it
        if not self._due and (news.lost or any(map(self._concerns_us, news.events))):
            self._due = now + (OVERFLOW_SETTLE_NS if news.lost else SETTLE_NS)
        if self._limit.rest_has_ended(now):
            self.look_soon()
        if self._due and now >= self._due:
            self._due = 0
            try:
                self.reconcile(now)
            except LocalError as error:
                self._tell({"": f"TUN device {self._name}: {error}"})

    def _is_going_down(self, message: Message) -> bool:
        if message.kind != rtnetlink.RTM_NEWLINK:
            return False
        link = rtnetlink.decode(message)
        return isinstance(link, Link) and link.device == self._index and not link.is_up

    def _concerns_us(self, message: Message) -> bool:
        if message.kind not in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
            return True  # a device or an address
        route = rtnetlink.decode(message)
        if not isinstance(route, Route):
            return False
        return (
            route.device == self._index
            or route.protocol == ROUTE_PROTOCOL
            or route.prefix in self._wanted.prefixes
            or any(contains(route.prefix, address) for address in self._on_way)
        )

    # -- look and act

    def reconcile(self, now: int) -> dict[Entry, str]:
        """The entries that are wanted and are not in the kernel, and why.

        LocalError if the kernel cannot be read: some entries may have been removed or added, and tick() tries again.
        """
        try:
            return self._reconcile(now)
        except LocalError:
            self._due = now + RETRY_NS
            raise

    def _reconcile(self, now: int) -> dict[Entry, str]:
        refused = self.bypass.apply()
        link = self._socket.link(self._index)
        self.present_name = link.name if link is not None else self._name
        if link is None or not link.is_up:
            self._put.clear()
            name = self.present_name
            down = (
                f"TUN device {name} is down, set so by an administrator or a network manager: no packet passes. Its "
                f"addresses and routes return once it is set up: ip link set {name} up"
            )
            self._tell(self._renamed() | refused | {"down": down})
            self._left_out = dict.fromkeys(self._wanted.entries, "the device is down")
            return self._left_out
        decided = plan(self._wanted, self._see(link.name))
        if self._remove(decided):
            decided = plan(self._wanted, self._see(link.name))  # the kernel removes routes with an address
        left_out = dict(decided.left_out)
        self._put &= decided.taken
        self._add(decided, left_out, now)
        self._tell(self._renamed() | refused | decided.notes | self._sentences(left_out))
        self._left_out = left_out
        return left_out

    def _see(self, name: str) -> Seen:
        ask = self._socket
        ipv6 = _has_ipv6(name)
        addresses = ask.addresses()
        self.near = near_networks(addresses, self._index)
        ways = {far_end: ask.lookup(far_end, self._sender) for far_end in self._far_ends}
        gateways = [way.gateway for way in ways.values() if way is not None and way.gateway is not None]
        ways |= {each: ask.lookup(each) for each in gateways if not each.is_link_local}
        self._on_way = frozenset(ways)
        routes = [route for version in ((4, 6) if ipv6 else (4,)) for route in self._own_routes(version)]
        found = [ask.route_to(prefix) for prefix in self._wanted.prefixes if ipv6 or prefix.version == 4]
        rivals = {route.prefix: route for route in found if route is not None and route.device != self._index}
        others = [*rivals.values(), *filter(None, ways.values())]
        devices = {each.device for each in addresses} | {each.device for each in others}
        names = {device: _name_of(device) for device in devices}
        return Seen(self._index, ipv6, tuple(addresses), tuple(routes), ways, rivals, names)

    def _own_routes(self, version: int) -> list[Route]:
        tables = (MAIN_TABLE,) if self.bypass.is_at_rest else (MAIN_TABLE, self.bypass.numbers.table)
        return [route for table in tables for route in self._socket.routes(version, self._index, ROUTE_PROTOCOL, table)]

    def _remove(self, decided: Plan) -> bool:
        """Remove what is ours and not wanted. Whether an address has gone, and so perhaps routes that are wanted."""
        for route in decided.remove_routes:
            self._socket.remove_route(route)
            self._put.discard(route.prefix)
        ours = [interface for interface in decided.remove_addresses if interface in self._put]
        for interface in ours:
            self._socket.remove_address(self._index, interface)
        if ours:
            self._put.clear()
        return bool(ours)

    def _add(self, decided: Plan, left_out: dict[Entry, str], now: int) -> None:
        entries: list[Entry] = [*decided.add_addresses, *(route.prefix for route in decided.add_routes)]
        lost = [entry for entry in entries if entry in self._put]
        if lost and not self._limit.may(now):
            left_out |= dict.fromkeys(lost, f"{TAKEN_AGAIN}. {WHO_MAY}")
        added: list[Entry] = []
        for interface in decided.add_addresses:
            if interface not in left_out:
                self._note(interface, self._socket.add_address(self._index, interface), added, left_out)
        for route in decided.add_routes:
            if route.prefix not in left_out:
                self._note(route.prefix, self._socket.add_route(route), added, left_out)
        put_back = [entry for entry in added if entry in lost]
        if put_back:
            LOG.warning("TUN device %s: put back %s, removed by others. %s", self._name, _listed(put_back), WHO_MAY)
        fresh = [entry for entry in added if entry not in lost]
        if fresh:
            LOG.info("TUN device %s: added %s", self._name, _listed(fresh))

    def _note(self, entry: Entry, why: Refusal | None, added: list[Entry], left_out: dict[Entry, str]) -> None:
        if why is None:
            added.append(entry)
            self._put.add(entry)
        else:
            left_out[entry] = f"the kernel refuses it: {why.text}"

    # -- what is said

    @property
    def notes(self) -> list[str]:
        """Sentences about all that was wrong, or in doubt, at the last look."""
        return list(self._told.values())

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """For `status`: each entry that is wanted and not in the kernel, whose wish it is, and why."""
        return [
            {
                "kind": _kind_of(entry),
                "entry": str(entry),
                "from_server": not self._is_own(entry),
                "reason": why,
            }
            for entry, why in self._left_out.items()
        ]

    def sentences(self, left_out: dict[Entry, str]) -> list[str]:
        """Why entries are left out, for people; one sentence for each reason."""
        return list(self._sentences(left_out).values())

    def _sentences(self, left_out: dict[Entry, str]) -> dict[str, str]:
        reasons: dict[tuple[str, str], list[Entry]] = {}
        for entry, why in left_out.items():
            whose = "" if why == IPV6_OFF else self._source(entry)
            reasons.setdefault((whose, why), []).append(entry)
        return {
            f"{whose} {why}": (
                f"IPv6 is off on {self.present_name}: left out {_listed(entries)}. With it on "
                f"(sysctl net.ipv6.conf.{self.present_name}.disable_ipv6=0) they are added"
                if why == IPV6_OFF
                else f"{_listed(entries)}{whose}: {why}"
            )
            for (whose, why), entries in reasons.items()
        }

    def _renamed(self) -> dict[str, str]:
        """A sentence if the device has another name than the configuration gives it."""
        now, name = self.present_name, self._name
        if now == name:
            return {}
        sentence = (
            f"TUN device {name} was renamed to {now} by others. Its addresses and routes stay, but rules for {name}, "
            f"such as mss_clamp's, hold no more: ip link set {now} name {name}, or start again with tun_name {now}"
        )
        return {"renamed": sentence}

    def _source(self, entry: Entry) -> str:
        return " is left out" if self._is_own(entry) else " from the server is ignored"

    def _is_own(self, entry: Entry) -> bool:
        """Whether the configuration asks for it."""
        wanted = self._wanted
        return entry in (*wanted.addresses, *wanted.routes, *(each.network for each in wanted.addresses))

    def _tell(self, sentences: dict[str, str]) -> None:
        """Log what has not been logged yet. A sentence that has ended is forgotten, and logged again if it returns."""
        for key, sentence in sentences.items():
            if self._told.get(key) != sentence:
                LOG.warning("%s", sentence)
        self._told = sentences


def _listed(entries: Iterable[Entry]) -> str:
    """The first entries in words: "address 10.0.0.2/24, route 10.1.0.0/16 and 3 more"."""
    texts = [f"{_kind_of(each)} {each}" for each in entries]
    rest = len(texts) - NAMED_MAX
    return ", ".join(texts[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def _kind_of(entry: Entry) -> str:
    return "address" if hasattr(entry, "ip") else "route"


def near_networks(addresses: Iterable[Address], own: int = 0) -> tuple[Network, ...]:
    """The networks that devices are connected to, but for the device `own` and those of one address."""
    networks = [each.network for each in addresses if each.device != own and not each.interface.is_loopback]
    return tuple(dict.fromkeys(each for each in networks if each.prefixlen < each.max_prefixlen))


def _has_ipv6(name: str) -> bool:
    try:
        return (IPV6_SETTINGS / name / "disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False  # this kernel has no IPv6, or the MTU is too small for it


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"device {index}"
