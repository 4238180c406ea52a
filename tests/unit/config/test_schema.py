"""The settings of a complete configuration: parsed views, and which of them a reload can apply."""

from __future__ import annotations

import pytest

from pipeline.config import RELOAD, changes, parse
from pipeline.config.schema import SETTINGS
from tests.harness.config_problems import CLIENT, SERVER


def test_a_configuration_is_immutable() -> None:
    with pytest.raises(AttributeError):
        parse(SERVER).mtu = 1  # type: ignore[misc]  # what is tested


def test_addresses_and_routes_are_parsed_and_the_devices_own_subnet_is_no_route() -> None:
    config = parse(
        CLIENT
        | {
            "tunnel_addr": ["10.0.0.2/24", "fd00::2/64"],
            "routes": ["10.1.0.0/16", "10.0.0.0/24", "fd01::/48", "192.0.2.7"],
        }
    )
    assert [str(value) for value in config.tunnel_interfaces] == ["10.0.0.2/24", "fd00::2/64"]
    assert [str(value) for value in config.route_prefixes] == ["10.1.0.0/16", "fd01::/48", "192.0.2.7/32"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:1", "192.0.2.1", 1),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
        ("[fe80::1%eth0]:9000", "fe80::1%eth0", 9000),
        ("xn--bcher-kva.example.:9000", "xn--bcher-kva.example.", 9000),
    ],
)
def test_a_server_is_dialled_by_address_or_by_name(text: str, host: str, port: int) -> None:
    assert parse(CLIENT | {"remote_addr": text}).remote_endpoint == (host, port)


def test_a_listener_without_a_host_listens_on_every_address() -> None:
    assert parse(SERVER | {"local_addr": ":9000"}).listen_endpoint == ("::", 9000)


def test_changes_names_the_settings_that_differ_and_those_derived_from_them() -> None:
    old = parse(CLIENT)
    assert changes(old, parse(CLIENT)) == []
    new = parse(CLIENT | {"lanes": 6, "log_level": "debug"})
    assert changes(old, new) == ["lanes", "connections", "log_level"]


def test_a_change_of_one_peer_is_a_change_of_the_peers() -> None:
    old = parse(SERVER | {"peers": [{"name": "a", "key_file": "a.key"}]})
    assert changes(old, parse(SERVER | {"peers": [{"name": "a", "key_file": "a.key", "rate_mbit": 0}]})) == []
    assert changes(old, parse(SERVER | {"peers": [{"name": "a", "key_file": "a.key", "rate_mbit": 5}]})) == ["peers"]
    assert changes(old, parse(SERVER)) == ["peers"]


def test_a_server_that_moves_can_be_followed_while_running() -> None:
    old, new = parse(CLIENT), parse(CLIENT | {"remote_addr": "vpn.example.org:9000"})
    assert changes(old, new) == ["remote_addr", "tls_server_name"]
    assert {RELOAD[name] for name in changes(old, new)} == {"live"}


def test_a_reload_applies_only_settings_on_which_no_ring_device_or_process_depends() -> None:
    live = {name for name, how in RELOAD.items() if how == "live"}
    # fmt: off
    assert live == {
        "proxy", "proxy_login_file", "proxy_ca_file", "proxy_command",
        "websocket",
        "keepalive", "timeout", "log_level", "log_format", "idle", "congestion", "notsent_lowat", "routes",
        "accept_routes", "metrics_addr", "metrics_token_file", "metrics_peers",
        "remote_addr", "send_buffer_bytes", "receive_buffer_bytes", "restart_intensity", "restart_period",
        "heartbeat_timeout", "drain_timeout", "reconnect_min", "reconnect_max", "peers", "push_routes",
        "public_addr", "client_isolation", "rate_mbit", "tls_cert_file", "tls_key_file", "tls_ca_file",
        "tls_server_name", "max_handshakes", "max_handshakes_per_address", "connects_per_address",
        "handshake_timeout", "max_connections_per_client", "peer_queue_bytes", "spares",
        "names",
        "multicast_kbit",
        "dscp_light", "dscp_bulk", "always_light", "always_bulk", "always_voice", "class_by_dscp",
        "send_rate_mbit", "bulk_rate_mbit",
        "total_rate_mbit",
        "prefer", "home_after", "standby", "move_timeout",
        "tls_alpn", "fallback", "fallback_h2", "fallback_plain", "fallback_proxy_protocol", "fallback_connections",
        "proxy_protocol_from", "noise", "padding",
        "websocket_addr", "websocket_path", "websocket_proxies", "websocket_client_field",
        "may_reach", "groups", "quota_gb", "quota_action", "quota_rate_mbit", "quota_day", "on", "hook_timeout",
        "nat", "full_tunnel", "kill_switch", "dns", "push_dns", "uplinks",
    }
    # fmt: on
    assert RELOAD.keys() == SETTINGS.keys() and set(RELOAD.values()) == {"live", "restart"}
