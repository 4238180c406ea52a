"""Privileges of a worker: how it gives up every right that it no longer needs.

    forbid_dumps()   supervisor and workers: no process of the same user reads their memory, and no core dump holds it
    restrict()       first of all, while it has one thread: no new rights, no dumps
    drop(account)    once everything that needs rights is open: the account's ids, no capability

A change of credentials clears PR_SET_PDEATHSIG, so a worker asks the kernel for that signal once more after drop().

libc changes ids in all threads. prctl(2) and capset(2) change the calling thread alone, and its later threads inherit.
So restrict() comes before any thread, and drop() checks every thread that a library may have started since.

In the end a worker has no capability, even if its user is root. Which user it becomes is the supervisor's decision
(pipeline.supervisor.run.worker_account).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator

from pipeline.errors import LocalError

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h
CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 5, 6, 7, 8
CAPABILITY_BITS = 64
LINUX_CAPABILITY_VERSION_3 = 0x20080522

STATUS = "/proc/self/status"
THREADS = "/proc/self/task"

_libc = ctypes.CDLL(None, use_errno=True)


def forbid_dumps() -> None:
    """Keep the memory of this process, which holds keys, from debuggers of its own user and from core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(PR_SET_DUMPABLE, 0)  # core_pattern may be a pipe, and then the limit does not count: core(5)


def restrict() -> None:
    """Renounce new rights and core dumps, for this process and its later threads. Call before any thread starts."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if effective_capabilities() & 1 << CAP_SETPCAP:
        _empty_the_bounding_set()
    status = _status(STATUS)
    _set_capabilities(int(status["CapEff"], 16), int(status["CapPrm"], 16), inheritable=0)
    forbid_dumps()
    if os.getsid(0) != os.getpid():
        os.setsid()  # no controlling terminal: by TIOCSTI a worker could type into root's


def drop(account: tuple[int, int] | None) -> None:
    """Change to (uid, gid), or keep our ids, and give up all capabilities. LocalError if any right is left."""
    bounded = bool(effective_capabilities() & 1 << CAP_SETPCAP)
    if account is not None:
        _become(*account)
    _set_capabilities(0, 0, 0)
    prctl(PR_SET_DUMPABLE, 0)  # the kernel has set it anew: /proc/sys/fs/suid_dumpable
    remaining = list(_remaining_rights(account, bounded))
    if remaining:
        raise LocalError(f"giving up rights: expected none, left are {', '.join(remaining)}")


def _become(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise LocalError(
            f"giving up rights: cannot become user {uid}, group {gid}: {error.strerror}; "
            f'set user to "root" to let workers keep the supervisor\'s user'
        ) from None


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument; OSError if the kernel refuses."""
    if _libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}, {argument}: {os.strerror(number)}")


def effective_capabilities() -> int:
    """Effective capabilities of the main thread, as bits."""
    return int(_status(STATUS)["CapEff"], 16)


def _empty_the_bounding_set() -> None:
    for capability in range(CAPABILITY_BITS):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # beyond the last one that this kernel knows


def _set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)  # struct __user_cap_header_struct; 0: this thread
    sets = (effective, permitted, inheritable)
    halves = [bits & 0xFFFFFFFF for bits in sets] + [bits >> 32 for bits in sets]
    if _libc.capset(header, (ctypes.c_uint32 * 6)(*halves)):  # two struct __user_cap_data_struct
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _remaining_rights(account: tuple[int, int] | None, bounded: bool) -> Iterator[str]:
    """Rights that a thread still has. `bounded`: the bounding set could be dropped."""
    expected = {"NoNewPrivs": "1"}
    if account is not None:
        uid, gid = account
        expected |= {"Uid": "\t".join([str(uid)] * 4), "Gid": "\t".join([str(gid)] * 4), "Groups": ""}
    empty = ["CapPrm", "CapEff", "CapInh", "CapAmb"] + ["CapBnd"] * bounded
    for thread in os.listdir(THREADS):
        status = _status(f"{THREADS}/{thread}/status")
        for field, value in expected.items():
            if status[field] != value:
                yield f"{field} {status[field]!r} of thread {thread}"
        for field in empty:
            if int(status[field], 16):
                yield f"{field} {status[field]} of thread {thread}"


def _status(path: str) -> dict[str, str]:
    """proc_pid_status(5)."""
    try:
        with open(path) as file:
            fields = (line.partition(":") for line in file)
            return {name: value.strip() for name, _, value in fields}
    except FileNotFoundError:
        raise LocalError(f"{path} is not there: mount /proc, as in `mount -t proc proc /proc`") from None
