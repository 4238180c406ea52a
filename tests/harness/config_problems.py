"""Small configurations, and the problems for which a configuration is refused."""

from __future__ import annotations

import pytest

from pipeline.config import parse
from pipeline.errors import ConfigError, Problem

SERVER = {"mode": "server"}
OPEN_SERVER = {"mode": "server", "encryption": "none", "insecure": True}
CLIENT = {"mode": "client", "remote_addr": "192.0.2.1:9000", "tunnel_addr": "10.0.0.2/24", "key_file": "client.key"}


def problems(values: object) -> list[Problem]:
    """The problems of a configuration that must have some."""
    with pytest.raises(ConfigError) as caught:
        parse(values, "test.json")
    return caught.value.problems


def the_problem(values: object) -> str:
    """The only problem of a configuration, as a person reads it."""
    (problem,) = problems(values)
    return str(problem)
