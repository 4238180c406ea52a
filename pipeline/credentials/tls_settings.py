"""What this end proves itself with and checks the other by, from the files that the configuration names.

`tls` goes to the tcp workers with the plan, and again after a reload: certificates and their private key as PEM, how
the other end is verified. A server's pre-shared keys do not: they stay with the supervisor (pipeline.peers.registry).
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.config import Config
from pipeline.credentials import certificates, keys
from pipeline.credentials.certificates import Pair
from pipeline.credentials.state_dir import StateDir
from pipeline.log import LOG


class TlsSettings(NamedTuple):
    """`key`: a client's, b"" for none. `certificate`: PEM of our own, b"" for none."""

    tls: dict | None
    key: bytes
    certificate: bytes


def load(config: Config, state: StateDir | None, key: bytes = b"") -> TlsSettings:
    """Read everything. `key`: a client's that came with an invitation. ConfigError with what is wrong in which file."""
    if config.encryption == "none":
        return TlsSettings(None, b"", b"")
    pair = Pair(b"", b"")
    if config.tls_cert_file:
        pair = certificates.read_pair(config.tls_cert_file, config.tls_key_file, "tls_cert_file")
    elif state is not None:
        pair = state.server_pair(config.name)
    if pair.certificate and (notice := certificates.notice(pair.certificate, "our certificate")):
        LOG.warning("%s", notice)
    ca = certificates.read_certificate(config.tls_ca_file, "tls_ca_file") if config.tls_ca_file else b""
    if not key and config.key_file:
        key = keys.read_key(config.key_file, "key_file")
    tls = {
        "certificate": pair.certificate.decode(),
        "key": pair.key.decode(),
        "ca": ca.decode(),
        "minimum": config.tls_min_version,
    }
    if config.mode == "server":
        tls["fingerprint"] = certificates.fingerprint(pair.certificate)
    else:
        pin = config.server_certificate_hash
        tls |= {
            "fingerprint": pin.hex(),
            "server_name": config.tls_server_name,
            # a pinned certificate, or a server that proves to have our key, needs nobody to vouch for it
            "verify": not config.tls_skip_verify and bool(ca or not (pin or key)),
        }
    return TlsSettings(tls, key, pair.certificate)
