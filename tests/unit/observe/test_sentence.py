"""The state of an instance in a sentence, and the advice."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.observe.sentence import ADVICE, DOCTOR, OF_PROXY, OF_WEBSOCKET, Health, advice_for, describe, spoken
from pipeline.transport import failure_words
from pipeline.wire import messages
from tests.support import ROOT

SERVER = {"host": "vpn.example.org", "port": 443, "connections_wanted": 2, "trouble": [], "failed_attempts": 0}


def row(**change: Any) -> dict[str, Any]:
    made = {"state": "established", "address": "192.0.2.1:443", "rtt_ms": 41.4, "age_seconds": 11_000, "sent_bytes": 0}
    return {"resent_segments": 0, "sent_segments": 0, **made, **change}


def client(*rows: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {
        "state": "running",
        "mode": "client",
        "uptime_seconds": 99,
        "server": SERVER,
        "connections": list(rows),
        "workers": [],
        "counters": {"tun.bytes_written": 12_400_000_000, "tun.bytes_read": 1_100_000_000},
        **change,
    }


def server(*rows: dict[str, Any], **change: Any) -> dict[str, Any]:
    return client(*rows, **{"mode": "server", "server": None, "peers_connected": 3, "peers_max": 100, **change})


def test_a_client_that_is_connected_says_since_when_and_how_well() -> None:
    assert describe(client(row(), row(age_seconds=3, rtt_ms=40))) == Health(
        True, "connected to vpn.example.org since 3 h, 41 ms, no loss, 12.4 GB in, 1.1 GB out"
    )


def test_a_session_is_as_old_as_itself_though_all_its_connections_are_younger() -> None:
    peers = [{"session_seconds": 11_000}]
    assert " since 3 h, " in describe(client(row(age_seconds=3), peers=peers)).sentence
    moved = SERVER | {"why": "a:9000 was lost: no answer", "why_seconds": 20}
    assert " since 20 s, " in describe(client(row(), peers=peers, server=moved)).sentence
    assert " since 3 h, " in describe(client(row(), peers=[{"session_seconds": None}])).sentence


def test_a_client_with_several_servers_says_why_it_is_not_at_the_first_and_which_one_stands_by() -> None:
    listed = [{"server": "a:9000", "state": "standby"}, {"server": "b:9000", "state": "current"}]
    away = SERVER | {"host": "b", "connections_wanted": 1, "why": "a:9000 was lost: no answer", "list": listed}
    sentence = describe(client(row(), server=away)).sentence
    assert sentence.endswith(", here because a:9000 was lost: no answer, a:9000 stands by")
    at_home = away | {"why": "it comes first in remote_addr", "list": [dict(each) for each in listed[::-1]]}
    assert describe(client(row(), server=at_home)).sentence.endswith(" out, a:9000 stands by")


def test_a_client_that_lacks_connections_says_how_many_and_why() -> None:
    trouble = SERVER | {"connections_wanted": 8, "trouble": ["no answer"]}
    health = describe(client(row(), server=trouble))
    assert health.works and "since 3 h, 1 of 8 connections, 41 ms" in health.sentence
    assert health.advice.startswith("Not all connections stand: no answer. Check that the server is up")


def test_segments_that_were_sent_again_and_blocks_that_were_recovered_are_named() -> None:
    counters = {"fec.blocks_recovered_1": 3, "fec.blocks_recovered_2": 1, "tun.bytes_read": 5, "tun.bytes_written": 6}
    lossy = client(row(resent_segments=4, sent_segments=1000), row(), counters=counters)
    assert "41 ms, 0.40 % sent again, 4 blocks recovered, 6 B in, 5 B out" in describe(lossy).sentence


@pytest.mark.parametrize(
    ("resent", "sent", "words"),
    [
        (1, 40, "1 segment sent again"),
        (2, 27, "2 segments sent again"),
        (1, 1, "1 segment sent again"),
        (1, 200, "0.50 % sent again"),
        (3, 468_246, "under 0.01 % sent again"),
        (0, 27, "no loss"),
    ],
)
def test_a_share_of_few_segments_is_their_number(resent: int, sent: int, words: str) -> None:
    assert f", {words}, " in describe(client(row(resent_segments=resent, sent_segments=sent))).sentence


def test_where_the_kernel_does_not_tell_of_loss_nothing_is_claimed() -> None:
    silent = row()
    del silent["resent_segments"]
    assert "loss" not in describe(client(silent)).sentence


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (
            {"trouble": ["no answer"], "failed_attempts": 12, "trouble_seconds": 250},
            Health(
                False,
                "not connected: vpn.example.org port 443: no answer, for 4 min (12 failed attempts)",
                "Check that the server is up, and that no firewall on the way drops TCP to this port.",
            ),
        ),
        ({}, Health(False, "not connected yet: dialing vpn.example.org port 443")),
        (
            {"trouble": ["the server has closed it\n"]},
            Health(False, "not connected: vpn.example.org port 443: the server has closed it\\n", DOCTOR),
        ),
        (
            {"trouble": ["connection refused: nothing listens on this port there"], "failed_attempts": 1},
            Health(
                False,
                "not connected: vpn.example.org port 443: connection refused: nothing listens on this port there, for "
                "0 s (1 failed attempt)",
                "Check that the server runs, and that the port in remote_addr is its port.",
            ),
        ),
    ],
    ids=["no-answer", "dialing", "other", "refused"],
)
def test_a_client_that_is_not_connected_says_why_and_what_to_do(trouble: dict[str, Any], expected: Health) -> None:
    assert describe(client(server=SERVER | trouble)) == expected


def test_a_hub_counts_its_peers() -> None:
    peers = [{"state": "connected"}] * 3 + [{"state": "away"}] * 9
    assert describe(server(row(), peers=peers)).sentence == (
        "3 of 12 peers connected, 41 ms, no loss, 12.4 GB in, 1.1 GB out, up 99 s"
    )
    assert describe(server(peers=peers[3:4])).sentence == "0 of 1 peer connected, up 99 s"
    assert describe(server(peers=peers, peers_left_out=500)).sentence.startswith("3 of 512 peers connected")
    assert describe(server(row())).sentence.startswith("3 clients connected, ")
    assert describe(server(peers=[])) == Health(True, "no peer yet, up 99 s", "Add one: tunnel-supervisor invite NAME.")


def test_a_server_of_one_client_says_whether_it_is_there() -> None:
    assert describe(server(row(), peers_max=1)).sentence.startswith("a client is connected since 3 h, 41 ms")
    assert describe(server(peers_max=1)) == Health(True, "no client is connected, up 99 s")


@pytest.mark.parametrize("state", ["starting", "stopping", "stopped"])
def test_an_instance_that_does_not_run_yet_or_any_more_does_not_work(state: str) -> None:
    assert describe(client(row(), state=state)) == Health(False, f"{state} (99 s after its start)")


def test_a_worker_that_does_not_run_is_named() -> None:
    workers = [{"name": "tun-0", "state": "running"}, {"name": "tcp-0", "state": "backoff"}]
    assert describe(client(row(), state="degraded", workers=workers)).sentence.endswith(", tcp-0 is backoff")
    assert describe(client(row(), state="degraded", workers=workers)).works


@pytest.mark.parametrize("process", ["stopped", "traced"])
def test_a_process_that_somebody_has_stopped_is_named(process: str) -> None:
    workers = [{"name": "tun-0", "state": "running", "process": process}]
    halted = client(row(), workers=workers, supervisor={"state": "silent"})
    assert describe(halted).sentence.endswith(f", the supervisor is silent, tun-0 is {process}")


def test_an_instance_of_an_older_version_tells_less_and_is_described_all_the_same() -> None:
    bare = {"state": "running", "mode": "client", "uptime_seconds": 5, "connections": []}
    assert describe(bare) == Health(False, "not connected yet: dialing the server port 0")
    assert describe(bare | {"mode": "server"}).sentence == "0 clients connected, up 5 s"


@pytest.mark.parametrize("words", [words for words, _ in (*ADVICE, *OF_PROXY, *OF_WEBSOCKET)])
def test_the_reasons_that_advice_is_for_are_said_somewhere(words: str) -> None:
    sources = [path.read_text() for top in ("pipeline", "workers") for path in (ROOT / top).rglob("*.py")]
    said = [text for text in sources if words in text]
    assert len(said) > 1  # here, and where the reason is made
    assert advice_for([f"it is so: {words}!"], "proxy http://proxy.test:3128") != DOCTOR


def proxied(*rows: dict[str, Any], **server: Any) -> dict[str, Any]:
    return client(*rows, server=SERVER | {"way": "proxy http://proxy.test:3128"} | server)


def test_of_a_client_with_a_proxy_the_proxy_is_named_and_advice_is_about_it() -> None:
    refused = proxied(trouble=["connection refused: nothing listens on this port there"], failed_attempts=3)
    found = describe(refused)
    assert "not connected: proxy http://proxy.test:3128 to " in found.sentence
    assert found.advice == "Check that the proxy runs, and host and port in `proxy`."
    web = proxied(trouble=["connection refused: nothing listens"], failed_attempts=3, way="websocket wss://web.test/x")
    assert describe(web).advice == "Check that the web server runs, and host and port in `websocket`."
    assert " through proxy http://proxy.test:3128 since " in describe(proxied(row())).sentence


def test_every_reason_of_a_socket_that_points_to_a_place_has_its_advice() -> None:
    for number in (failure_words.errno.ECONNREFUSED, failure_words.errno.ETIMEDOUT, failure_words.errno.ENETUNREACH):
        assert advice_for([failure_words.of_errno(number)]) != DOCTOR


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 days"),
    ],
)
def test_spoken_durations(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


@pytest.mark.parametrize("reason", messages.REASONS.values())
def test_every_reason_of_a_refusal_has_its_advice(reason: str) -> None:
    assert advice_for([f"192.0.2.1: refused by the server: {reason}"]) != DOCTOR
