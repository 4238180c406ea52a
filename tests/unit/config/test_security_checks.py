"""Rules and warnings of encryption, certificates, keys and peers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import changes, find_warnings, parse, to_json
from pipeline.config.peer import PEER_SETTINGS, PROOFS
from pipeline.errors import ConfigError
from pipeline.shm.layout import ROUTES_MAX
from tests.harness.config_problems import problems, the_problem

SERVER = {"mode": "server"}
CLIENT = {"mode": "client", "remote_addr": "192.0.2.1:9000"}
KEYED = CLIENT | {"key_file": "client.key"}
PLAIN = {"encryption": "none"}
COMPAT = {"compat": True}
FINGERPRINT = "0123456789abcdef" * 4
COLONS = ":".join(FINGERPRINT.upper()[i : i + 2] for i in range(0, 64, 2))


def of(*peers: object, **settings: object) -> dict:
    """A server with these peers; a peer without a name or a key gets one."""
    given = [
        {"name": f"peer{i}"} | ({} if set(PROOFS) & peer.keys() else {"key_file": f"{i}.key"}) | peer
        if isinstance(peer, dict)
        else peer
        for i, peer in enumerate(peers)
    ]
    return SERVER | {"peers": given} | settings


# --- encryption ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "encryption", "hub"),
    [
        (SERVER, "tls", True),
        (SERVER | {"tls_enabled": True}, "tls", True),
        (SERVER | {"tls_enabled": None}, "tls", True),
        (SERVER | {"encryption": None}, "tls", True),
        (SERVER | PLAIN | {"insecure": True}, "none", False),
        (SERVER | PLAIN | {"insecure": True, "tls_enabled": False}, "none", False),
        (SERVER | COMPAT | {"insecure": True}, "none", True),
        (SERVER | COMPAT | {"local_addr": "127.0.0.1:9000"}, "none", False),
        (SERVER | COMPAT | {"insecure": True, "tls_enabled": False}, "none", True),
        (SERVER | COMPAT | {"insecure": True, "tls_enabled": True}, "tls", True),
        (SERVER | COMPAT | {"insecure": True, "encryption": "tls"}, "tls", True),
        (CLIENT, "tls", False),
        (CLIENT | PLAIN, "none", False),
    ],
)
def test_everything_is_encrypted_unless_plaintext_is_written_out(values: dict, encryption: str, hub: bool) -> None:
    config = parse(values)
    assert (config.encryption, config.tls_enabled, config.multi_client) == (encryption, encryption == "tls", hub)


def test_the_original_programs_switch_alone_does_not_turn_encryption_off() -> None:
    for values in (SERVER, CLIENT, CLIENT | {"encryption": "tls"}):
        text = the_problem(values | {"tls_enabled": False})
        assert 'tls_enabled: given false, expected true, or "encryption": "none" beside it' in text
        assert "clear text must be written out" in text


def test_the_original_programs_switch_must_agree() -> None:
    assert "tls_enabled: given true" in the_problem(CLIENT | PLAIN | {"tls_enabled": True})
    assert "tls_enabled: given true" in the_problem(SERVER | PLAIN | {"tls_enabled": True, "insecure": True})


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "[::]:9000", ":9000", "192.0.2.1:9000", "a.example:1"])
def test_a_plaintext_server_that_others_can_reach_starts_only_if_the_file_says_insecure(address: str) -> None:
    values = SERVER | PLAIN | {"local_addr": address}
    text = the_problem(values)
    assert f"listens on {address} without authentication or encryption: every machine" in text
    assert '"insecure": true' in text and "--set insecure=true" in text and 'leave "encryption": "none" out' in text
    (warning,) = find_warnings(parse(values | {"insecure": True}))
    assert "insecure is true" in warning and "without authentication or encryption" in warning


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "127.9.9.9:9000", "[::1]:9000", "localhost:9000"])
def test_a_plaintext_server_on_a_loopback_address_needs_no_insecure(address: str) -> None:
    assert find_warnings(parse(SERVER | PLAIN | {"local_addr": address})) == []


def test_a_server_with_tls_needs_no_insecure_and_admits_all_clients_with_it() -> None:
    assert find_warnings(parse(SERVER)) == []
    (warning,) = find_warnings(parse(SERVER | {"insecure": True}))
    assert warning == (
        "insecure is true: every client that reaches :9000 and speaks TLS is inside this "
        "tunnel, without proof of its identity."
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (COMPAT, "without authentication or encryption: every machine"),
        (
            COMPAT | {"encryption": "tls"},
            "without authentication, which the original program does not have: every machine",
        ),
    ],
)
def test_with_compat_no_client_can_prove_its_identity_with_or_without_tls(values: dict, text: str) -> None:
    refusal = the_problem(SERVER | values)
    assert text in refusal and 'leave "encryption"' not in refusal
    (warning,) = find_warnings(parse(SERVER | values | {"insecure": True}))
    assert "insecure is true" in warning and "without authentication" in warning


def test_several_clients_are_served_in_plaintext_and_with_compat_only_if_the_file_says_insecure() -> None:
    assert parse(SERVER | PLAIN | {"insecure": True, "multi_client": True}).multi_client is True
    assert parse(SERVER | COMPAT | {"insecure": True, "multi_client": True}).multi_client is True
    text = the_problem(SERVER | COMPAT | {"local_addr": "127.0.0.1:9000", "multi_client": True})
    assert 'multi_client: given true, expected false with compat, or "insecure": true beside it' in text


# --- certificates and keys -------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["tls_cert_file", "tls_key_file"])
@pytest.mark.parametrize("values", [SERVER, CLIENT])
def test_a_certificate_and_its_key_go_together(values: dict, given: str) -> None:
    (problem,) = problems(values | {given: "a.pem"})
    assert problem.path == ({"tls_cert_file", "tls_key_file"} - {given}).pop()
    assert f"because {given} is given" in problem.text


@pytest.mark.parametrize(("text", "expected"), [(FINGERPRINT, FINGERPRINT), (COLONS, FINGERPRINT), ("", "")])
def test_a_fingerprint_may_have_colons_and_capitals(text: str, expected: str) -> None:
    assert parse(KEYED | {"tls_fingerprint": text}).server_certificate_hash.hex() == expected
    if text:
        (peer,) = parse(of({"fingerprint": text}, tls_ca_file="ca.crt")).peers
        assert peer.certificate_hash.hex() == expected


@pytest.mark.parametrize(
    "text",
    [
        FINGERPRINT[1:],
        FINGERPRINT + "0",
        COLONS[:-1],
        COLONS + ":",
        "x" * 64,
        COLONS.replace(":", "", 1),
        f"sha256:{FINGERPRINT}",
        FINGERPRINT + "\n",
    ],
)
def test_a_fingerprint_of_another_form_is_refused(text: str) -> None:
    expected = "expected the SHA-256 of a certificate, 64 hexadecimal digits"
    assert f"tls_fingerprint: given {json.dumps(text)[:40]}" in the_problem(KEYED | {"tls_fingerprint": text})
    assert expected in the_problem(of({"fingerprint": text}, tls_ca_file="ca.crt"))


@pytest.mark.parametrize(
    ("remote", "name"),
    [
        ("192.0.2.1:9000", "192.0.2.1"),
        ("vpn.example.org:9000", "vpn.example.org"),
        ("vpn.example.org.:1", "vpn.example.org"),
        ("[2001:db8::1]:9000", "2001:db8::1"),
        ("[fe80::1%eth0]:9000", "fe80::1"),
    ],
)
def test_the_certificate_must_be_for_the_host_that_is_dialled_unless_another_name_is_given(
    remote: str, name: str
) -> None:
    assert parse(KEYED | {"remote_addr": remote}).tls_server_name == name
    assert parse(KEYED | {"remote_addr": remote, "tls_server_name": "other.example"}).tls_server_name == "other.example"
    assert parse(SERVER | {"remote_addr": remote}).tls_server_name == ""


@pytest.mark.parametrize("text", ["a.example:9000", "[2001:db8::1]", "*.example.org", "10.0.0.256", "a b"])
def test_a_name_that_no_certificate_can_have_is_refused(text: str) -> None:
    assert f'tls_server_name: given "{text}", expected' in the_problem(KEYED | {"tls_server_name": text})


@pytest.mark.parametrize("other", [{"tls_ca_file": "ca.crt"}, {"tls_fingerprint": FINGERPRINT}])
def test_to_accept_any_certificate_and_a_certain_one_is_a_contradiction(other: dict) -> None:
    text = the_problem(KEYED | {"tls_skip_verify": True} | other)
    assert f"tls_skip_verify: given true, expected false with {next(iter(other))}" in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (CLIENT, "there is neither a key_file nor a tls_cert_file: unless this client is started with --join"),
        (
            CLIENT | {"tls_cert_file": "a.crt", "tls_key_file": "a.key", "tls_skip_verify": True},
            "anybody on the path can pose as the server",
        ),
        (
            CLIENT | COMPAT | {"tls_enabled": True, "tls_skip_verify": True, "tunnel_addr": "10.0.0.2/24"},
            "anybody on the path can pose as the server",
        ),
        (KEYED | PLAIN, 'key_file has no effect: encryption is "none".'),
        (CLIENT | PLAIN | {"padding": True}, "padding has no effect: only records of sealed connections are padded."),
        (CLIENT | PLAIN | {"tls_skip_verify": True}, 'tls_skip_verify has no effect: encryption is "none".'),
        (CLIENT | PLAIN | {"tls_min_version": "1.2"}, 'tls_min_version has no effect: encryption is "none".'),
        (
            KEYED | COMPAT | {"tls_enabled": True, "tunnel_addr": "10.0.0.2/24"},
            "key_file has no effect: the original program has no such feature.",
        ),
        (KEYED | {"peers": [{"name": "a", "key_file": "a"}]}, "peers has no effect: the server decides"),
        (SERVER | {"key_file": "a.key"}, "key_file has no effect: the keys of a server are those of its peers."),
        (SERVER | {"tls_skip_verify": True}, "tls_skip_verify has no effect: a server does not dial."),
        (SERVER | {"tls_fingerprint": FINGERPRINT}, "tls_fingerprint has no effect: a server does not dial."),
        (SERVER | {"tls_server_name": "a.example"}, "tls_server_name has no effect: a server does not dial."),
        (SERVER | {"tls_ca_file": "ca.crt"}, "from this CA is admitted under the name in the certificate."),
        (of({}, tls_ca_file="ca.crt"), "tls_ca_file is given and no peer has a fingerprint or certificate_name"),
        (
            of({"allowed": ["10.1.0.0/16", "10.2.0.0/16"]}, routes=["10.0.0.0/15"]),
            "routes has no route to 10.2.0.0/16, which are allowed to peers",
        ),
    ],
)
def test_a_setting_without_effect_or_proof_gets_one_sentence(values: dict, sentence: str) -> None:
    (warning,) = find_warnings(parse(values))
    assert sentence in warning and warning.endswith(".")


@pytest.mark.parametrize(
    "values",
    [
        KEYED,
        KEYED | {"tls_skip_verify": True},
        KEYED | {"tls_fingerprint": FINGERPRINT},
        CLIENT | {"tls_cert_file": "a.crt", "tls_key_file": "a.key"},
        SERVER | {"tls_cert_file": "a.crt", "tls_key_file": "a.key"},
        of({"certificate_name": "a"}, tls_ca_file="ca.crt"),
        of({"allowed": ["10.1.0.0/16"]}, routes=["10.0.0.0/8"]),
        of({"allowed": ["10.0.0.7/32"]}),
    ],
)
def test_a_configuration_in_which_both_ends_prove_their_identity_gets_no_warning(values: dict) -> None:
    assert find_warnings(parse(values)) == []


# --- peers -----------------------------------------------------------------------------------------


def test_a_peer_is_parsed() -> None:
    config = parse(
        of(
            {"name": "one", "allowed": ["10.1.0.0/16", "fd01::/48"], "address": "10.0.0.7"},
            {"address": ["10.0.0.8", "fd00::8"], "rate_mbit": 7},
            {"rate_mbit": 0},
            tunnel_addr=["10.0.0.1/24", "fd00::1/64"],
            rate_mbit=50,
            routes=["10.1.0.0/16", "fd01::/48"],
        )
    )
    one, two, three = config.peers
    assert (one.name, one.key_file, one.proofs) == ("one", "0.key", ["key_file"])
    assert [str(prefix) for prefix in one.prefixes] == ["10.1.0.0/16", "fd01::/48"]
    assert [str(address) for address in (*one.addresses, *two.addresses)] == ["10.0.0.7", "10.0.0.8", "fd00::8"]
    assert [peer.rate_mbit for peer in config.peers] == [50, 7, 0]
    assert three.addresses == three.prefixes == () and three.certificate_hash == b""


@pytest.mark.parametrize(
    ("proofs", "given"),
    [
        ({"key_file": ""}, "[]"),
        ({"key_file": "a", "fingerprint": FINGERPRINT}, '["key_file", "fingerprint"]'),
        ({"fingerprint": FINGERPRINT, "certificate_name": "a"}, '["fingerprint", "certificate_name"]'),
    ],
)
def test_a_peer_proves_itself_in_exactly_one_way(proofs: dict, given: str) -> None:
    text = the_problem(of(proofs, tls_ca_file="ca.crt"))
    assert text.startswith(f"test.json: peers[0]: given {given}, expected exactly one of key_file, fingerprint and")


@pytest.mark.parametrize(
    ("peers", "path", "text"),
    [
        ([{"allowed": ["10.1.2.3/16"]}], "peers[0].allowed[0]", 'such as "10.1.0.0/16"'),
        ([{"allowed": ["10.1.0.0/16", "x"]}], "peers[0].allowed[1]", "expected a network"),
        ([{"allowed": ["10.1.0.0/16"] * 2}], "peers[0].allowed[1]", "expected each value only once"),
        ([{"address": "10.0.0.2/24"}], "peers[0].address", "expected an address, such as"),
        ([{"address": "fe80::1%eth0"}], "peers[0].address", "expected an address, such as"),
        ([{"address": ["10.0.0.2", ""]}], "peers[0].address[1]", "expected an address, such as"),
        ([{"address": "10.9.0.2"}], "peers[0].address", "in a subnet of tunnel_addr, 10.0.0.0/24"),
        ([{"address": "10.0.0.255"}], "peers[0].address", "an address of a host in a subnet of tunnel_addr"),
        ([{"address": "fd00::2"}], "peers[0].address", "in a subnet of tunnel_addr"),
        ([{"address": "10.0.0.1"}], "peers[0].address", "it belongs to the server itself"),
        ([{"address": ["10.0.0.2", "10.0.0.3"]}], "peers[0].address[1]", "one address in each subnet of tunnel_addr"),
        ([{"allowed": ["10.0.0.1/32"]}], "peers[0].allowed[0]", "it belongs to the server itself"),
        ([{"address": "10.0.0.2"}, {"address": "10.0.0.2"}], "peers[1].address", "it belongs to peers[0]"),
        ([{"allowed": ["10.1.0.0/16"]}, {"allowed": ["10.1.0.0/16"]}], "peers[1].allowed[0]", "it belongs to peers[0]"),
        ([{"address": "10.0.0.2"}, {"allowed": ["10.0.0.2/32"]}], "peers[1].allowed[0]", "it belongs to peers[0]"),
        ([{"name": "a"}, {}, {"name": "a"}], "peers[2].name", "a name of its own: peers[0] has this one"),
        (
            [{"key_file": "a"}, {"key_file": "a"}],
            "peers[1].key_file",
            "peers[0] has this one, so the server could not tell them apart",
        ),
        ([{"name": ".."}], "peers[0].name", "expected 1 to 32 letters"),
        ([{}, {"rate_mbit": -1}], "peers[1].rate_mbit", "expected a number from 0 to 1000000 Mbit/s"),
        ([{"allowed": [5]}], "peers[0].allowed[0]", "given 5, expected a network"),
        ([{"address": [5]}], "peers[0].address[0]", "given 5, expected an address"),
        ([{"key_file": "a\nb"}], "peers[0].key_file", "expected the path of a file"),
        ([{}, {"adress": "10.0.0.2"}], "peers[1].adress", 'unknown setting, the nearest one is "address"'),
        ([{}, 5], "peers[1]", "given 5, expected an object with the name of a peer"),
    ],
)
def test_the_problem_of_a_peer_has_its_path(peers: list, path: str, text: str) -> None:
    (problem,) = problems(of(*peers))
    assert problem.path == path and text in problem.text


def test_a_peer_needs_a_name_and_each_mistake_of_each_peer_is_reported() -> None:
    found = problems(SERVER | {"peers": [{"key_file": "a"}, {"name": "b", "rate_mbit": "x", "allowed": "10.0.0.0/8"}]})
    assert [(problem.path, problem.text.partition(",")[0]) for problem in found] == [
        ("peers[0].name", "given nothing"),
        ("peers[1].rate_mbit", 'given "x"'),
        ("peers[1].allowed", 'given "10.0.0.0/8"'),
    ]


def test_a_key_in_the_place_of_its_path_is_not_printed() -> None:
    for peers in ({"name": "a", "key": "hunter2"}, [{"name": "a", "key": "hunter2"}], [["hunter2"]]):
        assert "hunter2" not in "".join(map(str, problems(SERVER | {"peers": peers})))


def test_networks_inside_one_another_may_belong_to_different_peers() -> None:
    nested = of(
        {"allowed": ["0.0.0.0/0"]}, {"allowed": ["10.1.0.0/16"]}, {"allowed": ["10.1.2.0/24"], "address": "10.0.0.9"}
    )
    assert len(parse(nested).peers) == 3


def test_a_peer_may_have_its_own_address_among_its_networks() -> None:
    (peer,) = parse(of({"address": "10.0.0.7", "allowed": ["10.0.0.7/32"]})).peers
    assert [str(prefix) for prefix in peer.prefixes] == ["10.0.0.7/32"]


def test_one_certificate_is_one_peer_in_every_notation() -> None:
    text = the_problem(of({"fingerprint": FINGERPRINT}, {"fingerprint": COLONS}, tls_ca_file="ca.crt"))
    assert "peers[1].fingerprint" in text and "peers[0] has this one" in text
    assert len(parse(of({"certificate_name": "a"}, {"key_file": "a"}, tls_ca_file="ca.crt")).peers) == 2


@pytest.mark.parametrize("proof", [{"fingerprint": FINGERPRINT}, {"certificate_name": "a"}])
def test_a_peer_with_a_certificate_needs_a_ca_on_the_server(proof: dict) -> None:
    (problem,) = problems(of({}, proof))
    assert problem.path == "peers[1]" and "without a CA the server cannot ask clients for a certificate" in problem.text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (PLAIN | {"insecure": True}, 'expected none with encryption "none": clients cannot prove their identity'),
        (PLAIN | {"local_addr": "127.0.0.1:9000"}, 'expected none with encryption "none"'),
        (COMPAT | {"insecure": True}, "expected none with compat: clients of the original program cannot prove"),
        (COMPAT | {"insecure": True, "encryption": "tls"}, "expected none with compat"),
    ],
)
def test_where_nothing_can_be_proved_there_are_no_peers(settings: dict, text: str) -> None:
    assert text in the_problem(of({}, {}, **settings))


def test_ipv6_behind_a_peer_needs_the_mtu_of_ipv6() -> None:
    assert "at least 1280 with IPv6" in the_problem(of({"allowed": ["fd01::/48"]}, mtu=1279))


def test_the_routes_to_clients_and_networks_must_fit_into_the_peer_table() -> None:
    assert "max_clients" in the_problem(SERVER | {"max_clients": 4096, "tunnel_addr": ["10.0.0.1/16", "fd00::1/64"]})
    assert parse(SERVER | {"max_clients": 4096, "tunnel_addr": "10.0.0.1/16"})
    prefixes = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(ROUTES_MAX - 100)]
    text = the_problem(of({"allowed": prefixes}, tunnel_addr="172.16.0.1/24"))
    assert f"expected at most 98 with 1 subnet(s) in tunnel_addr and {ROUTES_MAX - 100} networks of peers" in text
    assert parse(of({"allowed": prefixes}, tunnel_addr="172.16.0.1/24", max_clients=98))


# --- properties ------------------------------------------------------------------------------------

TEXTS = st.text(max_size=12) | st.sampled_from(["10.0.0.2", "10.1.0.0/16", "fd00::2", FINGERPRINT, "a"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
ANY_PEER = (
    st.dictionaries(st.sampled_from(sorted(PEER_SETTINGS)) | st.text(max_size=8), ANY_JSON, max_size=5) | ANY_JSON
)

HOSTS = st.integers(2, 254).map(lambda host: f"10.0.0.{host}")
NETWORKS = st.integers(0, 255).map(lambda net: f"10.1.{net}.0/24")


@st.composite
def sound_peers(draw: st.DrawFn) -> list[dict]:
    """Some peers that share nothing."""
    count = draw(st.integers(0, 5))
    hosts = draw(st.lists(HOSTS, min_size=count, max_size=count, unique=True))
    networks = draw(st.lists(NETWORKS, min_size=count, max_size=count, unique=True))
    proofs = {"key_file": lambda i: f"{i}.key", "fingerprint": lambda i: f"{i:064x}", "certificate_name": str}
    peers = []
    for index in range(count):
        proof = draw(st.sampled_from(PROOFS))
        peer = {"name": f"p{index}", proof: proofs[proof](index)}
        optional = {
            "address": st.sampled_from([hosts[index], [hosts[index]], []]),
            "rate_mbit": st.floats(0, 100) | st.none(),
            "allowed": st.sampled_from([[], [networks[index]]]),
        }
        peers.append(peer | draw(st.fixed_dictionaries({}, optional=optional)))
    return peers


@given(st.lists(ANY_PEER, max_size=4) | ANY_JSON)
def test_any_peers_give_a_configuration_or_a_configuration_error_with_the_path(peers: object) -> None:
    try:
        config = parse(SERVER | {"peers": peers, "tls_ca_file": "ca.crt"})
    except ConfigError as error:
        for problem in error.problems:
            assert problem.path.startswith("peers") and str(problem).isprintable()
    else:
        assert parse(json.loads(to_json(config))) == config


@given(sound_peers(), st.floats(0, 100))
def test_the_effective_peers_parse_to_themselves(peers: list, rate: float) -> None:
    config = parse(SERVER | {"peers": peers, "tls_ca_file": "ca.crt", "rate_mbit": rate})
    again = parse(json.loads(to_json(config)))
    assert again == config and changes(config, again) == []
    assert [peer.rate_mbit for peer in config.peers] == [
        rate if peer.get("rate_mbit") is None else peer["rate_mbit"] for peer in peers
    ]
    assert all(warning.endswith(".") for warning in find_warnings(config))


# --- a port that is shared with a web server --------------------------------------------------------

SITE = SERVER | {"fallback": "127.0.0.1:8080"}


@pytest.mark.parametrize(
    ("values", "alpn"),
    [
        (SERVER, ("tunnel/1",)),
        (CLIENT, ("tunnel/1",)),
        (SITE, ("http/1.1",)),
        (SITE | {"fallback_h2": "127.0.0.1:8082"}, ("h2", "http/1.1")),
        (SITE | {"tls_alpn": ["http/1.1", "tunnel/1"]}, ("http/1.1", "tunnel/1")),
        (CLIENT | {"fallback": "127.0.0.1:8080"}, ("tunnel/1",)),
        (SERVER | COMPAT | {"insecure": True}, ()),
    ],
)
def test_a_server_with_a_fallback_selects_the_names_of_web_servers(values: dict, alpn: tuple[str, ...]) -> None:
    assert parse(values).tls_alpn == alpn


@pytest.mark.parametrize(
    "values",
    [
        SITE | PLAIN | {"insecure": True},
        SITE | COMPAT | {"insecure": True},
        SITE | {"insecure": True},
        SITE | {"tls_ca_file": "ca.pem"},
        SERVER | {"fallback": "localhost:8080"},
        SERVER | {"fallback": ":8080"},
        SERVER | {"fallback": "127.0.0.1:0"},
        SITE | {"fallback_plain": "example.org:80"},
        SITE | {"tls_alpn": ["tunnel/1"]},
        SITE | {"tls_alpn": ["h2", "http/1.1"]},
        SERVER | {"tls_alpn": []},
        SERVER | {"tls_alpn": ["h2", "h2"]},
        SERVER | COMPAT | {"insecure": True, "tls_alpn": ["h2"]},
        CLIENT | {"tls_alpn": ["with a space"]},
    ],
)
def test_a_fallback_that_could_not_hide_anything_is_refused(values: dict) -> None:
    assert problems(values)


@pytest.mark.parametrize("name", ["max_handshakes", "max_handshakes_per_address", "connects_per_address"])
def test_with_a_fallback_limits_that_web_servers_do_not_have_are_said_to_be_without_effect(name: str) -> None:
    (warning,) = [each for each in find_warnings(parse(SITE | {name: 7})) if each.startswith(f"{name} has no effect")]
    assert "fallback_connections" in warning


def test_a_web_server_elsewhere_is_warned_of() -> None:
    assert not [each for each in find_warnings(parse(SITE)) if "without encryption" in each]
    (warning,) = [each for each in find_warnings(parse(SERVER | {"fallback": "192.0.2.1:80"})) if "visitors" in each]
    assert "192.0.2.1:80" in warning


@pytest.mark.parametrize(("networks", "warned"), [(["192.0.2.1/32"], False), (["0.0.0.0/0"], True), (["::/0"], True)])
def test_a_list_of_all_proxies_is_warned_of(networks: list[str], warned: bool) -> None:
    found = find_warnings(parse(SERVER | {"proxy_protocol_from": networks}))
    assert any("proxy_protocol_from has every address" in each for each in found) is warned


@pytest.mark.parametrize("networks", [["192.0.2.1/24"], ["proxy.example.org"], ["10.0.0.0/8"] * 2])
def test_proxies_are_networks_and_each_stands_once(networks: list[str]) -> None:
    assert problems(SERVER | {"proxy_protocol_from": networks})
