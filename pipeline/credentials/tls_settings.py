"""TLS settings: by what this end proves its identity and verifies the other end, from the files that settings name.

`tls` goes to the tcp workers with the plan, and again after a reload. It has certificates and private key as PEM, and
how the other end is verified. A server's pre-shared keys stay with the supervisor (pipeline.peers.registry).
"""

from __future__ import annotations

from typing import NamedTuple

from pipeline.config import Config
from pipeline.credentials import certificates, keys
from pipeline.credentials.certificates import CertificatePair
from pipeline.credentials.state_dir import StateDir
from pipeline.log import LOG
from pipeline.transport.settings import TlsMaterial


class TlsSettings(NamedTuple):
    """`tls`: None without encryption. `key`: of a client, b"" for none. `certificate`: our own, PEM, b"" for none."""

    tls: TlsMaterial | None
    key: bytes
    certificate: bytes


def load(config: Config, state: StateDir | None, key: bytes = b"") -> TlsSettings:
    """Read all files. `key`: of a client, from an invitation. ConfigError names the file and its problem."""
    if config.encryption == "none":
        return TlsSettings(None, b"", b"")
    pair = CertificatePair(b"", b"")
    if config.tls_cert_file:
        pair = certificates.read_pair(config.tls_cert_file, config.tls_key_file, "tls_cert_file")
    elif state is not None:
        pair = state.server_certificate(config.name)
    if pair.certificate and (warning := certificates.expiry_warning(pair.certificate, "our certificate")):
        LOG.warning("%s", warning)
    ca = certificates.read_certificate(config.tls_ca_file, "tls_ca_file") if config.tls_ca_file else b""
    if not key and config.key_file:
        key = keys.read_key(config.key_file, "key_file")
    texts = pair.certificate.decode(), pair.key.decode(), ca.decode(), config.tls_min_version
    if config.mode == "server":
        tls = TlsMaterial(*texts, certificates.fingerprint(pair.certificate))
    else:
        pin = config.server_certificate_hash
        # a pinned certificate, or a server that proves to have our key, needs no CA to vouch for it
        verify = not config.tls_skip_verify and bool(ca or not (pin or key))
        tls = TlsMaterial(*texts, pin.hex(), config.tls_server_name, verify)
    return TlsSettings(tls, key, pair.certificate)
