"""The account of the workers: a user without rights, and the sentence about it for the log.

    choose_account(...)    the account that workers change to, or None if they keep the supervisor's; ConfigError and
                           PermissionDenied for a user that they cannot have
    account_beside(...)    the account of the exporter
    preferred_misfit()     why workers do not have the user `tunnel`, though there is one; "" otherwise

Where the configuration names no user, and there is no user `tunnel`, workers get an id that nobody else has. So they do
if `tunnel` is a user that logs in: a person's processes could end the workers, and the workers read its files.

Those of a client get such an id in any case. Rules and the kill switch of a full tunnel know the client's connections
by it. All instances of a machine share `tunnel`, so those of another instance would go around the tunnel.

The supervisor needs CAP_SETUID and CAP_SETGID to give a worker another user, and CAP_KILL to end that worker.
"""

from __future__ import annotations

import os
import pwd
from typing import NamedTuple

from pipeline.errors import ConfigError, PermissionDenied, Problem
from pipeline.runtime.privileges import CAP_KILL, CAP_SETGID, CAP_SETUID, effective_capabilities
from pipeline.supervisor.run.free_id import find_free_id, ids_in_use, is_mapped, read_proc

PREFERRED_USER = "tunnel"
"""A user without rights, if the configuration names none."""

PERSONS_FROM = 1000  # UID_MIN of login.defs(5): ids below it are of the system
NO_SHELLS = ("nologin", "false")


class Account(NamedTuple):
    """A system user, or an id that no user has."""

    uid: int
    gid: int
    name: str  # for texts
    is_free: bool = False  # no account and no other process has this id


class AccountChoice(NamedTuple):
    """The account that workers change to, None if they keep the supervisor's; and a sentence for the log."""

    account: Account | None
    text: str  # with the reason


def choose_account(user: str | None, *, is_client: bool = False) -> AccountChoice:
    """The account of the workers. `user`: the setting; None or "" if there is none.

    ConfigError if that user does not exist, PermissionDenied if this process cannot give a worker its account.
    """
    account = find_account(user, alone=is_client)
    if account is None:
        why = 'the setting user says "root"' if user else "this user namespace has no free id for them"
    elif account.uid == os.geteuid():
        why = "that is the user that was asked for"
    elif not (why := _hindrance(account)):
        misfit = "" if user else preferred_misfit()
        return AccountChoice(account, f"workers run as {account.name}{_company(account)}{misfit and f'. {misfit}'}")
    elif user:
        raise PermissionDenied(f"user {user}: {why}; start as root, or leave the setting out")
    return AccountChoice(None, f"workers stay {_name(os.geteuid())}: {why}")


def find_account(user: str | None, *, alone: bool = False) -> Account | None:
    """The account of that name; without a name, PREFERRED_USER or a free id, which comes first if they are to be alone.
    None for root, or if there is neither."""
    if user:
        try:
            return _account(user)
        except KeyError:
            raise ConfigError(
                [
                    Problem(
                        "user",
                        f'expected a system user, got "{user}", which does not exist; '
                        f"create it: useradd --system {user}",
                    )
                ]
            ) from None
    try:
        preferred = _account(PREFERRED_USER)
    except KeyError:
        preferred = None
    if preferred is not None and not (preferred.gid and not preferred_misfit()):
        preferred = None
    if preferred is not None and not alone:
        return preferred
    number = find_free_id()
    return preferred if number is None else Account(number, number, f"user {number}", is_free=True)


def preferred_misfit() -> str:
    try:
        entry = pwd.getpwnam(PREFERRED_USER)
    except KeyError:
        return ""
    if 0 < entry.pw_uid < PERSONS_FROM and os.path.basename(entry.pw_shell) in NO_SHELLS:
        return ""
    facts = f"uid {entry.pw_uid}, shell {entry.pw_shell or '/bin/sh'}"
    return f"The user {PREFERRED_USER} can log in ({facts}): workers have it only if the setting user names it"


def account_beside(account: Account | None) -> Account | None:
    """The account of a process beside the workers: a free id of its own if they have one, so that it can send them no
    signal; else theirs."""
    if account is None or not account.is_free:
        return account
    number = find_free_id()
    if number is None or number == account.uid:
        return account
    return Account(number, number, f"user {number}", is_free=True)


def _company(account: Account) -> str:
    """The end of the sentence about an account: who else can reach its processes."""
    if account.is_free:
        return ", an id that nobody else has"
    if account.uid in ids_in_use():
        return ", like other processes here, which can stop and end them: give them a user of their own, or none"
    return ""


def _account(name: str) -> Account | None:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_uid, entry.pw_gid, name) if entry.pw_uid else None


def _hindrance(account: Account) -> str:
    """Why this process cannot give a worker that account, or cannot end it afterwards; "" if it can."""
    needed = 1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID
    if effective_capabilities() & needed != needed:
        return f"to make them {account.name} the supervisor needs CAP_SETUID, CAP_SETGID and CAP_KILL"
    if not (is_mapped("uid_map", account.uid) and is_mapped("gid_map", account.gid)):
        return f"this user namespace has no {account.name}"
    if read_proc("setgroups", "allow") == "deny":
        return "this user namespace does not allow setgroups"
    return ""


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
