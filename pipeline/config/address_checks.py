"""Rules of addresses and ports: where a server listens, where a client dials, and which proxies lie between.

These checks have the form that `checks` describes; its table CHECKS lists them.
"""

from collections.abc import Callable

from pipeline.config import proxy_url
from pipeline.config.schema import Config
from pipeline.config.values import (
    ENDPOINT_FORM,
    WEBSOCKET_PATH_FORM,
    Endpoint,
    SrvName,
    parse_endpoint,
    parse_prefix,
    parse_remote,
)
from pipeline.config.violation import ONLY_ONCE, Violations, each_once

# -- where a server listens, and where it is found


def local_addr(config: Config) -> Violations:
    try:
        parse_endpoint(config.local_addr)
    except ValueError as expected:
        yield "local_addr", str(expected), config.local_addr


def fake_tcp_port(config: Config) -> Violations:
    if config.mode == "server" and config.fake_tcp_port and config.fake_tcp_port == config.listen_endpoint.port:
        yield "fake_tcp_port", "another port than that of local_addr, whose connections are real", config.fake_tcp_port


def public_addr(config: Config) -> Violations:
    given = config.public_addr
    if isinstance(given, str):
        yield from _dialable("public_addr", given)
        return
    if not given:
        yield "public_addr", 'at least one server, or ""', []
    for index, text in enumerate(given):
        if text:
            yield from _dialable(f"public_addr[{index}]", text)
        else:
            yield f"public_addr[{index}]", ENDPOINT_FORM, text
        if text in given[:index]:
            yield f"public_addr[{index}]", ONLY_ONCE, text


def proxy_protocol_from(config: Config) -> Violations:
    texts = {f"proxy_protocol_from[{i}]": text for i, text in enumerate(config.proxy_protocol_from)}
    yield from each_once(texts, parse_prefix)


def fallback(config: Config) -> Violations:
    for name in ("fallback", "fallback_h2", "fallback_plain"):
        text = getattr(config, name)
        problems = list(_dialable(name, text))
        if text and not problems and parse_endpoint(text).address is None:
            problems = [(name, 'an address and a port, such as "127.0.0.1:8080", and no name', text)]
        yield from problems


# -- where a client dials, and by which way


def remote_addr(config: Config) -> Violations:
    given = config.remote_addr
    if isinstance(given, str):
        yield from _dialable("remote_addr", given)
        return
    seen = set()
    for index, text in enumerate(given):
        found = (
            list(_dialable(f"remote_addr[{index}]", text))
            if text
            else [(f"remote_addr[{index}]", 'a server, such as "192.0.2.1:9000"', text)]
        )
        yield from found
        if not found:
            remote = parse_remote(text)
            if remote in seen:
                yield f"remote_addr[{index}]", ONLY_ONCE, text
            seen.add(remote)


def proxy(config: Config) -> Violations:
    """A password in it is not shown."""
    if not config.proxy or not config.remote_addr:
        return
    try:
        named = config.named_proxy
    except ValueError as expected:
        where = ", in https_proxy or all_proxy" if config.proxy == proxy_url.ENVIRONMENT else ""
        yield "proxy", f"{expected}{where}", proxy_url.without_login(config.proxy)
        return
    if config.proxy and config.proxy_command:
        yield "proxy_command", "nothing beside `proxy`: one way to the server is enough", list(config.proxy_command)
    if config.proxy == proxy_url.ENVIRONMENT:
        hosts = [each[0] for each in config.remotes]
        others = [host for host in hosts if proxy_url.of_environment(host) != named]
        if others:
            found = f"{others[0]} goes another way than {config.remote_endpoint.host}"
            yield "proxy", "one way to all servers: no_proxy has to name all or none of them", found
    if named is not None and any("%" in each.host for each in config.remote_endpoints):
        yield "remote_addr", "addresses that the proxy can reach, without an interface of this machine", ""


def websocket(config: Config) -> Violations:
    if not config.websocket or not config.remote_addr:
        return
    try:
        url = proxy_url.parse_websocket(config.websocket)
    except ValueError as expected:
        yield "websocket", str(expected), proxy_url.without_login(config.websocket)
        return
    if config.proxy_command:
        yield "proxy_command", "nothing beside `websocket`: one way to the server is enough", list(config.proxy_command)
    elif config.proxy and config.named_proxy is not None and config.named_proxy.scheme == "https":
        yield "proxy", f"a proxy without TLS, or none, with {url.scheme}://", proxy_url.without_login(config.proxy)
    elif config.has_several_servers:
        yield "remote_addr", "one server with `websocket`: its URL leads to one", config.remote_text


# -- what is served beside the tunnel


def websocket_addr(config: Config) -> Violations:
    given = config.websocket_addr
    problems = list(_served("websocket_addr", given, lambda: config.websocket_endpoint, "10.0.0.1:8080"))
    yield from problems
    if problems or config.websocket_endpoint is None:
        return
    if config.websocket_endpoint == config.listen_endpoint:
        yield "websocket_addr", "another port than that of local_addr", given
    elif not config.websocket_path:
        yield "websocket_path", f"{WEBSOCKET_PATH_FORM}: web servers in front pass on WebSockets of this path", ""


def websocket_proxies(config: Config) -> Violations:
    texts = {f"websocket_proxies[{i}]": text for i, text in enumerate(config.websocket_proxies)}
    yield from each_once(texts, parse_prefix)


def metrics_addr(config: Config) -> Violations:
    given = config.metrics_addr
    problems = list(_served("metrics_addr", given, lambda: config.metrics_endpoint, "10.0.0.1:9100"))
    yield from problems
    if problems or config.metrics_endpoint is None:
        return
    if not (config.metrics_endpoint.is_loopback or config.metrics_token_file):
        expected = (
            f"the path of a file with a token, because {given} is no loopback address: others would see "
            "peers and addresses. Make a token with `tunnel-supervisor genkey`, or set metrics_addr to a port alone"
        )
        yield "metrics_token_file", expected, ""


# -- addresses by themselves


def _dialable(name: str, text: str) -> Violations:
    if not text:
        return
    is_remote = name.startswith("remote_addr")
    try:
        endpoint = parse_remote(text) if is_remote else parse_endpoint(text)
    except ValueError as expected:
        yield name, str(expected), text
        return
    if isinstance(endpoint, SrvName):
        return
    if text.startswith(":"):
        yield name, "a host before the colon", text
    elif endpoint.port == 0:
        yield name, "a port of 1 to 65535", text
    elif is_remote and endpoint.lacks_zone:
        yield name, f'the interface in a link-local address, such as "[{endpoint.host}%eth0]:{endpoint.port}"', text


def _served(name: str, given: int | str, endpoint: Callable[[], Endpoint | None], example: str) -> Violations:
    """An address of this machine, or a port alone, at which something is served beside the tunnel."""
    try:
        found = endpoint()
    except ValueError as expected:
        yield name, str(expected), given
        return
    if found is not None and found.port == 0:
        yield name, "a port of 1 to 65535", given
    elif found is not None and found.address is None and not found.is_loopback:
        yield name, f'an address of this machine, such as "{example}", and no name', given
