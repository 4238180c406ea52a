"""Floor 2. Texts made from the settings: values in messages, the effective configuration, what is published.

    python -m pipeline.config_text     writes what is published anew: the schema, the reference

Both are checked in, so that they can be read without running anything; a test holds them against the code.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as kinds

from pipeline.config_fields import FIELDS, RELOAD, Config

SHOWN_MAX = 60
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_PATH = Path("configs/schema.json")
REFERENCE_PATH = Path("docs/configuration.md")
REFERENCE_BEGIN = "<!-- reference: made by python -m pipeline.config_text -->\n"
REFERENCE_END = "<!-- end of the reference -->\n"

# Title of each part of the reference, and the setting that it begins with.
PARTS = {
    "mode": "The two ends",
    "tun_name": "TUN device",
    "lanes": "Workers and rings",
    "connections": "Connections",
    "fec": "Forward error correction",
    "encryption": "Encryption",
    "multi_client": "Several clients",
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


def _bare(kind: kinds.Type) -> kinds.Type:
    return kind.type if isinstance(kind, kinds.Metadata) else kind


def element_of(kind: kinds.Type) -> kinds.Type:
    """What an array holds, of a kind that can be an array."""
    bare = _bare(kind)
    alternatives = bare.types if isinstance(bare, kinds.UnionType) else (bare,)
    return next(each.item_type for each in alternatives if isinstance(each, kinds.VarTupleType))


def accepts(name: str) -> str:
    """What a setting accepts, in words."""
    kind = FIELDS[name].type
    return " ".join(filter(None, (describe(kind), kind.extra["unit"])))


def describe(kind: kinds.Type) -> str:
    """What a type accepts, in words."""
    if isinstance(kind, kinds.Metadata) and kind.extra and "words" in kind.extra:
        return kind.extra["words"]
    match _bare(kind):
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
    settings = msgspec.json.schema(Config)["$defs"]["Config"]
    return {"$schema": SCHEMA_DIALECT} | settings | {"title": "Configuration of tunnel-supervisor"}


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"


def reference() -> str:
    """Every setting as a row of Markdown, in parts."""
    lines = []
    for name, field in FIELDS.items():
        if name in PARTS:
            lines += ["", f"### {PARTS[name]}", "",
                      "| setting | accepts | default | reload | meaning |", "|---|---|---|---|---|"]
        kind = field.type
        row = (f"`{name}`", accepts(name), _default(field), RELOAD[name],
               kind.extra_json_schema["description"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n\n"


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
    root = Path(__file__).parent.parent
    (root / SCHEMA_PATH).write_text(schema_text())
    (root / REFERENCE_PATH).write_text(with_reference((root / REFERENCE_PATH).read_text()))
