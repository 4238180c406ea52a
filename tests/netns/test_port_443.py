"""A hub that shares its port with a web site of nginx: it answers as an nginx that ends TLS itself, and peers tunnel.

Each probe goes to both: to the hub's port, and to nginx's own port with TLS. What the two say must be equal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.config import parse
from pipeline.contact.first_contact import Server, exchange
from pipeline.credentials import invitation
from tests.harness.tls_ends import issue
from tests.netns.harness.hub import Hub, reaches
from tests.netns.harness.nginx import Nginx
from tests.reference.blocks import frame
from tests.reference.client import HELLO, read_to_end
from tests.support import eventually
from tools.lab.network import Lab, Node
from tools.load import flows

NAME = "vpn.example.org"
PATIENCE = 20.0  # of nginx, for a request (client_header_timeout): more than a machine that stands still needs
LITTLE_PATIENCE = 1.0
LATE = 0.7
END_SECONDS = 15.0
LARGE = 20_000_000

HTTP = """\
    server {{ listen 127.0.0.1:{one}{says}; {site} }}
    server {{ listen 127.0.0.1:{two} http2{says}; {site} }}
    server {{ listen 127.0.0.1:{plain} ssl{says}; {tls} {site} }}
    server {{ listen {address}:{direct} ssl http2; {tls} {site} }}
"""
SITE = """\
server_name vpn.example.org; root {root}; absolute_redirect off; client_header_timeout {patience:g}s;
        keepalive_timeout {patience:g}s; client_max_body_size 100m; dav_methods PUT; create_full_put_path on;
"""
TLS = "ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_timeout 2h;"


class Shared(NamedTuple):
    hub: Hub
    nginx: Nginx
    node: Node  # from which probes come
    ports: dict[str, int]
    large: Path

    def url(self, where: str, path: str = "/", scheme: str = "https") -> str:
        return f"{scheme}://{NAME}:{self.ports[where]}{path}"

    def curl(
        self, where: str, *words: str, path: str = "/", scheme: str = "https", address: str = ""
    ) -> tuple[int, str]:
        """Exit status and output, with the headers of the answer."""
        resolve = f"{NAME}:{self.ports[where]}:{address or self.hub.node.address}"
        done = self.node.run(
            ["curl", "-ksi", "--max-time", "30", "--resolve", resolve, *words, self.url(where, path, scheme)],
            check=False,
        )
        return done.returncode, masked(done.stdout.replace(str(self.ports[where]), "PORT"))

    def connect(self, where: str) -> socket.socket:
        sock = self.node.socket()
        sock.settimeout(END_SECONDS)
        sock.connect((self.hub.node.address, self.ports[where]))
        return sock


def masked(text: str) -> str:
    """Without what differs between two answers of one server."""
    return re.sub(r"(?i)^(date|etag|last-modified): [^\r\n]*", r"\1: -", text, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory = tmp_path_factory.mktemp("site")
    with Lab(names=("hub", "one", "two")) as lab, shared_port(lab, directory) as made:
        yield made


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """For tests that wait until nginx ends a connection. They measure how long that takes."""
    directory = tmp_path_factory.mktemp("impatient")
    with Lab(names=("hub", "one")) as lab, shared_port(lab, directory, patience=LITTLE_PATIENCE) as made:
        yield made


@pytest.fixture
def lab_of_its_own(tmp_path: Path) -> Iterator[Shared]:
    with Lab(names=("hub", "one")) as lab, shared_port(lab, tmp_path) as made:
        yield made


@contextlib.contextmanager
def shared_port(
    lab: Lab, directory: Path, says: str = "", patience: float = PATIENCE, **settings: Any
) -> Iterator[Shared]:
    """`says`: behind each `listen` of the ports that the hub talks to."""
    node, one = lab.nodes[:2]
    pair = issue(NAME)
    files = {"certificate": directory / "fullchain.pem", "key": directory / "privkey.pem"}
    for name, path in files.items():
        path.touch(0o600)
        path.write_text(getattr(pair, name))
    root = directory / "www"
    root.mkdir()
    (root / "index.html").write_text("<h1>Welcome</h1>\n")
    (root / "directory").mkdir()
    large = root / "large.bin"
    large.write_bytes(os.urandom(LARGE))
    ports = {name: node.free_port() for name in ("one", "two", "plain", "direct")}
    site = SITE.format(root=root, patience=patience)
    http = HTTP.format(says=says, site=site, tls=TLS.format(**files), address=node.address, **ports)
    with (
        Nginx(node, directory / "nginx", http) as nginx,
        Hub(
            lab,
            directory,
            tls_cert_file=str(files["certificate"]),
            tls_key_file=str(files["key"]),
            tls_min_version="1.2",
            fallback=f"127.0.0.1:{ports['one']}",
            fallback_h2=f"127.0.0.1:{ports['two']}",
            fallback_plain=f"127.0.0.1:{ports['plain']}",
            handshake_timeout=patience / 2,  # less than nginx has, and it does not show
            noise=True,
            **settings,
        ) as hub,
    ):
        yield Shared(hub, nginx, one, {**ports, "shared": hub.port}, large)


# -- with programs that people use


@pytest.mark.parametrize("path", ["/", "/nothing", "/directory", "/../x"])
@pytest.mark.parametrize("words", [["--http1.1"], ["--http2"], ["--http1.1", "-I"], ["--tls-max", "1.2"]])
def test_curl_gets_the_answers_of_the_web_server(shared: Shared, path: str, words: list[str]) -> None:
    direct = shared.curl("direct", "--path-as-is", *words, path=path)
    assert direct[0] == 0
    assert shared.curl("shared", "--path-as-is", *words, path=path) == direct


def test_http_without_tls_gets_the_answer_of_a_port_with_tls(shared: Shared) -> None:
    direct = shared.curl("direct", scheme="http")
    assert "The plain HTTP request was sent to HTTPS port" in direct[1]
    assert shared.curl("shared", scheme="http") == direct


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_large_file_arrives_whole_both_ways(shared: Shared, version: str, tmp_path: Path) -> None:
    got = tmp_path / "got"
    status, _ = shared.curl("shared", version, "-o", str(got), "--no-include", path="/large.bin")
    assert (status, digest(got)) == (0, digest(shared.large))
    status, said = shared.curl("shared", version, "-T", str(shared.large), path=f"/put-{version}")
    assert status == 0 and (" 201" in said or " 204" in said), said
    assert digest(shared.large.parent / f"put-{version}") == digest(shared.large)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_peer_that_was_invited_is_in_the_tunnel_and_notices_nothing_of_the_site(shared: Shared) -> None:
    client = shared.hub.join(shared.hub.lab["one"])
    assert reaches(client.node, shared.hub.server.address)
    echoes = flows.Echoes(client.node, shared.hub.server.address, count=100, interval=0.01, timeout=5.0)
    for _ in range(3):
        assert shared.curl("shared", "-o", "/dev/null", path="/large.bin")[0] == 0
    assert echoes.finish().lost == []
    counters = shared.hub.server.running()["counters"]
    assert counters["tcp.connections_lost"] == counters["tcp.closed_proof_wrong"] == 0
    client.stop()


def test_a_machine_that_joins_gets_a_key_of_its_own(shared: Shared) -> None:
    line = invitation.decode(shared.hub.invite("joining"))
    assert not line.lasts and line.alpn == ("h2", "http/1.1")
    [server] = Server.all_of(parse({"mode": "client", **line.settings}), line.key)
    exchanged = shared.node.inside(lambda: exchange(server, line.key, secrets.token_bytes(32)))
    assert exchanged.name == "joining" and exchanged.key != line.key


# -- byte by byte


class Seen(NamedTuple):
    said: str
    how: str


def outcome(sock: socket.socket) -> Seen:
    """Read to the end."""
    said, how = read_to_end(sock)
    return Seen(masked(said.decode("latin-1")), how)


def context(alpn: tuple[str, ...] = ("http/1.1",), version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    made.minimum_version = made.maximum_version = version
    if alpn:
        made.set_alpn_protocols(alpn)
    return made


def fields_of_a_hello(key_id: bytes, knock: bytes = b"") -> bytes:
    body = struct.pack(
        ">4sBBHHHQQBBB8s32sB", b"tnl\x01", 2, 0, 0, 1, 1400, 1, 2, 0, 0, 1, key_id, secrets.token_bytes(32), 0
    )
    return frame(HELLO, body + (bytes([16, 32]) + knock if knock else b""))


FIRST_BYTES = {
    "HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an empty line": b"\r\n\r\n",
    "a zero": b"\0",
    "garbage": hashlib.sha512(b"garbage").digest() * 20,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2 where 1.1 is selected": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "half a hello": fields_of_a_hello(b"k" * 8)[:50],
    "a hello": fields_of_a_hello(b"k" * 8),
    "a hello with a knock": fields_of_a_hello(b"k" * 8, secrets.token_bytes(32)),
    "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\nGET / HTTP/1.0\r\n\r\n",
}


@pytest.mark.alone
@pytest.mark.parametrize("what", FIRST_BYTES)
def test_first_bytes_in_tls_get_what_nginx_says_to_them_as_soon_as_nginx_says_it(impatient: Shared, what: str) -> None:
    seen: dict[str, list[tuple[float, Seen]]] = {"direct": [], "shared": []}
    for _ in range(3):
        for where, outcomes in seen.items():
            with context().wrap_socket(impatient.connect(where), server_hostname=NAME) as sock:
                sock.sendall(FIRST_BYTES[what])
                began = time.monotonic()
                found = outcome(sock)
                outcomes.append((time.monotonic() - began, found))
    (direct, said), (through, also) = (min(outcomes) for outcomes in seen.values())
    assert also == said
    assert abs(through - direct) < 0.2, f"{through * 1e3:.1f} ms, and nginx {direct * 1e3:.1f} ms"


@pytest.mark.alone
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x80" + bytes(50),
        b"\x16\x03\x01\0\x04abcd",
    ],
    ids=["HTTP", "an empty line", "SSH", "SSL 2", "no hello of TLS"],
)
def test_first_bytes_without_tls_get_what_nginx_says_to_them(impatient: Shared, data: bytes) -> None:
    seen = []
    for where in ("direct", "shared"):
        with impatient.connect(where) as sock:
            sock.sendall(data)
            seen.append(outcome(sock))
    assert seen[0] == seen[1]


SLOW: dict[str, Callable[[Shared, str], socket.socket]] = {
    "silence": lambda shared, where: shared.connect(where),
    "silence in TLS": lambda shared, where: context().wrap_socket(shared.connect(where), server_hostname=NAME),
    "silence after a page": lambda shared, where: after_a_page(shared, where),
}


def after_a_page(shared: Shared, where: str) -> socket.socket:
    sock = context().wrap_socket(shared.connect(where), server_hostname=NAME)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: vpn.example.org\r\n\r\n")
    said = b""
    while b"</h1>" not in said:
        said += sock.recv(65536)
    return sock


@pytest.mark.alone
@pytest.mark.parametrize("what", SLOW)
def test_a_silent_client_is_ended_as_and_when_nginx_ends_it(impatient: Shared, what: str) -> None:
    seen, seconds = [], []
    for where in ("direct", "shared"):
        with SLOW[what](impatient, where) as sock:
            began = time.monotonic()
            seen.append(outcome(sock))
            seconds.append(time.monotonic() - began)
    assert seen[0] == seen[1]
    assert LITTLE_PATIENCE - 0.3 < seconds[0] < LITTLE_PATIENCE + LATE
    assert abs(seconds[0] - seconds[1]) < LATE, seconds


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2", "http/1.1"), ("h2",)], ids=str)
def test_tls_agrees_on_what_nginx_agrees_on(shared: Shared, version: ssl.TLSVersion, alpn: tuple[str, ...]) -> None:
    seen = []
    for where in ("direct", "shared"):
        with context(alpn, version).wrap_socket(shared.connect(where), server_hostname=NAME) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            sock.recv(1)
            tickets = sock.session is not None and (sock.session.has_ticket, sock.session.ticket_lifetime_hint)
            seen.append((sock.version(), sock.cipher(), sock.selected_alpn_protocol(), sock.getpeercert(True), tickets))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("alpn", [("tunnel/1",), ("spdy/3", "x")], ids=str)
def test_tls_for_another_protocol_ends_as_with_nginx(shared: Shared, alpn: tuple[str, ...]) -> None:
    seen = []
    for where in ("direct", "shared"):
        out = ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            context(alpn).wrap_bio(ssl.MemoryBIO(), out, server_hostname=NAME).do_handshake()
        with shared.connect(where) as sock:
            sock.sendall(out.read())
            seen.append(outcome(sock))
    assert seen[0] == seen[1] and seen[0].said


def test_a_session_is_resumed_as_nginx_resumes_it(shared: Shared) -> None:
    for where in ("direct", "shared"):
        made = context()
        session = None
        for resumed in (False, True):
            with made.wrap_socket(shared.connect(where), server_hostname=NAME, session=session) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert "Welcome" in outcome(sock).said
                assert sock.session_reused is resumed, where
                session = sock.session


# -- a renewed certificate


@pytest.mark.slow
def test_a_renewed_certificate_is_shown_without_a_command_and_peers_stay(lab_of_its_own: Shared) -> None:
    hub, shared = lab_of_its_own.hub, lab_of_its_own
    client = hub.join(shared.node)
    lost = hub.server.counter("tcp.connections_lost")
    pair = issue(NAME)
    for setting, text in (("tls_cert_file", pair.certificate), ("tls_key_file", pair.key)):
        path = Path(hub.server.config[setting])
        new = path.with_suffix(".new")
        new.touch(0o600)
        new.write_text(text)
        new.replace(path)

    def shown() -> bytes:
        with context().wrap_socket(shared.connect("shared"), server_hostname=NAME) as sock:
            return sock.getpeercert(True) or b""

    expected = ssl.PEM_cert_to_DER_cert(pair.certificate)
    eventually(lambda: shown() == expected, 40.0, "the new certificate")
    assert reaches(client.node, hub.server.address)
    assert hub.server.counter("tcp.connections_lost") == lost
    client.signal_worker("tcp-0", signal.SIGKILL)  # all its connections are dialed anew, and take the new certificate
    eventually(lambda: reaches(client.node, hub.server.address, count=1, seconds=0.5), 20.0)


# -- the address of a visitor


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_nginx_is_told_the_address_of_each_visitor(tmp_path: Path, six: bool) -> None:
    """With each of its three ports: for HTTP/1.1, for HTTP/2 and for clients without TLS."""
    says = ' proxy_protocol; set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol; return 200 "$remote_addr"'
    with (
        Lab(names=("hub", "one")) as lab,
        shared_port(lab, tmp_path, says=says, fallback_proxy_protocol=True) as shared,
    ):
        address = lab["hub"].address6 if six else lab["hub"].address
        own = lab["one"].address6 if six else lab["one"].address
        for words, scheme in ((["--http1.1"], "https"), (["--http2"], "https")):
            status, said = shared.curl("shared", *words, scheme=scheme, address=address)
            assert (status, said.split()[-1]) == (0, own), said
        status, said = shared.curl("shared", scheme="http", address=address)
        assert "The plain HTTP request was sent to HTTPS port" in said


# -- when the web server fails


def test_while_nginx_hangs_visitors_wait_and_peers_come_and_go(shared: Shared) -> None:
    before = shared.hub.server.counter("tcp.fallbacks_opened")
    worker = eventually(lambda: worker_of(shared.nginx))
    os.kill(worker, signal.SIGSTOP)
    try:
        with context().wrap_socket(shared.connect("shared"), server_hostname=NAME) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            eventually(lambda: shared.hub.server.counter("tcp.fallbacks_opened") > before)
            client = shared.hub.join(shared.hub.lab["two"], fec="off", noise=True)
            assert reaches(client.node, shared.hub.server.address)
            client.stop()
            os.kill(worker, signal.SIGCONT)
            assert "Welcome" in outcome(sock).said
    finally:
        os.kill(worker, signal.SIGCONT)


def worker_of(nginx: Nginx) -> int:
    return int(Path(f"/proc/{nginx.process.pid}/task/{nginx.process.pid}/children").read_text().split()[0])
