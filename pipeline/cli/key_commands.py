"""The commands that make keys and certificates, in files: `genkey`, `gen-cert`. No instance is needed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.secret_output import print_secret
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.cli.command_line import AddCommand
    from pipeline.credentials.certificates import CertificatePair

CA = "ca"  # the files of a CA are ca.crt and ca.key


def add_commands(command: AddCommand) -> None:
    genkey = command("genkey", _genkey, "generate a key that a server and one client share")
    genkey.add_argument("file", metavar="FILE", nargs="?", help="a new file, mode 0600; without it, standard output")

    gen_cert = command("gen-cert", _gen_cert, "make a CA of your own, or a certificate that it signs")
    gen_cert.add_argument(
        "directory", metavar="DIR", help="the directory of ca.crt and ca.key; NAME.crt and NAME.key are written there"
    )
    which = gen_cert.add_mutually_exclusive_group(required=True)
    which.add_argument("--ca", metavar="NAME", help="make the CA; its certificate has this name")
    which.add_argument("--server", metavar="NAME", help="make the certificate of the server with this host name")
    which.add_argument("--client", metavar="NAME", help="make the certificate of the client with this name")
    gen_cert.add_argument(
        "--address",
        metavar="HOST",
        action="append",
        default=[],
        help="another host name or address of the server; may be given several times",
    )


def _genkey(arguments: argparse.Namespace) -> int:
    from pipeline.credentials import keys

    key = keys.generate()
    if arguments.file is None:
        print_secret(key)
    else:
        keys.write_secret(arguments.file, key.encode() + b"\n")
    return 0


def _gen_cert(arguments: argparse.Namespace) -> int:
    from pipeline.credentials import certificates

    directory = Path(arguments.directory)
    if arguments.address and arguments.server is None:
        raise UsageError("--address is only valid with --server")
    for host in arguments.address:
        _check_host(host)
    if arguments.ca is not None:
        _write_pair(directory, CA, certificates.make_ca(arguments.ca))
        return 0
    name = arguments.client if arguments.server is None else arguments.server
    _check_file_name(name)
    ca = certificates.read_pair(directory / f"{CA}.crt", directory / f"{CA}.key", "CA")
    pair = certificates.issue(ca, name, server=arguments.server is not None, hosts=arguments.address)
    _write_pair(directory, name, pair)
    return 0


def _check_host(host: str) -> None:
    from pipeline.config.values import check_host

    try:
        check_host(host)
    except ValueError as expected:
        raise UsageError(f"--address: expected {expected}, got {host!r}") from None


def _check_file_name(name: str) -> None:
    from pipeline.config.peer import check_peer_name

    check_peer_name(name)
    if name == CA:
        raise UsageError(f'the name "{CA}" is reserved for the files of the CA: choose another name')


def _write_pair(directory: Path, name: str, pair: CertificatePair) -> None:
    from pipeline.credentials import certificates, keys

    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    try:
        directory.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise keys.write_error(directory, error) from None
    keys.write_secret(key, pair.key)
    try:
        keys.write_secret(certificate, pair.certificate)
    except BaseException:
        key.unlink()
        raise
    described = certificates.describe(pair.certificate)
    print(f"{certificate}: SHA-256 {described.fingerprint}, valid until {described.not_after:%Y-%m-%d}")
