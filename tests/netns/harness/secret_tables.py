"""The tables of secrets of a real instance. They have no names, so the way to them is by a descriptor of its
supervisor."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.shm.key_table import KeyTable
from pipeline.shm.secret_table import VERSION_BYTES, Record, SecretTable
from tests.netns.harness.instance import Instance


def records_in(instance: Instance, kind: type[SecretTable[Record]]) -> list[Record]:
    """Those of each session that has any."""
    data = table_bytes(instance, kind)
    found = (kind.LAYOUT.unpack_from(data, at + VERSION_BYTES) for at in range(0, len(data), kind.RECORD_BYTES))
    return [kind.RECORD(*fields) for fields in found if fields[0]]  # type: ignore[misc]


def table_bytes(instance: Instance, kind: type[SecretTable[Any]] = KeyTable) -> bytes:
    for link in Path(f"/proc/{instance.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # another one, which was closed meanwhile
            if os.readlink(link).startswith(f"/memfd:{kind.NAME} "):
                return link.read_bytes()
    raise AssertionError(f"{instance.name} has no table of {kind.NAME}")
