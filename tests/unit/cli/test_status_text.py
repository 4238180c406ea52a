"""The text of `status --verbose`."""

from __future__ import annotations

import pytest

from pipeline.cli.status_text import verbose
from tests.harness.snapshots import peer, snapshot


@pytest.mark.parametrize("mode", ["server", "client"])
def test_the_bytes_for_each_peer_stand_there_by_class_where_there_are_any(mode: str) -> None:
    counted = {"voice": 10, "normal_light": 2000, "normal_bulk": 3_000_000, "bulk": 0}
    text = verbose(snapshot(mode=mode, peers=[peer("one", class_bytes=counted), peer("idle", class_bytes={})]))
    _, _, table = text.partition("to peer, by class")
    head, row, *_ = table.splitlines()
    assert head.split() == ["voice", "normal,", "light", "normal,", "bulk", "bulk"]
    assert row.split("  ")[0] == "one" and "10 B" in row and "2.0 kB" in row and "3.0 MB" in row and "0 B" in row


def test_the_bytes_from_a_peer_and_of_others_for_it_stand_there_by_class_where_there_are_any() -> None:
    busy = peer("one", received_class_bytes={"bulk": 4000, "light": 10}, transit_class_bytes={"bulk": 0, "light": 20})
    idle = peer("idle", received_class_bytes={"bulk": 0, "light": 0}, transit_class_bytes={"bulk": 0, "light": 0})
    text = verbose(snapshot(mode="server", peers=[busy, idle]))
    for title, first, second in (
        ("\nfrom peer, by class", "4.0 kB", "10 B"),
        ("\npeers to peer, by class", "0 B", "20 B"),
    ):
        head, row, *_ = text.partition(title)[2].splitlines()
        assert head.split() == ["bulk", "light"]
        assert row.split("  ")[0] == "one" and first in row and second in row
    assert verbose(snapshot(mode="server", peers=[idle])).count("from peer") == 0


def test_an_instance_of_an_older_version_counts_no_classes() -> None:
    old = peer("one")
    for key in ("class_bytes", "received_class_bytes", "transit_class_bytes"):
        del old[key]
    assert "by class" not in verbose(snapshot(mode="server", peers=[old]))
