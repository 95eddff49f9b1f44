"""
From a model to a structural schema, the subset of OpenAPI v3 that CRDs are written in.

References are put in place, titles fall away, a field that may be absent loses its null. Not here: the CRD
around it (crds.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_operator.api.fields import Fields

_KEPT: Final = frozenset({
    "type", "format", "description", "default", "enum", "pattern",
    "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties",
})  # fmt: skip
_NESTED: Final = frozenset({
    "$defs", "title", "additionalProperties", "properties", "required", "items",
})  # fmt: skip


def structural(model: type[Fields]) -> dict[str, Any]:
    """
    Return the schema of *model*.

    Raises:
        ValueError: The model says something that a CRD cannot.
    """
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}), model.__name__)


def _convert(node: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    node = _resolve(node, definitions)
    if node.get("x-kubernetes-int-or-string"):
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            **{k: node[k] for k in ("description", "pattern", "maxLength") if k in node},
        }
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NESTED or (key == "default" and value in (None, [])):
            continue
        if key not in _KEPT and not key.startswith("x-kubernetes-"):
            raise ValueError(f"{path}: a CRD has no {key}")
        found[key] = value
    if "description" in found:
        found["description"] = " ".join(str(found["description"]).split())
    match node.get("type"):
        case "object":
            _object(found, node, definitions, path)
        case "array":
            if "maxItems" not in found:
                raise ValueError(f"{path} is a list without maxItems")
            found["items"] = _convert(node["items"], definitions, f"{path}[]")
        case "string":
            if not {"maxLength", "enum", "format"} & found.keys():
                raise ValueError(f"{path} is a text without maxLength")
        case None:
            raise ValueError(f"{path} has no type that a CRD can say")
    return found


def _object(
    found: dict[str, Any], node: Mapping[str, Any], definitions: Mapping[str, Any], path: str
) -> None:
    """Complete *found* with what is below a mapping."""
    if "x-kubernetes-preserve-unknown-fields" in node:
        return
    if "properties" in node:
        found["properties"] = {
            key: _convert(child, definitions, f"{path}.{key}")
            for key, child in node["properties"].items()
        }
        if required := node.get("required"):
            found["required"] = sorted(required)
        # What is left out of a mapping gets its own defaults, so the mapping itself defaults to empty.
        if found.get("default") is not None:
            found["default"] = {}
        return
    if "maxProperties" not in found:
        raise ValueError(f"{path} is a map without maxProperties")
    found["additionalProperties"] = _convert(node["additionalProperties"], definitions, f"{path}[]")
    if found.get("default") == {}:
        del found["default"]


def _resolve(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return *node* without reference and without null; what stands beside a reference wins."""
    own = dict(node)
    if "anyOf" in own and not own.get("x-kubernetes-int-or-string"):
        choices = [c for c in own.pop("anyOf") if c.get("type") != "null"]
        if len(choices) != 1:
            raise ValueError("a CRD field has one type")
        own = {**_resolve(choices[0], definitions), **own}
    if "$ref" in own:
        target = definitions[own.pop("$ref").rsplit("/", 1)[-1]]
        own = {**_resolve(target, definitions), **own}
    if "const" in own:
        own["enum"] = [own.pop("const")]
    return own
