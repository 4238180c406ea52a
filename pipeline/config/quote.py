"""Quote values of a file in messages: on one line, printable, not long, and without secrets."""

import json
from typing import Any

from pipeline.secret_text import conceal

QUOTED_LENGTH_MAX = 60


def escape(text: str) -> str:
    """Text from a file, without quotation marks around it."""
    text = conceal(text)  # before it is cut: a part of a secret looks like any other text
    short = text if len(text) <= QUOTED_LENGTH_MAX else text[:QUOTED_LENGTH_MAX] + "..."
    return json.dumps(short)[1:-1]


def quote(value: Any) -> str:
    """A value from a file, as JSON."""
    if isinstance(value, str):
        return f'"{escape(value)}"'
    try:
        text = conceal(json.dumps(value))
    except (RecursionError, TypeError, ValueError):  # nested without end, no JSON, too many digits
        return f"a {type(value).__name__}"
    return text if len(text) <= QUOTED_LENGTH_MAX else text[:QUOTED_LENGTH_MAX] + "..."
