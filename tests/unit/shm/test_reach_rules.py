"""The rules as tun workers read them, while the supervisor writes."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from pipeline.errors import LocalError
from pipeline.policy.reach import Row
from pipeline.policy.targets import TCP
from pipeline.shm import reach_rules
from pipeline.shm.reach_rules import NO_POLICY, RulesReader, RulesWriter

OWN = [ip_address("10.0.0.1").packed, ip_address("fd00::1").packed]
LAN: Row = (bytes([192, 168, 10, 0]), 24, TCP, 443, 443)
SIX: Row = (ip_address("fd00::").packed, 64, 0, 0, 65535)


@pytest.fixture
def writer() -> Iterator[RulesWriter]:
    made = RulesWriter()
    yield made
    made.close()


def test_a_reader_has_what_was_written(writer: RulesWriter) -> None:
    reader = RulesReader(writer.fd)
    assert not reader.has_changed() and not reader.rules.policies
    writer.write(True, 1, OWN, {100: 0, 200: 1, 300: NO_POLICY, 400: 0}, [[LAN], [LAN, SIX]])
    assert reader.has_changed() and reader.follow() and not reader.has_changed()
    rules = reader.rules
    assert not rules.kept and rules.own == {4: OWN[0], 16: OWN[1]}
    assert set(rules.policies) == {100, 200, 300, 400} and rules.policies[300] is None
    assert rules.policies[100] is rules.policies[400]
    inside, six = bytes([192, 168, 10, 5]), ip_address("fd00::5").packed
    assert rules.policies[100].find(inside, TCP, 443, 443) == 0 and rules.policies[100].find(six, TCP, 1, 1) == -1
    assert rules.policies[200].find(six, TCP, 1, 1) == 1


def test_policies_are_read_anew_only_if_they_are_others(writer: RulesWriter) -> None:
    reader = RulesReader(writer.fd)
    writer.write(True, 1, OWN, {100: 0}, [[LAN]])
    reader.follow()
    before = reader.rules.policies[100]
    writer.write(False, 1, OWN, {101: 0}, [[LAN]])
    reader.follow()
    assert reader.rules.policies == {101: before} and reader.rules.kept == {101}
    writer.write(True, 2, OWN, {101: 0}, [[SIX]])
    reader.follow()
    assert reader.rules.policies[101] is not before


def test_half_written_rules_are_not_taken(writer: RulesWriter) -> None:
    reader = RulesReader(writer.fd)
    writer.write(True, 1, OWN, {100: 0}, [[LAN]])
    reader.follow()
    writer._words[reach_rules._VERSION] += 1
    assert reader.has_changed() and not reader.follow() and set(reader.rules.policies) == {100}


def test_too_many_rows_change_nothing(writer: RulesWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach_rules, "RULES_BYTES", 8192)
    reader_sees = writer._words[reach_rules._VERSION]
    with pytest.raises(LocalError, match="200 rows are too many"):
        writer.write(True, 1, OWN, {}, [[LAN] * 200])
    assert writer._words[reach_rules._VERSION] == reader_sees


def test_nobody_but_the_supervisor_can_write(writer: RulesWriter) -> None:
    import mmap

    with pytest.raises(PermissionError):
        mmap.mmap(writer.fd, 4096)


def test_peers_of_whose_rules_the_kernel_has_not_heard_are_kept_from_it(writer: RulesWriter) -> None:
    reader = RulesReader(writer.fd)
    writer.write(True, 1, OWN, {100: 0, 200: 0, 300: NO_POLICY}, [[LAN]], kept={200, 300})
    reader.follow()
    assert reader.rules.kept == {200}, "without rules there is nothing to hear of"
