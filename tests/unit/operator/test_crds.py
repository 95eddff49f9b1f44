"""The CRDs: generated files are current, rules have golden cases, no key of the configuration is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from patchbay_gateway.kernel import config
from patchbay_operator.api.client_key import ClientKeySpec
from patchbay_operator.api.crds import KINDS, Kind, files
from patchbay_operator.api.model_route import ModelRouteSpec
from patchbay_operator.api.plugin import PluginSpec
from patchbay_operator.api.provider_credential import (
    PROVIDER_FIELDS,
    OAuth2,
    ProviderCredentialSpec,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "patchbay-crds" / "templates"
GOLDEN = ROOT / "tests" / "golden" / "crds"


def test_templates_of_the_chart_are_current() -> None:
    assert {name: (CHART / name).read_text() for name in files()} == files()


def _messages(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", ()):
            yield rule["message"]
        for child in schema.values():
            yield from _messages(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from _messages(child)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_rule_has_a_golden_case(kind: Kind) -> None:
    cases = list(yaml.safe_load_all((GOLDEN / f"{kind.name.lower()}.yaml").read_text()))
    expected = [case["message"] for case in cases if "message" in case]
    missing = [m for m in _messages(kind.crd()) if not any(e in m for e in expected)]
    assert missing == []
    assert all(case["kind"] == kind.name for case in cases)
    assert any("message" not in case for case in cases), "what is right is accepted"


def _nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for key, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_field_is_described_and_bounded(kind: Kind) -> None:
    (version,) = kind.crd()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    for part in ("spec", "status"):
        for path, node in _nodes(properties[part], part):
            if not path.endswith("[]"):
                assert node.get("description"), f"{kind.name}.{path} has no description"
            if node.get("type") == "string" and not path.startswith("status"):
                bounded = {"maxLength", "enum", "format"} & node.keys()
                assert bounded, f"{kind.name}.{path} has no bound"


def test_plugin_can_be_scaled_by_kubectl_and_by_an_autoscaler() -> None:
    plugin = next(kind for kind in KINDS if kind.name == "Plugin").crd()
    (version,) = plugin["spec"]["versions"]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert status["selector"]["type"] == "string"


def _keys(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


@pytest.mark.parametrize(
    ("ours", "theirs", "elsewhere"),
    [
        (PluginSpec, config.Plugin, set()),
        # A credential's id is the resource's name; keys of files and variables are Secrets here.
        (
            ProviderCredentialSpec,
            config.Credential,
            {"id", "api_key", "api_key_env", "api_key_file"},
        ),
        # A provider's name is `provider`; its proxy is said per credential.
        (ProviderCredentialSpec, config.Provider, {"name", "credentials"}),
        (
            OAuth2,
            config.OAuth2,
            {
                *("client_secret", "client_secret_env", "client_secret_file"),
                *("refresh_token", "refresh_token_env", "refresh_token_file"),
                *("access_token_env", "access_token_file"),
                # Logins go through the management API of a gateway that reads a file.
                *("authorization_url", "authorization_extra", "device_authorization_url"),
            },
        ),
        (ModelRouteSpec, config.Route, set()),
        (ClientKeySpec, config.ClientKey, {"name", "key", "key_env", "key_file", "hash"}),
    ],
)
def test_resource_has_every_key_of_the_configuration(
    ours: type[BaseModel], theirs: type[BaseModel], elsewhere: set[str]
) -> None:
    """A key that the file gains must be decided upon here."""
    assert _keys(theirs) - _keys(ours) == elsewhere
    for key in _keys(theirs) & _keys(ours):
        if key != "oauth2":
            assert ours.model_fields[key].alias == to_camel(key)


def test_fields_of_the_provider_are_those_of_the_configuration() -> None:
    assert set(PROVIDER_FIELDS) == _keys(config.Provider) - {"name", "credentials", "proxy_url"}
