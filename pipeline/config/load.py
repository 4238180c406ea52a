"""Read a configuration: a file, then the settings that override it, checked and complete."""

import json
from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

from pipeline.config.checks import find_problems, setting_of
from pipeline.config.convert import convert_setting, missing_settings
from pipeline.config.derive import derive
from pipeline.config.quote import escape, quote
from pipeline.config.schema import Config, PartialConfig
from pipeline.errors import ConfigError, Problem
from pipeline.policy.machine import Machine
from pipeline.system import small_file

FILE_BYTES_MAX = 1 << 20
COMMAND_LINE = "command line"


def load(path: str | None, overrides: Sequence[str] = (), machine: Machine | None = None) -> Config:
    """The file at `path`, or none, with `key=value` overrides. A value is read as JSON; if it is none, as a string.

    `machine`: on which it would run; None for this one.
    """
    problems: list[Problem] = []
    overriding: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if key and equals:
            overriding[key] = _json_or_string(value)
        else:
            text = f'given {quote(override)}, expected KEY=VALUE, such as "mtu=1400"'
            problems.append(Problem("", text, COMMAND_LINE))
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = _read(path)
        except ConfigError as error:
            raise ConfigError(problems + error.problems) from None
    return _build(values | overriding, path or COMMAND_LINE, overriding.keys(), problems, machine)


def parse(values: Any, source: str = "", machine: Machine | None = None) -> Config:
    """A configuration from a decoded JSON value. `source` is the origin named in each problem."""
    if not isinstance(values, dict):
        raise ConfigError([Problem("", f"given {quote(values)}, expected an object of settings", source)])
    return _build(values, source, machine=machine)


def _read(path: str) -> dict[str, Any]:
    def failed(text: str) -> ConfigError:
        return ConfigError([Problem("", text, path)])

    text = small_file.read_text(path, FILE_BYTES_MAX)
    try:
        values = _decode(text)
    except json.JSONDecodeError as error:
        raise failed(f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise failed("nested too deeply") from None
    except ValueError as error:
        raise failed(str(error)) from None
    if not isinstance(values, dict):
        raise failed(f"given {quote(values)}, expected an object of settings")
    return values


def _decode(text: str) -> Any:
    """JSON as the standard defines it: no NaN, and no key twice."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = [quote(key) for key, times in Counter(key for key, _ in pairs).items() if times > 1]
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
    values: dict[str, Any],
    file: str,
    overriding: Container[str] = (),
    problems: Sequence[Problem] = (),
    machine: Machine | None = None,
) -> Config:
    found = list(problems)

    def add(problem: Problem, key: str) -> None:
        found.append(problem._replace(source=COMMAND_LINE if key in overriding else file))

    valid: dict[str, Any] = {}
    for key, value in values.items():
        converted, unfit = convert_setting(PartialConfig, key, value, escape(key))
        for problem in unfit:
            add(problem, key)
        if not unfit:
            valid[key] = converted
    for problem in missing_settings(PartialConfig, values):
        add(problem, problem.path)

    draft = derive(PartialConfig(**{"mode": "server"} | valid), machine)
    for path, expected, given in find_problems(draft, (values.keys() | {"mode"}) - valid.keys()):
        key = setting_of(path)
        add(Problem(path, f"given {quote(given) if key in values else 'nothing'}, expected {expected}"), key)
    if found:
        raise ConfigError(found)
    return draft
