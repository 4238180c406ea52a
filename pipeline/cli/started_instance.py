"""An instance that a command has started: wait until it is what it should be, and say so, or why it is not.

start_and_wait(name, config, until)    exit status 0, or 1 for one that goes on trying
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from pipeline.errors import LocalError, NotRunning

LOOK_SECONDS = 0.1
STARTING_SECONDS = 10.0  # an instance has its control socket long before


def start_and_wait(name: str, config: Path, until: float) -> int:
    from pipeline.cli import service_manager

    service_manager.start(name, config)
    advice = service_manager.find_advice(name)
    if advice:
        print(f"note: {advice}", file=sys.stderr)
    try:
        while not (result := _settled(status := _status(name))) and time.monotonic() <= until:
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        raise LocalError(f"interrupted: {name} has started, and goes on trying") from None
    if result:
        print(result)
        return 0
    print(
        f"tunnel-supervisor: {name} has started, but {_trouble(status)}. It goes on trying; its log: "
        f"{service_manager.log_of(name)}",
        file=sys.stderr,
    )
    return 1


def _trouble(status: dict[str, Any]) -> str:
    """The reason why an instance is not what it should be yet."""
    server = status["server"]
    if server is None:
        return f"is {status['state']}"
    reasons = "; ".join([*server["trouble"], *status["notes"]])
    if server["connections"]:
        return f"has no address of the server: {reasons or 'the server gives none'}"
    return f"is not connected to {server['host']}: {reasons or 'no answer yet'}"


def _status(name: str) -> dict[str, Any]:
    """The status of an instance. One that begins or ends right now, such as that of a join before, is waited for."""
    from pipeline.cli import service_manager
    from pipeline.supervisor.control import control_socket
    from pipeline.supervisor.instance import Instance

    until = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            return control_socket.send_request(Instance(name), {"command": "status"})
        except NotRunning:
            if not _holds_its_place(name) or time.monotonic() > until:
                raise LocalError(f"{name} has ended again: see {service_manager.log_of(name)}") from None
        time.sleep(LOOK_SECONDS)


def _holds_its_place(name: str) -> bool:
    from pipeline.supervisor.instance import Instance

    try:
        Instance(name).supervisor_pid()
    except NotRunning:
        return False
    return True


def _settled(status: dict[str, Any]) -> str:
    """The result that two looks agree on. Addresses come one by one, but not while the instance answers: so what is
    there before an answer and after it, is all."""
    result, before = _result(status), ""
    while result != before:
        result, before = _result(_status(status["name"])), result
    return result


def _result(status: dict[str, Any]) -> str:
    """The sentence about an instance that has become what it should be; "" until then."""
    if status["state"] != "running":
        return ""
    server = status["server"]
    addresses = _addresses(status["tun_name"])
    if server is None:
        return f"{status['name']} is running, address {', '.join(addresses) or 'none'}"
    if not server["connections"] or not addresses:
        return ""
    return f"connected to {server['host']} as {status['name']}, address {', '.join(addresses)}"


def _addresses(device: str) -> list[str]:
    import ipaddress
    import socket

    import psutil

    families = socket.AF_INET, socket.AF_INET6
    texts = [each.address for each in psutil.net_if_addrs().get(device, ()) if each.family in families]
    return [text for text in texts if not ipaddress.ip_address(text.partition("%")[0]).is_link_local]
