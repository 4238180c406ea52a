"""Web servers of the distribution that end TLS in front of a hub, with the blocks that docs/port-443.md shows.

    with web_front("nginx", node, pem, backend, directory, name) as front:    front.url, of the path

The blocks are read from the document, and only addresses are replaced. So the document says what has been tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns.harness.proxies import NGINX, RunningProxy, run_proxy
from tools.lab.network import Node

DOCUMENT = Path(__file__).parents[3] / "docs" / "port-443.md"
HEADING = "## By a WebSocket"
PATH, BACKEND = "/tunnel-8d1f", "127.0.0.1:8090"
INDENT = "    "

NGINX_SITE = 'location / { return 200 "the site\\n"; }\n'
HAPROXY = """
{block}
backend web
    mode http
    http-request return status 200 content-type text/plain string "the site"
"""
HAPROXY_BIND = "bind :443 ssl crt /etc/haproxy/site.pem"
CADDY = """
{{
    admin off
    auto_https off
    storage file_system {own}
}}
https://{name}:{port} {{
    bind {host}
    tls {pem} {pem}
{block}
}}
"""
FIRST_LINES = {"nginx": "location = ", "haproxy": "frontend ", "caddy": "reverse_proxy "}


def documented(first: str) -> str:
    """The block of the document whose first line begins so."""
    lines = DOCUMENT.read_text().partition(HEADING)[2].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(INDENT + first))
    length = next(i for i, line in enumerate(lines[begin:]) if not line.startswith(INDENT))
    return "\n".join(line.removeprefix(INDENT) for line in lines[begin : begin + length])


@contextmanager
def web_front(kind: str, node: Node, pem: Path, backend: str, directory: Path, name: str) -> Iterator[RunningProxy]:
    """`pem`: certificate of `name`, and its key. `backend`: HOST:PORT of `websocket_addr`."""
    if shutil.which(kind) is None:
        pytest.skip(f"{kind} is not installed")
    port = node.free_port()
    own = directory / f"{kind}-{port}"
    own.mkdir()
    file, at = own / "config", f"{node.address}:{port}"
    block = documented(FIRST_LINES[kind]).replace(BACKEND, backend)
    if kind == "nginx":
        file.write_text(NGINX.format(own=own, pem=pem, at=at, blocks=NGINX_SITE + block))
        argv = ["nginx", "-e", own / "error.log", "-c", file]
    elif kind == "haproxy":
        assert HAPROXY_BIND in block
        file.write_text(HAPROXY.format(block=block.replace(HAPROXY_BIND, f"bind {at} ssl crt {pem}")))
        argv = ["haproxy", "-db", "-f", file]
    else:
        file.write_text(CADDY.format(own=own, name=name, host=node.address, port=port, pem=pem, block=block))
        argv = ["caddy", "run", "--adapter", "caddyfile", "--config", file]
    with run_proxy(node, "wss", node.address, port, argv, directory) as proxy:
        proxy.url = f"wss://{name}:{port}{PATH}"
        yield proxy
