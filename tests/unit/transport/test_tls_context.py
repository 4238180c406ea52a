"""Contexts and handshakes: who is let in, how others are turned away, and what a handshake needs and leaves behind."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from pipeline.errors import ConfigError
from pipeline.transport.settings import ALPN
from pipeline.transport.tls_context import TlsContext, client_context, server_context
from tests.harness.tls_ends import NAME, End, Pair, connected, issue, shake_hands, tcp_pair
from tests.support import ROOT

ALERT = 0x15  # content type of a record, RFC 8446, 5.1
CHILD_SECONDS = 30

AUTHORITY = issue("authority", is_ca=True)
OWN = issue(NAME)
ISSUED = issue(NAME, AUTHORITY)
CLIENT = issue("client", AUTHORITY)
RSA_KEY = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)
ENCRYPTED_KEY = OWN.signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")).decode()


def server_of(pair: Pair = OWN, ca: str = "", minimum: str = "1.3") -> TlsContext:
    return server_context(pair.certificate, pair.key, ca, minimum)


def client_of(
    ca: str = OWN.certificate, pair: Pair | None = None, minimum: str = "1.3", verify: bool = True
) -> TlsContext:
    certificate, key = (pair.certificate, pair.key) if pair else ("", "")
    return client_context(minimum, ca, system_cas=False, verify=verify, certificate_pem=certificate, key_pem=key)


def plain_context(protocol: int = ssl.PROTOCOL_TLS_CLIENT, alpn: list[str] | None = None) -> ssl.SSLContext:
    """Of somebody else's program."""
    context = ssl.SSLContext(protocol)
    if protocol == ssl.PROTOCOL_TLS_CLIENT:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


class ForeignEnd(End):
    """An end whose context is not ours."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self.socket = self._secure = context.wrap_socket(sock, do_handshake_on_connect=False)

    def step(self) -> bool:
        try:
            self._secure.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    @property
    def has_ticket(self) -> bool:
        return self._secure.session.has_ticket


# -- contexts


@pytest.mark.parametrize(
    ("certificate", "key", "ca", "complaint"),
    [
        ("", OWN.key, "", "^certificate: expected PEM"),
        ("nonsense", OWN.key, "", "^certificate: expected PEM"),
        ("é", OWN.key, "", "^certificate: expected PEM"),
        (OWN.key, OWN.key, "", "^certificate: expected PEM"),
        (OWN.certificate, "", "", "^private key: expected PEM"),
        (OWN.certificate, OWN.certificate, "", "^private key: expected PEM"),
        (OWN.certificate, OWN.key[:100], "", "^private key: expected PEM"),
        (OWN.certificate, CLIENT.key, "", "^private key: expected the certificate's, found another"),
        (OWN.certificate, RSA_KEY, "", "^private key: expected the certificate's, found another"),
        (OWN.certificate, ENCRYPTED_KEY, "", "^private key: expected one without a password"),
        (OWN.certificate, OWN.key, "nonsense", "^CA certificates: expected PEM"),
    ],
    ids=[
        "no-certificate", "nonsense", "not-ascii", "a-key-for-a-certificate", "no-key", "a-certificate-for-a-key",
        "half-a-key", "another-key", "a-key-of-another-kind", "an-encrypted-key", "nonsense-for-a-ca",
    ],
)  # fmt: skip
def test_a_wrong_text_is_named(certificate: str, key: str, ca: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        server_context(certificate, key, ca)


def test_a_client_that_is_to_verify_needs_a_ca() -> None:
    with pytest.raises(ConfigError, match="no CA"):
        client_context(system_cas=False, verify=True)


def test_the_cas_of_the_system_are_used_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_text(AUTHORITY.certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    with connected(client_context(system_cas=True, verify=True), server_of(ISSUED)):
        pass


def test_loading_a_key_leaves_no_descriptor_open() -> None:
    server_of()
    before = os.listdir("/proc/self/fd")
    server_of()
    with pytest.raises(ConfigError):
        server_context(OWN.certificate, CLIENT.key)
    assert os.listdir("/proc/self/fd") == before


def run_child(script: str, **environment: str) -> str:
    """The output of a child that has our certificate in `certificate` and `key`, and ends well."""
    head = f"certificate, key = {OWN[:2]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", head + script],
        env=os.environ | environment,
        text=True,
        cwd=ROOT,
        capture_output=True,
        timeout=CHILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_that_has_dropped_root_and_cannot_be_dumped_still_loads_its_key() -> None:
    run_child("""
import ctypes, os
from pipeline.transport.tls_context import server_context
if not os.getuid():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
PR_SET_DUMPABLE = 4  # linux/prctl.h
assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
assert os.stat("/proc/self/fd").st_uid == 0
server_context(certificate, key)
""")


def test_keys_of_sessions_are_not_logged_whatever_the_environment_says(tmp_path: Path) -> None:
    log = tmp_path / "keys"
    assert (
        run_child(
            """
import os
from pipeline.transport.tls_context import client_context, server_context
from tests.harness.tls_ends import connected
client = client_context(ca_pem=certificate, system_cas=False, verify=True)
server = server_context(certificate, key)
assert client.keylog_filename is server.keylog_filename is None and "SSLKEYLOGFILE" not in os.environ
with connected(client, server):
    print("connected")
""",
            SSLKEYLOGFILE=str(log),
        )
        == "connected\n"
    )
    assert not log.exists()


# -- who is let in


def test_both_ends_know_the_others_certificate() -> None:
    with connected(client_of(AUTHORITY.certificate, CLIENT), server_of(ISSUED, AUTHORITY.certificate)) as ends:
        client, server = ends
        assert client.channel.certificate() == ssl.PEM_cert_to_DER_cert(ISSUED.certificate)
        assert server.channel.certificate() == ssl.PEM_cert_to_DER_cert(CLIENT.certificate)


def test_a_client_without_a_certificate_shows_none() -> None:
    with connected(client_of(), server_of()) as (_, server):
        assert server.channel.certificate() == b""


def test_an_unverified_server_is_known_by_its_certificate() -> None:
    with connected(client_of("", verify=False), server_of(CLIENT)) as (client, _):
        assert client.channel.certificate() == ssl.PEM_cert_to_DER_cert(CLIENT.certificate)


@contextmanager
def failing(
    near: Callable[[socket.socket], End], far: Callable[[socket.socket], End], complaint: str
) -> Iterator[tuple[End, End]]:
    """Both ends, once one of them has given up for this reason."""
    sockets = tcp_pair()
    with sockets[0], sockets[1]:
        ends = near(sockets[0]), far(sockets[1])
        with ends[0].socket, ends[1].socket:
            with pytest.raises(OSError, match=complaint):
                shake_hands(*ends)
            yield ends


def ours(context: TlsContext, server: bool = False, hostname: str | None = NAME) -> Callable[[socket.socket], End]:
    return lambda sock: End(sock, context, server, hostname)


@pytest.mark.parametrize(
    ("presented", "hostname", "complaint"),
    [
        (CLIENT, NAME, "Hostname mismatch"),
        (OWN, NAME, "self-signed certificate"),
        (issue(NAME, AUTHORITY, age=timedelta(days=2)), NAME, "certificate has expired"),
        (issue(NAME, AUTHORITY, age=timedelta(days=-2)), NAME, "certificate is not yet valid"),
        (issue(NAME, issue("authority", is_ca=True)), NAME, "unable to get local issuer certificate"),
        (ISSUED, "127.0.0.2", "IP address mismatch"),
        (issue(NAME, AUTHORITY, strict=False), NAME, "Missing Authority Key Identifier"),
    ],
)
def test_a_client_rejects_a_server_that_is_not_the_expected_one(presented: Pair, hostname: str, complaint: str) -> None:
    with (
        failing(
            ours(client_of(AUTHORITY.certificate), hostname=hostname), ours(server_of(presented), True), complaint
        ) as (_, server),
        pytest.raises(OSError, match="alert"),
    ):  # the client has sent an alert
        while not server.step():
            pass


@pytest.mark.parametrize("hostname", [NAME, "127.0.0.1"])
def test_a_server_is_known_by_its_name_and_by_its_address(hostname: str) -> None:
    sockets = tcp_pair()
    with sockets[0], sockets[1]:
        shake_hands(
            End(sockets[0], client_of(AUTHORITY.certificate), False, hostname), End(sockets[1], server_of(ISSUED), True)
        )


@pytest.mark.parametrize(
    ("presented", "complaint"),
    [
        (None, "peer did not return a certificate"),
        (issue("client"), "self-signed certificate"),
        (issue("client", AUTHORITY, age=timedelta(days=2)), "certificate has expired"),
    ],
)
def test_a_client_that_no_ca_of_the_servers_knows_is_refused_and_told(presented: Pair | None, complaint: str) -> None:
    client, server = client_of(AUTHORITY.certificate, presented), server_of(ISSUED, AUTHORITY.certificate)
    with failing(ours(client), ours(server, True), complaint) as (near, _):
        assert near.channel.ready  # in TLS 1.3 it is done before the server has seen its certificate
        with pytest.raises(ssl.SSLError, match="alert"):
            near.receive()


@pytest.mark.parametrize(
    ("version", "complaint"),
    [(ssl.TLSVersion.TLSv1_1, "unsupported protocol"), (ssl.TLSVersion.TLSv1_2, "unsupported protocol")],
)
def test_an_old_version_is_refused_with_an_alert(version: ssl.TLSVersion, complaint: str) -> None:
    context = plain_context(alpn=[ALPN])
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # 1.1 needs SHA-1
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = version
    with (
        failing(lambda sock: ForeignEnd(sock, context), ours(server_of(), True), complaint) as (client, _),
        pytest.raises(ssl.SSLError, match="alert protocol version"),
    ):
        client.step()


def test_version_1_2_works_where_it_is_allowed_and_only_with_strong_ciphers() -> None:
    context = plain_context(alpn=[ALPN])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    sockets = tcp_pair()
    with sockets[0], sockets[1]:
        client = ForeignEnd(sockets[0], context)
        with client.socket:
            shake_hands(client, End(sockets[1], server_of(minimum="1.2"), True))
            assert not client.has_ticket
    context.set_ciphers("AES256-SHA256:ECDHE-ECDSA-AES256-SHA384:DHE-RSA-AES256-GCM-SHA384")
    with failing(lambda sock: ForeignEnd(sock, context), ours(server_of(minimum="1.2"), True), "no shared cipher"):
        pass


def test_version_1_2_carries_data_both_ways() -> None:
    server = server_of(minimum="1.2")
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with connected(client_of(minimum="1.2"), server) as (client, far):
        client.send(b"question")
        assert far.receive() == b"question"
        far.send(b"answer" * 10_000)
        assert client.receive_all(60_000) == b"answer" * 10_000
    assert server.session_stats()["hits"] == 0


@pytest.mark.parametrize("alpn", [None, ["http/1.1", "h2"]])
def test_a_client_with_another_protocol_is_rejected(alpn: list[str] | None) -> None:
    with failing(lambda sock: ForeignEnd(sock, plain_context(alpn=alpn)), ours(server_of(), True), f"not speak {ALPN}"):
        pass


def test_a_server_with_another_protocol_is_rejected() -> None:
    context = plain_context(ssl.PROTOCOL_TLS_SERVER)
    near, far = tcp_pair()
    with near, far, open(os.memfd_create("pair"), "w") as file:
        file.write(OWN.certificate + OWN.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        far.setblocking(False)
        secure = context.wrap_socket(far, server_side=True, do_handshake_on_connect=False)
        client = End(near, client_of(), server=False)
        with secure, pytest.raises(OSError, match=f"not speak {ALPN}"):
            while not client.step():
                try:
                    secure.do_handshake()
                except ssl.SSLWantReadError:
                    pass


# -- what is no handshake


def answer_to(data: bytes, complaint: str) -> bytes:
    """By a server to somebody who says this; the handshake fails."""
    near, far = tcp_pair()
    with near, far:
        server = End(far, server_of(), server=True)
        near.sendall(data)
        with pytest.raises(ssl.SSLError, match=complaint):
            while not server.step():
                pass
        near.setblocking(False)
        try:
            return near.recv(1000)
        except BlockingIOError:
            return b""


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "length too short"),  # a ClientHello of one byte
        (b"\x16\x03\x01\x40\x00\x01\x03\x00\x00" + bytes(16380), "excessive message size"),  # the begin of 192 KiB
        (b"\x16\x03\x01\x01\x00" + bytes(256), "unexpected message"),
        (b"\x17\x03\x03\x00\x20" + bytes(32), "unexpected message"),
    ],
)
def test_a_nonsensical_client_hello_is_answered_with_an_alert(data: bytes, complaint: str) -> None:
    answer = answer_to(data, complaint)
    assert (answer[0], len(answer)) == (ALERT, 7)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "wrong version number"),
        (bytes(300), "wrong version number"),
        (b"\xff" * 300, "wrong version number"),
        (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", "http request"),
        (b"CONNECT here:443 HTTP/1.1\r\n\r\n", "https proxy request"),
    ],
)
def test_bytes_that_are_no_tls_fail_without_an_answer(data: bytes, complaint: str) -> None:
    assert answer_to(data, complaint) == b""  # OpenSSL sends no alert to what is no TLS


def test_the_end_of_the_stream_in_a_handshake_is_an_error() -> None:
    near, far = tcp_pair()
    with far:
        server = End(far, server_of(), server=True)
        near.close()
        with pytest.raises(ConnectionResetError):
            while not server.step():
                pass


# -- what a handshake needs, and leaves behind


def test_a_server_waits_for_the_first_bytes_of_the_client() -> None:
    near, far = tcp_pair()
    with near, far:
        server = End(far, server_of(), server=True)
        with pytest.raises(BlockingIOError):
            server.channel.handshake()
        assert not server.channel.ready and not server.channel.wants_write


def test_a_handshake_goes_on_byte_by_byte() -> None:
    to_client, client_side = socket.socketpair()
    to_server, server_side = socket.socketpair()
    with to_client, client_side, to_server, server_side:
        to_client.setblocking(False)
        to_server.setblocking(False)
        client = End(client_side, client_of(AUTHORITY.certificate, CLIENT), server=False)
        server = End(server_side, server_of(ISSUED, AUTHORITY.certificate), server=True)
        steps = 0
        while not client.step() & server.step():
            steps += 1
            for source, sink in ((to_client, to_server), (to_server, to_client)):
                try:
                    sink.send(source.recv(1))
                except BlockingIOError:
                    pass
        assert steps > 1000


def test_a_handshake_that_waits_for_room_in_the_socket_wants_to_write() -> None:
    near, far = socket.socketpair()
    with near, far:
        client = End(near, client_of(), server=False)
        server = End(far, server_of(), server=True)
        assert not client.step()
        filled = 0
        with pytest.raises(BlockingIOError):
            while True:
                filled += far.send(b"x" * 100)
        assert not server.step()
        assert server.channel.wants_write
        assert not server.step()
        while filled:
            filled -= len(near.recv(min(filled, 65536)))
        assert not server.step()  # it has sent everything, and waits for the client
        assert not server.channel.wants_write
        shake_hands(client, server)


def test_a_long_chain_goes_through_a_small_socket() -> None:
    chain = Pair(CLIENT.certificate + 100 * AUTHORITY.certificate, CLIENT.key, CLIENT.signer)
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel makes it its least
        client = End(near, client_of(AUTHORITY.certificate, chain), server=False)
        server = End(far, server_of(ISSUED, AUTHORITY.certificate), server=True)
        while not client.step():
            server.step()
            assert not client.channel.wants_write or not client.channel.ready
        shake_hands(client, server)


def test_data_right_behind_the_handshake_are_pending() -> None:
    near, far = socket.socketpair()
    with near, far:
        client, server = End(near, client_of(), server=False), End(far, server_of(), server=True)
        while not client.step():
            server.step()
        assert not server.channel.ready
        client.send(b"early")
        assert server.step()
        assert server.channel.pending
        assert server.receive() == b"early"
        assert not server.channel.pending


def test_a_handshake_leaves_no_ticket() -> None:
    with connected(client_of(), server_of()) as (client, server):
        assert server.channel.seal([]) == b""
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)


def test_the_error_of_a_failed_handshake_reveals_nothing_of_the_peers_text() -> None:
    near, far = tcp_pair()
    with near, far:
        server = End(far, server_of(), server=True)
        near.sendall(b"\x1b[31mred\x1b[0m" * 10)
        with pytest.raises(ssl.SSLError) as caught:
            while not server.step():
                pass
        assert re.fullmatch(r"[ -~]+", caught.value.strerror) and "red" not in caught.value.strerror
