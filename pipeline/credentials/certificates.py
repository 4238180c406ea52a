"""X.509 certificates: a small CA and the certificates that it issues, a server's own, and reading them.

    make_ca            a CA; certificates that it issues cannot sign others
    issue              a certificate of a server or a client, signed by a CA
    make_self_signed   a server's own certificate, which clients identify by its hash

Certificates have EC keys on P-256 (RFC 5480) and are signed with SHA-256. They hold everything that RFC 5280 requires,
because Python 3.13 checks it (ssl.VERIFY_X509_STRICT). They become valid an hour before they are made: clocks differ.

A server tells clients apart by the names in their certificates. It trusts the CA to give no name twice.
`cryptography` is imported where it is used: commands that need no certificate start without it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.credentials.keys import read_secret
from pipeline.errors import ConfigError, Problem
from pipeline.system import small_file

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

CLOCK_SKEW = timedelta(hours=1)
CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=3650)  # clients hold its hash: another certificate needs new invitations
ISSUED_LIFE = timedelta(days=825)  # the default of easy-rsa; a renewed certificate is identified by its name
EXPIRY_WARNING = timedelta(days=30)  # before it expires
COMMON_NAME_MAX = 64  # ub-common-name, RFC 5280, A.1
CHAIN_BYTES_MAX = 1 << 16  # of a certificate with the CAs between it and its root: a tenth of that is much
CERTIFICATES_BYTES_MAX = 1 << 20  # of CAs: four times those that a system trusts

CERTIFICATE_BLOCK = "(?:X509 |TRUSTED )?CERTIFICATE"
KEY_BLOCK = "(?:[A-Z0-9]+ )*PRIVATE KEY"


class CertificatePair(NamedTuple):
    """A certificate and its private key (PKCS #8, not encrypted), both PEM."""

    certificate: bytes
    key: bytes


class CertificateSummary(NamedTuple):
    """The content of a certificate that people ask for."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    fingerprint: str


def make_ca(name: str, now: datetime | None = None) -> CertificatePair:
    """A CA of this name. The holder of its key can pose as every peer and every server."""
    key = _new_key()
    subject, (begin, end) = _subject(name), _life(now, CA_LIFE)
    return _signed(_builder(subject, key.public_key(), begin, end, is_ca=True), subject, key, key)


def issue(
    ca: CertificatePair, name: str, *, server: bool, hosts: Sequence[str] = (), now: datetime | None = None
) -> CertificatePair:
    """A certificate signed by the CA. `hosts`: further host names and addresses of a server."""
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, authority_key = _certificate(ca.certificate), _key(ca)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise _certificate_error("expected a CA with an EC key, as gen-cert makes it, found another kind of key")
    begin, end = _life(now, ISSUED_LIFE)
    end = min(end, authority.not_valid_after_utc)
    if end <= begin + CLOCK_SKEW:
        raise _certificate_error(f"the CA has expired on {end:%Y-%m-%d}: make a CA and all its certificates anew")
    key = _new_key()
    builder = _for_tls(_builder(_subject(name), key.public_key(), begin, end, is_ca=False), server, (name, *hosts))
    builder = builder.add_extension(_authority_key_identifier(authority), critical=False)
    return _signed(builder, authority.subject, authority_key, key)


def make_self_signed(name: str, hosts: Sequence[str] = (), now: datetime | None = None) -> CertificatePair:
    """A server's own certificate, signed by itself."""
    key = _new_key()
    subject, (begin, end) = _subject(name), _life(now, SERVER_LIFE)
    builder = _builder(subject, key.public_key(), begin, end, is_ca=False)
    return _signed(_for_tls(builder, True, (name, *hosts)), subject, key, key)


def read_certificates(path: str | Path, what: str, limit: int = CERTIFICATES_BYTES_MAX) -> bytes:
    """The certificates of a file, PEM. ConfigError if it holds none, or the first one cannot be read.

    The others may be older than `cryptography` accepts; pipeline.transport.tls_context proves whether TLS takes them.
    """
    pem = _blocks(small_file.read(path, limit, what), CERTIFICATE_BLOCK)
    try:
        _certificate(pem)
    except ConfigError as error:
        raise ConfigError([Problem(what, problem.text, str(path)) for problem in error.problems]) from None
    return pem


def read_pair(certificate: str | Path, key: str | Path, what: str) -> CertificatePair:
    """A certificate and its key from their files. ConfigError if they do not match, or other users can read the key."""
    chain = read_certificates(certificate, what, CHAIN_BYTES_MAX)
    pair = CertificatePair(chain, _blocks(read_secret(key, what), KEY_BLOCK))
    try:
        _key(pair)
    except ConfigError as error:
        raise ConfigError([Problem(what, problem.text, str(key)) for problem in error.problems]) from None
    return pair


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the first certificate, hexadecimal."""
    return _certificate_hash(_certificate(pem))


def names(der: bytes) -> tuple[str, ...]:
    """The names in a certificate: DNS names, then common names of its subject. No names if it cannot be read."""
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        return ()
    return _names(certificate)


def describe(pem: bytes) -> CertificateSummary:
    """A summary of the first certificate in a PEM text. ConfigError if there is none."""
    certificate = _certificate(pem)
    try:  # `cryptography` parses a field at its first use
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except ValueError:
        raise _certificate_error("expected a certificate with dates, found one whose dates cannot be read") from None
    return CertificateSummary(_names(certificate), begin, end, _certificate_hash(certificate))


def expiry_warning(pem: bytes, what: str, now: datetime | None = None) -> str:
    """A sentence if the first certificate expires soon or is not valid now, else ""."""
    now = now or datetime.now(UTC)
    summary = describe(pem)
    if now < summary.not_before:
        return f"{what} is not valid before {summary.not_before:%Y-%m-%d %H:%M} UTC: is the clock right?"
    if now > summary.not_after:
        return f"{what} has expired on {summary.not_after:%Y-%m-%d}: ends that verify it refuse to connect."
    if now > summary.not_after - EXPIRY_WARNING:
        return f"{what} expires on {summary.not_after:%Y-%m-%d}, in {(summary.not_after - now).days} days."
    return ""


def expiry_warnings(pem: bytes, what: str, others: str, now: datetime | None = None) -> Iterator[str]:
    """Such a sentence for each certificate in a PEM text: the first one is `what`, each other one is `others`.

    A certificate that cannot be read is passed over.
    """
    for index, block in enumerate(re.findall(rb"-----BEGIN .*?-----END [^\n]*", pem, re.DOTALL)):
        try:
            names = describe(block).names
            warning = expiry_warning(block, what if not index else f"{others} {', '.join(names) or index}", now)
        except (ConfigError, ValueError):
            continue
        if warning:
            yield warning


# -- making


def _life(now: datetime | None, life: timedelta) -> tuple[datetime, datetime]:
    now = now or datetime.now(UTC)
    return now - CLOCK_SKEW, now + life


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not (name.isprintable() and 0 < len(name) <= COMMON_NAME_MAX):
        raise _certificate_error(f"its name: expected 1 to {COMMON_NAME_MAX} printable characters, found {len(name)}")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, public_key: EllipticCurvePublicKey, begin: datetime, end: datetime, is_ca: bool
) -> x509.CertificateBuilder:
    from cryptography import x509

    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _for_tls(builder: x509.CertificateBuilder, server: bool, hosts: Sequence[str]) -> x509.CertificateBuilder:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    return builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False).add_extension(
        x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)]), critical=False
    )


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise _certificate_error("a name in it: expected ASCII, international host names in xn-- form") from None


def _authority_key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """The extension that leads from an issued certificate to its CA."""
    from cryptography import x509

    try:
        is_ca = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise _certificate_error("expected the certificate of a CA, as gen-cert makes it, found another one")
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _signed(
    builder: x509.CertificateBuilder,
    issuer: x509.Name,
    issuer_key: EllipticCurvePrivateKey,
    key: EllipticCurvePrivateKey,
) -> CertificatePair:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    certificate = builder.issuer_name(issuer).sign(issuer_key, hashes.SHA256())
    return CertificatePair(
        certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


# -- reading


def _blocks(data: bytes, label: str) -> bytes:
    """The PEM blocks of this label, one after another. All else is comment (RFC 7468, 2), in any encoding."""
    pattern = rb"-----BEGIN (%s)-----.*?(?:-----END \1-----|(?=-----BEGIN )|\Z)" % label.encode()
    return b"".join(match[0].strip() + b"\n" for match in re.finditer(pattern, data, re.DOTALL))


def _certificate(pem: bytes) -> x509.Certificate:
    """The first certificate."""
    from cryptography import x509
    from cryptography.utils import CryptographyDeprecationWarning

    try:
        with warnings.catch_warnings():  # of what a later version refuses, such as serial number 0 of an old CA
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        raise _certificate_error("expected a certificate in PEM, found none that can be read") from None


def _key(pair: CertificatePair) -> PrivateKeyTypes:
    """The private key, which must be that of the certificate."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key = load_pem_private_key(pair.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: encrypted
        raise _certificate_error(
            "expected a private key in PEM without a password, found none that can be read"
        ) from None
    try:
        own, expected = (
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for public in (key.public_key(), _certificate(pair.certificate).public_key())
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _certificate_error("expected a certificate for an EC or RSA key, found another one") from None
    if own != expected:
        raise _certificate_error("expected the private key of the certificate, found another key")
    return key


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        common = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns = alternative.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        dns = []
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return ()
    return tuple(dict.fromkeys((*dns, *common)))


def _certificate_hash(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _certificate_error(text: str) -> ConfigError:
    return ConfigError([Problem("certificate", text)])
