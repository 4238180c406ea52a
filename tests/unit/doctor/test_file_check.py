"""The look at all files before a start: it names each that a start would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import config
from pipeline.doctor import file_check
from pipeline.errors import ConfigError
from pipeline.supervisor.roles.server_role import ServerRole


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]", "\0"])
def test_a_damaged_list_of_disabled_peers_is_found_before_a_start_refuses_it(tmp_path: Path, text: str) -> None:
    settings: dict[str, Any] = {"mode": "server", "tunnel_addr": "10.0.0.1/24", "state_dir": str(tmp_path)}
    server = config.parse(settings)
    assert file_check.check_files(server) == []
    tmp_path.chmod(0o700)
    (tmp_path / "disabled.json").write_text(text)
    found = []
    for look in (file_check.check_files, ServerRole):
        with pytest.raises(ConfigError, match=r"disabled\.json") as refusal:
            look(server)
        found += [str(each) for each in refusal.value.problems]
    assert found == found[:1] * 2
