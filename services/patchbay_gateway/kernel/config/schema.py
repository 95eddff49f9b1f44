"""
The configuration model as JSON Schema and as a page of documentation.

Both take the description of a key from the string below it in the model. They are read from the source
when somebody asks, because reading them at import would cost every start. Not here: the model.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from typing import TYPE_CHECKING, Any

from patchbay_gateway.kernel.config import model, plugins, providers, routing
from patchbay_gateway.kernel.config.model import Config
from patchbay_gateway.kernel.config.unserved import UNSERVED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
_PAGE_HEAD = """\
# Configuration

<!-- Generated from the configuration model by `make docs`; edit the model, not this page. -->

Patchbay reads one YAML file, by convention `patchbay.yaml`. An unknown key is an error that names the
line and the nearest known key; `patchbay config check FILE` tells everything that is wrong at once, and
`patchbay config schema` prints a JSON Schema for editors.

Durations are written `250ms`, `15s`, `5m`, `1h30m`; sizes `512KiB`, `32MiB`. Relative paths start at the
directory of the file.

Every key is also an environment variable: `PATCHBAY_` and the path in upper case with `__` between
levels, for example `PATCHBAY_STREAMING__KEEPALIVE=10s` or `PATCHBAY_PROVIDERS__0__BASE_URL=…`. A list or
mapping is written as YAML: `PATCHBAY_CLIENT_KEYS='[{name: ci, key_env: CI_KEY}]'`. With `_FILE` behind
the name, the value is read from that file. The environment wins over the file.
"""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of `patchbay.yaml` with descriptions."""
    schema = Config.model_json_schema()
    descriptions = _descriptions()
    for name, definition in [("Config", schema), *schema.get("$defs", {}).items()]:
        for shape in (definition, *definition.get("anyOf", ())):
            for key, field in shape.get("properties", {}).items():
                if text := descriptions.get(name, {}).get(key):
                    field["description"] = text
    return {"$schema": SCHEMA_URL, **schema, "title": "Patchbay configuration"}


def markdown() -> str:
    """Return docs/configuration.md."""
    schema = json_schema()
    definitions = schema["$defs"]
    lines = [_PAGE_HEAD]
    for path, definition in _sections(schema, definitions):
        title = f"`{path}`" if path else "Top level"
        lines.append(f"## {title}\n")
        if path and (text := definition.get("description")):
            lines.append(f"{text.splitlines()[0]}\n")
        lines.extend(("| key | type | default | what it does |", "|---|---|---|---|"))
        required = definition.get("required", ())
        for key, field in definition["properties"].items():
            kind = _kind(field, definitions)
            default = "required" if key in required else _default(field)
            text = str(field.get("description", "")).replace("|", "\\|")
            if (f"{path}.{key}" if path else key) in UNSERVED:
                text += " **Not served yet: all but the default does nothing.**"
            lines.append(f"| `{key}` | {kind} | {default} | {text} |")
        lines.append("")
    return "\n".join(lines)


def _descriptions() -> dict[str, dict[str, str]]:
    """Return class → field → the string that stands below the field."""
    found: dict[str, dict[str, str]] = {}
    statements = itertools.chain.from_iterable(
        ast.parse(inspect.getsource(module)).body for module in (plugins, providers, routing, model)
    )
    for statement in statements:
        if not isinstance(statement, ast.ClassDef):
            continue
        inherited: dict[str, str] = {}
        for base in statement.bases:
            inherited.update(found.get(getattr(base, "id", ""), {}))
        found[statement.name] = {**inherited, **dict(_field_strings(statement.body))}
    return found


def _field_strings(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield field.target.id, below.value.value


def _sections(
    schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (path, object schema), each section before the sections below it."""
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", schema)]
    while waiting:
        path, definition = waiting.pop(0)
        yield path, definition
        below = []
        for key, field in definition["properties"].items():
            target, many = _target(field, definitions)
            if target is not None:
                name = f"{path}.{key}" if path else key
                below.append((f"{name}[]" if many else name, target))
        waiting[:0] = below


def _target(
    field: Mapping[str, Any], definitions: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, bool]:
    """Return the object schema that *field* holds, and whether it holds a list of it."""
    if field.get("type") == "array":
        return _target(field.get("items", {}), definitions)[0], True
    for choice in (field, *field.get("anyOf", ())):
        if "$ref" in choice:
            return _target(definitions[choice["$ref"].rsplit("/", 1)[-1]], definitions)
        if choice.get("properties"):
            return choice, False
    return None, False


def _kind(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the kind of a value in a word or two."""
    if "anyOf" in field:
        kinds = [_kind(c, definitions) for c in field["anyOf"] if c.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in field:
        return _kind(definitions[field["$ref"].rsplit("/", 1)[-1]], definitions)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), definitions)}"
    if isinstance(field.get("type"), list):
        return "duration" if "ms|s" in field.get("pattern", "") else "size"
    if field.get("format") == "path":
        return "file"
    kind = str(field.get("type", "any"))
    return {"object": "mapping", "boolean": "true or false", "string": "text"}.get(kind, kind)


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if default is None or default in ("", [], {}) or isinstance(default, dict):
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, list):
        return "`[" + ", ".join(f'"{v}"' for v in default) + "]`"
    return f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(markdown())
