"""The configuration of one end: read, checked and complete.

    load(path, overrides)    from a JSON file, with key=value settings that override it
    parse(values, source)    from an object that is decoded already
    find_warnings(config)    accepted settings that have no effect or deserve a warning
    changes(old, new)        names of the settings that differ; RELOAD says which a running instance can apply
    to_json(config)          the effective configuration, defaults filled in

A Config from load or parse is complete and consistent. Whether this machine can do what it says is checked at the start
of an instance. ConfigError holds all problems at once: each with its path, the given value and the expected one.

Not here: what the files named by settings contain (credentials), what workers need of it (supervisor/worker_settings).
Used by everything above but runtime. Workers get what they need handed down, and load no msgspec.

Modules, each importing only those above it:

    values             texts with a form of their own: endpoints, addresses, prefixes, fingerprints
    proxy_url          the proxy of a client
    quote              values in messages
    types              ranges, patterns, and what they accept in words
    setting            what the declaration of a setting says
    peer               the settings of one peer
    schema             all settings
    derive             defaults that depend on other settings
    convert            decoded JSON made into settings
    security_checks    rules of encryption, keys and peers
    checks             rules between all other settings
    warnings           settings without effect, and risky ones
    reference          to_json, the published schema and reference
    load               load and parse
"""

from pipeline.config.load import load, parse
from pipeline.config.peer import Peer
from pipeline.config.reference import json_schema, to_json
from pipeline.config.schema import RELOAD, Config, changes
from pipeline.config.warnings import find_warnings

__all__ = ["RELOAD", "Config", "Peer", "changes", "find_warnings", "json_schema", "load", "parse", "to_json"]
