"""The settings of a proxy: which ones are one, what the environment counts for, and that no password is shown."""

from __future__ import annotations

import pytest

from pipeline.config import find_warnings, parse
from pipeline.config.values import Endpoint
from pipeline.wire.approach import Proxy
from pipeline.wire.websocket_url import WebSocketUrl
from tests.harness.config_problems import CLIENT, SERVER, the_problem

VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "http_proxy")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "proxy"),
    [
        ("", None),
        ("http://proxy.test:3128", Proxy("http", "proxy.test", 3128)),
        ("HTTP://proxy.test:3128/", Proxy("http", "proxy.test", 3128)),
        ("https://proxy.test:3129", Proxy("https", "proxy.test", 3129)),
        ("socks5://[fd00::1]:1080", Proxy("socks5", "fd00::1", 1080)),
        ("socks5h://192.0.2.9:1080", Proxy("socks5", "192.0.2.9", 1080)),
    ],
)
def test_a_client_dials_the_proxy_that_is_named(given: str, proxy: Proxy | None) -> None:
    config = parse(CLIENT | {"proxy": given})
    assert config.named_proxy == proxy
    assert config.dialed_endpoints == (Endpoint(proxy.host, proxy.port) if proxy else Endpoint("192.0.2.1", 9000),)
    assert config.remote_endpoint == Endpoint("192.0.2.1", 9000)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("proxy.test:3128", "a URL of scheme http, https or socks5"),
        ("ftp://proxy.test:21", "a URL of scheme http, https or socks5"),
        ("socks4://proxy.test:1080", "a URL of scheme http, https or socks5"),
        ("http://proxy.test", "HOST:PORT"),
        ("http://proxy.test:3128/path", "a URL of scheme http, https or socks5"),
        ("http://:3128", "a URL of scheme http, https or socks5"),
        ("http://proxy.test:0", "a URL of scheme http, https or socks5"),
        ("http://proxy.test:x", "a port from 0 to 65535"),
        ("http://[fe80::1]:3128", "the interface in a link-local address"),
        (7, "environment"),
    ],
)
def test_anything_else_is_refused(given: object, expected: str) -> None:
    problem = the_problem(CLIENT | {"proxy": given})
    assert problem.startswith("test.json: proxy: given") and expected in problem


@pytest.mark.parametrize("given", ["http://user:secret@proxy.test:1", "ftp://user:secret@proxy.test:1"])
def test_a_password_in_the_setting_is_refused_and_not_shown(given: str) -> None:
    problem = the_problem(CLIENT | {"proxy": given})
    assert "secret" not in problem and "...@proxy.test:1" in problem


def test_the_environment_counts_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://us%40er:pass%2Fword@proxy.test:3128")
    assert parse(CLIENT).named_proxy is None
    asked = CLIENT | {"proxy": "environment"}
    assert parse(asked).named_proxy == Proxy("http", "proxy.test", 3128, ("us@er", "pass/word"))
    monkeypatch.setenv("no_proxy", "192.0.2.1,localhost")
    config = parse(asked)
    assert config.named_proxy is None
    assert any("names no proxy for the server" in warning for warning in find_warnings(config))


def test_a_lower_case_variable_and_the_one_for_https_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://all.test:1080")
    assert str(parse(CLIENT | {"proxy": "environment"}).named_proxy) == "proxy socks5://all.test:1080"
    monkeypatch.setenv("HTTPS_PROXY", "http://upper.test:1")
    monkeypatch.setenv("https_proxy", "http://lower.test:1")
    assert str(parse(CLIENT | {"proxy": "environment"}).named_proxy) == "proxy http://lower.test:1"


@pytest.mark.parametrize("value", ["http://user:secret@:1", f"http://{'u' * 256}:secret@proxy.test:1"])
def test_an_environment_that_makes_no_sense_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("https_proxy", value)
    problem = the_problem(CLIENT | {"proxy": "environment"})
    assert "https_proxy" in problem and "secret" not in problem


def test_a_link_local_server_is_none_that_a_proxy_could_reach() -> None:
    given = CLIENT | {"remote_addr": "[fe80::1%lo]:9000", "proxy": "http://proxy.test:1"}
    assert "that the proxy can reach" in the_problem(given)


def test_settings_without_effect_and_risks_are_said() -> None:
    said = find_warnings(parse(CLIENT | {"proxy_login_file": "/etc/login"}))
    assert "proxy_login_file has no effect: proxy names none." in said
    said = find_warnings(parse(SERVER | {"proxy": "http://proxy.test:1"}))
    assert "proxy has no effect: a server does not dial." in said
    login = {"proxy_login_file": "/etc/login"}
    said = find_warnings(parse(CLIENT | login | {"proxy": "http://proxy.test:1"}))
    assert any("in clear text" in warning for warning in said)
    said = find_warnings(parse(CLIENT | login | {"proxy": "http://127.0.0.1:1"}))
    assert not any("in clear text" in warning for warning in said)


def test_routes_over_the_proxy_are_warned_of_and_those_over_the_server_are_not() -> None:
    """Workers with a user of their own go around the tunnel anyway."""
    given = CLIENT | {"proxy": "http://198.51.100.1:3128", "user": "root"}
    said = find_warnings(parse(given | {"routes": ["198.51.100.0/24"]}))
    assert any("connections to proxy http://198.51.100.1:3128" in warning for warning in said)
    said = find_warnings(parse(given | {"routes": ["192.0.2.0/24"]}))
    assert not any("left out" in warning for warning in said)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"proxy_command": ["nc", "%h", "%p"]}, "a path beginning with /"),
        ({"proxy_command": ["/usr/bin/nc", "a\nb"]}, "words without control characters"),
        ({"proxy_command": ["/usr/bin/nc"], "proxy": "http://proxy.test:1"}, "one way to the server is enough"),
        ({"proxy_command": "/usr/bin/nc %h %p"}, "an array of a path and arguments"),
    ],
)
def test_a_command_is_a_path_and_words_and_the_only_way(given: dict[str, object], expected: str) -> None:
    assert expected in the_problem(CLIENT | given)


def test_only_a_command_and_tls_need_the_bridge() -> None:
    needs = {
        "": {},
        "proxy http://proxy.test:1": {"proxy": "http://proxy.test:1"},
        "proxy https://proxy.test:1": {"proxy": "https://proxy.test:1"},
        "proxy_command /usr/bin/nc": {"proxy_command": ["/usr/bin/nc", "%h", "%p"]},
    }
    found = {text: parse(CLIENT | given) for text, given in needs.items()}
    assert [config.way_text for config in found.values()] == list(needs)
    assert [config.needs_bridge for config in found.values()] == [False, False, True, True]
    server = parse(SERVER | needs["proxy https://proxy.test:1"])
    assert not server.needs_bridge and server.way_text == ""


def test_a_login_inside_tls_is_no_risk_and_a_ca_without_tls_has_no_effect() -> None:
    login = {"proxy_login_file": "/etc/login", "proxy_ca_file": "/etc/ca"}
    assert not any(
        "clear text" in said for said in find_warnings(parse(CLIENT | login | {"proxy": "https://p.test:1"}))
    )
    said = find_warnings(parse(CLIENT | login | {"proxy": "http://p.test:1"}))
    assert "proxy_ca_file has no effect: there is neither an https:// proxy nor a wss:// WebSocket." in said


# -- with several servers, and with a full tunnel

SEVERAL = CLIENT | {"remote_addr": ["fra.test:9000", "ams.test:9000", "srv:_tunnel._tcp.hub.test"]}


def test_all_servers_are_dialed_through_one_proxy() -> None:
    config = parse(SEVERAL | {"proxy": "http://proxy.test:3128"})
    assert config.dialed == config.dialed_endpoints == (Endpoint("proxy.test", 3128),)
    assert config.remote_endpoints == (Endpoint("fra.test", 9000), Endpoint("ams.test", 9000))


def test_an_environment_that_leads_to_some_servers_by_a_proxy_and_not_to_others_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    given = SEVERAL | {"proxy": "environment"}
    assert str(parse(given).named_proxy) == "proxy http://proxy.test:3128"
    monkeypatch.setenv("no_proxy", "ams.test")
    problem = the_problem(given)
    assert "no_proxy has to name all or none" in problem and "ams.test goes another way than fra.test" in problem
    monkeypatch.setenv("no_proxy", ".test")
    assert parse(given).named_proxy is None


def test_a_link_local_server_anywhere_in_the_list_is_refused() -> None:
    given = CLIENT | {"remote_addr": ["fra.test:9000", "[fe80::1%lo]:9000"], "proxy": "http://proxy.test:1"}
    assert "that the proxy can reach" in the_problem(given)


@pytest.mark.parametrize("settings", [{"full_tunnel": True}, {"routes": ["0.0.0.0/0"]}])
def test_a_proxy_of_this_machine_would_send_its_own_packets_into_the_tunnel(settings: dict[str, object]) -> None:
    def warns(url: str) -> bool:
        return any(
            "is a program of this machine" in each for each in find_warnings(parse(CLIENT | settings | {"proxy": url}))
        )

    assert warns("socks5://127.0.0.1:9050") and not warns("socks5://192.0.2.7:9050")
    assert not any(
        "program of this machine" in each for each in find_warnings(parse(CLIENT | {"proxy": "http://[::1]:1"}))
    )


@pytest.mark.parametrize("word", [None, 7])
def test_a_word_of_the_command_that_is_no_text_is_refused(word: object) -> None:
    assert "proxy_command[0]: given" in the_problem(CLIENT | {"proxy_command": [word]})


# -- by a WebSocket


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("wss://www.test/tunnel", WebSocketUrl("wss", "www.test", 443, "/tunnel")),
        ("WSS://www.test", WebSocketUrl("wss", "www.test", 443, "/")),
        ("ws://[fd00::1]:8080/a/b?c=d", WebSocketUrl("ws", "fd00::1", 8080, "/a/b?c=d")),
        ("wss://192.0.2.7:8443/", WebSocketUrl("wss", "192.0.2.7", 8443, "/")),
    ],
)
def test_a_websocket_is_dialed_in_place_of_the_server(given: str, url: WebSocketUrl) -> None:
    config = parse(CLIENT | {"websocket": given})
    assert config.named_websocket == url and config.needs_bridge
    assert config.dialed == (Endpoint(url.host, url.port),)
    assert config.remote_endpoint == Endpoint("192.0.2.1", 9000)
    behind = parse(CLIENT | {"websocket": given, "proxy": "http://proxy.test:1"})
    assert behind.dialed == (Endpoint("proxy.test", 1),)
    assert behind.way_text == f"proxy http://proxy.test:1 to websocket {url}"


@pytest.mark.parametrize(
    "given",
    ["https://www.test/", "wss:///x", "wss://user:secret@www.test/", "wss://www.test/a b", "wss://www.test:0/", "x"],
)
def test_what_is_no_url_of_a_websocket_is_refused(given: str) -> None:
    problem = the_problem(CLIENT | {"websocket": given})
    assert "wss" in problem and "secret" not in problem


@pytest.mark.parametrize("other", [{"proxy_command": ["/usr/bin/nc"]}, {"proxy": "https://proxy.test:1"}])
def test_a_websocket_goes_with_a_plain_proxy_alone(other: dict[str, object]) -> None:
    assert the_problem(CLIENT | other | {"websocket": "wss://www.test/"}).startswith("test.json: proxy")


@pytest.mark.parametrize("proxy", ["environment", "http://proxy.test:1", "nonsense"])
def test_without_a_server_that_alone_is_the_problem(proxy: str) -> None:
    given = CLIENT | {"remote_addr": "", "proxy": proxy, "websocket": "wss://www.test/"}
    assert the_problem(given).startswith("test.json: remote_addr")


def test_a_websocket_leads_to_one_server() -> None:
    assert "one server" in the_problem(SEVERAL | {"websocket": "wss://www.test/"})
