"""Keeps the rules and fences of the bypass in the kernel: `pipeline.policy.bypass` has them, and the reasons.

    want(rules, fences)    for which IP versions there are to be rules, and fences
    apply()                put there what lacks, and remove what is ours and not wanted; a sentence for what is refused
    remove_remains(name)   all that a killed run of an instance has left

Routes into the device are the reconciler's. systemd-networkd removes rules that it does not know, when it starts again.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from pipeline.log import LOG
from pipeline.policy import bypass
from pipeline.policy.kernel_entries import ROUTE_PROTOCOL
from pipeline.supervisor.kernel.route_socket import RouteSocket

VERSIONS = (4, 6)
IPV6 = Path("/proc/sys/net/ipv6")


class BypassKeeper:
    """`uid`: of the workers; None: there are only remains to remove."""

    def __init__(self, instance_name: str, uid: int | None, ask: RouteSocket) -> None:
        self.numbers = bypass.numbers(instance_name)
        self.uid = uid
        self._rules = bypass.rules(self.numbers, uid) if uid is not None else ()
        self._ask = ask
        self._with_rules: Collection[int] = ()
        self._with_fences: Collection[int] = ()
        self._is_in_place = False  # all that is wanted has been there since it was wanted
        self._empty_looks = 0  # in a row at which nothing was wanted

    def want(self, rules: Collection[int], fences: Collection[int]) -> None:
        """IP versions."""
        rules, fences = ([each for each in VERSIONS if each in wanted and _exists(each)] for wanted in (rules, fences))
        if (rules, fences) != (self._with_rules, self._with_fences):
            self._with_rules, self._with_fences = rules, fences
            self._is_in_place = False

    @property
    def is_wanted(self) -> bool:
        return bool(self._with_rules)

    @property
    def is_at_rest(self) -> bool:
        """Nothing is wanted, and nothing is left: at the first look what is ours goes, after it the routes do."""
        return self._empty_looks > 1 and not (self._with_rules or self._with_fences)

    def apply(self) -> dict[str, str]:
        """Sentences about what the kernel refuses, by what each is about. LocalError if it cannot be read."""
        if self.is_at_rest:
            return {}
        self._empty_looks = 0 if self._with_rules or self._with_fences else self._empty_looks + 1
        refused: dict[str, str] = {}
        added: list[str] = []
        for version in VERSIONS:
            self._put_fence(version, added, refused)
            self._put_rules(version, added, refused)
        if added and self._is_in_place:
            LOG.warning("the bypass: put back %s, removed by others", ", ".join(added))
        elif added:
            LOG.info("the bypass: added %s, tunnel table %d", ", ".join(added), self.numbers.table)
        self._is_in_place = not refused
        return refused

    def _put_fence(self, version: int, added: list[str], refused: dict[str, str]) -> None:
        wanted = bypass.fences(version, self.numbers) if version in self._with_fences else ()
        routes = self._ask.routes(version, 0, ROUTE_PROTOCOL, self.numbers.table)
        there = [each for each in routes if each.is_fence or each.is_gap]
        for route in wanted:
            if route in there:
                continue
            if why := self._ask.add_route(route):
                refused[f"fence {version}"] = f"the fence for IPv{version} cannot be set: {why.text}"
                return
            added.append(f"fence of IPv{version}" if route.is_fence else f"gap for {route.prefix}")
        for route in there:
            if route not in wanted:
                self._ask.remove_route(route)

    def _put_rules(self, version: int, added: list[str], refused: dict[str, str]) -> None:
        wanted = self._rules if version in self._with_rules else ()
        changes = bypass.compare(wanted, self._ask.rules(version), self.numbers)
        for rule in changes.add:
            if why := self._ask.add_rule(version, rule):
                refused[f"rules {version}"] = f"the rules of IPv{version} (ip rule) cannot be set: {why.text}"
                return  # the last one alone leads into the tunnel
            added.append(f"rule {rule.priority} of IPv{version}")
        for rule in changes.remove:
            self._ask.remove_rule(version, rule)

    def remove(self) -> None:
        self.want((), ())
        self.apply()


def remove_remains(instance_name: str) -> None:
    """LocalError if the kernel cannot be read."""
    with closing(RouteSocket()) as ask:
        BypassKeeper(instance_name, None, ask).remove()


def _exists(version: int) -> bool:
    return version == 4 or IPV6.exists()
