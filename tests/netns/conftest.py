"""What several modules of real tunnels stand on; a module with another lab or tunnel makes its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.harness.instance import Ends, tunnel
from tools.lab.network import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    """A tunnel for tests that leave it as it is."""
    with Lab() as lab, tunnel(lab, tmp_path_factory.mktemp("netns"), lanes=2) as made:
        yield made
