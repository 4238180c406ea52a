"""The doctor where fake TCP may meet a device that joins segments too well."""

from __future__ import annotations

from pipeline.config import parse
from pipeline.doctor.finding import Level
from pipeline.doctor.receive_offload import judge, receive_offload
from pipeline.doctor.subject import Subject
from tests.harness.config_problems import CLIENT


def test_without_fake_tcp_it_does_not_matter() -> None:
    assert receive_offload(Subject("a", parse(CLIENT | {"carrier": "udp"}))) == []
    (found,) = receive_offload(Subject("a", parse(CLIENT | {"carrier": "auto"})))
    assert found.level is Level.OK, "no device of a test has LRO"


def test_each_device_with_lro_is_named_with_its_cure() -> None:
    (found,) = judge(["eth0", "eth1"])
    assert found.level is Level.NOTE and "eth0, eth1" in found.text
    assert "ethtool -K eth0 lro off; ethtool -K eth1 lro off." in found.cure
