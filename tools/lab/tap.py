"""A TAP device that reads and writes super-packets: one frame in each call, its virtio-net header first.

The device belongs to the network namespace of the thread that opens it. It vanishes when its file descriptor is closed.
"""

from __future__ import annotations

import fcntl
import os
import struct

from pipeline.runtime.tun import (
    IFF_NO_PI,
    IFF_VNET_HDR,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_PATH,
    TUNSETIFF,
    TUNSETOFFLOAD,
    USO,
)
from tools.lab.namespace import LabError

IFF_TAP = 0x0002  # linux/if_tun.h
INTERFACE_NAME_BYTES = 15  # IFNAMSIZ - 1, linux/if.h

TCP_OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6


def open_tap(name: str) -> int:
    """Make the device; its descriptor never blocks. UDP offload (USO) is left out on kernels before 6.2."""
    if len(name.encode()) > INTERFACE_NAME_BYTES:
        raise LabError(f"interface name {name!r}: expected at most {INTERFACE_NAME_BYTES} bytes")
    try:
        fd = os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"{TUN_PATH}: {error.strerror}; the link emulator needs root and module tun") from None
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, TCP_OFFLOADS | USO)
        except OSError:
            fcntl.ioctl(fd, TUNSETOFFLOAD, TCP_OFFLOADS)
    except OSError as error:
        os.close(fd)
        raise LabError(f"TAP device {name!r}: {error.strerror}") from None
    return fd
