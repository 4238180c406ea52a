"""The offers of the machine: TUN, rights, shared memory, offloads."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Config
from pipeline.credentials.ownership import find_exposure
from pipeline.credentials.tls_settings import TlsSettings
from pipeline.doctor.finding import Finding, note, ok, problem
from pipeline.doctor.subject import Subject
from pipeline.policy.direct_pairs import PARTNERS_MAX
from pipeline.runtime import topology
from pipeline.runtime.tun import TUN_PATH
from pipeline.shm import layout
from pipeline.shm.segment import SHM_DIRECTORY
from pipeline.supervisor.run.worker_account import preferred_misfit
from pipeline.supervisor.run.worker_settings import worker_settings

MEGABYTE = 1_000_000
SMALL_SEGMENTS_BYTES = 4 * MEGABYTE  # overview, event log, doorbells, generously

CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 6, 7, 10, 12  # linux/capability.h
CAPABILITIES = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_SETUID: "CAP_SETUID", CAP_SETGID: "CAP_SETGID"}
PRIVILEGED_PORTS = 1024

SIOCETHTOOL = 0x8946  # linux/sockios.h
ETHTOOL_GTSO = 0x1E  # linux/ethtool.h
_ETHTOOL_VALUE = struct.Struct("=II")
_IFREQ = struct.Struct("16sP16x")


# -- TUN


def tun(subject: Subject) -> list[Finding]:
    return [judge_tun(*_look_at_tun(), runs=subject.runs)]


def _look_at_tun() -> tuple[int, bool]:
    """The errno of opening the device, 0 for none; and whether it is a character device."""
    try:
        is_device = stat.S_ISCHR(os.stat(TUN_PATH).st_mode)
        os.close(os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO, True
    return 0, is_device


def judge_tun(error: int, is_device: bool, *, runs: bool) -> Finding:
    """`runs`: an instance has opened it already."""
    if not error and is_device:
        return ok(f"{TUN_PATH} can be opened")
    if not is_device:
        return problem(f"{TUN_PATH} is no device", f"Make it: rm {TUN_PATH}; mknod {TUN_PATH} c 10 200.")
    text = f"{TUN_PATH} cannot be opened: {os.strerror(error)}"
    if runs:
        return note(text, "This instance has its device; a restart needs it again, so give it back to the container.")
    if error in (errno.EACCES, errno.EPERM):
        return problem(text, "Run as root, or let the container have the device (--device /dev/net/tun).")
    return problem(text, "Load the module (modprobe tun), or give the container the device (--device /dev/net/tun).")


# -- rights


def rights(subject: Subject) -> list[Finding]:
    port = subject.config.listen_endpoint.port if subject.config is not None and subject.is_server else 0
    return judge_rights(_capabilities(), port, runs=subject.runs)


def _capabilities() -> int:
    """The effective capabilities of this process, as a mask (proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return int(value, 16)
    return 0


def judge_rights(mask: int, port: int, *, runs: bool) -> list[Finding]:
    """`mask`: of the caller, who would start the instance."""
    needed = dict(CAPABILITIES)
    if 0 < port < PRIVILEGED_PORTS:
        needed[CAP_NET_BIND_SERVICE] = "CAP_NET_BIND_SERVICE"
    missing = [name for bit, name in needed.items() if not mask >> bit & 1]
    if not missing:
        return [ok("this user may own a device and start workers")]
    text = f"this user lacks {', '.join(missing)}"
    if runs:
        return [note(f"{text}: the doctor sees less", "Run the doctor as root, or with sudo.")]
    return [problem(f"{text}: it cannot start an instance", "Run as root, or with sudo.")]


# -- shared memory


class SharedMemory(NamedTuple):
    """Bytes of /dev/shm. `size` 0: it is not there."""

    size: int
    free: int
    exposure: str = ""


def user(subject: Subject) -> list[Finding]:
    named = subject.config is not None and bool(subject.config.user)
    return [judge_user("" if named else preferred_misfit())]


def judge_user(misfit: str) -> Finding:
    """`misfit`: why workers do not have the user that a package makes for them. A start says so, too."""
    if not misfit:
        return ok("the user of the workers is no person's")
    return note(misfit, "Nothing has to be done: workers get an id that nobody has. Or name a system user in `user`.")


def shared_memory(subject: Subject) -> list[Finding]:
    needed = needed_bytes(subject.config) if subject.config is not None else 0
    return judge_shared_memory(_look_at_shared_memory(), needed, runs=subject.runs)


def _look_at_shared_memory() -> SharedMemory:
    try:
        found = os.statvfs(SHM_DIRECTORY)
    except OSError:
        return SharedMemory(0, 0)
    return SharedMemory(
        found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, find_exposure(Path(SHM_DIRECTORY))
    )


def needed_bytes(config: Config) -> int:
    """Shared memory of an instance with this configuration, rounded up."""
    device = _Offloads()
    settings = worker_settings(config, TlsSettings(None, b"", b""), device, 0, None)._replace(carrier=config.carrier)
    capacity = config.max_clients if config.mode == "server" and config.multi_client else 1
    capacity += PARTNERS_MAX if config.mode == "client" and config.direct == "auto" else 0
    plan = topology.build_plan(
        config.name, "0" * 8, config.mode, config.lanes, config.ring_slots, config.slot_bytes, settings, capacity,
        split=config.split_workers,
    )  # fmt: skip
    peers = plan.peer_table
    rings = sum(layout.ring_bytes(ring.members, ring.slots, ring.slot_bytes) for ring in plan.rings)
    table = layout.peer_table_bytes(peers.capacity, plan.lanes, peers.status_rows, settings.datagrams)
    return rings + table + layout.scoreboard_bytes(len(plan.workers)) + SMALL_SEGMENTS_BYTES


class _Offloads:
    offloads = accepted = 0


def judge_shared_memory(found: SharedMemory, needed: int, *, runs: bool) -> list[Finding]:
    if not found.size:
        return [problem(f"{SHM_DIRECTORY} is missing", f"Mount it: mount -t tmpfs -o mode=1777 tmpfs {SHM_DIRECTORY}.")]
    exposed = [note(found.exposure, f"Mount {SHM_DIRECTORY} with mode 1777.")] if found.exposure else []
    if not runs and found.free < needed:
        return [
            problem(
                f"{SHM_DIRECTORY} has {_mb(found.free)} free of {_mb(found.size)}, this instance needs {_mb(needed)}",
                f"Make it larger: mount -o remount,size={2 * needed // MEGABYTE + 1}m {SHM_DIRECTORY}, or --shm-size "
                "of a container; or lower lanes or ring_slots.",
            ),
            *exposed,
        ]
    return [ok(f"{SHM_DIRECTORY} has {_mb(found.free)} free of {_mb(found.size)}"), *exposed]


def _mb(size: int) -> str:
    return f"{size / MEGABYTE:.1f} MB"


# -- offloads


def offloads(subject: Subject) -> list[Finding]:
    if subject.config is None or not subject.runs:
        return []
    return judge_offloads(subject.config.offload, ethtool_value(subject.tun_name, ETHTOOL_GTSO))


def ethtool_value(device: str, command: int) -> int | None:
    """One that a command of ethtool(8) reads; None if the device does not say. With ETHTOOL_GTSO: whether the kernel
    hands super-packets to it."""
    value = ctypes.create_string_buffer(_ETHTOOL_VALUE.pack(command, 0))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, _IFREQ.pack(device.encode(), ctypes.addressof(value)))
    except OSError:
        return None
    return int(_ETHTOOL_VALUE.unpack(value.raw[: _ETHTOOL_VALUE.size])[1])


def judge_offloads(wanted: bool, is_on: int | None) -> list[Finding]:
    if not wanted:
        return [note("offload is false: every packet is handled alone, which is slow", "Leave the setting out.")]
    if is_on == 0:
        return [
            note(
                "the kernel hands no TCP super-packets to the device: throughput is a fraction of what it could be",
                "Use a kernel with TUN offloads (not gVisor), and do not switch them off (ethtool -K).",
            )
        ]
    return [ok("the kernel hands over super-packets")] if is_on else []
