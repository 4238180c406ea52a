"""What a configuration is refused for, as the tests ask for it."""

from __future__ import annotations

import pytest

from pipeline.config import parse
from pipeline.errors import ConfigError, Problem


def problems(values: object) -> list[Problem]:
    """What is wrong with it; at least something."""
    with pytest.raises(ConfigError) as caught:
        parse(values, "test.json")
    return caught.value.problems


def the_problem(values: object) -> str:
    """The one thing that is wrong with it, as a person reads it."""
    (problem,) = problems(values)
    return str(problem)
