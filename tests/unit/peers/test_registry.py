"""Peers identified by a key, a certificate, or nothing; and peers that clash."""

from __future__ import annotations

import hashlib
import os
import timeit
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509

from pipeline.config import Config, parse
from pipeline.config.peer import check_peer_name
from pipeline.credentials import certificates, keys
from pipeline.credentials.certificates import CertificatePair
from pipeline.errors import ConfigError
from pipeline.peers import peer_file, registry
from pipeline.peers.address_assignment import PeerPolicy
from pipeline.peers.peer_file import InvitedPeer
from pipeline.peers.registry import BYTES_PER_MBIT, KnownPeer, Loaded, PeerRegistry
from pipeline.wire import auth as proof
from pipeline.wire import messages
from tests.harness.tls_ends import issue

KEYS = {name: bytes([number]) * 31 + name[:1].encode() for number, name in enumerate(("ann", "bob", "cyd"))}
TRANSCRIPT = b"t" * 32


def hello(key: bytes | None, client: int = 1) -> messages.Hello:
    """The HELLO of a client that has this key, or none."""
    auth = messages.AUTH_NONE if key is None else messages.AUTH_KEY
    return messages.Hello(
        messages.VERSION, 0, 0, 1, 1400, client, 1, 0, 0, auth, bytes(8) if key is None else proof.key_id(key)
    )


def with_key(name: str) -> KnownPeer:
    return KnownPeer(PeerPolicy(name), KEYS[name])


def name_of(known: KnownPeer | tuple[KnownPeer, bytes] | None) -> str | None:
    return known and (known if isinstance(known, KnownPeer) else known[0]).policy.name


# -- by key


def proved(known: PeerRegistry, named: bytes | None, used: bytes) -> str | None:
    """The name of the peer for a client that names one key and proves one."""
    return name_of(known.by_key(hello(named), TRANSCRIPT, proof.client_proof(used, TRANSCRIPT)))


@pytest.fixture
def known() -> PeerRegistry:
    made = PeerRegistry(admits_unauthenticated=False)
    made.replace([with_key("ann"), with_key("bob")])
    return made


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_a_client_with_a_key_is_the_peer_of_that_key(known: PeerRegistry, name: str) -> None:
    assert proved(known, KEYS[name], KEYS[name]) == name


def test_a_client_that_names_one_key_and_proves_another_is_no_peer(known: PeerRegistry) -> None:
    assert proved(known, KEYS["ann"], KEYS["bob"]) is None
    assert proved(known, KEYS["cyd"], KEYS["ann"]) is None
    assert proved(known, KEYS["cyd"], KEYS["cyd"]) is None


def test_a_client_that_names_no_key_is_no_peer(known: PeerRegistry) -> None:
    assert proved(known, None, KEYS["ann"]) is None
    silent = hello(KEYS["ann"])._replace(auth=messages.AUTH_NONE)
    assert known.by_key(silent, TRANSCRIPT, proof.client_proof(KEYS["ann"], TRANSCRIPT)) is None


@pytest.mark.parametrize("mac", [b"", b"m" * 31, bytes(32), b"m" * 64])
def test_an_invalid_proof_proves_nothing(known: PeerRegistry, mac: bytes) -> None:
    assert known.by_key(hello(KEYS["ann"]), TRANSCRIPT, mac) is None
    assert known.by_key(hello(KEYS["cyd"]), TRANSCRIPT, mac) is None


def test_an_unknown_key_takes_as_long_as_a_known_one(known: PeerRegistry) -> None:
    """Without a mac to compare, it would be done in a tenth of the time."""
    mac = b"m" * 32

    def seconds(sent: messages.Hello) -> float:
        return min(timeit.repeat(lambda: known.by_key(sent, TRANSCRIPT, mac), number=200, repeat=20))

    assert 0.5 < seconds(hello(KEYS["cyd"])) / seconds(hello(KEYS["ann"])) < 2


def test_the_decoy_for_unknown_keys_is_random() -> None:
    first, second = PeerRegistry(False), PeerRegistry(False)
    assert first._decoy_key != second._decoy_key
    assert len(first._decoy_key) == proof.KEY_BYTES


def test_replace_forgets_the_earlier_peers(known: PeerRegistry) -> None:
    known.replace([with_key("cyd")])
    assert proved(known, KEYS["ann"], KEYS["ann"]) is None
    assert proved(known, KEYS["cyd"], KEYS["cyd"]) == "cyd"
    known.replace([KnownPeer(PeerPolicy("dan"), certificate_name="dan.test")])
    assert proved(known, KEYS["cyd"], KEYS["cyd"]) is None


# -- by certificate


@pytest.fixture(scope="module")
def authority() -> CertificatePair:
    return certificates.make_ca("authority")


def der(pem: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def shown(authority: CertificatePair) -> Callable[..., bytes]:
    """A client's certificate as it reaches the server."""
    return lambda name, *hosts: der(certificates.issue(authority, name, server=False, hosts=hosts).certificate)


def certified(*known: KnownPeer) -> PeerRegistry:
    made = PeerRegistry(admits_unauthenticated=False)
    made.replace(known)
    return made


def by_hash(name: str, certificate: bytes) -> KnownPeer:
    return KnownPeer(PeerPolicy(name), certificate_sha256=hashlib.sha256(certificate).digest())


def by_name(name: str, certificate_name: str) -> KnownPeer:
    return KnownPeer(PeerPolicy(name), certificate_name=certificate_name)


def test_a_certificate_is_identified_by_its_hash(shown: Callable[..., bytes]) -> None:
    ann, renewed = shown("ann.test"), shown("ann.test")
    known = certified(by_hash("ann", ann))
    assert name_of(known.by_certificate(ann)) == "ann"
    assert known.by_certificate(renewed) is None
    assert known.by_certificate(shown("bob.test")) is None


def test_a_certificate_is_identified_by_any_of_its_names_and_so_is_a_renewed_one(shown: Callable[..., bytes]) -> None:
    known = certified(by_name("ann", "laptop.test"))
    assert name_of(known.by_certificate(shown("ann.test", "laptop.test"))) == "ann"
    assert name_of(known.by_certificate(shown("laptop.test"))) == "ann"
    assert known.by_certificate(shown("bob.test")) is None
    assert known.by_certificate(shown("other.laptop.test")) is None


def test_the_hash_of_a_certificate_takes_precedence_over_its_names(shown: Callable[..., bytes]) -> None:
    certificate = shown("bob.test")
    known = certified(by_name("bob", "bob.test"), by_hash("ann", certificate))
    assert name_of(known.by_certificate(certificate)) == "ann"
    assert name_of(known.by_certificate(shown("bob.test"))) == "bob"


def test_without_peers_identified_by_certificate_a_certificate_names_its_peer(shown: Callable[..., bytes]) -> None:
    for known in (certified(), certified(with_key("cyd"))):
        assert known.by_certificate(shown("ann.test")) == KnownPeer(PeerPolicy("ann.test"))


def test_a_certificate_never_identifies_a_peer_that_has_a_key(shown: Callable[..., bytes]) -> None:
    """It would get that peer's addresses and the networks behind it."""
    known = certified(with_key("ann"))
    assert known.by_certificate(shown("ann")) is None


def test_a_name_that_is_not_printable_is_ignored() -> None:
    """A CA may let clients choose their names."""
    for name in ("an\x1b[31mn", "an\nn"):
        assert certified().by_certificate(der(issue(name).certificate.encode())) is None


@pytest.mark.parametrize("data", [b"", b"\x30\x82", b"no certificate", bytes(2000)])
def test_bytes_that_are_no_certificate_identify_no_peer(data: bytes) -> None:
    for known in (certified(), certified(by_name("ann", "ann.test")), certified(with_key("ann"))):
        assert known.by_certificate(data) is None


# -- without any proof


def test_unauthenticated_clients_are_admitted_each_as_a_peer_of_its_own() -> None:
    everybody = PeerRegistry(admits_unauthenticated=True)
    names = [name_of(everybody.unauthenticated(hello(None, client))) for client in (1, 2, (1 << 64) - 1)]
    assert len(set(names)) == 3
    assert names[0] == name_of(everybody.unauthenticated(hello(None, 1)))
    assert names[2] == "client:ffffffffffffffff"
    assert everybody.unauthenticated(hello(None)).policy == PeerPolicy(names[0])


def test_no_peer_that_proves_its_identity_has_the_name_of_an_unauthenticated_client(
    shown: Callable[..., bytes],
) -> None:
    """Such a client chooses its number: it would end the session of that peer, and have its address."""
    name = name_of(PeerRegistry(admits_unauthenticated=True).unauthenticated(hello(None, 1)))
    with pytest.raises(ConfigError):
        check_peer_name(name)
    assert certified().by_certificate(shown(name)) is None


def test_an_unauthenticated_client_is_no_peer_elsewhere() -> None:
    assert PeerRegistry(admits_unauthenticated=False).unauthenticated(hello(None)) is None


# -- from the configuration and the state directory


class Files:
    """A server's files: keys for its peers, and those that were invited."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def key(self, name: str) -> str:
        """The path of a new file with a key."""
        path = self.path / f"{name}.key"
        keys.write_secret(path, keys.generate().encode())
        return str(path)

    def invite(self, name: str, **values: object) -> InvitedPeer:
        peer = InvitedPeer(name, keys.parse(keys.generate()))._replace(**values)
        peer_file.write(self.path, peer)
        return peer

    def config(self, *peers: dict, **values: object) -> Config:
        return parse(
            {"mode": "server", "state_dir": str(self.path), "tunnel_addr": "10.0.0.1/24", "peers": [*peers]} | values
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def refused(load: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load()
    return [str(problem) for problem in caught.value.problems]


def test_a_peer_of_the_configuration_has_its_key_its_networks_and_its_rate(files: Files) -> None:
    path = files.key("ann")
    config = files.config(
        {
            "name": "ann",
            "key_file": path,
            "allowed": ["10.1.0.0/16", "fd01::/64"],
            "address": "10.0.0.7",
            "rate_mbit": 20,
        },
        {"name": "bob", "key_file": files.key("bob")},
        rate_mbit=0.5,
    )
    ann, bob = registry.load(config).known
    assert ann == KnownPeer(
        PeerPolicy(
            "ann", (ip_network("10.1.0.0/16"), ip_network("fd01::/64")), (ip_address("10.0.0.7"),), 20 * BYTES_PER_MBIT
        ),
        keys.read_key(path, ""),
        configured=config.peers[0],
    )
    assert (bob.policy.name, bob.policy.rate) == ("bob", BYTES_PER_MBIT // 2)


def test_a_peer_of_the_configuration_or_of_a_file_has_its_rate_of_bulk_or_none_of_its_own(files: Files) -> None:
    files.invite("eve", bulk_rate_mbit=2.0)
    files.invite("fay")
    ann = {"name": "ann", "key_file": files.key("ann"), "bulk_rate_mbit": 0}
    known = registry.load(files.config(ann, bulk_rate_mbit=7)).known
    assert [each.policy.bulk_rate for each in known] == [0, 2 * BYTES_PER_MBIT, None]


def test_a_peer_has_the_certificate_hash_or_name_of_the_configuration(files: Files, authority: CertificatePair) -> None:
    ca = files.path / "ca.crt"
    ca.write_bytes(authority.certificate)
    config = files.config(
        {"name": "ann", "fingerprint": "ab" * 32}, {"name": "bob", "certificate_name": "bob.test"}, tls_ca_file=str(ca)
    )
    ann, bob = registry.load(config).known
    assert (ann.certificate_sha256, ann.certificate_name, ann.key) == (b"\xab" * 32, "", b"")
    assert (bob.certificate_sha256, bob.certificate_name, bob.key) == (b"", "bob.test", b"")


def test_invited_peers_are_known_beside_those_of_the_configuration(files: Files) -> None:
    eve = files.invite("eve", allowed=(ip_network("10.2.0.0/16"),), address=(ip_address("10.0.0.9"),), rate_mbit=3.0)
    files.invite("fay")
    files.invite("gus", rate_mbit=0.0)
    known = registry.load(files.config({"name": "ann", "key_file": files.key("ann")}, rate_mbit=7)).known
    assert [name_of(each) for each in known] == ["ann", "eve", "fay", "gus"]
    assert known[1] == KnownPeer(PeerPolicy("eve", eve.allowed, eve.address, 3 * BYTES_PER_MBIT), eve.key, invited=eve)
    assert [each.policy.rate for each in known[2:]] == [7 * BYTES_PER_MBIT, 0]


def test_without_encryption_there_are_no_invited_peers(files: Files) -> None:
    files.invite("eve")
    assert registry.load(files.config(encryption="none", insecure=True)) == ([], [], set())


def problems(loaded: Loaded) -> list[str]:
    return [str(problem) for _, problem in loaded.broken]


def test_a_wrong_file_costs_its_own_peer_and_no_other(files: Files) -> None:
    open_to_all = files.path / "open.key"
    open_to_all.write_text(keys.generate())
    open_to_all.chmod(0o644)
    files.invite("eve")
    fay = files.path / "peers" / "fay.json"
    fay.write_text('{"key": "short"}')
    fay.chmod(0o600)
    config = files.config(
        {"name": "ann", "key_file": str(open_to_all)},
        {"name": "bob", "key_file": str(files.path / "none")},
        {"name": "cyd", "key_file": files.key("cyd")},
    )
    loaded = registry.load(config)
    assert [name_of(each) for each in loaded.known] == ["cyd", "eve"]
    assert [name for name, _ in loaded.broken] == ["ann", "bob", "fay"] and not loaded.clashing
    found = problems(loaded)
    assert "peers[0].key_file: other users can read or change it" in found[0]
    assert "peers[1].key_file: cannot be read: No such file" in found[1]
    assert "fay.json: key: expected a key as" in found[2]


def test_a_file_that_became_wrong_leaves_its_peer_the_key_that_it_had(files: Files) -> None:
    path = files.key("ann")
    peers = {"name": "ann", "key_file": path}, {"name": "bob", "fingerprint": "ab" * 32}
    files.invite("eve")
    before = registry.load(files.config(*peers[:1])).known
    Path(path).write_text("half a k")
    (files.path / "peers" / "eve.json").write_text("")
    loaded = registry.load(files.config({**peers[0], "rate_mbit": 8}), before)
    assert [(name_of(each), each.key) for each in loaded.known] == [(name_of(each), each.key) for each in before]
    assert loaded.known[0].policy.rate == BYTES_PER_MBIT * 8
    assert [name for name, _ in loaded.broken] == ["ann", "eve"]
    (files.path / "peers" / "eve.json").unlink()
    assert [name_of(each) for each in registry.load(files.config(*peers[:1]), before).known] == ["ann"]


@pytest.mark.parametrize(
    "place", ["fifo", "directory", "loop", "device", b"", bytes(50), b"\xff\xfe{\0}\0", b"x" * 70000]
)
def test_anything_in_place_of_a_peer_file_costs_that_peer(files: Files, place: str | bytes) -> None:
    files.invite("eve")
    path = files.path / "peers" / "ann.json"
    match place:
        case "fifo":
            os.mkfifo(path, 0o600)
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case bytes():
            path.write_bytes(place)
            path.chmod(0o600)
    loaded = registry.load(files.config())
    assert [name_of(each) for each in loaded.known] == ["eve"]
    assert [name for name, _ in loaded.broken] == ["ann"] and str(path) in problems(loaded)[0]


def test_a_peer_file_may_have_come_through_an_editor_of_another_system(files: Files) -> None:
    eve = files.invite("eve")
    path = files.path / "peers" / "eve.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert [each.key for each in registry.load(files.config()).known] == [eve.key]


# -- clashes


def clashing(known: Iterable[KnownPeer]) -> list[str]:
    return refused(lambda: registry.check_distinct(known))


def test_peers_that_share_nothing_do_not_clash() -> None:
    registry.check_distinct([with_key("ann"), with_key("bob"), by_name("cyd", "cyd.test")])
    registry.check_distinct(
        [
            KnownPeer(PeerPolicy("ann", (ip_network("10.0.0.0/8"),)), KEYS["ann"]),
            KnownPeer(PeerPolicy("bob", (ip_network("10.1.0.0/16"), ip_network("10.0.0.0/9"))), KEYS["bob"]),
        ]
    )


def lost(files: Files, *peers: dict) -> list[str]:
    """The problems of the peers that are left out because they clash with one before them, which stays."""
    loaded = registry.load(files.config(*peers))
    assert [name_of(each) for each in loaded.known] == ["ann"]
    assert loaded.clashing == {name for name, _ in loaded.broken}
    return problems(loaded)


def test_of_two_peers_of_one_name_that_of_the_configuration_stays(files: Files) -> None:
    files.invite("ann")
    assert lost(files, {"name": "ann", "key_file": files.key("ann")}) == [
        'peers: two peers have the name "ann", one of them invited: revoke or rename one of them'
    ]


def test_of_two_peers_with_one_key_the_first_stays(files: Files) -> None:
    assert clashing([with_key("ann"), KnownPeer(PeerPolicy("bob"), KEYS["ann"])]) == [
        'peers: "ann" and "bob" have one key, but each peer needs its own'
    ]
    path = files.key("ann")
    files.invite("eve", key=keys.read_key(path, ""))
    assert lost(files, {"name": "ann", "key_file": path}) == [
        'peers: "ann" and "eve" have one key, but each peer needs its own'
    ]


def test_of_two_peers_with_one_network_the_first_stays(files: Files) -> None:
    lan = (ip_network("10.1.0.0/16"),)
    assert clashing(
        [KnownPeer(PeerPolicy("ann", lan), KEYS["ann"]), KnownPeer(PeerPolicy("bob", lan), KEYS["bob"])]
    ) == ['allowed: 10.1.0.0/16 belongs to "ann" already, "bob" cannot have it']
    files.invite("eve", allowed=lan)
    assert lost(files, {"name": "ann", "key_file": files.key("ann"), "allowed": ["10.1.0.0/16"]}) == [
        'allowed: 10.1.0.0/16 belongs to "ann" already, "eve" cannot have it'
    ]


def test_of_two_peers_with_one_fixed_address_the_first_stays(files: Files) -> None:
    files.invite("eve", address=(ip_address("10.0.0.7"),))
    found = lost(files, {"name": "ann", "key_file": files.key("ann"), "address": "10.0.0.7"})
    assert ["10.0.0.7" in text for text in found] == [True]


def test_everything_that_two_peers_share_is_reported() -> None:
    one = KnownPeer(PeerPolicy("ann", (ip_network("10.1.0.0/16"),)), KEYS["ann"])
    assert len(clashing([one, one._replace(policy=one.policy._replace(name="bob")), with_key("ann")])) == 3


def test_a_knock_is_known_by_its_key_and_its_connection() -> None:
    known = PeerRegistry(admits_unauthenticated=False)
    known.replace([with_key("ann")])
    binding = b"b" * 48
    for name, of_connection, expected in (("ann", binding, True), ("ann", b"c" * 48, False), ("bob", binding, False)):
        said = hello(KEYS[name])
        knock = proof.knock(proof.knock_key(KEYS[name]), said.nonce, of_connection)
        assert known.knows(said._replace(knock=knock), binding) is expected
    assert not known.knows(hello(KEYS["ann"]), binding)
    assert not known.knows(hello(None), binding)
