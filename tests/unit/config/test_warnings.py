"""Warnings about settings without effect and about risky ones."""

from __future__ import annotations

import pytest

from pipeline.config import find_warnings, parse
from tests.harness.config_problems import CLIENT, OPEN_SERVER, SERVER


def test_a_plain_configuration_gets_no_warning() -> None:
    assert find_warnings(parse(CLIENT)) == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (CLIENT | {"recv_queue_size": 5000}, "recv_queue_size has no effect"),
        (CLIENT | {"local_addr": "127.0.0.1:1"}, "local_addr has no effect: a client does not listen."),
        (CLIENT | {"insecure": True}, "insecure has no effect"),
        (CLIENT | {"fec": "off", "fec_parity": 2}, "fec_parity has no effect: fec is off."),
        (CLIENT | {"max_clients": 5}, "max_clients has no effect: the server decides"),
        (CLIENT | {"multi_client": True}, "multi_client has no effect: the server decides"),
        (CLIENT | {"push_routes": ["10.1.0.0/16"]}, "push_routes has no effect: the server decides"),
        (CLIENT | {"max_handshakes": 10}, "max_handshakes has no effect: the server decides"),
        (CLIENT | {"public_addr": "a.example:1"}, "public_addr has no effect: the server decides"),
        (SERVER | {"multi_client": False, "max_clients": 5}, "max_clients has no effect: multi_client is false."),
        (OPEN_SERVER | {"client_isolation": True}, "client_isolation has no effect: multi_client is false."),
        (OPEN_SERVER | {"public_addr": "a.example:1"}, "public_addr has no effect: invite needs TLS."),
        (
            OPEN_SERVER | {"compat": True, "push_routes": ["10.1.0.0/16"]},
            "push_routes has no effect: the original program has no such feature",
        ),
        (SERVER | {"max_handshakes": 4}, "one address can occupy all handshakes"),
        (SERVER | {"max_connections_per_client": 7}, "a client opens 8 with default settings"),
        (
            SERVER | {"max_clients": 254},
            "tunnel_addr 10.0.0.1/24 has addresses for 253 clients, and max_clients is 254",
        ),
        (SERVER | {"tunnel_addr": "10.0.0.0/31"}, "tunnel_addr 10.0.0.0/31 has addresses for 1 clients"),
        (SERVER | {"remote_addr": "192.0.2.1:9000"}, "remote_addr has no effect: a server does not dial."),
        (SERVER | {"connections": 7}, "connections has no effect: the client decides"),
        (SERVER | {"local_addr": "127.0.0.1:0"}, "local_addr has port 0"),
        (OPEN_SERVER | {"compat": True, "tunnel_addr": "fd00::1/64"}, "drops IPv6 packets"),
        (CLIENT | {"idle": "spin"}, 'idle is "spin"'),
        (CLIENT | {"send_buffer_bytes": 65536}, "send_buffer_bytes is 65536"),
        (CLIENT | {"routes": ["192.0.2.0/24"], "user": "root"}, "routes leads 192.0.2.0/24 into the tunnel"),
        (
            CLIENT | {"remote_addr": "a.example:1", "routes": ["0.0.0.0/1"], "user": "root"},
            "routes leads 0.0.0.0/1 into the",
        ),
        (CLIENT | {"nat": True}, "nat has no effect: the server decides"),
        (CLIENT | {"push_dns": ["10.0.0.1"]}, "push_dns has no effect: the server decides"),
        (SERVER | {"full_tunnel": True}, "full_tunnel has no effect: a server has the Internet by itself."),
        (CLIENT | {"dns": ["10.0.0.1"]}, "dns has no effect: full_tunnel is false."),
        (CLIENT | {"full_tunnel": True, "user": "www-data"}, "whatever else runs as that user goes around the tunnel"),
    ],
)
def test_a_setting_without_effect_or_with_a_risk_gets_one_sentence(values: dict, sentence: str) -> None:
    found = [warning for warning in find_warnings(parse(values)) if "insecure is true" not in warning]
    assert len(found) == 1 and sentence in found[0] and found[0].endswith(".")
