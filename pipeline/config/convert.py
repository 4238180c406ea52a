"""Convert decoded JSON into settings, each by itself, so that one mistake hides no other.

    convert_setting(PartialConfig, "mtu", 1400, "mtu")    the value, and no problem
    convert_setting(PartialConfig, "peers", ...)          the peers, and the problems in each setting of each peer

The value of a setting that does not exist is not printed: it may be a secret.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct
from msgspec import inspect as kinds

from pipeline.config.peer import PEER_SETTINGS, Peer
from pipeline.config.quote import escape, quote
from pipeline.config.schema import SETTINGS, PartialConfig
from pipeline.config.setting import Setting, bare, describe, element_of, mapping_of
from pipeline.errors import Problem

KEY_LENGTH_MAX = 64  # of an unknown key that is compared with ours
KNOWN: dict[type[Struct], dict[str, Setting]] = {PartialConfig: SETTINGS, Peer: PEER_SETTINGS}
TYPES = {struct: {field.name: field.type for field in msgspec.structs.fields(struct)} for struct in KNOWN}
KEY = "`key`"  # how msgspec says that the key of an object does not fit
ELEMENT = re.compile(r"at `\$\[([0-9]+)\][^`]*`$")  # how msgspec says which element of an array does not fit


def convert_setting(struct: type[Struct], key: str, value: Any, path: str) -> tuple[Any, list[Problem]]:
    """The value as a setting of a struct, and its problems; the value is valid if there are none."""
    settings = KNOWN[struct]
    if key not in settings:
        return None, [Problem(path, _unknown(key, settings))]
    setting = settings[key]
    inner = element_of(setting.kind)
    if inner is not None and isinstance(of_struct := bare(inner), kinds.StructType):
        return _structs(setting, inner, of_struct.cls, value, path)
    try:
        return _converted(value, TYPES[struct][key]), []
    except msgspec.ValidationError as error:
        mapping = mapping_of(setting.kind)
        if mapping is not None and isinstance(value, dict):
            return None, _misfits(mapping, TYPES[struct][key], value, path)
        return None, [_mismatch(setting, inner, value, path, str(error))]


def missing_settings(struct: type[Struct], values: Mapping[str, Any], at: str = "") -> Iterator[Problem]:
    """A problem for each required setting that is not given."""
    for name, setting in KNOWN[struct].items():
        if setting.is_required and name not in values:
            yield Problem(at + name, f"given nothing, expected {setting.expected}")


def _structs(
    setting: Setting, inner: kinds.Type, struct: type[Struct], value: Any, path: str
) -> tuple[Any, list[Problem]]:
    if not isinstance(value, list):
        return None, [Problem(path, f"given {_kind(value)}, expected {setting.expected}")]
    made, problems = [], []
    for index, each in enumerate(value):
        at = f"{path}[{index}]"
        if not isinstance(each, dict):
            problems.append(Problem(at, f"given {_kind(each)}, expected {describe(inner)}"))
            continue
        converted: dict[str, Any] = {}
        problems_here: list[Problem] = []
        for key, given in each.items():
            converted[key], more = convert_setting(struct, key, given, f"{at}.{escape(key)}")
            problems_here += more
        problems_here += missing_settings(struct, each, f"{at}.")
        problems += problems_here
        if not problems_here:
            made.append(struct(**converted))
    return tuple(made), problems


def _kind(value: Any) -> str:
    """The kind of a value that may hold secrets, since it stands where a peer is expected."""
    return "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else quote(value)


def _unknown(key: str, settings: dict[str, Setting]) -> str:
    nearest = difflib.get_close_matches(key[:KEY_LENGTH_MAX].lower().replace("-", "_"), settings, n=1)
    return f'unknown setting, the nearest one is "{nearest[0]}"' if nearest else "unknown setting"


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        raise msgspec.ValidationError("control characters")
    return msgspec.convert(value, kind)


def _misfits(mapping: kinds.DictType, kind: Any, value: dict[str, Any], path: str) -> list[Problem]:
    """The problems of an object whose keys are free: each names its key."""
    problems = []
    for key, each in value.items():
        at = f"{path}.{escape(key)}"
        try:
            msgspec.convert({key: each}, kind)
        except msgspec.ValidationError as error:
            if KEY in str(error):
                problems.append(Problem(at, f"unknown, expected {describe(mapping.key_type)}"))
            else:
                problems.append(Problem(at, f"given {quote(each)}, expected {describe(mapping.value_type)}"))
    return problems


def _mismatch(setting: Setting, inner: kinds.Type | None, value: Any, path: str, error: str) -> Problem:
    """The problem of a value that does not fit, or of its element that does not."""
    element = ELEMENT.search(error)
    if element is None or inner is None:
        return Problem(path, f"given {quote(value)}, expected {setting.expected}")
    index = int(element[1])
    return Problem(f"{path}[{index}]", f"given {quote(value[index])}, expected {describe(inner)}")
