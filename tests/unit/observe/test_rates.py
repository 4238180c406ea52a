"""Rates between two snapshots."""

from __future__ import annotations

from typing import Any

from pipeline.observe.rates import NO_RATES, PeerRates, between

SECOND = 1_000_000_000


def peer(**changes: Any) -> dict[str, Any]:
    fields = {"sent_bytes": 100, "received_bytes": 200, "resent_segments": 1, "recovered_blocks": 2}
    return {"name": "laptop", "peer": 3, "session_seconds": 10.0, **fields, **changes}


def snapshot(at: float, count: int, *peers: dict[str, Any], pid: int = 1) -> dict[str, Any]:
    counters = {"tun.packets_read": count}
    workers = [{"name": "tun-0", "counters": counters}]
    return {"pid": pid, "taken_ns": int(at * SECOND), "counters": counters, "workers": workers, "peers": list(peers)}


def test_counters_and_peers_per_second() -> None:
    later = peer(sent_bytes=300, received_bytes=200, resent_segments=5, recovered_blocks=4, session_seconds=12.0)
    found = between(snapshot(1, 10, peer()), snapshot(3, 40, later))
    assert found.seconds == 2.0
    assert found.counters == {"tun.packets_read": 15.0}
    assert found.worker("tun-0", "tun.packets_read") == 15.0
    assert found.worker("gone", "tun.packets_read") == 0.0
    assert found.peers == {"laptop": PeerRates(100.0, 0.0, 2.0, 1.0)}


def test_there_is_no_rate_without_an_earlier_snapshot_of_this_run() -> None:
    assert between(None, snapshot(1, 10)) == NO_RATES
    assert between(snapshot(1, 10), snapshot(1, 20)) == NO_RATES
    assert between(snapshot(2, 10), snapshot(1, 20)) == NO_RATES
    assert between(snapshot(1, 10, pid=2), snapshot(2, 20)) == NO_RATES


def test_what_began_anew_has_the_rate_0() -> None:
    found = between(
        snapshot(1, 10, peer()), snapshot(2, 3, peer(session_seconds=0.5, sent_bytes=900), peer(name="new"))
    )
    assert found.counters["tun.packets_read"] == 0.0
    assert found.peers == {"laptop": PeerRates()}
    assert between(snapshot(1, 1, peer()), snapshot(2, 1, peer(peer=4, sent_bytes=900))).peers["laptop"].sent == 0
