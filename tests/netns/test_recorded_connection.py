"""What somebody on the path records of a connection: a connection of TLS, with nothing in clear but its record headers.

client in c  --  relay in b, which records every byte  --  hub in a
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest

from pipeline.credentials import certificates
from pipeline.supervisor.roles.client_sealing import NO_KEY_SHARE
from tests.netns.harness.hub import Client, Hub, reaches
from tests.netns.harness.instance import Instance
from tests.netns.harness.relay import Relay
from tests.reference.blocks import FRAME, frame
from tests.reference.client import ALPN, BARE_END, HELLO, WELCOME
from tests.support import eventually
from tools.lab.network import Lab

HANDSHAKE, CHANGE_CIPHER_SPEC, APPLICATION_DATA = 22, 20, 23  # types of records (RFC 8446, 5.1)
END_LENGTH = 19  # of the last record: an alert with its type and its tag
LENGTHS = 17, 16401
DATAGRAMS, DATAGRAM = 400, bytes(900)
WINDOW = 8
CHI_SQUARE_MOST = 255 + 7 * 22.6  # mean and deviation of 255 degrees of freedom: one stream in 10^10 is above


class Record(NamedTuple):
    kind: int
    version: int
    payload: bytes


def records_of(stream: bytes) -> list[Record]:
    """The whole stream, as records."""
    found, at = [], 0
    while at < len(stream):
        length = int.from_bytes(stream[at + 3 : at + 5], "big")
        found.append(
            Record(stream[at], int.from_bytes(stream[at + 1 : at + 3], "big"), stream[at + 5 : at + 5 + length])
        )
        assert len(found[-1].payload) == length, f"a record of {length} bytes is cut off"
        at += 5 + length
    return found


def chi_square(data: bytes) -> float:
    """Of the counts of byte values, against all values being equally frequent."""
    counts = numpy.bincount(numpy.frombuffer(data, numpy.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def repeated(data: bytes) -> int:
    """Stretches of WINDOW bytes, at any offsets, that are in the data more than once."""
    windows = numpy.lib.stride_tricks.sliding_window_view(numpy.frombuffer(data, numpy.uint8), WINDOW)
    values = numpy.ascontiguousarray(windows).view(numpy.uint64).ravel()
    return len(values) - len(numpy.unique(values))


def steady_fields(payloads: list[bytes]) -> list[int]:
    """Offsets at which records of one length have too few values for random bytes."""
    columns = numpy.array([list(payload) for payload in payloads], numpy.uint8).T
    expected = 256 * (1 - (255 / 256) ** len(payloads))
    return [at for at, column in enumerate(columns) if len(numpy.unique(column)) < expected - 64]


def test_each_look_finds_the_structure_that_is_there() -> None:
    random = numpy.random.default_rng(1).bytes(40_000)
    assert chi_square(random) < CHI_SQUARE_MOST < chi_square(random + bytes(1000))
    assert repeated(random) == 0 < repeated(random + random[100:120])
    rows = [random[at : at + 40] for at in range(0, 40_000, 100)]
    assert steady_fields(rows) == []
    assert steady_fields([row[:7] + bytes([at % 64]) + row[8:] for at, row in enumerate(rows)]) == [7]


PLAIN, PADDED = {"fec": "off"}, {"fec": "on", "padding": True}


@pytest.fixture(scope="module", params=[PLAIN, {"fec": "on"}, PADDED], ids=["plain", "fec", "padded"])
def recorded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[int, str], bytes]]:
    """All connections of a client that has sent equal packets, and large ones, and has been stopped."""
    directory = tmp_path_factory.mktemp("recorded")
    with Lab(names=("a", "b", "c")) as lab, Hub(lab, directory, keepalive=0.3, **request.param) as hub:
        with Relay(lab["b"], (hub.node.address, hub.port)) as relay:
            invitation = hub.invite("one", "--address", relay.address)
            settings = {"connections": 2, "keepalive": 0.3, **request.param}
            with Client(lab["c"], invitation, directory, **settings) as client:
                client.wait_until_joined()
                for node, address in ((client.node, hub.server.address), (hub.node, client.address)):
                    with node.socket(kind=socket.SOCK_DGRAM) as source:
                        for _ in range(DATAGRAMS):
                            source.sendto(DATAGRAM, (address, 9))
                    assert reaches(node, address, count=20)
                sent = {name: client.counter(f"tcp.{name}") for name in ("keepalives_sent", "frames_sent")}
                assert sent["frames_sent"]
                eventually(lambda: client.counter("tcp.keepalives_sent") > sent["keepalives_sent"] + 4)
                client.stop()
            eventually(lambda: not hub.peers()["one"]["connections"], what="the hub has seen the end")
        yield {key: bytes(stream) for key, stream in relay.recorded.items()}


def established(recorded: dict[tuple[int, str], bytes]) -> dict[tuple[int, str], list[Record]]:
    """The connections that carried packets: not that of the exchange of keys, which is one of TLS alone."""
    found = {key: records_of(stream) for key, stream in recorded.items()}
    longest = {key: records for key, records in found.items() if len(records) > 8}
    assert len(longest) >= 4
    return longest


def test_after_the_hellos_it_is_records_of_application_data_with_lengths_of_tls(
    recorded: dict[tuple[int, str], bytes],
) -> None:
    for key, records in established(recorded).items():
        kinds = [record.kind for record in records]
        hellos = kinds.index(APPLICATION_DATA)
        assert kinds[:hellos] in ([HANDSHAKE, CHANGE_CIPHER_SPEC], [CHANGE_CIPHER_SPEC, HANDSHAKE], [HANDSHAKE]), key
        assert set(kinds[hellos:]) == {APPLICATION_DATA}, key
        assert {record.version for record in records[1:]} == {0x0303}, key
        lengths = [len(record.payload) for record in records[hellos:]]
        assert LENGTHS[0] <= min(lengths) and max(lengths) <= LENGTHS[1], key


def test_its_end_is_a_record_like_an_alert_of_tls(recorded: dict[tuple[int, str], bytes]) -> None:
    for (number, direction), records in established(recorded).items():
        ends = [at for at, record in enumerate(records) if len(record.payload) == END_LENGTH]
        assert ends in ([len(records) - 1], []), direction
        assert ends or direction == "to client", f"connection {number} has ended without one"


def test_everything_else_looks_random_and_nothing_comes_twice(recorded: dict[tuple[int, str], bytes]) -> None:
    """Over all connections together: a copy, or a packet that is sent again, is another one on the wire."""
    of_any = b""
    for key, records in established(recorded).items():
        payload = b"".join(record.payload for record in records if record.kind == APPLICATION_DATA)
        assert chi_square(payload) < CHI_SQUARE_MOST, key
        of_any += payload
    assert len(of_any) > DATAGRAMS * len(DATAGRAM)
    assert repeated(of_any) == 0


def test_no_field_of_equal_packets_is_seen(recorded: dict[tuple[int, str], bytes]) -> None:
    by_length: dict[int, list[bytes]] = defaultdict(list)
    for records in established(recorded).values():
        for record in records[-DATAGRAMS:]:
            by_length[len(record.payload)].append(record.payload)
    most, _ = Counter({length: len(payloads) for length, payloads in by_length.items()}).most_common(1)[0]
    assert len(by_length[most]) > 30, {length: len(payloads) for length, payloads in by_length.items()}
    assert steady_fields(by_length[most]) == []


def test_a_client_closes_a_connection_whose_welcome_has_no_key_share(tmp_path: Path) -> None:
    """The server has the right certificate, and is older, or has let the key share fall."""
    ca = certificates.make_ca("Test CA")
    with Lab() as lab:
        a, b = lab
        mine = certificates.issue(ca, "server.test", server=True)
        theirs = certificates.issue(ca, "client", server=False)
        for name, content in {
            "ca.crt": ca.certificate,
            "server.pem": mine.certificate + mine.key,
            "client.crt": theirs.certificate,
            "client.key": theirs.key,
        }.items():
            (tmp_path / name).touch(0o600)
            (tmp_path / name).write_bytes(content)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        context.set_alpn_protocols([ALPN])
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        with a.socket() as listener:
            listener.bind((a.address, 0))
            listener.listen()
            listener.settimeout(10.0)
            config = {
                "mode": "client",
                "remote_addr": f"{a.address}:{listener.getsockname()[1]}",
                "tunnel_addr": "10.98.0.2/24",
                "fec": "off",
                "tls_ca_file": str(tmp_path / "ca.crt"),
                "tls_cert_file": str(tmp_path / "client.crt"),
                "tls_key_file": str(tmp_path / "client.key"),
                "tls_server_name": "server.test",
            }
            with Instance(b, config, tmp_path) as client:
                accepted, _ = listener.accept()
                accepted.settimeout(10.0)
                with context.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False) as sock:
                    assert sock.recv(1000)[FRAME.size - 1] == HELLO
                    sock.sendall(frame(WELCOME, bytes.fromhex("02 00 0578 00") + bytes(32 + 1 + 2)))
                    with pytest.raises(ssl.SSLError, match=BARE_END):
                        sock.recv(1000)
                client.wait_for_log(NO_KEY_SHARE)
                assert "connected:" not in client.log
