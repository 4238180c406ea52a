"""A user and group id that nobody else has, for workers where no user was made for them.

Another process of a user can send signals to its processes, slow them down and pin them to cores. So workers do not
share `nobody` with others: they get an id without an account, without a file and without a process.

    find_free_id()     a number that is free as user id and as group id; None if this user namespace has none
    ids_in_use()       the user ids of all processes that we can see
    is_mapped(...)     whether this user namespace has an id

The id is drawn anew at each start, so that two instances never share one. Nothing is owned by it, so the next id lacks
nothing. RemoveIPC of systemd-logind (logind.conf(5)) cannot hit it: that removes what an ordinary user has in /dev/shm
when that user logs out. Nobody logs in with this id, and the names in /dev/shm belong to the supervisor's user.
"""

from __future__ import annotations

import grp
import os
import pwd
import secrets

RANGES = (
    range(0x70000000, 0x7FFE0000),  # above all containers, below "foreign" ids and the sign bit
    range(60578, 61184),  # for a container that has the first 65536 ids only, as a rootless one
)
"""Ids that systemd leaves to nobody (https://systemd.io/UIDS-GIDS). Dynamic users, the ranges of useradd and of
/etc/subuid, and `nobody` are elsewhere."""

DRAWS = 50  # in each range: some ids may have been given away by LDAP

EVERY_ID_MAPPED = [[0, 0, (1 << 32) - 1]]  # outside user namespaces: first id inside, first id outside, number


def find_free_id() -> int | None:
    """A number in one of RANGES."""
    used = ids_in_use()
    for candidates in RANGES:
        for _ in range(DRAWS):
            number = candidates[secrets.randbelow(len(candidates))]
            if number not in used and _is_free(number):
                return number
    return None


def _is_free(number: int) -> bool:
    return (
        is_mapped("uid_map", number) and is_mapped("gid_map", number) and not (_has_user(number) or _has_group(number))
    )


def _has_user(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


def _has_group(number: int) -> bool:
    try:
        grp.getgrgid(number)
    except KeyError:
        return False
    return True


def is_mapped(table: str, number: int) -> bool:
    """Whether user_namespaces(7) has this id. `table`: uid_map or gid_map."""
    lines = [[int(word) for word in line.split()] for line in read_proc(table, "").splitlines()]
    return any(first <= number < first + count for first, _, count in lines or EVERY_ID_MAPPED)


def read_proc(name: str, otherwise: str) -> str:
    """A file of /proc/self, or `otherwise` on a kernel that lacks it: one without user namespaces."""
    try:
        with open(f"/proc/self/{name}") as file:
            return file.read().strip()
    except FileNotFoundError:
        return otherwise


def ids_in_use() -> set[int]:
    """Real, effective, saved and file system user ids of every process that /proc shows us."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/status") as file:
                    ids = next(line for line in file if line.startswith("Uid:"))
            except (OSError, StopIteration):
                continue  # it ended while we looked, or hidepid keeps it from us
            found.update(map(int, ids.split()[1:]))
    return found
