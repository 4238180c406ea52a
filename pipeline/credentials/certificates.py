"""X.509 certificates: a small CA and what it issues, a server's own, and what a certificate says.

    make_ca       signs others, and is not trusted to let those sign
    issue         a server's or a client's, of a CA
    make_server   a server's own, signed by itself, which clients know by its hash

EC keys on P-256 (RFC 5480), signed with SHA-256, and everything in them that RFC 5280 asks for, since Python 3.13
checks that (ssl.VERIFY_X509_STRICT). They begin an hour before they are made: clocks differ.

A client is told from the others by its certificate's names. Whoever verified it trusts its CA to give no name twice.
`cryptography` is imported where it is used: commands that need no certificate start without it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.credentials.keys import read_secret
from pipeline.errors import ConfigError, Problem

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SLACK = timedelta(hours=1)
CA_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=3650)  # its hash is in the hands of clients: to change it takes new invitations
ISSUED_LIFE = timedelta(days=825)  # as easy-rsa has it: a renewed one is known by its name
NOTICE = timedelta(days=30)  # before it expires
COMMON_NAME_MAX = 64  # ub-common-name, RFC 5280, A.1
CERTIFICATE_BYTES_MAX = 1 << 20


class Pair(NamedTuple):
    """A certificate and its private key (PKCS #8, not encrypted), both PEM."""

    certificate: bytes
    key: bytes


class Description(NamedTuple):
    """What a certificate says, for people."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    fingerprint: str


def make_ca(name: str, now: datetime | None = None) -> Pair:
    """A CA of this name. Whoever has its key decides who is who."""
    key = _new_key()
    begin, end = _life(now, CA_LIFE)
    return _signed(_builder(name, key.public_key(), begin, end, is_ca=True), _subject(name), key, key)


def issue(ca: Pair, name: str, *, server: bool, hosts: Sequence[str] = (), now: datetime | None = None) -> Pair:
    """A certificate of the CA. `hosts`: host names and addresses that a server has beside its name."""
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, authority_key = _certificate(ca.certificate), _key(ca)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise _wrong("expected a CA with an EC key, as gen-cert makes it, found one with another kind of key")
    begin, end = _life(now, ISSUED_LIFE)
    end = min(end, authority.not_valid_after_utc)
    if end <= begin + SLACK:
        raise _wrong(f"the CA has expired on {end:%Y-%m-%d}: make another one, and everything that it issued")
    key = _new_key()
    builder = _for_tls(_builder(name, key.public_key(), begin, end, is_ca=False), server, (name, *hosts))
    builder = builder.add_extension(_authority_key_identifier(authority), critical=False)
    return _signed(builder, authority.subject, authority_key, key)


def make_server(name: str, hosts: Sequence[str] = (), now: datetime | None = None) -> Pair:
    """A server's own certificate, of no CA."""
    key = _new_key()
    begin, end = _life(now, SERVER_LIFE)
    builder = _builder(name, key.public_key(), begin, end, is_ca=False)
    return _signed(_for_tls(builder, True, (name, *hosts)), _subject(name), key, key)


def read_certificate(path: str | Path, what: str) -> bytes:
    """The PEM text of a file. ConfigError if there is no certificate in it."""
    try:
        with open(path, "rb") as file:
            data = file.read(CERTIFICATE_BYTES_MAX)
    except OSError as error:
        raise ConfigError([Problem(what, f"cannot be read: {error.strerror}", str(path))]) from None
    try:
        _certificate(data)
    except ConfigError as error:
        raise ConfigError([Problem(what, problem.text, str(path)) for problem in error.problems]) from None
    return data


def read_pair(certificate: str | Path, key: str | Path, what: str) -> Pair:
    """Both from their files. ConfigError if they do not belong together, or others can read the key."""
    pair = Pair(read_certificate(certificate, what), read_secret(key, what))
    try:
        _key(pair)
    except ConfigError as error:
        raise ConfigError([Problem(what, problem.text, str(key)) for problem in error.problems]) from None
    return pair


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the first certificate, hexadecimal."""
    return _certificate_hash(_certificate(pem))


def names(der: bytes) -> tuple[str, ...]:
    """The names in a certificate, DNS names first and then those of its subject; none in what cannot be read."""
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        return ()
    return _names(certificate)


def describe(pem: bytes) -> Description:
    """What the first certificate of a PEM text says. ConfigError if there is none."""
    certificate = _certificate(pem)
    return Description(
        _names(certificate),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        _certificate_hash(certificate),
    )


def notice(pem: bytes, what: str, now: datetime | None = None) -> str:
    """A sentence if the certificate is about to expire or not valid at all, else nothing."""
    now = now or datetime.now(UTC)
    described = describe(pem)
    if now < described.not_before:
        return f"{what} is not valid before {described.not_before:%Y-%m-%d %H:%M} UTC: is the clock right?"
    if now > described.not_after:
        return f"{what} has expired on {described.not_after:%Y-%m-%d}: nobody who checks it connects."
    if now > described.not_after - NOTICE:
        return f"{what} expires on {described.not_after:%Y-%m-%d}, in {(described.not_after - now).days} days."
    return ""


# -- what goes into one


def _life(now: datetime | None, life: timedelta) -> tuple[datetime, datetime]:
    now = now or datetime.now(UTC)
    return now - SLACK, now + life


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not (name.isprintable() and 0 < len(name) <= COMMON_NAME_MAX):
        raise _wrong(f"its name: expected 1 to {COMMON_NAME_MAX} printable characters, found {len(name)}")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, public_key, begin: datetime, end: datetime, is_ca: bool) -> x509.CertificateBuilder:
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
        .subject_name(_subject(name))
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

    traffic_class = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    return builder.add_extension(x509.ExtendedKeyUsage([traffic_class]), critical=False).add_extension(
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
        raise _wrong("a name in it: expected ASCII, host names in their xn-- form") from None


def _authority_key_identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """What leads from an issued certificate to its CA."""
    from cryptography import x509

    try:
        is_ca = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise _wrong("expected the certificate of a CA, as gen-cert makes it, found one that may not sign others")
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _signed(
    builder: x509.CertificateBuilder,
    issuer: x509.Name,
    issuer_key: EllipticCurvePrivateKey,
    key: EllipticCurvePrivateKey,
) -> Pair:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    certificate = builder.issuer_name(issuer).sign(issuer_key, hashes.SHA256())
    return Pair(
        certificate.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


# -- what is in one


def _certificate(pem: bytes) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except (ValueError, x509.InvalidVersion):
        raise _wrong("expected a certificate in PEM, found none that can be read") from None


def _key(pair: Pair) -> EllipticCurvePrivateKey:
    """The private key, which has to be the one of the certificate."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key = load_pem_private_key(pair.key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: encrypted
        raise _wrong("expected a private key in PEM without a password, found none that can be read") from None
    own, expected = (
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), _certificate(pair.certificate).public_key())
    )
    if own != expected:
        raise _wrong("expected the private key of the certificate, found another one's")
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


def _wrong(text: str) -> ConfigError:
    return ConfigError([Problem("certificate", text)])
