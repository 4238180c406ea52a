"""What a server keeps over its restarts, in a directory of its own, mode 0700.

server.crt, server.key    its certificate, made on the first start unless the configuration names one
addresses.json            which peer has which tunnel address
peers/NAME.json           peers that were invited (pipeline.peers.peer_file)
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

from pipeline.credentials import certificates, keys
from pipeline.credentials.certificates import Pair
from pipeline.errors import TunnelError
from pipeline.log import LOG

DIRECTORY_MODE = 0o700


class StateDir:
    """The directory; made if it is not there. LocalError or PermissionDenied if it cannot be."""

    def __init__(self, directory: str) -> None:
        self.path = Path(directory)
        try:
            self.path.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise keys.not_written(self.path, error) from None

    def server_pair(self, name: str) -> Pair:
        """The server's own certificate and key."""
        certificate, key = self.path / "server.crt", self.path / "server.key"
        if not certificate.exists():  # what a start left that was cut short is of no use
            pair = certificates.make_server(name)
            keys.write_secret(key, pair.key, replace=True)
            keys.write_secret(certificate, pair.certificate)
            LOG.info("made a certificate for this server: %s", certificate)
        return certificates.read_pair(certificate, key, "server certificate")

    def addresses(self) -> dict[str, list[str]]:
        """As they were saved; nothing if the file is not there or cannot be read, which is said."""
        path = self.path / "addresses.json"
        try:
            found = json.loads(path.read_bytes())
            return {str(name): [str(ip_address(address)) for address in addresses] for name, addresses in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            LOG.error("%s: %s: peers may get other addresses than before", path, error)
            return {}

    def save_addresses(self, addresses: dict[str, list[str]]) -> None:
        path = self.path / "addresses.json"
        try:
            keys.write_secret(path, json.dumps(addresses, indent=1).encode(), replace=True)
        except TunnelError as error:
            LOG.error("%s", error)
