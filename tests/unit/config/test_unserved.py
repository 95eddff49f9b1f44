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
        ({"routing": {"strategy": "round-robin", "retry": {"rounds": 0}}}, ()),
        ({"routing": {"affinity": {"ttl": "5m"}}, "providers": [A], "plugins": [PLUGIN]}, ()),
        ({"routing": {"strategy": "fill-first"}}, ("routing.strategy",)),
        ({"routing": {"affinity": {"enabled": True}}}, ("routing.affinity.enabled",)),
        ({"routing": {"retry": {"rounds": 2}}}, ("routing.retry",)),
        ({"auth_dir": "/auths"}, ("auth_dir",)),
        ({"providers": [A, {**A, "name": "b", "retry": {"rounds": 1}}]}, ("providers.1.retry",)),
        (
            {"providers": [{**A, "credentials": [{"id": "c", "weight": 3}]}]},
            ("providers.0.credentials.0.weight",),
        ),
        (
            {"plugins": [{**PLUGIN, "match": {"models": ["x"]}, "public": True}]},
            ("plugins.0.match", "plugins.0.public"),
        ),
    ],
)
def test_used_key_is_found_by_its_path(values, paths):
    assert unserved(Config.model_validate(values)) == paths


def test_reference_page_marks_each():
    assert schema.markdown().count("Not served yet") == len(UNSERVED)
