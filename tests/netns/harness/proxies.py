"""Proxies of the distribution in a node of a lab, in the foreground, with files in a directory of the test.

    with tinyproxy(node, directory, login=("user", "word")) as proxy:    proxy.url, proxy.stop(), proxy.start()

A program that is not installed skips the test.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import eventually
from tools.lab.network import Node

Login = tuple[str, str] | None
START_SECONDS, STOP_SECONDS = 20.0, 5.0
SQUID_USER = "proxy"
SQUID_LOGINS = "/usr/lib/squid/basic_ncsa_auth"


HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend tls
    bind {at} ssl crt {pem}
    default_backend plain
backend plain
    server plain {backend}
"""


DANTE = """
logoutput: stderr
internal: {host} port = {port}
external: {host}
clientmethod: none
socksmethod: {method}
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 command: connect }}
"""


NGINX = """
daemon off;
user root;
worker_processes 1;
pid {own}/pid;
events {{ worker_connections 100; }}
http {{
    access_log {own}/access.log;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    server {{
        listen {at} ssl;
        ssl_certificate {pem};
        ssl_certificate_key {pem};
        {blocks}
    }}
}}
"""
NGINX_WEBSOCKET = """
location = {path} {{
    proxy_pass http://{backend};
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";
    proxy_buffering off;
}}
"""


class RunningProxy:
    """`url`: as the setting `proxy` has it."""

    def __init__(self, node: Node, scheme: str, host: str, port: int, argv: Sequence[object], log: Path) -> None:
        self._node, self._host, self._port, self._argv, self._log = node, host, port, argv, log
        self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        self.process: subprocess.Popen[bytes]
        self.start()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = self._node.popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(lambda: self._takes() or self.process.poll() is not None, START_SECONDS, f"{self._argv[0]} listens")
        assert self.process.poll() is None, f"{self._argv} ended:\n{self.log}"

    def stop(self) -> None:
        """SIGTERM: squid leaves shared memory behind if it is killed."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _takes(self) -> bool:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with self._node.socket(family) as sock:
            return sock.connect_ex((self._host, self._port)) == 0


@contextmanager
def run_proxy(
    node: Node, scheme: str, host: str, port: int, argv: Sequence[object], directory: Path
) -> Iterator[RunningProxy]:
    proxy = RunningProxy(node, scheme, host, port, argv, directory / f"{argv[0]}-{port}.log")
    try:
        yield proxy
    finally:
        proxy.stop()


def _needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@contextmanager
def tinyproxy(
    node: Node,
    directory: Path,
    *,
    login: Login = None,
    ports: Sequence[int] = (),
    host: str = "",
    wrap: Sequence[str] = (),
    idle_seconds: int = 600,
) -> Iterator[RunningProxy]:
    """`ports`: to which CONNECT is allowed; none: to any. `wrap`: words in front of the command."""
    _needs("tinyproxy")
    host, port = host or node.address, node.free_port()
    lines = [f"Port {port}", f"Listen {host}", f"Timeout {idle_seconds}", "MaxClients 100"]
    lines += [f"BasicAuth {login[0]} {login[1]}"] if login else []
    lines += [f"ConnectPort {each}" for each in ports]
    file = directory / f"tinyproxy-{port}.conf"
    file.write_text("".join(f"{line}\n" for line in lines))
    with run_proxy(node, "http", host, port, [*wrap, "tinyproxy", "-d", "-c", file], directory) as proxy:
        yield proxy


@contextmanager
def squid(node: Node, directory: Path, *, login: Login = None, ports: Sequence[int] = ()) -> Iterator[RunningProxy]:
    """It runs as a user of its own, which no directory of pytest lets in."""
    _needs("squid")
    _needs("openssl")
    with tempfile.TemporaryDirectory(prefix="squid-of-a-test-") as own:
        shutil.chown(own, SQUID_USER)
        file = Path(own) / "squid.conf"
        port = node.free_port()
        file.write_text("".join(f"{line}\n" for line in _squid_lines(node.address, port, Path(own), login, ports)))
        with run_proxy(node, "http", node.address, port, ["squid", "-N", "-f", file], directory) as proxy:
            yield proxy


def _squid_lines(host: str, port: int, own: Path, login: Login, ports: Sequence[int]) -> list[str]:
    lines = [
        f"http_port {host}:{port}",
        "cache deny all",
        "memory_cache_shared off",
        "pinger_enable off",
        "netdb_filename none",
        f"pid_filename {own}/pid",
        f"cache_log {own}/cache.log",
        f"access_log stdio:{own}/access.log",
        f"coredump_dir {own}",
        "logfile_rotate 0",
        "shutdown_lifetime 0 seconds",
        "visible_hostname proxy.test",
    ]
    if login:
        (own / "logins").write_text(f"{login[0]}:{_digest(login[1])}\n")
        shutil.chown(own / "logins", SQUID_USER)
        lines += [
            f"auth_param basic program {SQUID_LOGINS} {own}/logins",
            "auth_param basic children 1",
            "acl known proxy_auth REQUIRED",
            "http_access deny !known",
        ]
    if ports:
        lines += [f"acl allowed port {' '.join(map(str, ports))}", "http_access deny !allowed"]
    return [*lines, "http_access allow all"]


@contextmanager
def microsocks(node: Node, directory: Path, *, login: Login = None, host: str = "") -> Iterator[RunningProxy]:
    _needs("microsocks")
    host, port = host or node.address, node.free_port()
    argv = ["microsocks", "-i", host, "-p", port, *(("-u", login[0], "-P", login[1]) if login else ())]
    with run_proxy(node, "socks5", host, port, argv, directory) as proxy:
        yield proxy


@contextmanager
def dante(node: Node, directory: Path, *, login: Login = None, host: str = "") -> Iterator[RunningProxy]:
    """Its users are those of the system: it sees a passwd and a shadow of its own, which have the user of the login."""
    _needs("danted")
    _needs("openssl")
    host, port = host or node.address, node.free_port()
    file = directory / f"danted-{port}.conf"
    file.write_text(DANTE.format(host=host, port=port, method="username" if login else "none"))
    wrap = _with_user(directory, login) if login else []
    with run_proxy(node, "socks5", host, port, [*wrap, "danted", "-f", file], directory) as proxy:
        yield proxy


def _with_user(directory: Path, login: tuple[str, str]) -> list[str]:
    """Words in front of a command for which the system has this user with this password."""
    user, word = login
    users = {"root": 0, "nobody": 65534, user: 64991}
    files = {
        "passwd": "".join(f"{name}:x:{uid}:65534::/:/bin/false\n" for name, uid in users.items()),
        "shadow": f"{user}:{_digest(word)}:20000:0:99999:7:::\n",
    }
    mounts = ""
    for name, text in files.items():
        (directory / name).write_text(text)
        mounts += f"mount --bind {directory / name} /etc/{name} && "
    return ["unshare", "--mount", "sh", "-c", f'{mounts}exec "$@"', "sh"]


def _digest(word: str) -> str:
    """As it stands in crypt(5)."""
    done = subprocess.run(["openssl", "passwd", "-6", word], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def haproxy(node: Node, pem: Path, backend: str, directory: Path, name: str, host: str = "") -> Iterator[RunningProxy]:
    """TLS in front of another proxy; `name`: of the certificate in `pem`."""
    _needs("haproxy")
    host, port = host or node.address, node.free_port()
    file = directory / f"haproxy-{port}.cfg"
    file.write_text(HAPROXY.format(pem=pem, at=f"{host}:{port}", backend=backend))
    with run_proxy(node, "https", host, port, ["haproxy", "-db", "-f", file], directory) as proxy:
        proxy.url = f"https://{name}:{port}"
        yield proxy


@contextmanager
def nginx(node: Node, pem: Path, backend: str, directory: Path, name: str, path: str) -> Iterator[RunningProxy]:
    """It ends TLS, and leads one path to a WebSocket server. `url`: of that path, as the setting `websocket` has it."""
    _needs("nginx")
    port = node.free_port()
    own = directory / f"nginx-{port}"
    own.mkdir()
    file = own / "nginx.conf"
    blocks = NGINX_WEBSOCKET.format(backend=backend, path=path)
    file.write_text(NGINX.format(own=own, pem=pem, at=f"{node.address}:{port}", blocks=blocks))
    with run_proxy(node, "wss", node.address, port, ["nginx", "-e", own / "error.log", "-c", file], directory) as proxy:
        proxy.url = f"wss://{name}:{port}{path}"
        yield proxy


@contextmanager
def websockify(node: Node, target: str, directory: Path) -> Iterator[RunningProxy]:
    """A WebSocket server in front of a TCP port. `url`: ws:// of its own."""
    _needs("websockify")
    port = node.free_port()
    argv = ["websockify", f"{node.address}:{port}", target]
    with run_proxy(node, "ws", node.address, port, argv, directory) as proxy:
        yield proxy


def login_file(directory: Path, login: tuple[str, str]) -> str:
    path = directory / "proxy-login"
    path.touch(0o600)
    path.write_text(f"{login[0]}:{login[1]}\n")
    return str(path)
