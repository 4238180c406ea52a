"""TLS with certificates of a CA on both sides: who gets in, who does not and hears why, and what may change meanwhile.

The certificates are made by `gen-cert`; those that it would not make, such as expired ones, by what it stands on.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.credentials import certificates
from pipeline.credentials.certificates import CertificatePair
from pipeline.sealing.key_schedule import AES_256_GCM, SUITES
from pipeline.sealing.session import Offer
from pipeline.supervisor.roles.client_sealing import preferred_suite
from pipeline.transport import failure_words
from pipeline.wire import framing, messages
from tests.netns.harness.checked_flow import Flow, transfer
from tests.netns.harness.hub import BOTH, PLAIN, call, established, hub_config, inside, port_of, reaches, tls_context
from tests.netns.harness.instance import Instance
from tests.support import eventually
from tools.instance import EXECUTABLE
from tools.lab.network import Lab, Node

SERVER, CLIENT, OTHER = "vpn.test", "branch", "laptop"
INSIDE_CLIENT = ["10.99.0.2/24", "fd99::2/64"]
NO_NEWER_THAN_1_2 = """
openssl_conf = main
[main]
ssl_conf = tls
[tls]
system_default = limits
[limits]
MaxProtocol = TLSv1.2
"""

KEY_SHARE = Offer(AES_256_GCM).key_share.pack()
HELLO = messages.Hello(messages.VERSION, 0, 0, 1, 1400, 1, 1, framing.BULK, 0, key_share=KEY_SHARE)


class Files(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path

    def put(self, pair: CertificatePair) -> Files:
        for path, content in zip(self, pair, strict=True):
            path.touch(0o600)
            path.write_bytes(content)
        return self

    def content(self) -> CertificatePair:
        return CertificatePair(self.certificate.read_bytes(), self.key.read_bytes())


class Authority(NamedTuple):
    """A CA in a directory of its own."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.crt"

    def files(self, name: str) -> Files:
        return Files(self.directory / f"{name}.crt", self.directory / f"{name}.key")

    def issue(self, name: str, *, server: bool, days: float) -> Files:
        """One that begins so many days from now; it is good for more than two years."""
        now = datetime.now(UTC) + timedelta(days=days)
        pair = certificates.issue(self.files("ca").content(), name, server=server, now=now)
        return self.files(f"{name}{days:+g}").put(pair)


def gen_cert(directory: Path, *words: str) -> None:
    said = subprocess.run([EXECUTABLE, "gen-cert", directory, *words], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(names=("a", "b", "c")) as made:
        yield made


@pytest.fixture(scope="module")
def authority(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("authority")
    gen_cert(directory, "--ca", "Test CA")
    gen_cert(directory, "--server", SERVER, "--address", lab["a"].address)
    for name in (CLIENT, OTHER):
        gen_cert(directory, "--client", name)
    return Authority(directory)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA, which has issued a certificate for the client, too."""
    made = Authority(tmp_path_factory.mktemp("other"))
    made.files("ca").put(certificates.make_ca("Test CA"))
    made.files(CLIENT).put(certificates.issue(made.files("ca").content(), CLIENT, server=False))
    return made


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"SSLKEYLOGFILE": str(tmp_path_factory.mktemp("keys") / "log")}


@pytest.fixture(scope="module")
def served(authority: Authority) -> Files:
    """The files that the server has its certificate from."""
    mine = Files(authority.directory / "server.crt", authority.directory / "server.key")
    return mine.put(authority.files(SERVER).content())


@pytest.fixture(scope="module")
def server(
    lab: Lab, authority: Authority, served: Files, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    directory = tmp_path_factory.mktemp("server")
    config = hub_config(
        lab["a"],
        directory,
        tls_cert_file=str(served.certificate),
        tls_key_file=str(served.key),
        tls_ca_file=str(authority.certificate),
        connects_per_address=1000,
        peers=[{"name": "the-branch", "certificate_name": CLIENT}],
    )
    with Instance(lab["a"], config, directory, environment=environment) as instance:
        instance.wait_until_running()
        yield instance


def client_config(server: Instance, authority: Authority, mine: Files, **settings: Any) -> dict[str, Any]:
    return {
        "mode": "client",
        "remote_addr": f"{server.node.address}:{port_of(server)}",
        "tunnel_addr": INSIDE_CLIENT,
        "tls_ca_file": str(authority.certificate),
        "tls_cert_file": str(mine.certificate),
        "tls_key_file": str(mine.key),
        "reconnect_max": 0.5,
        **PLAIN,
        **settings,
    }


@pytest.fixture(scope="module")
def client(
    lab: Lab,
    server: Instance,
    authority: Authority,
    environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Instance]:
    with Instance(
        lab["b"],
        client_config(server, authority, authority.files(CLIENT)),
        tmp_path_factory.mktemp("client"),
        environment=environment,
    ) as instance:
        instance.wait_until_connected()
        yield instance


# -- who gets in


@BOTH
def test_a_client_with_a_certificate_of_the_ca_is_in(server: Instance, client: Instance, six: bool) -> None:
    assert reaches(client.node, inside(server, six)) and reaches(server.node, inside(client, six))
    transfer(client, server, streams=1, size=2_000_000, six=six)
    transfer(server, client, streams=1, size=2_000_000, six=six)


def test_nobody_is_told_the_keys_of_a_session_whatever_the_environment_says(
    client: Instance, environment: dict[str, str]
) -> None:
    assert established(client) and not Path(environment["SSLKEYLOGFILE"]).exists()


def test_a_peer_is_called_what_the_configuration_calls_it(server: Instance, client: Instance) -> None:
    said = server.command("peers").stdout
    assert "the-branch" in said and client.address in said and client.node.address in said


def says(instance: Instance, text: str) -> bool:
    return text in instance.command("status").stdout


def test_both_ends_say_with_what_packets_are_encrypted(server: Instance, client: Instance) -> None:
    suite = SUITES[preferred_suite()]
    for instance in (server, client):
        eventually(partial(says, instance, f"encrypted with {suite}, epoch 0 out, 0 in"))
        (peer,) = json.loads(instance.command("status", "--json").stdout)["peers"]
        assert (peer["encryption"], peer["sent_epoch"], peer["received_epoch"]) == (suite, 0, 0)
    (peer,) = json.loads(server.command("peers", "--json").stdout)["peers"]
    assert peer["encryption"] == suite


def first_frame(node: Node, server: Instance, context: ssl.SSLContext) -> bytes:
    """The server's answer to a HELLO without a key: the beginning of a frame, nothing if it closes."""
    with call(node, server.node.address, port_of(server), context) as sock:
        sock.sendall(HELLO.frame())
        return sock.recv(5)


def test_by_hand_too(lab: Lab, server: Instance, client: Instance, authority: Authority) -> None:
    said = first_frame(lab["c"], server, tls_context(pair=authority.files(CLIENT)))
    assert said[4] in (framing.WELCOME, framing.REFUSED)  # the branch is there already, in a newer session
    eventually(lambda: reaches(client.node, server.address), what="the branch is back")


@pytest.mark.parametrize(
    ("whose", "alert"),
    [
        ("other-ca", "UNKNOWN_CA"),
        ("expired", "CERTIFICATE_EXPIRED"),
        ("not-yet-valid", "BAD_CERTIFICATE"),
        ("servers", "UNSUPPORTED_CERTIFICATE"),
        ("none", "CERTIFICATE_REQUIRED"),
    ],
)
def test_a_client_whose_certificate_does_not_hold_is_not_in(
    lab: Lab, server: Instance, client: Instance, authority: Authority, other: Authority, whose: str, alert: str
) -> None:
    pair = {
        "other-ca": lambda: other.files(CLIENT),
        "servers": lambda: authority.files(SERVER),
        "expired": lambda: authority.issue(CLIENT, server=False, days=-900),
        "not-yet-valid": lambda: authority.issue(CLIENT, server=False, days=2),
        "none": lambda: None,
    }[whose]()
    before = server.counter("tcp.closed_hello_invalid")
    with pytest.raises(ssl.SSLError) as refusal:
        first_frame(lab["c"], server, tls_context(pair=pair))
    assert alert in refusal.value.reason
    eventually(lambda: server.counter("tcp.closed_hello_invalid") == before + 1)
    assert reaches(client.node, server.address)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2], ids=["1.1", "1.2"])
def test_an_older_tls_is_not_spoken(
    lab: Lab, server: Instance, client: Instance, authority: Authority, version: ssl.TLSVersion
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.1
        context = tls_context(oldest=version, newest=version, pair=authority.files(CLIENT))
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        first_frame(lab["c"], server, context)
    assert reaches(client.node, server.address)


def test_a_client_whose_certificate_names_no_peer_hears_nothing(
    lab: Lab, server: Instance, client: Instance, authority: Authority, tmp_path: Path
) -> None:
    before = server.counter("tcp.closed_proof_wrong")
    with Instance(lab["c"], client_config(server, authority, authority.files(OTHER)), tmp_path) as unknown:
        unknown.wait_for_log("it does not know us")
        assert not established(unknown)
    assert server.counter("tcp.closed_proof_wrong") > before
    assert reaches(client.node, server.address)


# -- what a client finds wrong with the server


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"tls_server_name": "elsewhere.test"}, "certificate is not valid for 'elsewhere.test'"),
        ({"tls_ca_file": "other"}, "certificate is not accepted here: self-signed certificate in certificate chain"),
        ({"tls_fingerprint": "00" * 32, "tls_ca_file": ""}, f"expected {'00' * 32}"),
        ({"tls_fingerprint": "00" * 32}, f"expected {'00' * 32}"),
        ({"tls_ca_file": ""}, "certificate is not accepted here: self-signed certificate in certificate chain"),
    ],
    ids=["name", "ca", "pin", "pin-and-ca", "system"],
)
def test_a_client_tells_what_is_wrong_with_the_server(
    lab: Lab,
    server: Instance,
    authority: Authority,
    other: Authority,
    tmp_path: Path,
    settings: dict[str, str],
    text: str,
) -> None:
    if settings.get("tls_ca_file") == "other":
        settings = {"tls_ca_file": str(other.certificate)}
    with Instance(
        lab["c"], client_config(server, authority, authority.files(CLIENT), **settings), tmp_path
    ) as refusing:
        refusing.wait_for_log(text)
        assert "trying again until it succeeds" in refusing.log and not established(refusing)


# -- what changes while it runs


@pytest.fixture
def replaced(server: Instance, client: Instance, served: Files) -> Iterator[Files]:
    """The server's files, to be written to; the old ones are back in force afterwards, and no worker was replaced."""
    before, workers, lost = served.content(), server.worker_pids(), client.counter("tcp.connections_lost")
    yield served
    served.put(before)
    assert server.command("reload").returncode == 0
    assert server.worker_pids() == workers and client.counter("tcp.connections_lost") == lost


def shown(node: Node, server: Instance, authority: Authority) -> bytes:
    """The certificate that the server shows to who comes now."""
    with call(node, server.node.address, port_of(server), tls_context(pair=authority.files(OTHER))) as sock:
        return sock.getpeercert(True)


def test_a_new_certificate_is_for_later_connections_and_costs_no_session(
    lab: Lab, server: Instance, client: Instance, authority: Authority, replaced: Files
) -> None:
    before = shown(lab["c"], server, authority)
    with Flow(client, server) as up, Flow(server, client) as down:
        replaced.put(certificates.issue(authority.files("ca").content(), "vpn2.test", server=True))
        assert shown(lab["c"], server, authority) == before
        assert server.command("reload").returncode == 0
        now = eventually(lambda: (der := shown(lab["c"], server, authority)) != before and der)
        assert certificates.names(now) == ("vpn2.test",)
        up.wait_for(1_000_000)
        down.wait_for(1_000_000)


@pytest.mark.parametrize("what", ["certificate", "key"])
def test_garbage_for_a_certificate_is_refused_and_the_old_one_goes_on(
    lab: Lab, server: Instance, client: Instance, authority: Authority, replaced: Files, what: str
) -> None:
    before = shown(lab["c"], server, authority)
    path = replaced.certificate if what == "certificate" else replaced.key
    path.write_text("-----BEGIN NONSENSE-----\n")
    said = server.command("reload")
    assert said.returncode == 1 and "expected a" in said.stderr and str(path) in said.stderr
    server.wait_for_log("reload refused, the old configuration goes on")
    assert shown(lab["c"], server, authority) == before
    assert reaches(client.node, server.address)


def test_a_key_of_another_certificate_is_refused_on_reload(
    lab: Lab, server: Instance, authority: Authority, replaced: Files
) -> None:
    replaced.key.write_bytes(authority.files(OTHER).key.read_bytes())
    said = server.command("reload")
    assert said.returncode == 1 and "expected the private key of the certificate, found another key" in said.stderr


def test_a_certificate_that_has_expired_is_said_at_both_ends_and_taken_by_nobody(
    lab: Lab, server: Instance, client: Instance, authority: Authority, replaced: Files, tmp_path: Path
) -> None:
    expired = authority.issue(server.node.address, server=True, days=-900)
    replaced.put(expired.content())
    assert server.command("reload").returncode == 0
    server.wait_for_log("our certificate has expired on")
    with Instance(lab["c"], client_config(server, authority, authority.files(CLIENT)), tmp_path) as refusing:
        refusing.wait_for_log("certificate has expired")
        assert not established(refusing)
    assert reaches(client.node, server.address)


def test_tls_1_2_is_spoken_where_both_ends_are_told_so(
    lab: Lab, server: Instance, authority: Authority, tmp_path: Path
) -> None:
    """The client's OpenSSL is made to know nothing newer."""
    (tmp_path / "openssl.cnf").write_text(NO_NEWER_THAN_1_2)
    old = {"OPENSSL_CONF": str(tmp_path / "openssl.cnf")}
    mine = authority.files(CLIENT)
    older = hub_config(
        lab["a"],
        tmp_path,
        **{
            **{name: value for name, value in server.config.items() if name.startswith("tls") or name == "peers"},
            "tls_min_version": "1.2",
            "tunnel_addr": ["10.98.0.1/24"],
        },
    )
    settings = {"tunnel_addr": "auto", "tls_min_version": "1.2"}
    with (
        Instance(lab["a"], older, tmp_path) as willing,
        Instance(lab["c"], client_config(server, authority, mine, **settings), tmp_path, environment=old) as refused,
    ):
        willing.wait_until_running()
        refused.wait_for_log(failure_words.OTHER_VERSION)
        with Instance(
            lab["c"], client_config(willing, authority, mine, **settings), tmp_path, environment=old
        ) as instance:
            instance.wait_until_connected()
            assert reaches(instance.node, "10.98.0.1") and reaches(willing.node, "10.98.0.2")
        with call(
            lab["c"],
            willing.node.address,
            port_of(willing),
            tls_context(oldest=ssl.TLSVersion.TLSv1_2, newest=ssl.TLSVersion.TLSv1_2, pair=mine),
        ) as sock:
            assert sock.version() == "TLSv1.2"
