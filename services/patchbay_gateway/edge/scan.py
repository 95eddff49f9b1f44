"""
The scanner: where a JSON body says `model`, `stream` and `stream_options`, without building objects.

    parse ──▶ the three values, by a decoder that knows only them (msgspec, C)
    place ──▶ where each of them stands, so that `rewrite` can change it and nothing else

The decoder is the truth; the place must agree with it. A key whose word stands in the text exactly once,
unescaped, is the one that the decoder saw. Otherwise the decoder is asked for views into a copy, which
tell the places, and once more for what is left when the keys found are renamed: a duplicate, an escaped
spelling or another case (some upstreams match keys regardless of case and take the last) is refused,
because an upstream might read another value than the one that was checked here. So no body costs more than
three decodings. Duplicates deeper down are nobody's business. Not here: how the body came (body.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from patchbay.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Span = tuple[int, int]
"""Start and end of a value in the body."""


class _Top(msgspec.Struct):
    model: Any = msgspec.UNSET
    stream: Any = msgspec.UNSET
    stream_options: Any = msgspec.UNSET


class _Options(msgspec.Struct):
    include_usage: Any = msgspec.UNSET


class _Places(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()
    stream_options: msgspec.Raw = msgspec.Raw()


class _UsagePlace(msgspec.Struct):
    include_usage: msgspec.Raw = msgspec.Raw()


_decode: Final = msgspec.json.Decoder(_Top).decode
_decode_options: Final = msgspec.json.Decoder(_Options).decode
_decode_places: Final = msgspec.json.Decoder(_Places).decode
_decode_usage_place: Final = msgspec.json.Decoder(_UsagePlace).decode

_KEYS: Final = (b"model", b"stream", b"stream_options")
# A quote inside a string has a backslash before it; one before a key never has.
_KEY: Final = re.compile(rb'"(model|stream|stream_options)"[ \t\r\n]*:[ \t\r\n]*')
# Only \u00XX can spell the letters of our keys, 0x41 to 0x7a, and U+017F, which is an s in another case.
_ESCAPED_LETTER: Final = re.compile(rb"\\u0(?:0[4-7]|17[fF])")
_LONG_S: Final = "\u017f".encode()
# Spellings of the letters of our keys that `bytes.lower` leaves, and the small letters.
_CASES: Final = (
    (b"\\u004", b"\\u006"),
    (b"\\u0050", b"\\u0070"),
    (b"\\u0052", b"\\u0072"),
    (b"\\u0053", b"\\u0073"),
    (b"\\u0054", b"\\u0074"),
    (b"\\u0055", b"\\u0075"),
    (b"\\u017f", b"\\u0073"),
    (_LONG_S, b"s"),
)
# A value as it usually is. The rest is left to the decoder: what does not end soon, or is nested.
_VALUE: Final = re.compile(
    rb'(?:"(?:[^"\\]|\\.)*+"|\{(?:[^"{}\[\]]|"[^"\\]*+")*+\}|[-+.0-9A-Za-z]++)(?=[ \t\r\n,}])',
    re.DOTALL,
)
_SOON: Final = 4 << 10
# With more words to look at, the decoder is the quicker one.
_MANY: Final = 64
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
    if isinstance(options, dict):
        for key in options:
            if key != "include_usage" and key.casefold() == "include_usage":
                raise _smuggled(b"include_usage")
    places = _places(data, top)
    return Document(
        data=data,
        model=None if model is msgspec.UNSET else model,
        stream=None if top.stream is msgspec.UNSET else top.stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        model_at=places.get(b"model"),
        options_at=places.get(b"stream_options"),
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
    at = _locate(value, _decode_usage_place, (b"include_usage",))[b"include_usage"]
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


def _places(data: bytes, top: _Top) -> dict[bytes, Span]:
    absent = msgspec.UNSET
    wanted = {
        key
        for key, value in zip(_KEYS, (top.model, top.stream, top.stream_options), strict=True)
        if value is not absent
    }
    places = _plain_places(data, wanted)
    return _locate(data, _decode_places, _KEYS) if places is None else places


def _plain_places(data: bytes, wanted: set[bytes]) -> dict[bytes, Span] | None:
    """Return where the *wanted* keys stand; None if the text leaves a doubt."""
    if data.find(b"\\u0") >= 0 and _ESCAPED_LETTER.search(data):
        return None
    if not data.isascii() and data.find(_LONG_S) >= 0:
        return None
    lower = data.lower()
    if len(data) < _SMALL and not wanted and not any(b'"%b"' % key in lower for key in _KEYS):
        return {}
    places: dict[bytes, Span] = {}
    for count, match in enumerate(_KEY.finditer(lower)):
        if count == _MANY:
            return None
        key, start = match[1], match.end()
        if data[match.start() - 1] == 0x5C:  # the end of a string that quotes the word
            continue
        if not data.startswith(key, match.start() + 1):
            return None
        if key not in wanted:
            continue  # the decoder has not seen it, so it is nested
        if key in places:
            return None
        value = _VALUE.match(data, start, start + _SOON)
        if value is None:
            return None
        places[key] = value.span()
    return places


def _locate(
    data: bytes, decode: Callable[[bytearray], msgspec.Struct], keys: Iterable[bytes]
) -> dict[bytes, Span]:
    """
    Find the top-level *keys* wherever else their words stand, with two decodings.

    Args:
        data: A valid JSON object.
        decode: Into a struct with a `msgspec.Raw` for each key, empty if it is absent.
        keys: Names.

    Raises:
        InvalidRequest: One of them stands twice, is escaped or is written in another case.
    """
    try:
        copy = bytearray(data)
        seen = decode(copy)
        views = {key: memoryview(raw) for key in keys if (raw := getattr(seen, key.decode()))}
        copy[:] = bytes(len(copy))
        places: dict[bytes, Span] = {}
        renamed = bytearray(data)
        for key, view in views.items():
            start = _offset(view, copy)
            places[key] = (start, start + len(view))
            quoted = b'"%b"' % key
            key_at = data.rindex(b'"', 0, data.rindex(b":", 0, start)) + 1 - len(quoted)
            if key_at < 0 or not data.startswith(quoted, key_at):
                raise _smuggled(key)
            renamed[key_at + 1] = 0x30
        rest = renamed.lower()
        for spelling, letter in _CASES:
            if spelling in rest:
                rest = rest.replace(spelling, letter)
        left = decode(rest)
    except RecursionError:
        raise _invalid("the request body is nested too deeply") from None
    for key in keys:
        if getattr(left, key.decode()):
            raise _smuggled(key)
    return places


def _offset(view: memoryview, buffer: bytearray) -> int:
    """Return where in *buffer*, which is all zeros, *view* looks: by writing and looking, by halves."""
    low, high = 0, len(buffer)
    while high - low > 1:
        middle = (low + high) // 2
        buffer[low:middle] = b"\1" * (middle - low)
        seen = view[0]
        buffer[low:middle] = bytes(middle - low)
        low, high = (low, middle) if seen else (middle, high)
    return low


def _smuggled(key: bytes) -> InvalidRequest:
    name = key.decode()
    return InvalidRequest(
        f"'{name}' stands more than once, or with escapes or in another case, in the request body",
        reason="AMBIGUOUS_KEY",
        metadata={"key": name},
    )
