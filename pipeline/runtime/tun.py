"""The TUN device: its queues and its offloads.

The supervisor opens the device and owns it; a worker has the file descriptor of one queue. So a killed worker costs no
route and no address, and packets wait in the kernel's queue for its successor. Every packet carries a 10-byte
virtio-net header, even if all offloads are off. Constants: linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from pipeline.errors import LocalError, PermissionDenied
from pipeline.packet.vnet import VNET_HEADER_BYTES

TUN_PATH = "/dev/net/tun"

IFF_TUN = 0x0001
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000  # refuse a device that exists already

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETVNETLE = 0x400454DC

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20  # Linux 6.2
TUN_F_USO6 = 0x40

TSO = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
USO = TUN_F_USO4 | TUN_F_USO6
OFFLOAD_CHOICES = (TSO | USO, TSO, TUN_F_CSUM, 0)
"""Masks that we ask for, best first. The kernel refuses a mask with a bit that it does not know."""

DEVICE_GONE_ERRNOS = (errno.EBADFD, errno.ENODEV)
"""Errors of reads and writes after the device was deleted."""


class DeviceBusy(LocalError):
    """Another process holds the device."""


class Device:
    """An open device: its name and number, one file descriptor per queue, the offloads in force."""

    def __init__(self, name: str, fds: list[int], offloads: int) -> None:
        self.name = name
        self.fds = fds
        self.offloads = offloads
        self.index = socket.if_nametoindex(name)

    def rebind(self, offload: bool) -> None:
        """Create the device again after it was deleted, on our file descriptors: workers go on with theirs."""
        for fd in self.fds:
            _bind(fd, self.name, len(self.fds) > 1)
        self.offloads = _set_best_offloads(self.fds[0], offload)
        self.index = socket.if_nametoindex(self.name)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def open_device(name: str, queues: int, offload: bool) -> Device:
    """Create the device with so many queues. LocalError or PermissionDenied with what is missing."""
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            # exclusive: on a persistent device of that name our settings would outlive us
            _bind(fds[-1], name, queues > 1, IFF_TUN_EXCL if len(fds) == 1 else 0)
        return Device(name, fds, _set_best_offloads(fds[0], offload))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise _explain(error, name) from None


def _bind(fd: int, name: str, multi_queue: bool, exclusive: int = 0) -> None:
    flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0) | exclusive
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
    fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))


def _set_best_offloads(fd: int, offload: bool) -> int:
    for mask in OFFLOAD_CHOICES if offload else (0,):
        if set_offloads(fd, mask):
            return mask
    return 0


def set_offloads(fd: int, mask: int) -> bool:
    """Set the device's offloads (device-wide). False if the kernel refuses."""
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, mask)
    except OSError:
        return False
    return True


def _explain(error: OSError, name: str) -> Exception:
    has_opened = error.filename is None
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return LocalError(
                f"{TUN_PATH}: {error.strerror}: this kernel or container has no TUN; "
                f"load the tun module, or give the container the device (--device {TUN_PATH})"
            )
        case errno.EISDIR | errno.ENOTTY:
            return LocalError(
                f"{TUN_PATH} is no TUN device, but a file, a directory or another device; make it: "
                f"rm -r {TUN_PATH}; mknod {TUN_PATH} c 10 200; in a container, give it the device (--device {TUN_PATH})"
            )
        case errno.EPERM | errno.EACCES if not has_opened:
            return PermissionDenied(
                f"{TUN_PATH}: {error.strerror}: run as root; in a container, give it the device (--device {TUN_PATH}), "
                "since a volume is not enough"
            )
        case errno.EPERM | errno.EACCES:
            return PermissionDenied(f"TUN device {name}: {error.strerror}: needs root or CAP_NET_ADMIN")
        case errno.EBUSY:
            return DeviceBusy(f"TUN device {name}: a device of that name exists; remove it or set another tun_name")
    return LocalError(f"TUN device {name}: {error.strerror}")
