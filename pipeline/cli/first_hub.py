"""The first hub of a machine: `invite` makes it where the program is a service, and nothing is configured or runs yet.

So a fresh machine needs two commands alone: the installation of the package, and `invite`. The hub listens on the port
of --address, by default on that of every hub. Its network is drawn at random from those that few others use. This
machine is not in it.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.errors import LocalError, TunnelError

CONFIGURATIONS = Path("/etc/tunnel-supervisor")
NAME = "hub"
PORT = 9000  # the default of every hub
START_SECONDS = 20.0
LOOK_SECONDS = 0.1
DRAWS = 100


def make_if_first(arguments: argparse.Namespace) -> None:
    """Make it, start it, and say so. LocalError if it does not start; nothing is left of it then."""
    from pipeline.cli import service_manager
    from pipeline.credentials import keys
    from pipeline.supervisor.instance import find_instances

    if arguments.config or arguments.name or os.geteuid() != 0 or service_manager.find_advice(NAME):
        return
    found = find_instances()
    if found.running or found.dead or any(CONFIGURATIONS.glob("*/config.json")):
        return
    settings = _settings(arguments.address)
    path = CONFIGURATIONS / NAME / "config.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys.write_secret(path, (json.dumps(settings, indent=2) + "\n").encode())
    try:
        service_manager.start(NAME, path)
        _wait_until_running()
    except BaseException:
        service_manager.stop(NAME)
        path.unlink()
        path.parent.rmdir()
        raise
    port = settings["local_addr"].rpartition(":")[2]
    print(
        f"note: this machine is a hub now, the service tunnel-supervisor@{NAME}. In the tunnel it has the address "
        f"{settings['tunnel_addr'][0]}. Clients must reach it on TCP port {port}. Its settings: {path}",
        file=sys.stderr,
    )


def _settings(address: str) -> dict[str, Any]:
    port = address.rpartition(":")[2] if address.count(":") == 1 or "]:" in address else ""
    four, six = _free_networks()
    addresses = [f"{four[1]}/{four.prefixlen}", f"{six[1]}/{six.prefixlen}"]
    return {"mode": "server", "name": NAME, "local_addr": f":{port or PORT}", "tunnel_addr": addresses}


def _free_networks() -> tuple[ipaddress.IPv4Network, ipaddress.IPv6Network]:
    """A /24 of 10.0.0.0/8 with little use elsewhere, and a /64 of our own (RFC 4193)."""
    taken = _networks_here()
    six = ipaddress.IPv6Network((b"\xfd" + secrets.token_bytes(5) + bytes(10), 64))
    for _ in range(DRAWS):
        four = ipaddress.IPv4Network((bytes([10, 64 + secrets.randbelow(128), secrets.randbelow(256), 0]), 24))
        if not any(four.overlaps(each) for each in taken):
            return four, six
    raise LocalError("this machine is in all private networks: write a configuration with a tunnel_addr")


def _networks_here() -> list[ipaddress.IPv4Network]:
    import socket

    import psutil

    addresses = [each for device in psutil.net_if_addrs().values() for each in device if each.family is socket.AF_INET]
    return [ipaddress.IPv4Network(f"{each.address}/{each.netmask or 32}", strict=False) for each in addresses]


def _wait_until_running() -> None:
    from pipeline.supervisor.control import control_socket
    from pipeline.supervisor.instance import Instance

    until = time.monotonic() + START_SECONDS
    while True:
        try:
            if control_socket.send_request(Instance(NAME), {"command": "status"})["state"] == "running":
                return
        except TunnelError:
            pass  # it has only just begun
        if time.monotonic() > until:
            raise LocalError(f"the hub does not start: journalctl -u tunnel-supervisor@{NAME}")
        time.sleep(LOOK_SECONDS)
