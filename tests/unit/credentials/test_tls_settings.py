"""What check, start and reload accept, a worker can load, and the other end can connect to: at both ends."""

from __future__ import annotations

import logging
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from pipeline.config import Config, parse
from pipeline.credentials import certificates, tls_settings
from pipeline.credentials.state_dir import StateDir
from pipeline.errors import ConfigError
from pipeline.transport.tls_context import context_of
from tests.harness.tls_ends import issue

GOOD = issue("server.test")
CA = issue("authority", is_ca=True)
BROKEN = b"-----BEGIN CERTIFICATE-----\nMIIBdzCC\n-----END CERTIFICATE-----\n"
COMMENT = "# Főtanúsítvány, José\n".encode("latin-1", "replace")


def pair_of(key: Any, digest: Any = None) -> tuple[bytes, bytes]:
    """A certificate of its own for this key, and the key, PEM."""
    begin, end = certificates._life(None, timedelta(days=1))
    name = certificates._subject("odd.test")
    made = certificates._builder(name, key.public_key(), begin, end, is_ca=False).issuer_name(name).sign(key, digest)
    return (
        made.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        if not isinstance(key, ed25519.Ed25519PrivateKey)
        else key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def rsa_pair(bits: int) -> tuple[bytes, bytes]:
    """By openssl(1): `cryptography` makes no key as short as these."""
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", f"rsa:{bits}", "-nodes", "-subj", "/CN=odd.test", "-keyout", "-"],
        capture_output=True,
        check=True,
    ).stdout
    return certificates._blocks(made, certificates.CERTIFICATE_BLOCK), certificates._blocks(
        made, certificates.KEY_BLOCK
    )


class Files:
    """The files of one end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, name: str, data: bytes) -> str:
        file = self.path / name
        file.write_bytes(data)
        file.chmod(0o600)
        return str(file)

    def config(self, mode: str, certificate: bytes = b"", key: bytes = b"", ca: bytes = b"") -> Config:
        settings: dict[str, Any] = {"mode": mode, "state_dir": str(self.path)}
        if certificate or key:
            settings |= {"tls_cert_file": self.put("own.crt", certificate), "tls_key_file": self.put("own.key", key)}
        if ca:
            settings["tls_ca_file"] = self.put("ca.crt", ca)
        if mode == "server":
            return parse({**settings, "tunnel_addr": "10.0.0.1/24"})
        return parse({**settings, "remote_addr": "vpn.example.org:9000"})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def load(config: Config) -> tls_settings.TlsSettings:
    return tls_settings.load(config)


SIDES = pytest.mark.parametrize("mode", ["server", "client"])
OWN = GOOD.certificate.encode(), GOOD.key.encode()


@SIDES
def test_a_file_with_other_contents_is_named_by_its_setting(files: Files, mode: str) -> None:
    ca = CA.certificate.encode()
    config = files.config(mode, *OWN, ca)
    before = load(config)
    assert tls_settings.changed_contents(config, before, load(config)) == []
    other = issue("server.test")
    files.config(mode, other.certificate.encode(), other.key.encode(), ca)
    assert tls_settings.changed_contents(config, before, load(config)) == ["tls_cert_file", "tls_key_file"]
    files.config(mode, *OWN, ca + issue("another", is_ca=True).certificate.encode())
    assert tls_settings.changed_contents(config, before, load(config)) == ["tls_ca_file"]


@SIDES
@pytest.mark.parametrize(
    ("material", "file", "text"),
    [
        (lambda: rsa_pair(1024), "own.crt", "tls_cert_file: its key is too short to be safe"),
        (
            lambda: pair_of(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()),
            "own.crt",
            "tls_cert_file: nobody can connect to an end with it in TLS 1.3",
        ),
        (lambda: (OWN[0] + BROKEN, OWN[1]), "own.crt", "tls_cert_file: expected PEM, found 2 blocks of which one"),
        (
            lambda: (OWN[0] + OWN[0][:300], OWN[1]),
            "own.crt",
            "tls_cert_file: expected PEM, found 2 blocks of which one",
        ),
        (lambda: (OWN[0], issue("other").key.encode()), "own.key", "tls_cert_file: expected the private key of the"),
        (
            lambda: (
                OWN[0],
                GOOD.signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")),
            ),
            "own.key",
            "tls_cert_file: expected a private key in PEM without a password",
        ),
        (lambda: (OWN[0], b""), "own.key", "tls_cert_file: expected a private key"),
        (lambda: (bytes(100), OWN[1]), "own.crt", "tls_cert_file: expected a certificate in PEM"),
        (lambda: (OWN[0] * 100, OWN[1]), "own.crt", "tls_cert_file: longer than 65536 bytes"),
    ],
    ids=["rsa-1024", "secp256k1", "broken chain", "cut chain", "other key", "encrypted", "no key", "zeros", "huge"],
)
def test_a_pair_that_no_worker_could_use_is_refused_with_its_file(
    files: Files, mode: str, material: Any, file: str, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(files.config(mode, *material()))
    assert str(caught.value).startswith(f"{files.path / file}: {text}")


@SIDES
@pytest.mark.parametrize(
    "ca",
    [BROKEN, CA.certificate.encode() + BROKEN, b"nonsense", CA.key.encode()],
    ids=["broken", "broken second", "nonsense", "a key"],
)
def test_cas_that_no_worker_could_load_are_refused_with_their_file(files: Files, mode: str, ca: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        load(files.config(mode, *OWN, ca=ca))
    assert str(caught.value).startswith(f"{files.path}/ca.crt: tls_ca_file: expected")


@SIDES
@pytest.mark.parametrize(
    "around",
    [
        lambda pem: b"\xef\xbb\xbf" + pem,
        lambda pem: pem.replace(b"\n", b"\r\n"),
        lambda pem: COMMENT + pem + COMMENT,
        lambda pem: "Bag Attributes\n    friendlyName: é\n".encode("utf-16") + b"\n" + pem,
        lambda pem: pem + bytes(3),
        lambda pem: OWN[1] + OWN[0],  # one file for both
    ],
    ids=["bom", "crlf", "comments", "utf-16 comments", "zeros behind", "both in each"],
)
def test_all_around_the_blocks_of_pem_is_comment_in_any_encoding(files: Files, mode: str, around: Any) -> None:
    loaded = load(files.config(mode, around(OWN[0]), around(OWN[1]), around(CA.certificate.encode())))
    assert loaded.tls is not None and f"{loaded.tls}".isascii()
    context_of(loaded.tls, server=mode == "server")


@SIDES
def test_all_common_keys_are_good_for_both_ends(files: Files, mode: str) -> None:
    for certificate, key in (
        rsa_pair(2048),
        pair_of(rsa.generate_private_key(65537, 3072), hashes.SHA256()),
        pair_of(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384()),
        pair_of(ed25519.Ed25519PrivateKey.generate()),
        (OWN[0], b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + OWN[1]),
    ):
        assert load(files.config(mode, certificate, key)).tls is not None
        assert load_pem_private_key(key[key.index(b"-----BEGIN") :], None)


@SIDES
def test_dates_are_warnings_about_every_certificate(
    files: Files, mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tunnel"), "propagate", True)
    expired, later = issue("old", age=timedelta(days=9)), issue("authority", is_ca=True, age=timedelta(days=-9))
    chain = expired.certificate + issue("between", age=timedelta(days=5)).certificate
    load(files.config(mode, chain.encode(), expired.key.encode(), (CA.certificate + later.certificate).encode()))
    assert "our certificate has expired on" in caplog.text
    assert "in the chain of our certificate: between has expired on" in caplog.text
    assert "in tls_ca_file: authority is not valid before" in caplog.text and "is the clock right?" in caplog.text


def test_a_servers_own_certificate_is_made_at_the_first_start_alone(files: Files) -> None:
    config, state = files.config("server"), StateDir(str(files.path))

    def own(make: bool) -> tls_settings.TlsSettings:
        return tls_settings.load(config, lambda: state.server_certificate("town", make=make))

    with pytest.raises(ConfigError, match=r"server.crt: server certificate: cannot be read: No such file"):
        own(make=False)
    made = own(make=True)
    assert own(make=False) == own(make=True) == made
    (files.path / "server.crt").write_bytes(made.certificate + BROKEN)
    with pytest.raises(ConfigError, match=rf"^{files.path}/server.crt: tls_cert_file: expected PEM"):
        own(make=False)
