"""
Reading `patchbay.yaml` and its overrides from the environment, with messages that name the line.

All that is wrong is told at once. An unknown key is an error with the nearest known name. Not here: the
model (model.py) and the providers that exist only by environment variables (environment.py).
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from patchbay_gateway.kernel.config.model import Config
from patchbay_gateway.kernel.config.problems import ConfigError, Problem
from patchbay_gateway.kernel.config.references import Location, check_references
from patchbay_gateway.kernel.config.secrets import read_secret_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PREFIX = "PATCHBAY_"
_BOM = "\ufeff"


def load(path: Path | str | None, env: Mapping[str, str] | None = None) -> Config:
    """
    Return the configuration of the file with the environment's overrides.

    Args:
        path: The file; None means defaults and environment alone.
        env: The environment; None means the process's.

    Raises:
        ConfigError: All that is wrong.
    """
    if path is None:
        return parse("", env=env)
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = "; name another with --config" if isinstance(error, FileNotFoundError) else ""
        problem = Problem("", f"cannot be read: {error.strerror}{hint}", source=str(path))
        raise ConfigError([problem]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", "is not UTF-8 text", source=str(path))]) from error
    return parse(text, source=str(path), directory=path.resolve().parent, env=env)


def parse(
    text: str,
    *,
    source: str = "configuration",
    directory: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Config:
    """
    Return the configuration in *text*.

    Args:
        text: YAML.
        source: Name for messages.
        directory: Where relative paths start; None leaves them to the working directory.
        env: The environment; None means the process's.

    Raises:
        ConfigError: All that is wrong.
    """
    env = os.environ if env is None else env
    document = _Document(text, source)
    data = document.data
    overrides = _apply_overrides(data, env)
    try:
        config = Config.model_validate(data, context={"directory": directory})
    except ValidationError as error:
        found = [(tuple(e["loc"]), _sentence(e)) for e in error.errors(include_url=False)]
    else:
        found = check_references(config)
    if found or document.problems:
        problems = [document.problem(loc, message, overrides) for loc, message in found]
        raise ConfigError([*document.problems, *problems])
    return config


class _Document:
    """A YAML document: its data, and the line of each key."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self.problems: list[Problem] = []
        loader = yaml.SafeLoader(text.removeprefix(_BOM))
        try:
            self._root: yaml.Node | None = loader.get_single_node()
            data = {} if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else None
            problem = Problem("", f"is not YAML: {error.problem}", line=line, source=source)
            raise ConfigError([problem]) from error
        except yaml.YAMLError as error:
            raise ConfigError([Problem("", f"is not YAML: {error}", source=source)]) from error
        finally:
            loader.dispose()
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise ConfigError([Problem("", "must be a mapping of keys", line=1, source=source)])
        self.data: dict[Any, Any] = data
        self.problems.extend(self._duplicates(self._root, ()))

    def _duplicates(self, node: yaml.Node | None, path: Location) -> Iterator[Problem]:
        """Yield keys that stand twice in one mapping: YAML would silently keep the last."""
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    line = key.start_mark.line + 1
                    place = _dotted((*path, name))
                    yield Problem(place, "stands here twice", line=line, source=self._source)
                seen.add(name)
                yield from self._duplicates(value, (*path, name))
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                yield from self._duplicates(value, (*path, i))

    def _line(self, loc: Location) -> int | None:
        """Return the line of the deepest part of *loc* that the file has."""
        node, line = self._root, None
        for part in loc:
            step = _step(node, part)
            if step is None:
                break
            line, node = step
        return line

    def problem(self, loc: Location, message: str, overrides: Mapping[Location, str]) -> Problem:
        """Return a problem with its place: the line, or the variable that brought the value."""
        for path, variable in overrides.items():
            if loc[: len(path)] == path:
                return Problem(_dotted(loc), message, source=variable)
        return Problem(_dotted(loc), message, line=self._line(loc), source=self._source)


def _step(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Return line and node of one part of a path below *node*."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if str(key.value) == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None


def _dotted(loc: Location) -> str:
    return ".".join(str(part) for part in loc if part != "[key]")


def _sentence(error: Mapping[str, Any]) -> str:
    """Return pydantic's error as a sentence that says what to do, without the value itself."""
    kind, loc = error["type"], tuple(error["loc"])
    if kind == "extra_forbidden":
        known = _known_keys(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        return (
            f"unknown key; did you mean {near[0]}?"
            if near
            else (f"unknown key; known here: {', '.join(known)}")
        )
    if kind == "missing":
        return "is missing"
    if kind in {"tuple_type", "list_type"}:
        return "must be a list"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return "must be a mapping of keys"
    if kind == "string_type":
        # YAML reads yes, off, 12 and 2026-01-31 as something else.
        return "must be text; put it in quotes"
    message = str(error["msg"])
    return message.removeprefix("Value error, ").removeprefix("Input ")


def _known_keys(loc: Location) -> list[str]:
    model = model_at(loc)
    return list(model.model_fields) if model is not None else []


def model_at(loc: Location) -> type[BaseModel] | None:
    """Return the model of the mapping at *loc*; None where the file may say anything."""
    annotation: Any = Config
    for part in loc:
        if isinstance(part, int) or part.isdigit():
            continue  # an annotation of a list was already replaced by that of its elements
        model = _model_in(annotation)
        if model is None or part not in model.model_fields:
            return None
        annotation = model.model_fields[part].annotation
    return _model_in(annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that *annotation* is, or holds in a tuple or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (model := _model_in(argument)) is not None:
            return model
    return None


def _apply_overrides(data: dict[Any, Any], env: Mapping[str, str]) -> dict[Location, str]:
    """
    Put `PATCHBAY_<KEY>` variables into *data*; return path → variable.

    Names whose first level is no key of the model are somebody else's: a process setting, or what
    Kubernetes derives from service names.
    """
    applied: dict[Location, str] = {}
    for variable in sorted(v for v in env if v.startswith(PREFIX)):
        if not env[variable]:
            continue  # set to nothing is how a compose file says "not set"
        parts = variable.removeprefix(PREFIX).lower().split("__")
        path, from_file = _path_of(parts)
        if path is None:
            continue
        text = read_secret_file(env[variable], where=variable) if from_file else env[variable]
        if path in applied:
            message = f"both {applied[path]} and {variable} are set; unset one"
            raise ConfigError([Problem(_dotted(path), message, source=variable)])
        _put(data, path, _value(path, text, variable), variable)
        applied[path] = variable
    return applied


def _path_of(parts: list[str]) -> tuple[Location | None, bool]:
    """Return the path that a variable names, and whether its value is a file's name."""
    stripped = [*parts[:-1], parts[-1].removesuffix("_file")]
    parent = model_at(tuple(parts[:-1]))
    known = parent is not None and parts[-1] in parent.model_fields
    if not known and parent is not None and stripped[-1] in parent.model_fields:
        parts = stripped
    elif parts[0] not in Config.model_fields:
        return None, False
    path = tuple(int(p) if p.isdigit() else p for p in parts)
    return path, parts is stripped


def _value(path: Location, text: str, variable: str) -> object:
    """Return what *text* means at *path*: YAML for lists and mappings, else the text itself."""
    parent = model_at(path[:-1])
    field = parent.model_fields.get(str(path[-1])) if parent is not None else None
    annotation = field.annotation if field is not None else None
    structured = (
        isinstance(path[-1], int)
        or _model_in(annotation) is not None
        or getattr(annotation, "__origin__", None) in {tuple, dict}
    )
    if not structured:
        return None if text == "null" else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = Problem(_dotted(path), "is not YAML; write it like [a, b]", source=variable)
        raise ConfigError([problem]) from error


def _put(data: Any, path: Location, value: object, variable: str) -> None:
    """Set *value* at *path*, making mappings on the way and appending at the end of a list."""
    for i, part in enumerate(path):
        last = i + 1 == len(path)
        if isinstance(part, int):
            if not isinstance(data, list) or part > len(data):
                message = f"there is no entry {part} to override"
                raise ConfigError([Problem(_dotted(path), message, source=variable)])
            if part == len(data):
                data.append({})
        elif not isinstance(data, dict):
            message = "the file has something else than a mapping above this key"
            raise ConfigError([Problem(_dotted(path), message, source=variable)])
        if last:
            data[part] = value
        else:
            if isinstance(part, str) and data.get(part) is None:
                data[part] = [] if isinstance(path[i + 1], int) else {}
            data = data[part]
