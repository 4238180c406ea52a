"""The expectations of `join`, `up`, `down` and `leave` about the machine and about their arguments."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import LocalError, PermissionDenied

if TYPE_CHECKING:
    from pipeline.cli.joined_client import JoinedClient
    from pipeline.config import Config
    from pipeline.credentials.invitation import Invitation

TUN_DEVICE = Path("/dev/net/tun")


def expect_root(command: str) -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(f"{command}: run as root")


def expect_free(name: str) -> None:
    """The invitation is not used up for what cannot run."""
    from pipeline.cli import service_manager

    if service_manager.is_running(name):
        raise LocalError(f'instance "{name}" runs already: stop it first, or give another --name')
    if not TUN_DEVICE.exists():
        raise LocalError(f"{TUN_DEVICE} is missing: modprobe tun; in a container: --device /dev/net/tun")


def checked_name(name: str) -> str:
    from pipeline.config.peer import check_peer_name

    check_peer_name(name)
    return name


def config_of(client: JoinedClient, line: Invitation, settings: dict[str, Any]) -> Config:
    """The configuration that the client is going to have. ConfigError if a setting is wrong."""
    from pipeline import config

    return config.parse({**client.settings(line), **settings}, "--set")
