"""One uplink in a client's configuration, where it has a role: the name of the interface alone means a main one."""

from typing import Annotated, Literal

import msgspec

from pipeline.config.types import UPLINK_FORM, InterfaceName, accepts

MAIN, BACKUP = "main", "backup"


class UplinkEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`role`: a backup carries nothing while a main uplink works."""

    interface: InterfaceName
    role: Literal["main", "backup"] = "main"


Uplinks = Annotated[
    tuple[Annotated[InterfaceName | UplinkEntry, accepts(UPLINK_FORM)], ...],
    accepts(f"an array; in it, {UPLINK_FORM}"),
]
