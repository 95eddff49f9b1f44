"""The JSON Schema and the reference page are made from the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchbay_gateway.kernel.config import schema

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_reference_page_is_current():
    """`make docs` writes it."""
    assert PAGE.read_text() == schema.markdown()


def test_every_key_has_a_description():
    found = schema.json_schema()
    shapes = [found, *found["$defs"].values()]

    silent = [
        f"{shape.get('title')}.{key}"
        for outer in shapes
        for shape in (outer, *outer.get("anyOf", ()))
        for key, field in shape.get("properties", {}).items()
        if not field.get("description")
    ]

    assert silent == []


def test_schema_shows_defaults_as_people_write_them():
    streaming = schema.json_schema()["$defs"]["Streaming"]["properties"]

    assert streaming["keepalive"]["default"] == "15s"
    assert streaming["keepalive"]["description"].startswith("Silence after which")


@pytest.mark.parametrize("name", ["ModelSpec", "OnDisconnect"])
def test_schema_allows_the_short_form(name):
    assert "string" in [s.get("type") for s in schema.json_schema()["$defs"][name]["anyOf"]]
