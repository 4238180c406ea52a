"""The published schema and reference."""

from __future__ import annotations

from pipeline.config import json_schema, reference
from pipeline.config.peer import PEER_SETTINGS
from pipeline.config.schema import SETTINGS
from tests.support import ROOT

AGAIN = "run: python -m pipeline.config.reference"


def test_the_published_schema_is_current() -> None:
    assert (ROOT / reference.SCHEMA_PATH).read_text() == reference.schema_text(), AGAIN


def test_the_published_reference_is_current() -> None:
    document = (ROOT / reference.REFERENCE_PATH).read_text()
    assert document == reference.with_reference(document), AGAIN
    assert reference.reference() in document


def test_every_setting_has_a_meaning_a_default_and_a_row() -> None:
    of_all, of_a_peer = reference.reference().split("### A peer\n")
    for settings, table in ((SETTINGS, of_all), (PEER_SETTINGS, of_a_peer)):
        for name, setting in settings.items():
            assert setting.description.endswith(".")
            assert f"| `{name}` | " in table
            assert (setting.default is None) == bool(setting.derived), name
    assert reference.PARTS.keys() <= SETTINGS.keys()


def test_the_schema_knows_every_setting_and_refuses_others() -> None:
    schema = json_schema()
    assert schema["properties"].keys() == SETTINGS.keys()
    assert schema["additionalProperties"] is False and schema["required"] == ["mode"]
    peer = schema["$defs"]["Peer"]
    assert schema["properties"]["peers"]["items"] == {"$ref": "#/$defs/Peer"} and schema["$defs"].keys() == {
        "Peer",
        "UplinkEntry",
    }
    assert peer["properties"].keys() == PEER_SETTINGS.keys()
    assert peer["additionalProperties"] is False and peer["required"] == ["name"]
