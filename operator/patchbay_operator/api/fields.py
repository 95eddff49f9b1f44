"""
Kinds of values that several resources share, each with bounds.

The API server estimates what a CEL rule may cost from the bounds of what it reads, and refuses a CRD whose
rules could cost too much; so every text, list and map here ends somewhere. Not here: the resources.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from patchbay_gateway.kernel.config import CAPABILITIES

GROUP: Final = "patchbay.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"


class Fields(BaseModel):
    """A mapping of a resource: camelCase outside, unknown keys are errors, nothing changes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """Return the schema extra for CEL rules, each with the sentence that a person reads."""
    return {"x-kubernetes-validations": [{"rule": r, "message": m} for r, m in pairs]}


ListAsMap = dict[str, Any]


def keyed_by(*keys: str) -> ListAsMap:
    """Return the schema extra of a list whose entries are told apart by *keys*."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


OPAQUE: Final = {"x-kubernetes-preserve-unknown-fields": True}

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_DURATION = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
_QUANTITY = r"^[+-]?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=_NAME)]
"""A name as the configuration has them: plugins, providers, keys."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253)]
"""Name of an object in the same namespace."""

SecretKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
"""A key in the data of a Secret or ConfigMap."""

Model = Annotated[str, Field(min_length=1, max_length=256)]
"""The name of a model."""

Glob = Annotated[str, Field(min_length=1, max_length=256)]

Duration = Annotated[str, Field(max_length=32, pattern=_DURATION)]
"""250ms, 15s, 5m, 1h."""

Url = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^https?://[^/@\s]+(/\S*)?$")]
"""http or https, without user and password."""

ProxyUrl = Annotated[
    str,
    Field(max_length=2048, pattern=r"^(direct|none|(http|https|socks5|socks5h)://\S+)$"),
]

Capability = Annotated[str, Field(max_length=64, json_schema_extra={"enum": sorted(CAPABILITIES)})]

Text = Annotated[str, Field(max_length=4096)]

LabelMap = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(json_schema_extra={"maxProperties": 64}),
]

Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "maxLength": 64,
            "pattern": _QUANTITY,
        }
    ),
]


class SecretRef(Fields):
    """One value of a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKey = "api-key"
    """Key in its data."""
