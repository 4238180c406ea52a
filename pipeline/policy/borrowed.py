"""Settings of the kernel that instances change for a while, and put back. Pure.

    borrow(wanted, present, own, others)    the notes to keep, and what to set
    give_back(own, present, others)         what to set again

A note says what a setting was before the first instance changed it, and what it was given. Rules:

- A setting that is as it is wanted, and about which no instance has a note, is not ours: nothing is noted.
- Where another instance has a note, the present value is ours, and its note says what the setting was before.
- While another instance has a note about a setting, it stays: the last one puts it back.
- A setting that has another value than it was given has been changed by others since. It stays as they want it.
- If others have switched forwarding on for the whole machine meanwhile, they need it: no device loses it. So
  `accept_ra` stays as forwarding of IPv6 needs it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

FORWARDING_OF_DEVICE = re.compile(r"ipv4/conf/.+/forwarding")
FORWARDING_OF_ALL = "ipv4/conf/all/forwarding"
IPV6_FORWARDING_OF_ALL = "ipv6/conf/all/forwarding"
ACCEPT_RA = re.compile(r"ipv6/conf/.+/accept_ra")
OFF, ON = "0", "1"
ON_BY_US = "2"
"""Of IPv6, which has one switch alone: as good as ON to the kernel. Programs that need forwarding write ON unless they
read it (Docker, libvirt, systemd-networkd, sysctl), so that it shows."""


class Note(NamedTuple):
    before: str
    given: str


Notes = Mapping[str, Note]
"""By the name of the setting below /proc/sys/net."""


class Borrowed(NamedTuple):
    notes: dict[str, Note]  # all that the instance has to remember from now on
    to_set: dict[str, str]


def borrow(
    wanted: Mapping[str, str],
    present: Mapping[str, str],
    own: Notes,
    others: Collection[Notes],
    along: Mapping[str, str] | None = None,
) -> Borrowed:
    """`present`: settings that do not exist are missing. `along`: those that the kernel sets with the wanted ones."""
    notes, to_set = dict(own), {}
    for name, value in {**(along or {}), **wanted}.items():
        if name not in present:
            continue
        noted = own.get(name) or next((each[name] for each in others if name in each), None)
        if noted is not None:
            notes[name] = Note(noted.before, value)
        elif present[name] != value:
            notes[name] = Note(present[name], value)
        if name in wanted and present[name] != value:
            to_set[name] = value
    return Borrowed(notes, to_set)


def give_back(own: Notes, present: Mapping[str, str], others: Collection[Notes]) -> dict[str, str]:
    """In the order in which to set them: what was set last comes first."""
    six = present.get(IPV6_FORWARDING_OF_ALL, OFF)
    stays_on = six == ON or (six != OFF and any(IPV6_FORWARDING_OF_ALL in each for each in others))
    return {
        name: note.before
        for name, note in reversed(list(own.items()))
        if present.get(name) == note.given
        and not any(name in each for each in others)
        and not (FORWARDING_OF_DEVICE.fullmatch(name) and present.get(FORWARDING_OF_ALL) == ON)
        and not (ACCEPT_RA.fullmatch(name) and stays_on)
    }
