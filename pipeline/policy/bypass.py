"""The bypass: everything that the routes of ours name goes into the tunnel, and the tunnel's own connections do not.

Such routes are in a table of the instance's own, the tunnel table. Five rules (ip-rule(8)) lead there, in this order:

    fwmark M goto the last one                what belongs to those connections, and has no process: see below
    uidrange U goto the last one              packets of the workers' user go where they would without us
    lookup main suppress_prefixlength 0       the LAN and other known networks as before; default routes do not count
    lookup the tunnel table                   all else
    nop                                       the rules of others go on behind it

So a loop is impossible, wherever the server is, whatever its name leads to, and whichever host is dialed: a proxy needs
no route either. A mark of the sockets (SO_MARK) would serve as well, but workers have no right to set one. Each dial
would wait for the supervisor, and lookups of names by the C library would stay outside. A worker's user is a number
that no other process has, as a rule. The kernel knows it before it chooses the source address of a connection.

Some packets of a connection have no process: those that arrive, the rest of a killed worker's, the kernel's resets. The
reverse path filter asks for the way back of the first. So the firewall notes the mark M at the connection, and gives it
to these packets (kernel.bypass_marks).

A fence is an unreachable default route in the tunnel table. It needs no device, so it is there when the device is not:
then nothing leaves this machine by another way. It also keeps in IPv6 where the tunnel has none. Beside it are gaps:
what programs send to everybody in the LAN, without the name of an interface, goes there. IPv6 does that by itself.

The numbers follow from the name of the instance, so that the remains of a killed run can be found.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from enum import IntEnum
from ipaddress import ip_network
from typing import NamedTuple

from pipeline.policy.kernel_entries import MAIN_TABLE, ROUTE_PROTOCOL, IPAddress, Network, Route, contains
from pipeline.policy.pushed import is_large

TABLE_BASE = 1_160_000_000  # beyond the tables that people number
TABLES = 1_000_000
PRIORITY_BASE = 27_000  # before the main table (32766), and before the rules of wg-quick (32764)
PRIORITY_SLOTS = 500
RULES_OF_ONE = 5

FENCE_METRIC = 4_000_000_000
"""Worse than any route of ours."""

TO_ALL_IN_LAN = tuple(map(ip_network, ("224.0.0.0/24", "239.0.0.0/8", "255.255.255.255/32")))
"""Multicast that a router leaves there (RFC 5771, RFC 2365), and broadcasts."""

EVERYTHING: dict[int, Network] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
"""By IP version."""


class Action(IntEnum):
    """linux/fib_rules.h"""

    LOOKUP = 1
    GOTO = 2
    NOP = 3


class Rule(NamedTuple):
    """A rule of ours, of one IP version."""

    priority: int
    action: Action
    table: int = 0
    target: int = 0  # priority of the rule to go on with
    mark: int = 0
    uid: int | None = None
    suppress: int | None = None  # routes with prefixes of at most this length do not count


class Numbers(NamedTuple):
    """Of the tunnel table, which is the mark as well, and of the first rule."""

    table: int
    priority: int

    @property
    def priorities(self) -> range:
        return range(self.priority, self.priority + RULES_OF_ONE)


class Changes(NamedTuple):
    """In the order in which to make them: at no moment our own packets are led into the tunnel."""

    add: list[Rule]
    remove: list[Rule]


def numbers(instance_name: str) -> Numbers:
    number = zlib.crc32(instance_name.encode())
    return Numbers(TABLE_BASE + number % TABLES, PRIORITY_BASE + RULES_OF_ONE * (number % PRIORITY_SLOTS))


def rules(own: Numbers, uid: int) -> tuple[Rule, ...]:
    """In the order in which they are added: our own packets are let out first."""
    mark, user, near, table, last = own.priorities
    return (
        Rule(last, Action.NOP),
        Rule(mark, Action.GOTO, target=last, mark=own.table),
        Rule(user, Action.GOTO, target=last, uid=uid),
        Rule(near, Action.LOOKUP, MAIN_TABLE, suppress=0),
        Rule(table, Action.LOOKUP, own.table),
    )


def compare(wanted: Collection[Rule], present: Iterable[Rule], own: Numbers) -> Changes:
    """`present`: all rules of our protocol, also those of other instances."""
    ours = [rule for rule in present if rule.priority in own.priorities]
    unwanted = [rule for rule in ours if rule not in wanted]
    return Changes(
        [rule for rule in wanted if rule not in ours],
        sorted(unwanted, key=lambda rule: rule.action is not Action.LOOKUP),
    )


def fences(version: int, own: Numbers) -> tuple[Route, ...]:
    """The fence, and its gaps."""
    made = Route(EVERYTHING[version], FENCE_METRIC, protocol=ROUTE_PROTOCOL, table=own.table)
    gaps = [each for each in TO_ALL_IN_LAN if each.version == version]
    return (made._replace(is_fence=True), *(made._replace(prefix=each, is_gap=True) for each in gaps))


def is_needed(routes: Iterable[Network], protected: Collection[IPAddress]) -> bool:
    """Whether any of these routes may lead the connections to the server into the tunnel."""
    return any(is_large(route) or any(contains(route, address) for address in protected) for route in routes)
