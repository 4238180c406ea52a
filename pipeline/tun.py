"""Floor 2. The TUN device: opening its queues, offloads, addresses and routes.

The supervisor opens the device and owns it; workers get a queue's file descriptor. A killed worker then costs no
route and no address: packets wait in the kernel's queue for its successor. Every packet carries a 10-byte
virtio-net header, also when all offloads are off. Constants: linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess

from pipeline.block import VNET_HEADER_BYTES
from pipeline.errors import LocalError, PermissionDenied
from pipeline.log import LOG

TUN_PATH = "/dev/net/tun"
IPV6_SETTINGS = "/proc/sys/net/ipv6"  # not there: a kernel without IPv6

IFF_TUN = 0x0001
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000  # refuse a device that exists already

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETVNETLE = 0x400454DC

SIOCGIFFLAGS = 0x8913  # linux/sockios.h
IFF_UP = 0x1  # linux/if.h

TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20  # Linux 6.2
TUN_F_USO6 = 0x40

TSO = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
USO = TUN_F_USO4 | TUN_F_USO6
OFFLOAD_CHOICES = (TSO | USO, TSO, TUN_F_CSUM, 0)
"""What we ask for, best first; the kernel refuses a mask with a bit that it does not know."""

GONE = (errno.EBADFD, errno.ENODEV)
"""What reads and writes say once the device was deleted."""


class DeviceBusy(LocalError):
    """Somebody holds the device."""


class Device:
    """An open device: its name, one file descriptor per queue, the offloads in force."""

    def __init__(self, name: str, fds: list[int], offloads: int) -> None:
        self.name = name
        self.fds = fds
        self.offloads = offloads

    def rebind(self, offload: bool) -> None:
        """Make the device anew on the same file descriptors, after it was deleted under us: the workers that
        hold them need not know."""
        for fd in self.fds:
            _bind(fd, self.name, len(self.fds) > 1)
        self.offloads = _set_best_offloads(self.fds[0], offload)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def open_device(name: str, queues: int, offload: bool) -> Device:
    """Create the device with so many queues. LocalError or PermissionDenied says what is missing."""
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            # exclusive: to attach to a persistent device would leave on it what we set
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
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return LocalError(
                f"{TUN_PATH}: {error.strerror}: this kernel or container has no TUN; "
                f"load the tun module or give the container the device"
            )
        case errno.EPERM | errno.EACCES:
            return PermissionDenied(f"TUN device {name}: {error.strerror}: needs root or CAP_NET_ADMIN")
        case errno.EBUSY:
            return DeviceBusy(f"TUN device {name}: a device of that name exists; remove it or set another tun_name")
    return LocalError(f"TUN device {name}: {error.strerror}")


def set_up(name: str, mtu: int, queue_packets: int) -> None:
    """Give the device MTU and queue length, and set it up. LocalError with what `ip` says."""
    lines = [f"link set dev {name} mtu {mtu} txqueuelen {queue_packets}"]
    if os.path.exists(IPV6_SETTINGS):
        lines.append(f"link set dev {name} addrgenmode none")  # no packets of the kernel's own on a point-to-point
    lines.append(f"link set dev {name} up")
    _ip(lines)


def is_up(name: str) -> bool:
    """Whether the device is administratively up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        except OSError:
            return False
    return bool(struct.unpack_from("16xH", answer)[0] & IFF_UP)


def add_addresses(name: str, addresses: list[str]) -> None:
    """Give the device its addresses (again)."""
    _ip([f"address replace {address} dev {name}{' nodad' if ':' in address else ''}" for address in addresses])


def remove_addresses(name: str, addresses: list[str]) -> None:
    """Take back addresses, and with them the routes of their subnets."""
    _ip([f"address del {address} dev {name}" for address in addresses])


def add_routes(name: str, routes: list[str]) -> None:
    """Route these prefixes into the device; they vanish with it."""
    _ip([f"route replace {route} dev {name}" for route in routes])


def remove_routes(name: str, routes: list[str]) -> None:
    """Take back routes that a reload no longer wants."""
    _ip([f"route del {route} dev {name}" for route in routes])


def _ip(lines: list[str]) -> None:
    if not lines:
        return
    try:
        for version in ("-4", "-6"):
            mine = [line for line in lines if (":" in line.split(" dev ")[0]) == (version == "-6")]
            done = subprocess.run(["ip", version, "-batch", "-"], input="\n".join(mine), text=True, capture_output=True)
            if done.returncode:
                raise LocalError(
                    "ip: " + "; ".join(done.stderr.split("\n")[:2]).strip("; ") + ": in " + "; ".join(mine)
                )
    except FileNotFoundError:
        raise LocalError("the command ip is missing: install iproute2") from None
    LOG.debug("ip: %s", "; ".join(lines))
