"""The addresses of the peers are saved, and saved again until that has succeeded."""

from __future__ import annotations

import logging

import pytest

from pipeline.errors import LocalError
from pipeline.peers.remembered_addresses import RETRY_NS, Addresses, RememberedAddresses


class Disk:
    """A file on a disk that can be full."""

    def __init__(self) -> None:
        self.full = False
        self.attempts = 0
        self.content: Addresses = {}

    def save(self, addresses: Addresses) -> None:
        self.attempts += 1
        if self.full:
            raise LocalError("addresses.json cannot be written: No space left on device")
        self.content = dict(addresses)


def test_only_a_change_is_written() -> None:
    disk = Disk()
    remembered = RememberedAddresses({"ann": ["10.0.0.2"]}, disk.save)
    remembered.update({"ann": ("10.0.0.2",)}, 1)
    assert disk.attempts == 0
    remembered.update({"ann": ("10.0.0.2",), "bob": ("10.0.0.3",)}, 2)
    assert disk.content == {"ann": ["10.0.0.2"], "bob": ["10.0.0.3"]}
    remembered.tick(1 << 60)
    assert disk.attempts == 1


def test_a_failed_write_is_said_once_and_repeated_with_the_newest_addresses_until_it_succeeds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tunnel"), "propagate", True)
    caplog.set_level(logging.INFO, "tunnel")
    disk = Disk()
    remembered = RememberedAddresses({}, disk.save)
    disk.full = True
    for now in range(1, 20):
        remembered.update({"ann": (f"10.0.0.{now}",)}, now)
    assert disk.attempts == 1
    assert caplog.text.count("No space left on device; trying again every 10 s") == 1
    remembered.tick(1 + RETRY_NS)
    assert disk.attempts == 2 and caplog.text.count("No space left on device") == 1
    disk.full = False
    remembered.tick(2 + RETRY_NS)
    assert disk.content == {}
    remembered.tick(2 + 2 * RETRY_NS)
    assert disk.content == {"ann": ["10.0.0.19"]} and "saved again" in caplog.text
    remembered.update({"ann": ("10.0.0.5",)}, 3 + 2 * RETRY_NS)
    assert disk.content == {"ann": ["10.0.0.5"]}
