"""A certificate that is renewed: seen twice, taken over once, and not tried again while it stays as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config import Config, parse
from pipeline.supervisor.commands.certificate_watch import LOOK_NS, CertificateWatch


class Watched:
    def __init__(self, directory: Path) -> None:
        self.files = [directory / "fullchain.pem", directory / "privkey.pem"]
        for file in self.files:
            file.write_text("one")
        self.config = self.of(*self.files)
        self.renewed = 0
        self._watch = CertificateWatch(lambda: self.config, self._renew)
        self._now = 0

    @staticmethod
    def of(certificate: Path, key: Path) -> Config:
        return parse({"mode": "server", "tls_cert_file": str(certificate), "tls_key_file": str(key)})

    def _renew(self) -> None:
        self.renewed += 1

    def look(self, times: int = 1) -> int:
        """So many looks; how often the certificate was renewed in all."""
        for _ in range(times):
            self._watch.tick(self._now)
            self._now += LOOK_NS
        return self.renewed


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    made = Watched(tmp_path)
    assert made.look(3) == 0
    return made


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


def test_a_renewed_certificate_is_taken_over_once_two_looks_have_seen_it(watched: Watched) -> None:
    for file in watched.files:
        replace(file, "two")
    assert watched.look() == 0
    assert watched.look() == 1
    assert watched.look(5) == 1


def test_while_files_go_on_changing_nothing_is_taken_over(watched: Watched) -> None:
    for number in range(4):
        replace(watched.files[number % 2], f"number {number}")
        assert watched.look() == 0
    assert watched.look() == 1


def test_a_file_that_is_gone_is_waited_for(watched: Watched) -> None:
    watched.files[1].unlink()
    assert watched.look(3) == 0
    watched.files[1].write_text("three")
    assert watched.look(2) == 1


def test_a_link_that_leads_to_another_file_is_a_change(tmp_path: Path) -> None:
    """As programs that renew certificates have it."""
    targets = [tmp_path / "archive1.pem", tmp_path / "archive2.pem"]
    for target in targets:
        target.write_text("equally long")
    watched = Watched(tmp_path)
    watched.files[0].unlink()
    watched.files[0].symlink_to(targets[0])
    watched.look(2)
    watched.files[0].unlink()
    watched.files[0].symlink_to(targets[1])
    before = watched.renewed
    assert watched.look(2) == before + 1


def test_other_files_after_a_reload_have_just_been_read(watched: Watched, tmp_path: Path) -> None:
    others = tmp_path / "a.pem", tmp_path / "b.pem"
    for file in others:
        file.write_text("other")
    watched.config = watched.of(*others)
    assert watched.look(3) == 0


def test_without_files_there_is_nothing_to_look_at(watched: Watched) -> None:
    watched.config = parse({"mode": "server"})
    assert watched.look(3) == 0
