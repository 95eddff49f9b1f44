"""The scanner against a slow reference, and what it refuses."""

import gc
import json
import sys
from types import FrameType

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.errors import InvalidRequest
from patchbay_gateway.edge.scan import rewrite, scan

WATCHED = ("model", "stream", "stream_options")
WHITE = " \t\r\n"


def reference(data: bytes) -> list[tuple[str, bytes, object, int, int]]:
    """Return (key, raw key, value, start, end) of each top-level member, duplicates and all."""
    data.decode()
    text = data.decode("latin-1")  # one character a byte, so offsets are byte offsets
    decoder = json.JSONDecoder()
    json.loads(data)

    def skip(at: int) -> int:
        while at < len(text) and text[at] in WHITE:
            at += 1
        return at

    at = skip(0)
    assert text[at] == "{"
    at = skip(at + 1)
    found: list[tuple[str, bytes, object, int, int]] = []
    while text[at] != "}":
        _, end = decoder.raw_decode(text, at)
        raw = data[at:end]
        at = skip(end)
        assert text[at] == ":"
        start = skip(at + 1)
        _, end = decoder.raw_decode(text, start)
        found.append((json.loads(raw), raw, json.loads(data[start:end]), start, end))
        at = skip(end)
        if text[at] == ",":
            at = skip(at + 1)
    return found


def plain(key: str) -> bytes:
    return json.dumps(key).encode()


class Members(list):  # type: ignore[type-arg]
    """An object as pairs, so that it can have duplicates."""


# Words that look like keys, quotes and backslashes where they confuse most.
TRICKY = st.sampled_from(
    [
        "model",
        "stream",
        "stream_options",
        "Model",
        "\u017fTREAM",
        'say "model": ',
        '\\"model\\":',
        'ends with "model',
        "\\",
        '"',
        "\\u0065",
        "mod\\u0065l",
        "ünïcödé",
        "\u2028{}[]",
        "",
        "x",
    ]
)
TEXT = st.one_of(TRICKY, st.text(max_size=6))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-1000, 1000), st.floats(allow_nan=False, width=16), TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(st.tuples(TEXT, inner), max_size=3).map(Members),
    ),
    max_leaves=8,
)


@st.composite
def written(draw: st.DrawFn, value: object) -> str:
    """Return JSON text of *value* with whitespace and escapes of all kinds."""

    def space() -> str:
        return draw(st.sampled_from(["", "", "", " ", "\n\t", "  \r\n"]))

    def string(text: str) -> str:
        encoded = json.dumps(text, ensure_ascii=draw(st.booleans()))
        if text and draw(st.integers(0, 15)) == 0:
            return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 65536 else "x" for c in text) + '"'
        return encoded

    def write(item: object) -> str:
        if isinstance(item, Members):
            inner = ",".join(
                f"{space()}{string(k)}{space()}:{space()}{write(v)}{space()}" for k, v in item
            )
            return "{" + (inner or space()) + "}"
        if isinstance(item, list):
            return "[" + ",".join(space() + write(v) + space() for v in item) + "]"
        if isinstance(item, str):
            return string(item)
        return json.dumps(item)

    return space() + write(value) + space()


TOP = st.lists(st.tuples(st.one_of(st.sampled_from(WATCHED), TEXT), VALUES), max_size=5).map(
    Members
)
BODIES = TOP.flatmap(written).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))


@settings(max_examples=200, deadline=None)
@given(BODIES)
def test_scan_any_object_agrees_with_reference(text: str) -> None:
    data = text.encode()
    try:
        members = reference(data)
        orjson.loads(data)
    except ValueError:
        return  # lone surrogates as escapes
    watched = [m for m in members if m[0].casefold() in WATCHED]
    names = [m[0].casefold() for m in watched]
    ambiguous = len(set(names)) < len(names) or any(m[1] != plain(m[0].casefold()) for m in watched)
    model = next((m for m in watched if m[0] == "model"), None)
    if ambiguous or (model is not None and not isinstance(model[2], str)):
        for body in (data, data + b" " * (16 << 10)):
            with pytest.raises(InvalidRequest):
                scan(body)
        return
    document = scan(data)
    assert document.data == data
    large = scan(data + b" " * (16 << 10))  # large bodies are searched in another way
    assert (large.model_at, large.options_at) == (document.model_at, document.options_at)
    by_name = {m[0]: m for m in watched}
    assert document.model == (model[2] if model else None)
    assert document.model_at == ((model[3], model[4]) if model else None)
    options = by_name.get("stream_options")
    assert document.options_at == ((options[3], options[4]) if options else None)
    stream = by_name.get("stream")
    assert document.stream == (stream[2] if stream else None)

    changed = rewrite(document, model='new "näme"')
    expected = data
    if model:
        expected = data[: model[3]] + '"new \\"näme\\""'.encode() + data[model[4] :]
    assert changed == expected


@settings(max_examples=100, deadline=None)
@given(BODIES)
def test_rewrite_include_usage_sets_only_that(text: str) -> None:
    data = text.encode()
    try:
        document = scan(data)
        changed = rewrite(document, include_usage=True)
    except InvalidRequest:
        return
    before, after = orjson.loads(data), orjson.loads(changed)
    options = before.get("stream_options")
    if options is None or isinstance(options, dict):
        assert after.pop("stream_options")["include_usage"] is True
        if isinstance(options, dict):
            rest = {k: v for k, v in options.items() if k != "include_usage"}
            again = orjson.loads(changed)["stream_options"]
            assert {k: v for k, v in again.items() if k != "include_usage"} == rest
        before.pop("stream_options", None)
        assert before == after
    else:
        assert changed == data


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | BODIES.map(str.encode), st.integers(0, 60), st.binary(max_size=2))
def test_scan_garbage_is_refused_like_a_strict_parser(data: bytes, at: int, junk: bytes) -> None:
    broken = data[:at] + junk + data[at + 1 :]
    try:
        parsed = orjson.loads(broken)
    except orjson.JSONDecodeError:
        parsed = None
    try:
        scan(broken)
    except InvalidRequest:
        return
    # Strict parsers differ in one thing only: numbers too large for a double.
    assert isinstance(parsed, dict) or b"e" in broken.lower()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"mod\\u0065l":"b"}',
        b'{"\\u006dodel":"b","x":{"model":"a"}}',
        b'{"x":{"model":"a"},"model":"b","y":{"model":"c"},"model":"d"}',
        b'{"model":"a","stream":false,"stream":true}',
        b'{"model":"a","str\\u0065am":true}',
        b'{"model":"a","stream\\u005foptions":{}}',
        b'{"model":"a","stream_options":{},"stream_options":{}}',
        b'{"model":"a","Model":"b"}',
        b'{"MODEL":"b"}',
        b'{"x":{"model":"c"},"model":"a","moDel":"b"}',
        b'{"model":"a","\\u004dodel":"b"}',
        b'{"model":"a","stream":false,"Stream":true}',
        b'{"model":"a","STR\\u0045AM":true}',
        '{"model":"a","\u017ftream":true}'.encode(),
        b'{"model":"a","\\u017Ftream":true}',
        b'{"model":"a","Stream\\u005fOptions":{}}',
        b'{"model":"a","stream_options":{"include_usage":true,"Include_usage":false}}',
    ],
)
def test_scan_smuggled_key_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        scan(body)
    assert caught.value.reason == "AMBIGUOUS_KEY"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"model"',
        b'\xef\xbb\xbf{"model":"a"}',
        b'{"model":"\xff"}',
        b'{"x":"\xff","model":"a"}',
        b'{"model":"a"} x',
        b'{"model":"a",}',
        b'{"model":"a"',
        b'{"model":' + b"[" * 100_000,
        b"{'model':'a'}",
        b'{"model":NaN}',
        b'\x00{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
    ],
)
def test_scan_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        scan(body)
    assert caught.value.reason == "INVALID_JSON"


@pytest.mark.parametrize("value", ["1", "null", "{}", '["a"]', "true"])
def test_scan_model_that_is_no_string_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        scan(f'{{"model":{value}}}'.encode())


def test_scan_nested_duplicates_are_left_alone() -> None:
    body = b'{"a":{"model":"x","model":"y"},"model":"real","b":[{"stream":1},{"stream":2}]}'
    document = scan(body)
    assert document.model == "real"
    assert document.stream is None
    assert rewrite(document, model="r2") == body.replace(b'"real"', b'"r2"')


def test_rewrite_nothing_to_change_returns_the_same_bytes() -> None:
    document = scan(b' { "model" : "a" , "stream_options" : { "include_usage" : true } } ')
    assert rewrite(document, model="a", include_usage=True) is document.data


def test_rewrite_both_places_keeps_every_other_byte() -> None:
    body = b'{ "stream_options": { }, "n": 1.0e0,\n "model"\t:\n"a\\/b" , "stream": true}'
    assert rewrite(scan(body), model="c", include_usage=True) == (
        b'{ "stream_options": {"include_usage":true },'
        b' "n": 1.0e0,\n "model"\t:\n"c" , "stream": true}'
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"null", b'{"include_usage":true}'),
        (b'{"include_usage":false}', b'{"include_usage":true}'),
        (b'{"include_usage":null,"x":1}', b'{"include_usage":true,"x":1}'),
        (b'{"x":1}', b'{"include_usage":true,"x":1}'),
        (b'{"x":{"include_usage":false}}', b'{"include_usage":true,"x":{"include_usage":false}}'),
        (b'"what"', b'"what"'),
    ],
)
def test_rewrite_existing_options_gain_usage(options: bytes, expected: bytes) -> None:
    body = b'{"model":"a","stream_options":%s}'
    assert rewrite(scan(body % options), include_usage=True) == body % expected


@pytest.mark.parametrize(
    "options", [b'{"include_usage":false,"include_usage":false}', b'{"include\\u005fusage":false}']
)
def test_rewrite_smuggled_usage_is_refused(options: bytes) -> None:
    with pytest.raises(InvalidRequest):
        rewrite(scan(b'{"model":"a","stream_options":%s}' % options), include_usage=True)


ADVERSARIAL = {
    "nested": b'{"x":[' + b",".join([b'{"model":"n"}'] * 20_000) + b'],"model":"real"}',
    "cases": b'{"x":[' + b",".join([b'{"Model":"n"}'] * 20_000) + b'],"model":"real"}',
    "other": b'{"x":[' + b",".join([b'{"stream":1}'] * 20_000) + b'],"model":"real"}',
    "escape": b'{"x":"\\u0065'
    + b"y" * 300_000
    + b'","model":"real","stream":1,"stream_options":{}}',
    "space": b'{"model"' + b" " * 100_000 + b":" + b" " * 100_000 + b'"real","x":{"model":1}}',
    "options": b'{"model":"real","stream_options":{"x":[' + b"[]," * 50_000 + b"1]}}",
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_scan_adversarial_body_costs_three_decodings(name: str) -> None:
    """Work, not time: decodings, and steps of Python whatever the length."""
    decodings = steps = 0

    def count(_frame: FrameType, event: str, called: object) -> None:
        nonlocal decodings, steps
        steps += 1
        if event == "c_call" and isinstance(
            getattr(called, "__self__", None), msgspec.json.Decoder
        ):
            decodings += 1

    # A collection in the middle would run the finalizers of whatever ran before.
    gc.collect()
    gc.disable()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        document = scan(ADVERSARIAL[name])
    finally:
        sys.setprofile(before)
        gc.enable()
    assert document.model == "real"
    assert decodings <= 3
    assert steps < 1000


def test_scan_nested_case_variants_are_left_alone() -> None:
    body = b'{"a":{"Model":"x"},"model":"real","b":[{"STREAM":1}]}'
    assert rewrite(scan(body), model="r2") == body.replace(b'"real"', b'"r2"')


def test_scan_error_is_not_msgspecs_own() -> None:
    with pytest.raises(InvalidRequest):
        scan(b'{"model":1e999}')
    assert issubclass(msgspec.ValidationError, Exception)
