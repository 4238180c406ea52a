"""From decoded JSON to settings, each by itself, so that one mistake hides no other.

    setting(Config, "mtu", 1400, "mtu")     the value, and nothing wrong with it
    setting(Config, "peers", ...)           the same one level down: each setting of each peer by itself

What is wrong comes as path and text. The value of a setting that does not exist is not printed: it may be a secret.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec import inspect as kinds

from pipeline.config.peer import PEER_FIELDS, Peer
from pipeline.config.reference import bare, describe, element_of, escaped, expected_of, show
from pipeline.config.schema import FIELDS, Config
from pipeline.config.types import NAME_FORM, Name
from pipeline.errors import ConfigError, Problem

KEY_LENGTH_MAX = 64  # of an unknown key that is compared with ours
KNOWN: dict[type[Struct], dict[str, kinds.Field]] = {Config: FIELDS, Peer: PEER_FIELDS}
TYPES = {struct: {field.name: field.type for field in msgspec.structs.fields(struct)} for struct in KNOWN}
ELEMENT = re.compile(r"at `\$\[([0-9]+)\]`$")  # how msgspec says which element of an array does not fit


class Wrong(NamedTuple):
    path: str
    text: str


def setting(struct: type[Struct], key: str, value: Any, path: str) -> tuple[Any, list[Wrong]]:
    """The value as a setting of a struct, and what is wrong with it; the value counts if nothing is."""
    fields = KNOWN[struct]
    if key not in fields:
        return None, [Wrong(path, _unknown(key, fields))]
    field = fields[key]
    inner = element_of(field.type)
    if isinstance(bare(inner), kinds.StructType):
        return _structs(field, inner, value, path)
    try:
        return _converted(value, TYPES[struct][key]), []
    except msgspec.ValidationError as error:
        return None, [_blame(field, value, path, str(error))]


def missing(struct: type[Struct], values: dict[str, Any], at: str = "") -> Iterator[Wrong]:
    """What has to be given and is not."""
    for name, field in KNOWN[struct].items():
        if field.default is NODEFAULT and name not in values:
            yield Wrong(at + name, f"given nothing, expected {expected_of(field)}")


def _structs(field: kinds.Field, inner: kinds.Type, value: Any, path: str) -> tuple[Any, list[Wrong]]:
    if not isinstance(value, list):
        return None, [Wrong(path, f"given {_kind(value)}, expected {expected_of(field)}")]
    struct = bare(inner).cls
    made, wrong = [], []
    for index, each in enumerate(value):
        at = f"{path}[{index}]"
        if not isinstance(each, dict):
            wrong.append(Wrong(at, f"given {_kind(each)}, expected {describe(inner)}"))
            continue
        good: dict[str, Any] = {}
        found: list[Wrong] = []
        for key, given in each.items():
            good[key], problems = setting(struct, key, given, f"{at}.{escaped(key)}")
            found += problems
        found += missing(struct, each, f"{at}.")
        wrong += found
        if not found:
            made.append(struct(**good))
    return tuple(made), wrong


def _kind(value: Any) -> str:
    """A value that may hold secrets, since it stands where a peer is expected."""
    return "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else show(value)


def _unknown(key: str, fields: dict[str, Any]) -> str:
    nearest = difflib.get_close_matches(key[:KEY_LENGTH_MAX].lower().replace("-", "_"), fields, n=1)
    return f'unknown setting, the nearest one is "{nearest[0]}"' if nearest else "unknown setting"


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(value, str) and not value.isprintable():
        raise msgspec.ValidationError("control characters")
    return msgspec.convert(value, kind)


def _blame(field: kinds.Field, value: Any, path: str, error: str) -> Wrong:
    """Of a value that does not fit: itself, or its element that does not."""
    element = ELEMENT.search(error)
    if element is None:
        return Wrong(path, f"given {show(value)}, expected {expected_of(field)}")
    index = int(element[1])
    return Wrong(f"{path}[{index}]", f"given {show(value[index])}, expected {describe(element_of(field.type))}")


def check_name(name: Any) -> None:
    """ConfigError if a peer cannot have this name. One that it can have is also the name of a file, and not a path."""
    try:
        if not msgspec.convert(name, Name).isprintable():  # a pattern's $ takes a newline
            raise msgspec.ValidationError
    except msgspec.ValidationError:
        raise ConfigError([Problem("name of a peer", f"given {show(name)}, expected 1 to 32 {NAME_FORM}")]) from None
