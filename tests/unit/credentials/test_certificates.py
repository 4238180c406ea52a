"""Certificates in real handshakes, verified as strictly as Python can."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from pipeline.credentials import certificates
from pipeline.credentials.certificates import (
    CertificatePair,
    describe,
    expiry_warning,
    fingerprint,
    issue,
    make_ca,
    make_self_signed,
    names,
    read_pair,
)
from pipeline.errors import ConfigError

HOST = "vpn.example.org"
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
ANCIENT = NOW - 900 * DAY  # a certificate issued then has expired, its CA has not

CA = make_ca("our CA", ANCIENT)
OTHER_CA = make_ca("our CA")
SERVER = issue(CA, HOST, server=True, hosts=["192.0.2.1", "2001:db8::1"])
CLIENT = issue(CA, "alice", server=False)
OWN = make_self_signed("tun0")


Load = Callable[[ssl.SSLContext, CertificatePair], None]


class Refused(Exception):
    """The handshake failed, for the reason that OpenSSL gives."""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Give a context a certificate with its key; ssl reads them from files only."""

    def loaded(context: ssl.SSLContext, pair: CertificatePair) -> None:
        path = tmp_path / "pair.pem"
        path.write_bytes(pair.key + pair.certificate)
        context.load_cert_chain(path)

    return loaded


def verifying(
    context: ssl.SSLContext, ca: CertificatePair, flags: ssl.VerifyFlags = ssl.VERIFY_DEFAULT
) -> ssl.SSLContext:
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT | flags
    context.load_verify_locations(cadata=ca.certificate.decode())
    return context


def client_of(ca: CertificatePair, flags: ssl.VerifyFlags = ssl.VERIFY_DEFAULT) -> ssl.SSLContext:
    return verifying(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ca, flags)


def server_with(load: Load, pair: CertificatePair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, pair)
    return context


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after the handshake, the client first."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    waiting = list(ends)
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                raise Refused(str(error)) from None
    return ends[0], ends[1]


# -- accepted


@pytest.mark.parametrize("host", [HOST, "192.0.2.1", "2001:db8::1"])
def test_a_server_of_a_ca_is_identified_by_its_name_and_addresses(load: Load, host: str) -> None:
    client, _ = handshake(client_of(CA), server_with(load, SERVER), host)
    assert client.version() == "TLSv1.3"


def test_a_client_of_a_ca_is_identified_by_its_name(load: Load) -> None:
    client, server = client_of(CA), verifying(server_with(load, SERVER), CA)
    load(client, CLIENT)
    _, end = handshake(client, server, HOST)
    assert names(end.getpeercert(True)) == ("alice",)


def test_a_servers_own_certificate_is_identified_by_its_hash(load: Load) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    end, _ = handshake(client, server_with(load, OWN), "wherever")
    assert hashlib.sha256(end.getpeercert(True)).hexdigest() == fingerprint(OWN.certificate)


def test_a_servers_own_certificate_passes_strict_verification(load: Load) -> None:
    handshake(client_of(OWN, ssl.VERIFY_X509_PARTIAL_CHAIN), server_with(load, OWN), "tun0")


def test_a_server_may_have_the_name_of_its_ca(load: Load) -> None:
    ca = make_ca(HOST)
    handshake(client_of(ca), server_with(load, issue(ca, HOST, server=True)), HOST)


# -- refused


@pytest.mark.parametrize(
    ("pair", "host", "why"),
    [
        (issue(CA, HOST, server=True, now=ANCIENT), HOST, "expired"),
        (issue(CA, HOST, server=True, now=NOW + 2 * certificates.CLOCK_SKEW), HOST, "not yet valid"),
        (issue(OTHER_CA, HOST, server=True), HOST, "unable to get local issuer certificate"),
        (issue(make_ca("another CA"), HOST, server=True), HOST, "unable to get local issuer certificate"),
        (OWN, "tun0", "self-signed certificate"),
        (SERVER, "other.example.org", "Hostname mismatch"),
        (SERVER, "192.0.2.2", "IP address mismatch"),
        (issue(CA, HOST, server=False), HOST, "unsuitable certificate purpose"),
    ],
    ids=[
        "expired",
        "not yet valid",
        "CA of the same name",
        "another CA",
        "no CA",
        "wrong name",
        "wrong address",
        "a client's",
    ],
)
def test_a_client_refuses_a_server(load: Load, pair: CertificatePair, host: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        handshake(client_of(CA), server_with(load, pair), host)


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (None, "peer did not return a certificate"),
        (issue(CA, "alice", server=False, now=ANCIENT), "expired"),
        (issue(CA, "alice", server=False, now=NOW + 2 * certificates.CLOCK_SKEW), "not yet valid"),
        (issue(make_ca("another CA"), "alice", server=False), "unable to get local issuer certificate"),
        (issue(CA, "alice", server=True), "unsuitable certificate purpose"),
    ],
    ids=["none", "expired", "not yet valid", "another CA", "a server's"],
)
def test_a_server_refuses_a_client(load: Load, pair: CertificatePair | None, why: str) -> None:
    client, server = client_of(CA), verifying(server_with(load, SERVER), CA)
    if pair:
        load(client, pair)
    with pytest.raises(Refused, match=why):
        handshake(client, server, HOST)


def test_an_issued_certificate_cannot_issue_others() -> None:
    with pytest.raises(ConfigError, match="expected the certificate of a CA"):
        issue(CLIENT, "mallory", server=False)


def test_a_ca_issues_no_certificate_that_outlives_it() -> None:
    ca = make_ca("old", NOW - certificates.CA_LIFE + DAY)
    assert describe(issue(ca, HOST, server=True).certificate).not_after == describe(ca.certificate).not_after
    with pytest.raises(ConfigError, match="the CA has expired"):
        issue(make_ca("older", NOW - certificates.CA_LIFE - DAY), HOST, server=True)


@pytest.mark.parametrize("name", ["", "a" * 65, "a\nb", "a\0b"], ids=repr)
def test_a_name_that_no_certificate_can_have_is_refused(name: str) -> None:
    for make in (make_ca, make_self_signed):
        with pytest.raises(ConfigError, match="1 to 64 printable characters"):
            make(name)


def test_a_host_name_that_is_not_ascii_is_refused() -> None:
    with pytest.raises(ConfigError, match="xn--"):
        issue(CA, HOST, server=True, hosts=["bücher.example"])


# -- content


def test_a_certificate_is_valid_from_an_hour_ago_for_clocks_that_are_behind() -> None:
    for pair in (make_ca("ca", NOW), make_self_signed("server", now=NOW), issue(CA, "alice", server=False, now=NOW)):
        assert NOW.replace(microsecond=0) - describe(pair.certificate).not_before == timedelta(hours=1)


def test_a_ca_and_a_servers_own_certificate_live_ten_years_and_issued_ones_825_days() -> None:
    for pair, days in (
        (make_ca("ca", NOW), 3650),
        (make_self_signed("server", now=NOW), 3650),
        (issue(OTHER_CA, "alice", server=False, now=NOW), 825),
    ):
        assert (describe(pair.certificate).not_after - NOW + timedelta(seconds=1)).days == days


def test_a_summary_has_names_and_hash() -> None:
    described = describe(SERVER.certificate)
    assert described.names == (HOST,)
    assert described.fingerprint == hashlib.sha256(der(SERVER)).hexdigest() == fingerprint(SERVER.certificate)


def test_of_a_chain_the_first_certificate_counts() -> None:
    assert fingerprint(SERVER.certificate + CA.certificate) == fingerprint(SERVER.certificate)


def test_names_are_dns_names_and_then_those_of_the_subject() -> None:
    assert names(der(issue(CA, "alice", server=False, hosts=["a.example", "10.0.0.1"]))) == ("alice", "a.example")
    assert names(der(CA)) == ("our CA",)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (NOW, ""),
        (NOW + 794 * DAY, ""),
        (NOW + 810 * DAY, "server.crt expires on "),
        (NOW + 826 * DAY, "server.crt has expired on "),
        (NOW - DAY, "server.crt is not valid before "),
    ],
)
def test_a_warning_comes_a_month_before_the_end(now: datetime, text: str) -> None:
    said = expiry_warning(issue(OTHER_CA, HOST, server=True, now=NOW).certificate, "server.crt", now)
    assert said.startswith(text) and bool(said) == bool(text)


# -- any bytes


def der(pair: CertificatePair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.decode())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_have_no_names(data: bytes) -> None:
    assert names(data) == ()


@given(st.lists(st.tuples(st.integers(0, len(der(CLIENT)) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_certificate_has_some_names_or_none(changes: Sequence[tuple[int, int]]) -> None:
    damaged = bytearray(der(CLIENT))
    for at, value in changes:
        damaged[at] = value
    assert all(isinstance(name, str) for name in names(bytes(damaged)))


def test_a_certificate_of_an_unknown_version_has_no_names() -> None:
    version = bytes.fromhex("a003020102")  # [0] { INTEGER 2 }: v3, RFC 5280, 4.1
    unknown = der(CLIENT).replace(version, version[:-1] + b"\x3e", 1)
    assert unknown != der(CLIENT) and names(unknown) == ()
    with pytest.raises(ConfigError, match="expected a certificate"):
        describe(ssl.DER_cert_to_PEM_cert(unknown).encode())


@given(st.binary(max_size=200))
def test_a_file_of_any_bytes_is_a_certificate_or_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="expected a certificate"):
        describe(b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----END CERTIFICATE-----\n")


def test_a_pair_is_read_from_its_files_and_refused_if_its_parts_do_not_match(tmp_path: Path) -> None:
    certificate, key = tmp_path / "a.crt", tmp_path / "a.key"

    def write(first: bytes, second: bytes, mode: int = 0o600) -> None:
        certificate.write_bytes(first)
        key.write_bytes(second)
        key.chmod(mode)

    write(*SERVER)
    assert read_pair(certificate, key, "CA") == SERVER
    for first, second, mode, text in (
        (SERVER.certificate, CLIENT.key, 0o600, f"{key}: CA: expected the private key of the certificate"),
        (SERVER.certificate, b"garbage", 0o600, f"{key}: CA: expected a private key"),
        (b"garbage", SERVER.key, 0o600, f"{certificate}: CA: expected a certificate"),
        (SERVER.certificate, SERVER.key, 0o644, f"{key}: CA: other users can read"),
    ):
        write(first, second, mode)
        with pytest.raises(ConfigError) as caught:
            read_pair(certificate, key, "CA")
        assert str(caught.value).startswith(text)
    key.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        read_pair(certificate, key, "CA")


def test_serial_numbers_are_positive_and_differ() -> None:
    serials = {x509.load_der_x509_certificate(der(make_self_signed("a"))).serial_number for _ in range(20)}
    assert len(serials) == 20 and all(0 < serial < 1 << 160 for serial in serials)


def test_a_certificate_whose_key_or_dates_cannot_be_read_is_refused_and_not_a_traceback(tmp_path: Path) -> None:
    """`cryptography` parses a field at its first use."""
    der_bytes = bytearray(der(SERVER))
    certificate, key = tmp_path / "a.crt", tmp_path / "a.key"
    key.write_bytes(SERVER.key)
    key.chmod(0o600)
    refused = 0
    for at in range(len(der_bytes)):
        changed = bytes(der_bytes[:at]) + bytes([der_bytes[at] ^ 0x41]) + bytes(der_bytes[at + 1 :])
        certificate.write_text(ssl.DER_cert_to_PEM_cert(changed))
        try:
            describe(certificate.read_bytes())
            read_pair(certificate, key, "CA")
        except ConfigError:
            refused += 1
    assert refused > len(der_bytes) // 4
