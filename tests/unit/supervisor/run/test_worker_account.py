"""Which user the workers get where the configuration names none."""

from __future__ import annotations

import pwd

import pytest

from pipeline.supervisor.run import worker_account
from pipeline.supervisor.run.worker_account import find_account, preferred_misfit

NOLOGIN = "/usr/sbin/nologin"


def users(monkeypatch: pytest.MonkeyPatch, uid: int, gid: int, shell: str) -> None:
    """This machine has a user `tunnel`."""
    entry = pwd.struct_passwd(("tunnel", "x", uid, gid, "", "/", shell))
    monkeypatch.setattr(worker_account.pwd, "getpwnam", {"tunnel": entry}.__getitem__)


@pytest.mark.parametrize(("uid", "shell"), [(998, NOLOGIN), (1, "/bin/false"), (999, "/sbin/nologin")])
def test_a_system_user_of_that_name_is_the_workers(monkeypatch: pytest.MonkeyPatch, uid: int, shell: str) -> None:
    users(monkeypatch, uid, 998, shell)
    account = find_account("")
    assert account is not None and (account.uid, account.gid, account.is_free) == (uid, 998, False)
    assert preferred_misfit() == ""


@pytest.mark.parametrize(
    ("uid", "shell"), [(1000, NOLOGIN), (1001, "/bin/bash"), (998, "/bin/sh"), (998, ""), (65533, NOLOGIN)]
)
def test_a_person_of_that_name_keeps_the_user_and_workers_get_a_free_id(
    monkeypatch: pytest.MonkeyPatch, uid: int, shell: str
) -> None:
    users(monkeypatch, uid, uid, shell)
    account = find_account(None)
    assert account is not None and account.is_free and account.uid != uid
    assert f"uid {uid}, shell {shell or '/bin/sh'}" in preferred_misfit()
    assert preferred_misfit() in worker_account.choose_account(None).text
    named = find_account("tunnel")
    assert named is not None and named.uid == uid, "who names it gets it"
    assert "can log in" not in worker_account.choose_account("tunnel").text


def test_where_there_is_no_such_user_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_account.pwd, "getpwnam", {}.__getitem__)
    assert preferred_misfit() == ""
