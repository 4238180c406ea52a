"""The key table of a real instance. It has no name, so the way to it is by a descriptor of its supervisor."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pipeline.shm.key_table import _RECORD, _VERSION_BYTES, RECORD_BYTES, BlockKeys
from tests.netns.harness.instance import Instance

NO_KEYS = BlockKeys(*_RECORD.unpack(bytes(_RECORD.size)))


def keys_in(instance: Instance) -> list[BlockKeys]:
    """The keys of each session that has any."""
    data = key_table_bytes(instance)
    found = (BlockKeys(*_RECORD.unpack_from(data, at + _VERSION_BYTES)) for at in range(0, len(data), RECORD_BYTES))
    return [keys for keys in found if keys != NO_KEYS]


def key_table_bytes(instance: Instance) -> bytes:
    for link in Path(f"/proc/{instance.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # another one, which was closed meanwhile
            if os.readlink(link).startswith("/memfd:keys "):
                return link.read_bytes()
    raise AssertionError(f"{instance.name} has no key table")
