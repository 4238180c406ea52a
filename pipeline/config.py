"""Floor 2. The configuration: read, checked, complete. What others import from here is all there is.

    load(path, overrides)   a JSON file, then key=value settings that win over it
    parse(values, source)   the same from an object that is decoded already
    notices(config)         accepted settings that do nothing or deserve a warning
    changes(old, new)       names of the settings that differ; RELOAD says which can be applied while running
    to_json(config)         the effective configuration, defaults filled in

A Config that parse or load returns is complete and right in itself; whether this machine can do what it
says is asked at the start. Whatever is wrong raises ConfigError, with all problems at once, each with its
path, what was given and what was expected.

Only the supervisor and the command import this: workers get what they need handed down, and no msgspec.

    config_values   texts with a form of their own
    config_types    ranges, patterns, words                imports the one above, as all of these do
    config_peer     the settings of one peer
    config_fields   the settings
    config_derived  what follows from others
    config_text     to_json, the published schema and reference
    config_convert  values of a file made into settings
    config_trust    what must hold of encryption, keys and peers
    config_checks   what must hold beyond types and ranges
    config_notices  what deserves a word
    config          load and parse
"""

import json
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from pipeline.config_checks import setting_of, wrong
from pipeline.config_convert import missing, setting
from pipeline.config_derived import with_derived
from pipeline.config_fields import RELOAD, Config, changes
from pipeline.config_notices import notices
from pipeline.config_peer import Peer
from pipeline.config_text import escaped, json_schema, show, to_json
from pipeline.errors import ConfigError, Problem

__all__ = ["RELOAD", "Config", "Peer", "changes", "json_schema", "load", "notices", "parse", "to_json"]

FILE_BYTES_MAX = 1 << 20
COMMAND_LINE = "command line"


def load(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """The file at `path`, or none, with `key=value` overrides on top; a value is JSON, or else a string."""
    problems: list[Problem] = []
    overriding: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key and equals:
            overriding[key] = _json_or_string(value)
        else:
            text = f'given {show(override)}, expected KEY=VALUE, such as "mtu=1400"'
            problems.append(Problem("", text, COMMAND_LINE))
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = _read(path)
        except ConfigError as error:
            raise ConfigError(problems + error.problems) from None
    return _build(values | overriding, path or COMMAND_LINE, overriding.keys(), problems)


def parse(values: Any, source: str = "") -> Config:
    """A decoded JSON value; `source` names where it came from in each problem."""
    if not isinstance(values, dict):
        raise ConfigError([Problem("", f"given {show(values)}, expected an object of settings", source)])
    return _build(values, source)


def _read(path: str) -> dict[str, Any]:
    def failed(text: str) -> ConfigError:
        return ConfigError([Problem("", text, path)])

    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise failed(f"cannot be read: {error.strerror}") from None
    if len(data) > FILE_BYTES_MAX:
        raise failed(f"longer than {FILE_BYTES_MAX} bytes")
    try:
        values = _decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise failed(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise failed(f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise failed("nested too deeply") from None
    except ValueError as error:
        raise failed(str(error)) from None
    if not isinstance(values, dict):
        raise failed(f"given {show(values)}, expected an object of settings")
    return values


def _decode(text: str) -> Any:
    """JSON as the standard has it: no NaN, no key twice."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [show(key) for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        raise ValueError(f"given more than once: {', '.join(twice)}")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"given {name}, expected a number")


def _json_or_string(text: str) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError):
        return text


def _build(
    values: dict[str, Any], file: str, overriding: Container[str] = (), problems: Sequence[Problem] = ()
) -> Config:
    found = list(problems)

    def add(path: str, key: str, text: str) -> None:
        found.append(Problem(path, text, COMMAND_LINE if key in overriding else file))

    good: dict[str, Any] = {}
    for key, value in values.items():
        converted, unfit = setting(Config, key, value, escaped(key))
        for path, text in unfit:
            add(path, key, text)
        if not unfit:
            good[key] = converted
    for path, text in missing(Config, values):
        add(path, path, text)

    draft = with_derived(Config(**{"mode": "server"} | good))
    for path, expected, given in wrong(draft, (values.keys() | {"mode"}) - good.keys()):
        key = setting_of(path)
        add(path, key, f"given {show(given) if key in values else 'nothing'}, expected {expected}")
    if found:
        raise ConfigError(found)
    return draft
