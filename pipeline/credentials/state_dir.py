"""The state directory: what a server keeps over its restarts, mode 0700.

server.crt, server.key    its certificate, made at the first start unless the configuration names one
addresses.json            the tunnel addresses of each peer
peers/NAME.json           peers that were invited (pipeline.peers.peer_file)
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

from pipeline.credentials import certificates, keys
from pipeline.credentials.certificates import CertificatePair
from pipeline.errors import TunnelError
from pipeline.log import LOG

DIRECTORY_MODE = 0o700


class StateDir:
    """The directory; it is made if it does not exist. LocalError or PermissionDenied if it cannot be made."""

    def __init__(self, directory: str) -> None:
        self.path = Path(directory)
        try:
            self.path.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise keys.write_error(self.path, error) from None

    def server_certificate(self, name: str) -> CertificatePair:
        """The server's own certificate and key, made if they do not exist."""
        certificate, key = self.path / "server.crt", self.path / "server.key"
        if not certificate.exists():  # a key alone is left over from a start that was cut short
            pair = certificates.make_self_signed(name)
            keys.write_secret(key, pair.key, replace=True)
            keys.write_secret(certificate, pair.certificate)
            LOG.info("%s: made a certificate for this server", certificate)
        return certificates.read_pair(certificate, key, "server certificate")

    def load_addresses(self) -> dict[str, list[str]]:
        """The addresses that were saved; none if the file does not exist or cannot be read, which is logged."""
        path = self.path / "addresses.json"
        try:
            found = json.loads(path.read_bytes())
            return {str(name): [str(ip_address(address)) for address in addresses] for name, addresses in found.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            LOG.error("%s: cannot be read, peers may get other addresses than before: %s", path, error)
            return {}

    def save_addresses(self, addresses: dict[str, list[str]]) -> None:
        path = self.path / "addresses.json"
        try:
            keys.write_secret(path, json.dumps(addresses, indent=1).encode(), replace=True)
        except TunnelError as error:
            LOG.error("%s", error)
