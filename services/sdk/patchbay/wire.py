"""
Messages of the contract to frozen dataclasses and back, by the names of their fields.

A dataclass has a field for each field of its message; the first use of a pair checks that, so none can be
forgotten. Values are turned by the message's own types:

    map<string, StringList>   pairs: headers in bytes, `query` in strings; else name → list of strings
    bytes named in JSON       JSON objects
    Timestamp, Duration       seconds, None when unset
    enum                      a StrEnum's member of the same name, UNSPECIFIED where unknown
    message                   a dataclass, None when unset

A dataclass field's metadata say of which class its message, enum or list is (`of(cls)`), or that it is not
turned here (`APART`). Not here: sealed secrets and credentials (`patchbay.services`), executors, whose
requests are views on messages because they are hot.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor

from patchbay import errors
from patchbay.status import headers_from_map, headers_to_map

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

T = TypeVar("T")

JSON: Final = frozenset({"metadata", "config", "fields"})
"""Names of `bytes` fields that hold a JSON object."""

_OF: Final = "patchbay.of"
_APART: Final = "patchbay.apart"

APART: Final = MappingProxyType({_APART: True})
"""Metadata of a dataclass field that is turned elsewhere, or is not on the wire."""

Read = Any
"""(message) → value of one field."""
Write = Any
"""(value, message) → None."""


def of(cls: type) -> Mapping[str, Any]:
    """Return the metadata of a dataclass field whose message, enum, list or map values are of *cls*."""
    return {_OF: cls}


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """
    Return the JSON object in *data*; none at all is an empty one.

    Raises:
        InvalidRequest: INVALID_JSON; the text names *what* and nothing of the data.
    """
    if not data:
        return {}
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise errors.InvalidRequest(f"{what} is no JSON object", reason="INVALID_JSON")
    return found


def json_bytes(value: Mapping[str, Any] | None) -> bytes:
    """Return *value* as JSON; an empty one, and None, as nothing."""
    if not value:
        return b""
    return json.dumps(dict(value), separators=(",", ":"), ensure_ascii=False).encode()


def read(cls: type[T], message: Message, **more: Any) -> T:
    """Return the dataclass *cls* of *message*; *more* are its fields that are turned elsewhere."""
    made, kind = _keys(cls, type(message))
    return cls(**{name: get(message) for name, get, _ in _plan(made, kind)}, **more)


def write(value: Any, message: Message) -> None:
    """Set the fields of *message* to those of the dataclass *value*."""
    made, kind = _keys(type(value), type(message))
    for name, _, put in _plan(made, kind):
        put(getattr(value, name), message)


def _keys(cls: Any, message: Any) -> tuple[Any, Any]:
    """Classes as keys of the cache: the checker takes a class for an instance of itself."""
    return cls, message


@functools.cache
def _plan(cls: Any, message: Any) -> tuple[tuple[str, Read, Write], ...]:
    """Return (name, read, write) for each field of *cls* that is turned here."""
    ours = {field.name: field for field in dataclasses.fields(cls)}
    theirs = {field.name: field for field in message.DESCRIPTOR.fields}
    turned = {name for name, field in ours.items() if _APART not in field.metadata}
    if missing := (theirs.keys() - ours.keys()) | (turned - theirs.keys()):
        raise TypeError(f"{cls.__name__} and {message.DESCRIPTOR.name} differ in {sorted(missing)}")
    return tuple(
        (name, *_turn(theirs[name], ours[name].metadata.get(_OF)))
        for name in ours
        if name in turned
    )


def _turn(field: Any, cls: Any) -> tuple[Read, Write]:
    name, kind = field.name, field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return _turn_map(name, kind.fields_by_name["value"], cls)
    if is_repeated(field):
        return _turn_list(name, field, cls)
    if kind is not None and kind.full_name == "google.protobuf.Timestamp":
        return _seconds(name), _put_seconds(name)
    if kind is not None and kind.full_name == "google.protobuf.Duration":
        return _seconds(name), _put_seconds(name)
    if kind is not None:
        return _message(name, cls), _put_message(name)
    if field.enum_type is not None:
        by_number = _members(field.enum_type, cls)
        numbers = {member: number for number, member in by_number.items()}
        unknown = by_number[0]
        return (
            lambda message: by_number.get(getattr(message, name), unknown),
            lambda value, message: setattr(message, name, numbers[value]),
        )
    if field.type == FieldDescriptor.TYPE_BYTES and name in JSON:
        return (
            lambda message: json_object(getattr(message, name), name),
            lambda value, message: setattr(message, name, json_bytes(value)),
        )
    if field.has_presence:
        return (
            lambda message: getattr(message, name) if message.HasField(name) else None,
            lambda value, message: None if value is None else setattr(message, name, value),
        )
    return (
        lambda message: getattr(message, name),
        lambda value, message: setattr(message, name, value),
    )


def is_repeated(field: Any) -> bool:
    """Whether *field* is a list; `label` is gone from newer protobuf, `is_repeated` not in older."""
    found = getattr(field, "is_repeated", None)
    return bool(field.label == FieldDescriptor.LABEL_REPEATED if found is None else found)


def _turn_map(name: str, value: Any, cls: Any) -> tuple[Read, Write]:
    if value.message_type is None:
        return (
            lambda message: dict(getattr(message, name)),
            lambda found, message: getattr(message, name).update(found),
        )
    if value.message_type.name == "StringList":
        return _turn_pairs(name)

    def put(found: Mapping[str, Any], message: Message) -> None:
        for key, item in found.items():
            write(item, getattr(message, name)[key])

    return (
        lambda message: {k: read(cls, v) for k, v in getattr(message, name).items()},
        put,
    )


def _turn_pairs(name: str) -> tuple[Read, Write]:
    if name.endswith("headers"):
        return (
            lambda message: headers_from_map(getattr(message, name)),
            lambda value, message: headers_to_map(value, getattr(message, name)),
        )
    if name == "query":

        def put_query(value: Any, message: Message) -> None:
            for key, item in value:
                getattr(message, name)[key].values.append(item)

        return (
            lambda message: [(k, v) for k, vs in getattr(message, name).items() for v in vs.values],
            put_query,
        )

    def put(value: Mapping[str, Any], message: Message) -> None:
        for key, items in value.items():
            getattr(message, name)[key].values.extend(items)

    return (lambda message: {k: tuple(vs.values) for k, vs in getattr(message, name).items()}, put)


def _turn_list(name: str, field: Any, cls: Any) -> tuple[Read, Write]:
    if field.message_type is None:
        return (
            lambda message: tuple(getattr(message, name)),
            lambda value, message: getattr(message, name).extend(value),
        )

    def put(value: Any, message: Message) -> None:
        for item in value:
            write(item, getattr(message, name).add())

    return (lambda message: tuple(read(cls, item) for item in getattr(message, name)), put)


def _seconds(name: str) -> Callable[[Message], float | None]:
    def get(message: Any) -> float | None:
        if not message.HasField(name):
            return None
        value = getattr(message, name)
        return float(value.seconds + value.nanos / 1e9)

    return get


def _put_seconds(name: str) -> Callable[[float | None, Message], None]:
    def put(value: float | None, message: Message) -> None:
        if value is not None:
            getattr(message, name).FromNanoseconds(round(value * 1e6) * 1000)

    return put


def _message(name: str, cls: type) -> Callable[[Message], Any]:
    def get(message: Any) -> Any:
        return read(cls, getattr(message, name)) if message.HasField(name) else None

    return get


def _put_message(name: str) -> Callable[[Any, Message], None]:
    def put(value: Any, message: Message) -> None:
        if value is not None:
            target = getattr(message, name)
            target.SetInParent()
            write(value, target)

    return put


def _members(found: Any, cls: type[enum.Enum]) -> dict[int, enum.Enum]:
    """Return number → member of *cls*, which has one for each value of the message's enum."""
    prefix = found.values_by_number[0].name.removesuffix("UNSPECIFIED")
    members = {value.number: cls[value.name.removeprefix(prefix)] for value in found.values}
    if len(members) != len(cls):
        raise TypeError(f"{cls.__name__} and {found.name} differ")
    return members
