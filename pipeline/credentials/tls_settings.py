"""TLS settings: by what this end proves its identity and verifies the other end, from the files that settings name.
The login at a proxy is one of these files.

`tls` goes to the tcp workers with the plan, and again after a reload. It has certificates and private key as PEM, and
how the other end is verified. A server's pre-shared keys stay with the supervisor (pipeline.peers.registry).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Config
from pipeline.credentials import certificates, keys, proxy_login
from pipeline.credentials.certificates import CertificatePair
from pipeline.credentials.state_dir import SERVER_CERTIFICATE, SERVER_KEY
from pipeline.errors import ConfigError, LocalError, Problem
from pipeline.log import LOG
from pipeline.transport import tls_context, tls_pem
from pipeline.transport.settings import TlsMaterial
from pipeline.wire.approach import Proxy


class TlsSettings(NamedTuple):
    """`tls`: None without encryption. `key`: of a client, b"" for none. `certificate`: our own, PEM, b"" for none.

    `expires`: the time at which that certificate does (time_t); None for none. `proxy`: of a client, with its login.
    `proxy_ca`: CAs of the proxy, PEM, "" for those of the system.
    """

    tls: TlsMaterial | None
    key: bytes
    certificate: bytes
    expires: float | None = None
    proxy: Proxy | None = None
    proxy_ca: str = ""


class _Content(NamedTuple):
    """A file that a setting names."""

    setting: str
    read: Callable[[TlsSettings], object]


CONTENTS = (
    _Content("tls_cert_file", lambda found: found.certificate),
    _Content("tls_key_file", lambda found: found.tls and found.tls.key_pem),
    _Content("tls_ca_file", lambda found: found.tls and found.tls.ca_pem),
    _Content("key_file", lambda found: found.key),
    _Content("proxy_login_file", lambda found: found.proxy and found.proxy.login),
    _Content("proxy_ca_file", lambda found: found.proxy_ca),
)


def changed_contents(config: Config, before: TlsSettings, now: TlsSettings) -> list[str]:
    """The settings of this configuration whose files have other contents now."""
    return [each.setting for each in CONTENTS if getattr(config, each.setting) and each.read(before) != each.read(now)]


OwnPair = Callable[[], CertificatePair]
"""Where a server's certificate comes from, unless the configuration names one."""


def load(config: Config, own: OwnPair | None = None, key: bytes = b"") -> TlsSettings:
    """Read all files, and prove that workers can use them. ConfigError names the file and its problem.

    LocalError if that cannot be tried. `key`: of a client, from an invitation.
    """
    proxy, proxy_ca = proxy_login.load(config), proxy_login.load_ca(config)
    return _load_proofs(config, own, key)._replace(proxy=proxy, proxy_ca=proxy_ca)


def _load_proofs(config: Config, own: OwnPair | None, key: bytes) -> TlsSettings:
    if config.encryption == "none":
        return TlsSettings(None, b"", b"")
    pair = CertificatePair(b"", b"")
    if config.tls_cert_file:
        pair = certificates.read_pair(config.tls_cert_file, config.tls_key_file, "tls_cert_file")
    elif own is not None:
        pair = own()
    ca = certificates.read_certificates(config.tls_ca_file, "tls_ca_file") if config.tls_ca_file else b""
    if config.compat:
        key = b""  # that wire format has no proofs, so a key is no reason to trust a certificate
    elif not key and config.key_file:
        key = keys.read_key(config.key_file, "key_file")
    texts = pair.certificate.decode(), pair.key.decode(), ca.decode(), config.tls_min_version
    is_server = config.mode == "server"
    if is_server:
        tls = TlsMaterial(*texts, certificates.fingerprint(pair.certificate))
    else:
        pin = config.server_certificate_hash
        # a pinned certificate, or a server that proves to have our key, needs no CA to vouch for it
        verify = not config.tls_skip_verify and bool(ca or not (pin or key))
        tls = TlsMaterial(*texts, pin.hex(), config.tls_server_name, verify)
    tls = tls._replace(alpn=config.tls_alpn, like_a_web_server=is_server and bool(config.fallback))
    try:
        tls_context.prove_usable(tls, server=is_server)
    except ConfigError as error:
        raise ConfigError([_in_its_file(problem, config) for problem in error.problems]) from None
    except OSError as error:  # no descriptor is left, for one
        raise LocalError(f"keys and certificates cannot be tried: {error.strerror or error}") from None
    for warning in (
        *certificates.expiry_warnings(pair.certificate, "our certificate", "in the chain of our certificate:"),
        *certificates.expiry_warnings(ca, "the first certificate in tls_ca_file", "in tls_ca_file:"),
    ):
        LOG.warning("%s", warning)
    expires = certificates.describe(pair.certificate).not_after.timestamp() if pair.certificate else None
    return TlsSettings(tls, key, pair.certificate, expires)


def _in_its_file(problem: Problem, config: Config) -> Problem:
    """The problem of a PEM text, with the setting and the file that the text is from."""
    own = Path(config.state_dir)
    setting, file = {
        tls_pem.CERTIFICATE: ("tls_cert_file", config.tls_cert_file or str(own / SERVER_CERTIFICATE)),
        tls_pem.KEY: ("tls_key_file", config.tls_key_file or str(own / SERVER_KEY)),
        tls_pem.CAS: ("tls_ca_file", config.tls_ca_file),
    }.get(problem.path, ("", ""))
    return Problem(setting, problem.text, file)
