"""
Names, ids and arguments of tool calls, where the two sides do not agree.

Claude takes ids of `[a-zA-Z0-9_-]` only; OpenAI's compatible servers send arguments as text that is not
always JSON. Whatever is made up here is made up from the request alone, so that a retry says the same.
"""

from __future__ import annotations

import ast
import re
from typing import Any, Final

import orjson

# Values, not schemas: what stands in them is left alone.
_LITERALS: Final = frozenset({"enum", "const", "default", "examples"})
_NOT_ID: Final = re.compile(r"[^a-zA-Z0-9_-]")


def claude_id(given: str, position: int) -> str:
    """Return *given* as Claude takes it; one made from *position* when it is empty."""
    return _NOT_ID.sub("_", given) if given else f"toolu_{position}"


def arguments(given: str) -> dict[str, Any]:
    """Return the arguments in *given*; those that are not a JSON object after repair are none."""
    found = _loads(given) if given.strip() else {}
    return found if isinstance(found, dict) else {}


def repaired(given: str) -> str:
    """Return *given* if it is JSON, else JSON of what it was meant to be, else as it is."""
    if not given.strip():
        return "{}"
    try:
        orjson.loads(given)
    except orjson.JSONDecodeError:
        found = _loads(given)
        return given if found is None else orjson.dumps(found).decode()
    return given


def _loads(given: str) -> Any:
    try:
        return orjson.loads(given)
    except orjson.JSONDecodeError:
        pass
    if len(given) > _REPAIRABLE:
        return None
    # Some servers write a Python-like literal with single quotes.
    try:
        found = ast.literal_eval(given)
        orjson.dumps(found)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found


# The literal parser is slow and its depth is the interpreter's.
_REPAIRABLE: Final = 64 << 10


def object_schema(schema: object) -> dict[str, Any]:
    """
    Return a tool's schema with an object at its root, as Claude demands.

    Alternatives at the root (`anyOf`, `oneOf`, `allOf`) become the union of their properties, of which
    none is required by itself.
    """
    root = dict(schema) if isinstance(schema, dict) else {}
    branches = [
        branch
        for key in ("anyOf", "oneOf", "allOf")
        for branch in (root.pop(key, None) or ())
        if isinstance(branch, dict)
    ]
    properties = dict(root.get("properties") or {})
    for branch in branches:
        for name, value in (branch.get("properties") or {}).items():
            properties.setdefault(name, value)
    root["type"] = "object"
    root["properties"] = properties
    return root


def with_properties(schema: Any) -> Any:
    """Return *schema* where every object has `properties`, as OpenAI demands."""
    if isinstance(schema, list):
        return [with_properties(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: value if key in _LITERALS else with_properties(value) for key, value in schema.items()
    }
    if found.get("type") == "object" and not isinstance(found.get("properties"), dict):
        found["properties"] = {}
    return found
