"""The pictures in the documents are those that the topology table and the layers give."""

from __future__ import annotations

import re

import pytest

from pipeline.runtime.topology import RINGS
from tests.support import ROOT
from tools.diagrams import DRAWINGS, PICTURES, topology, tree


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_drawn_from_the_tree_as_it_is(name: str) -> None:
    assert (PICTURES / name).read_text() == DRAWINGS[name](), "run: python -m tools.diagrams"


def test_every_ring_of_every_shape_has_its_name_in_the_topology() -> None:
    labels = re.findall(r">(\w+)</text>", topology())
    for kind in {kind for rings in RINGS.values() for kind in rings}:
        assert labels.count(kind) >= sum(kind in rings for rings in RINGS.values()), kind


def test_every_folder_is_in_the_tree() -> None:
    drawn = tree()
    for folder in (*(ROOT / "pipeline").iterdir(), *(ROOT / "workers").iterdir()):
        if (folder / "__init__.py").exists():
            assert f">{folder.relative_to(ROOT)}</text>" in drawn
