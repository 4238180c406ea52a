"""Processes of workers without Python: a shell script stands in for it."""

from __future__ import annotations

import selectors
from collections.abc import Callable
from pathlib import Path

import pytest

SetInterpreter = Callable[[str], None]
Serve = Callable[[selectors.BaseSelector], None]


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetInterpreter:
    """Sets a shell script as the interpreter that processes are started with. Its words are those of Python; the
    descriptor of its channel is the last one."""

    def set_interpreter(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/bash\nchannel="${{@: -1}}"\n{script}\n')
        path.chmod(0o700)
        monkeypatch.setattr("sys.executable", str(path))

    return set_interpreter


@pytest.fixture
def serve() -> Serve:
    """One turn of the supervisor's loop: an earlier callback may have closed a descriptor of a later event."""

    def turn(selector: selectors.BaseSelector) -> None:
        for key, _ in selector.select(0.01):
            if selector.get_map().get(key.fd) is key:
                key.data()

    return turn
