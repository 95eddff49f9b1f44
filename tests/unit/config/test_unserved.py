"""Keys that are accepted and do nothing yet."""

from __future__ import annotations

import pytest

from patchbay_gateway.kernel.config import UNSERVED, Config, schema, unserved

A = {"name": "a", "plugin": "echo"}
PLUGIN = {"id": "p", "address": "p:1"}


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ({}, ()),
        ({"routing": {"affinity": {"ttl": "5m"}}, "providers": [A], "plugins": [PLUGIN]}, ()),
        ({"routing": {"strategy": "fill-first", "retry": {"rounds": 2}}}, ()),
        (
            {"plugins": [PLUGIN, {**PLUGIN, "timeouts": {"executor": "2s"}}]},
            ("plugins.1.timeouts",),
        ),
        (
            {"plugins": [{**PLUGIN, "match": {"models": ["x"]}, "public": True}]},
            ("plugins.0.match", "plugins.0.public"),
        ),
    ],
)
def test_used_key_is_found_by_its_path(values, paths):
    keys = {"plugins[].timeouts", "plugins[].match", "plugins[].public"}
    assert unserved(Config.model_validate(values), keys) == paths


def test_reference_page_marks_each():
    assert schema.markdown().count("Not served yet") == len(UNSERVED)
