"""Link state, addresses and routes of the TUN device, by ip(8): each change is one `ip -batch`."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess

from pipeline.errors import LocalError
from pipeline.log import LOG

IPV6_SETTINGS = "/proc/sys/net/ipv6"  # missing if the kernel has no IPv6

SIOCGIFFLAGS = 0x8913  # linux/sockios.h
IFF_UP = 0x1  # linux/if.h


def set_up(name: str, mtu: int, queue_packets: int) -> None:
    """Set MTU and queue length, and set the device up. LocalError with the message of `ip`."""
    lines = [f"link set dev {name} mtu {mtu} txqueuelen {queue_packets}"]
    if os.path.exists(IPV6_SETTINGS):
        lines.append(
            f"link set dev {name} addrgenmode none"
        )  # no link-local address, so no packets of the kernel's own
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
    """Add addresses; one that the device has already stays."""
    _ip([f"address replace {address} dev {name}{' nodad' if ':' in address else ''}" for address in addresses])


def remove_addresses(name: str, addresses: list[str]) -> None:
    """Remove addresses, and with them the routes of their subnets."""
    _ip([f"address del {address} dev {name}" for address in addresses])


def add_routes(name: str, routes: list[str]) -> None:
    """Route these prefixes into the device; the routes vanish with it."""
    _ip([f"route replace {route} dev {name}" for route in routes])


def remove_routes(name: str, routes: list[str]) -> None:
    """Remove routes."""
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
