"""Opening the TUN device, where it is something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import LocalError, PermissionDenied
from pipeline.runtime import tun


def refusal(monkeypatch: pytest.MonkeyPatch, path: str) -> str:
    monkeypatch.setattr(tun, "TUN_PATH", path)
    with pytest.raises((LocalError, PermissionDenied)) as caught:
        tun.open_device("tun-test", 1, True)
    return str(caught.value)


def test_a_file_a_directory_or_another_device_in_its_place_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for path in (f"{tmp_path}/file", str(tmp_path), "/dev/null"):
        assert f"{path} is no TUN device" in refusal(monkeypatch, path)
    assert "has no TUN" in refusal(monkeypatch, f"{tmp_path}/nothing")


def test_a_device_that_may_not_be_opened_asks_for_other_rights_than_one_that_may_not_be_set_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbid(path: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr("os.open", forbid)
    assert "--device" in refusal(monkeypatch, "/dev/net/tun")
