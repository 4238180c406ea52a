"""Texts made from the settings: the effective configuration, the JSON schema, the reference.

    python -m pipeline.config.reference     write the schema and the reference again

Both are checked in, so that a reader need not run anything. A test holds them against the code.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import msgspec

from pipeline.config.peer import PEER_SETTINGS
from pipeline.config.schema import SETTINGS, Config, PartialConfig
from pipeline.config.setting import Setting

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_PATH = Path("configs/schema.json")
REFERENCE_PATH = Path("docs/configuration.md")
REFERENCE_BEGIN = "<!-- reference: made by python -m pipeline.config.reference -->\n"
REFERENCE_END = "<!-- end of the reference -->\n"

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
"""First setting and title of each part of the reference."""


def to_json(config: Config) -> str:
    """The effective configuration, defaults filled in; `parse` makes an equal Config of it."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode()


def json_schema() -> dict[str, Any]:
    """JSON schema of a configuration file. It knows types and ranges, but no rules between settings."""
    parts = msgspec.json.schema(PartialConfig)["$defs"]
    settings = parts.pop(PartialConfig.__name__)
    return {"$schema": SCHEMA_DIALECT, **settings, "title": "Configuration of tunnel-supervisor", "$defs": parts}


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2) + "\n"


def reference() -> str:
    """Every setting as a row of Markdown, in parts."""
    lines = []
    for name, setting in SETTINGS.items():
        if name in PARTS:
            lines += _table(PARTS[name])
        lines.append(_row(setting))
    return "\n".join([*lines, *_table("A peer"), *map(_row, PEER_SETTINGS.values())]) + "\n\n"


def explain(setting: Setting, *, of_a_peer: bool = False) -> str:
    """The row of one setting, as text for a terminal."""
    rows = {
        "accepts": setting.expected,
        "default": _default(setting),
        "reload": "live" if setting.live else "restart",
    }
    lines = [f"{setting.name}{', of a peer' if of_a_peer else ''}"]
    lines += [_wrapped(f"  {key.ljust(8)} ", value.replace("`", "")) for key, value in rows.items()]
    return "\n".join([*lines, "", _wrapped("  ", setting.description.replace("`", ""))])


def _wrapped(indent: str, text: str) -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False)


def _table(title: str) -> list[str]:
    return ["", f"### {title}", "", "| setting | accepts | default | reload | meaning |", "|---|---|---|---|---|"]


def _row(setting: Setting) -> str:
    cells = (
        f"`{setting.name}`",
        setting.expected,
        _default(setting),
        "live" if setting.live else "restart",
        setting.description,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(setting: Setting) -> str:
    if setting.derived:
        return setting.derived
    if setting.is_required:
        return "required"
    value = setting.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def with_reference(document: str) -> str:
    """The document, with its reference replaced by the current one."""
    intro, begin, rest = document.partition(REFERENCE_BEGIN)
    _, end, after = rest.partition(REFERENCE_END)
    return intro + begin + reference() + end + after


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    (root / SCHEMA_PATH).write_text(schema_text())
    (root / REFERENCE_PATH).write_text(with_reference((root / REFERENCE_PATH).read_text()))
