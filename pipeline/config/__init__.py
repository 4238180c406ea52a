"""The configuration: read, checked, complete. What others import from here is all there is.

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

from pipeline.config.load import load, parse
from pipeline.config.peer import Peer
from pipeline.config.reference import json_schema, to_json
from pipeline.config.schema import RELOAD, Config, changes
from pipeline.config.warnings import notices

__all__ = ["RELOAD", "Config", "Peer", "changes", "json_schema", "load", "notices", "parse", "to_json"]
