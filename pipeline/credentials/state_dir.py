"""The state directory: what a server keeps over its restarts, mode 0700.

server.crt, server.key    its certificate, made at the first start unless the configuration names one
addresses.json            the tunnel addresses of each peer
peers/NAME.json           peers that were invited (pipeline.peers.peer_file)
disabled.json             names of peers that are disabled (pipeline.peers.shut_out)
ended_invitations.json    keys of invitations that are good no longer (pipeline.peers.ended_invitations)
public_addr               the address that `invite --address` was given last
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from pipeline.credentials import certificates, keys
from pipeline.credentials.certificates import CertificatePair
from pipeline.credentials.ownership import find_exposure
from pipeline.errors import ConfigError, LocalError
from pipeline.log import LOG
from pipeline.system import hang_guard, small_file

DIRECTORY_MODE = 0o700
SERVER_CERTIFICATE, SERVER_KEY = "server.crt", "server.key"
PEERS = "peers"  # the directory of the peers that were invited
PUBLIC_ADDR = "public_addr"
PUBLIC_ADDR_BYTES_MAX = 1024
ADDRESSES_BYTES_MAX = 1 << 22  # 8192 peers with eight addresses each have half of that


class StateDir:
    """The directory; it is made if it does not exist. LocalError or PermissionDenied if it cannot be made."""

    def __init__(self, directory: str) -> None:
        self.path = Path(directory)
        try:
            self.path.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise keys.write_error(self.path, error) from None
        if exposure := find_exposure(self.path):  # also if somebody has made it a moment before us
            raise LocalError(exposure)

    def server_certificate(self, name: str, *, make: bool) -> CertificatePair:
        """The server's own certificate and key. `make`: make them if they do not exist, as a first start does."""
        certificate, key = self.path / SERVER_CERTIFICATE, self.path / SERVER_KEY
        if make and not os.path.lexists(certificate):  # a key alone is left over from a start that was cut short
            pair = certificates.make_self_signed(name)
            keys.write_secret(key, pair.key, replace=True)
            keys.write_secret(certificate, pair.certificate)
            LOG.info("%s: made a certificate for this server", certificate)
        return certificates.read_pair(certificate, key, "server certificate")

    def load_addresses(self) -> dict[str, list[str]]:
        """The addresses that were saved; none if the file does not exist or cannot be read, which is logged."""
        path = self.path / "addresses.json"
        try:
            found = json.loads(small_file.read_text(path, ADDRESSES_BYTES_MAX))
            return {str(name): [str(ip_address(address)) for address in addresses] for name, addresses in found.items()}
        except (ConfigError, ValueError, AttributeError, TypeError, RecursionError) as error:
            if os.path.lexists(path):
                text = error.problems[0].text if isinstance(error, ConfigError) else error
                LOG.error("%s: not used, peers may get other addresses than before: %s", path, text)
            return {}

    def save_addresses(self, addresses: dict[str, list[str]]) -> None:
        """LocalError or PermissionDenied if they cannot be saved."""
        path, data = self.path / "addresses.json", json.dumps(addresses, indent=1).encode()
        try:
            hang_guard.call(lambda: keys.write_secret(path, data, replace=True))
        except OSError as error:
            raise keys.write_error(path, error) from None

    def load_public_addr(self) -> str:
        """The address at which clients reach this server, as saved; "" if none can be read."""
        try:
            return small_file.bare(small_file.read_text(self.path / PUBLIC_ADDR, PUBLIC_ADDR_BYTES_MAX))
        except ConfigError:
            return ""

    def save_public_addr(self, address: str) -> None:
        """LocalError or PermissionDenied if it cannot be saved."""
        path = self.path / PUBLIC_ADDR
        try:
            hang_guard.call(lambda: keys.write_secret(path, address.encode() + b"\n", replace=True))
        except OSError as error:
            raise keys.write_error(path, error) from None

    def make_peers(self) -> None:
        """Make the directory of peers, so that files of another server's peers can be copied there. `invite` says it
        if it cannot be made."""
        with suppress(OSError):
            hang_guard.call(lambda: (self.path / PEERS).mkdir(DIRECTORY_MODE, exist_ok=True))

    def remove_unfinished(self) -> None:
        """Remove the temporary files of writes that were cut short: one may hold the key of a peer revoked since."""
        for directory in (self.path, self.path / PEERS):
            try:
                hang_guard.call(partial(_remove_unfinished, directory))
            except FileNotFoundError:
                pass  # it cannot be made
            except OSError as error:
                LOG.warning("%s: files left by writes that were cut short stay: %s", directory, error.strerror)


def _remove_unfinished(directory: Path) -> None:
    for name in os.listdir(directory):
        path = directory / name
        if keys.TEMPORARY_NAME.fullmatch(name) and stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
            LOG.info("%s: removed, left by a write that was cut short", path)
