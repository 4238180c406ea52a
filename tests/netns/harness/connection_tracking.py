"""What a machine of the lab knows of connections that pass it."""

from __future__ import annotations

import shutil

import pytest

from tools.lab.namespace import Namespace


def forget_connections(node: Namespace) -> None:
    """As after a restart: no connection and no mapping of a NAT is left."""
    if shutil.which("conntrack") is None:
        pytest.skip("conntrack is not installed")
    node.run(["conntrack", "-F"])
