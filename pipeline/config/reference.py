"""Texts made from the settings: values in messages, the effective configuration, what is published.

    python -m pipeline.config.reference     writes what is published anew: the schema, the reference

Both are checked in, so that they can be read without running anything; a test holds them against the code.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as kinds

from pipeline.config.peer import PEER_FIELDS
from pipeline.config.schema import FIELDS, Config

SHOWN_MAX = 60
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_PATH = Path("configs/schema.json")
REFERENCE_PATH = Path("docs/configuration.md")
REFERENCE_BEGIN = "<!-- reference: made by python -m pipeline.config.reference -->\n"
REFERENCE_END = "<!-- end of the reference -->\n"

# Title of each part of the reference, and the setting that it begins with.
PARTS = {
    "mode": "The two ends",
    "tun_name": "TUN device",
    "lanes": "Workers and rings",
    "connections": "Connections",
    "fec": "Forward error correction",
    "encryption": "Encryption",
    "peers": "Clients of a server",
    "max_handshakes": "Limits of a server",
    "restart_intensity": "Supervision",
}


def escaped(text: str) -> str:
    """Text from a file as it may stand in a message: one line, printable, not long."""
    short = text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."
    return json.dumps(short)[1:-1]


def show(value: Any) -> str:
    """A value from a file as it may stand in a message."""
    if isinstance(value, str):
        return f'"{escaped(value)}"'
    try:
        text = json.dumps(value)
    except (RecursionError, TypeError, ValueError):  # nested without end, no JSON, too many digits
        return f"a {type(value).__name__}"
    if len(text) <= SHOWN_MAX:
        return text
    return text[:SHOWN_MAX] + "..."


def bare(kind: kinds.Type) -> kinds.Type:
    """A type without what is said about it."""
    return kind.type if isinstance(kind, kinds.Metadata) else kind


def element_of(kind: kinds.Type) -> kinds.Type | None:
    """What an array holds, of a kind that can be an array; None if it cannot."""
    plain = bare(kind)
    alternatives = plain.types if isinstance(plain, kinds.UnionType) else (plain,)
    return next((each.item_type for each in alternatives if isinstance(each, kinds.VarTupleType)), None)


def expected_of(field: kinds.Field) -> str:
    """What a setting accepts, in words."""
    return " ".join(filter(None, (describe(field.type), field.type.extra["unit"])))


def describe(kind: kinds.Type) -> str:
    """What a type accepts, in words."""
    if isinstance(kind, kinds.Metadata) and kind.extra and "words" in kind.extra:
        return kind.extra["words"]
    match bare(kind):
        case kinds.BoolType():
            return "true or false"
        case kinds.IntType(ge=least, le=most, multiple_of=step):
            return f"{f'a multiple of {step}' if step else 'an integer'} from {least} to {most}"
        case kinds.FloatType(ge=least, le=most):
            return f"a number from {least} to {most}"
        case kinds.LiteralType(values=values):
            return _either([json.dumps(value) for value in values])
        case kinds.VarTupleType(item_type=item):
            return f"an array; in it, {describe(item)}"
        case kinds.UnionType(types=(one, kinds.VarTupleType(item_type=item), *_)) if one == item:
            return f"{describe(one)}, or an array of such"
        case kinds.UnionType(types=types):
            return ", or ".join(describe(each) for each in types if not isinstance(each, kinds.NoneType))
        case other:
            raise TypeError(f"no words for {other}")


def _either(texts: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def to_json(config: Config) -> str:
    """The effective configuration, defaults filled in; what `parse` makes of it is the same one."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode()


def json_schema() -> dict[str, Any]:
    """JSON schema of a configuration file. It knows types and ranges, not what must hold between settings."""
    parts = msgspec.json.schema(Config)["$defs"]
    settings = parts.pop("Config")
    return {"$schema": SCHEMA_DIALECT} | settings | {"title": "Configuration of tunnel-supervisor", "$defs": parts}


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"


def reference() -> str:
    """Every setting as a row of Markdown, in parts."""
    lines = []
    for name, field in FIELDS.items():
        if name in PARTS:
            lines += _table(PARTS[name])
        lines.append(_row(field))
    return "\n".join([*lines, *_table("A peer"), *map(_row, PEER_FIELDS.values())]) + "\n\n"


def _table(title: str) -> list[str]:
    return ["", f"### {title}", "", "| setting | accepts | default | reload | meaning |", "|---|---|---|---|---|"]


def _row(field: kinds.Field) -> str:
    reload = "live" if field.type.extra["live"] else "restart"
    cells = (
        f"`{field.name}`",
        expected_of(field),
        _default(field),
        reload,
        field.type.extra_json_schema["description"],
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: kinds.Field) -> str:
    if field.type.extra["derived"]:
        return field.type.extra["derived"]
    if field.default is NODEFAULT:
        return "required"
    value = field.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def with_reference(document: str) -> str:
    """The document with its reference made anew."""
    intro, begin, rest = document.partition(REFERENCE_BEGIN)
    _, end, after = rest.partition(REFERENCE_END)
    return intro + begin + reference() + end + after


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    (root / SCHEMA_PATH).write_text(schema_text())
    (root / REFERENCE_PATH).write_text(with_reference((root / REFERENCE_PATH).read_text()))
