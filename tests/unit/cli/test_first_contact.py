"""The first contact with a server that asks its clients for a certificate. TLS is real, at both ends."""

from __future__ import annotations

import hashlib
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.config import Config, parse
from pipeline.contact import first_contact
from pipeline.contact.first_contact import FirstContactError, Server
from pipeline.credentials import key_exchange, keys
from pipeline.transport.settings import ALPN
from tests.harness.fake_proxy import FakeProxy, ForwardingProxy
from tests.harness.tls_ends import Pair, issue

KEY = bytes(range(32))
WANTED = "the server wants a certificate of this client"


class StrictServer:
    """It accepts clients with a certificate of its CA alone, and says nothing to them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = issue("ca", is_ca=True)
        self.own = issue("server.test")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file("server.crt", self.own.certificate), self.file("server.key", self.own.key))
        context.load_verify_locations(self.file("ca.crt", self.ca.certificate))
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([ALPN])
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.accepted = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def file(self, name: str, text: str) -> str:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, suppress(OSError), self._context.wrap_socket(sock, server_side=True) as channel:
                self.accepted += 1
                channel.recv(1)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def config(self, client: Pair | None, **way: object) -> Config:
        pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.own.certificate)).hexdigest()
        key = self.directory / "key"
        keys.write_secret(key, b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n", replace=True)
        files = {}
        if client is not None:
            files = {
                "tls_cert_file": self.file("client.crt", client.certificate),
                "tls_key_file": self.file("client.key", client.key),
            }
        remote = f"127.0.0.1:{self.port}"
        return parse(
            {"mode": "client", "remote_addr": remote, "tls_fingerprint": pin, "key_file": str(key), **files, **way}
        )

    def failure(self, client: Pair | None, **way: object) -> FirstContactError:
        with pytest.raises(FirstContactError) as caught:
            first_contact.exchange(Server.all_of(self.config(client, **way), KEY)[0], KEY, key_exchange.new_private())
        return caught.value


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[StrictServer]:
    made = StrictServer(tmp_path)
    yield made
    made.close()


def test_a_client_without_a_certificate_is_told_so_at_once_and_the_invitation_is_not_in_doubt(
    strict: StrictServer,
) -> None:
    failure = strict.failure(None)
    assert WANTED in str(failure) and failure.is_final and not failure.is_open and strict.accepted == 0


def test_a_certificate_of_another_ca_is_named_as_the_trouble(strict: StrictServer) -> None:
    failure = strict.failure(issue("foreign.test", issue("other", is_ca=True)))
    assert "does not accept our certificate" in str(failure) and failure.is_final and not failure.is_open


def test_a_client_with_a_certificate_gets_through(strict: StrictServer) -> None:
    failure = strict.failure(issue("client.test", strict.ca))
    assert WANTED not in str(failure) and strict.accepted == 1, failure


def test_through_a_proxy_the_server_is_the_one_that_the_line_names(strict: StrictServer) -> None:
    with ForwardingProxy() as proxy:
        failure = strict.failure(issue("client.test", strict.ca), proxy=f"http://127.0.0.1:{proxy.port}")
        assert proxy.asked == [f"CONNECT 127.0.0.1:{strict.port} HTTP/1.1"]
    assert strict.accepted == 1, failure


def test_a_proxy_that_does_not_let_us_through_is_named_and_the_invitation_is_not_in_doubt(
    strict: StrictServer,
) -> None:
    with FakeProxy(b"HTTP/1.1 403 \xe9\x9b\r\n\r\n") as proxy:
        failure = strict.failure(None, proxy=f"http://127.0.0.1:{proxy.port}")
    assert f"proxy http://127.0.0.1:{proxy.port}: the proxy forbids" in str(failure)
    assert str(failure).isprintable() and not failure.is_final and not failure.is_open


RELAY = """
import os, select, socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    for ready in select.select([0, sock], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else sock.recv(65536)
        if not data:
            sys.exit()
        sock.sendall(data) if ready == 0 else os.write(1, data)
"""


def test_through_a_command_the_server_is_the_one_that_the_line_names(strict: StrictServer) -> None:
    command = [sys.executable, strict.file("relay.py", RELAY), "%h", "%p"]
    failure = strict.failure(issue("client.test", strict.ca), proxy_command=command)
    assert strict.accepted == 1, failure


def test_a_command_that_fails_is_quoted_and_the_invitation_is_not_in_doubt(strict: StrictServer) -> None:
    failure = strict.failure(None, proxy_command=["/bin/sh", "-c", "echo no way >&2; exit 1"])
    assert "ended at once (exit status 1): no way" in str(failure) and not failure.is_final and not failure.is_open


@pytest.mark.parametrize("way", ["websocket wss://127.0.0.1:{}/x", "proxy https://127.0.0.1:{}"])
def test_a_web_server_or_proxy_that_is_not_there_is_named_in_place_of_the_server(
    strict: StrictServer, way: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        text = way.format(listener.getsockname()[1])
    setting, url = text.split()
    failure = strict.failure(None, **{setting: url})
    assert str(failure).startswith(f"{text}: connection refused")
    assert not failure.is_final and not failure.is_open
