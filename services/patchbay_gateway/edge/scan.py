"""
The scanner: where a JSON body says `model`, `stream` and `stream_options`, without building objects.

    parse ──▶ the three values, by a decoder that knows only them (msgspec, C)
    place ──▶ where each of them stands, so that `rewrite` can change it and nothing else

The decoder is the truth; the place must agree with it. A key that stands in the text exactly once,
unescaped, is the one that the decoder saw. Otherwise candidates are renamed (same length) and the decoder
is asked again, which also finds a duplicate or an escaped spelling of a key: those are refused, because an
upstream might read another value than the one that was checked here. Duplicates deeper down are nobody's
business. Not here: how the body came (body.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from patchbay.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

Span = tuple[int, int]
"""Start and end of a value in the body."""


class _Top(msgspec.Struct):
    model: Any = msgspec.UNSET
    stream: Any = msgspec.UNSET
    stream_options: Any = msgspec.UNSET


class _Options(msgspec.Struct):
    include_usage: Any = msgspec.UNSET


_decode: Final = msgspec.json.Decoder(_Top).decode
_decode_options: Final = msgspec.json.Decoder(_Options).decode

# A quote inside a string has a backslash before it; one before a key never has.
_KEY: Final = re.compile(rb'"(model|stream|stream_options)"[ \t\r\n]*:[ \t\r\n]*')
_USAGE_KEY: Final = re.compile(rb'"(include_usage)"[ \t\r\n]*:[ \t\r\n]*')
# Only \u00XX can spell the letters of our keys: 0x5f is `_`, 0x61 to 0x7a are a to z.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[567]")
# Below it, counting the words is cheaper than one pass of the pattern.
_SMALL: Final = 16 << 10
_EMPTY: Final = re.compile(rb"[ \t\r\n]*\}")
_USAGE: Final = b'{"include_usage":true}'


class Document(msgspec.Struct, frozen=True, gc=False):
    """A JSON object of a client and the places in it that routing and billing may change."""

    data: bytes
    """As the client sent it, decompressed."""
    model: str | None
    stream: object
    """The value of `stream`; None if absent."""
    include_usage: bool
    """Whether the client itself asked for usage in its stream."""
    model_at: Span | None
    options_at: Span | None
    """Of `stream_options`."""


def scan(data: bytes) -> Document:
    """
    Return what *data* asks for.

    Raises:
        InvalidRequest: No JSON object, no UTF-8, a duplicate or escaped spelling of a key that is
            looked for, or a `model` that is no string.
    """
    top = _parse(data)
    model, options = top.model, top.stream_options
    if model is not msgspec.UNSET and not isinstance(model, str):
        _places(data, top)
        raise InvalidRequest("'model' must be a string", reason="INVALID_MODEL")
    if len(data) < _SMALL and b"\\u00" not in data and _is_plain(data, top):
        model_at = None if model is msgspec.UNSET else _only(data, b'"model"', model)
        options_at = None if options is msgspec.UNSET else _only(data, b'"stream_options"', options)
    else:
        places = _places(data, top)
        model_at = places.get(b"model")
        options_at = places.get(b"stream_options")
    return Document(
        data=data,
        model=None if model is msgspec.UNSET else model,
        stream=None if top.stream is msgspec.UNSET else top.stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        model_at=model_at,
        options_at=options_at,
    )


def rewrite(document: Document, *, model: str | None = None, include_usage: bool = False) -> bytes:
    """
    Return the body with another model or with usage asked for, every other byte as it was.

    Args:
        document: From `scan`.
        model: The new value; None leaves it. Ignored where the body names none.
        include_usage: Set `stream_options.include_usage` to true.

    Raises:
        InvalidRequest: `include_usage` stands twice, or escaped, in `stream_options`.
    """
    data = document.data
    splices: list[tuple[int, int, bytes]] = []
    if model is not None and document.model_at is not None and model != document.model:
        splices.append((*document.model_at, orjson.dumps(model)))
    if include_usage and not document.include_usage:
        splices.extend(_usage_splices(document))
    if not splices:
        return data
    splices.sort()
    parts: list[bytes] = []
    at = 0
    for start, end, value in splices:
        parts += (data[at:start], value)
        at = end
    parts.append(data[at:])
    return b"".join(parts)


def _usage_splices(document: Document) -> list[tuple[int, int, bytes]]:
    data = document.data
    if document.options_at is None:
        start = data.index(b"{") + 1
        comma = b"" if _EMPTY.match(data, start) else b","
        return [(start, start, b'"stream_options":' + _USAGE + comma)]
    start, end = document.options_at
    value = data[start:end]
    if value == b"null":
        return [(start, end, _USAGE)]
    if not value.startswith(b"{"):
        return []  # the provider says better what is wrong with it
    options = _decode_options(value)
    if options.include_usage is msgspec.UNSET:
        comma = b"" if _EMPTY.match(value, 1) else b","
        return [(start + 1, start + 1, b'"include_usage":true' + comma)]
    at = _place(value, b"include_usage", options.include_usage, _USAGE_KEY, _has_usage)
    return [(start + at[0], start + at[1], b"true")]


def _parse(data: bytes) -> _Top:
    try:
        if not data.isascii():
            # The decoder looks only into strings that it keeps.
            data.decode()
        return _decode(data)
    except UnicodeDecodeError:
        raise _invalid("the request body is not valid UTF-8") from None
    except msgspec.ValidationError:
        if data.lstrip(b" \t\r\n")[:1] == b"{":
            raise _invalid("a number in the request body is out of range") from None
        raise _invalid("the request body must be a JSON object") from None
    except msgspec.DecodeError as error:
        raise _invalid(f"the request body is not valid JSON: {error}") from None
    except RecursionError:
        raise _invalid("the request body is nested too deeply") from None


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_JSON")


def _is_plain(data: bytes, top: _Top) -> bool:
    """Whether each key that the decoder saw stands in the text once and no more."""
    return (
        (top.model is msgspec.UNSET or data.count(b'"model"') == 1)
        and (top.stream is msgspec.UNSET or data.count(b'"stream"') == 1)
        and (top.stream_options is msgspec.UNSET or data.count(b'"stream_options"') == 1)
    )


def _only(data: bytes, quoted: bytes, value: object) -> Span:
    start = data.index(b":", data.index(quoted) + len(quoted)) + 1
    while data[start] in b" \t\r\n":
        start += 1
    return start, _end_of(data, start, value)


def _places(data: bytes, top: _Top) -> dict[bytes, Span]:
    wanted: dict[bytes, object] = {}
    if top.model is not msgspec.UNSET:
        wanted[b"model"] = top.model
    if top.stream is not msgspec.UNSET:
        wanted[b"stream"] = top.stream
    if top.stream_options is not msgspec.UNSET:
        wanted[b"stream_options"] = top.stream_options
    if not wanted:
        return {}
    found: dict[bytes, Span] = {}
    doubtful: set[bytes] = set(wanted) if _ESCAPED_LETTER.search(data) else set()
    if not doubtful:
        for match in _KEY.finditer(data):
            key = match[1]
            if data[match.start() - 1] == 0x5C:  # the end of a string that quotes the word
                continue
            if key in found:
                doubtful.add(key)
            found[key] = (match.end(), 0)
    places: dict[bytes, Span] = {}
    for key, value in wanted.items():
        if key in doubtful:
            places[key] = _place(data, key, value, _KEY, _HAS[key])
        else:
            start = found[key][0]
            places[key] = (start, _end_of(data, start, value))
    return places


def _place(
    data: bytes,
    key: bytes,
    value: object,
    pattern: re.Pattern[bytes],
    has: Callable[[bytes], bool],
) -> Span:
    """
    Find the one top-level *key* among several places, by renaming and asking the decoder again.

    Renamed everywhere, the key must be gone, else it was escaped. Renamed only from some byte on, it is
    there as soon as that byte is behind the top-level one: a search by halves. A cut through a key
    leaves a third name, which is as good as renamed.
    """
    quoted = b'"' + key + b'"'
    renamed = data.replace(quoted, quoted.replace(b"e", b"E"))
    if has(renamed):
        raise _smuggled(key)
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        if has(data[:middle] + renamed[middle:]):
            high = middle
        else:
            low = middle + 1
    if has(renamed[:low] + data[low:]):
        raise _smuggled(key)
    match = pattern.match(data, data.rindex(quoted, 0, low + len(quoted)))
    assert match is not None
    return match.end(), _end_of(data, match.end(), value)


def _has_model(data: bytes) -> bool:
    return _decode(data).model is not msgspec.UNSET


def _has_stream(data: bytes) -> bool:
    return _decode(data).stream is not msgspec.UNSET


def _has_options(data: bytes) -> bool:
    return _decode(data).stream_options is not msgspec.UNSET


def _has_usage(data: bytes) -> bool:
    return _decode_options(data).include_usage is not msgspec.UNSET


_HAS: Final = {b"model": _has_model, b"stream": _has_stream, b"stream_options": _has_options}


def _smuggled(key: bytes) -> InvalidRequest:
    name = key.decode()
    return InvalidRequest(
        f"'{name}' stands more than once, or is written with escapes, in the request body",
        reason="AMBIGUOUS_KEY",
        metadata={"key": name},
    )


def _end_of(data: bytes, start: int, value: object) -> int:
    """Return where the value at *start* ends; the body is valid JSON."""
    if isinstance(value, str):
        return _string_end(data, start)
    if isinstance(value, dict | list):
        depth, at = 0, start
        while True:
            match = _STRUCTURE.search(data, at)
            assert match is not None
            at = match.end()
            sign = match[0]
            if sign == b'"':
                at = _string_end(data, match.start())
            elif sign in b"{[":
                depth += 1
            else:
                depth -= 1
                if not depth:
                    return at
    match = _SCALAR.match(data, start)
    assert match is not None
    return match.end()


_STRUCTURE: Final = re.compile(rb'["{}\[\]]')
_SCALAR: Final = re.compile(rb"[-+.0-9A-Za-z]+")


def _string_end(data: bytes, start: int) -> int:
    at = start + 1
    while True:
        at = data.index(b'"', at)
        back = at
        while data[back - 1] == 0x5C:
            back -= 1
        at += 1
        if (at - 1 - back) % 2 == 0:
            return at
