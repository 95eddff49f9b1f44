"""The event cutter: no byte is lost or changed, however the stream is cut up on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay.sse import EventCutter, EventTooLarge, event_data


def cut(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    cutter = EventCutter()
    events = []
    for piece in pieces:
        found = cutter.feed(piece)
        assert b"".join(found) == cutter.block
        events += found
    return events, cutter.rest()


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_feed_any_piece_size_same_events(end: bytes, size: int) -> None:
    line = end[: len(end) // 2]
    expected = [b"event: a" + line + b"data: 1" + end, b": ping" + end, b"data: [DONE]" + end]
    stream = b"".join(expected)
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    events, rest = cut(pieces)
    assert rest == b""
    assert events == expected


def test_feed_half_event_is_kept_back() -> None:
    assert cut([b"data: 1\n\ndata: 2\n"]) == ([b"data: 1\n\n"], b"data: 2\n")


def test_feed_nothing_complete_gives_empty_block() -> None:
    cutter = EventCutter()
    assert cutter.feed(b"data: x") == []
    assert cutter.block == b""
    assert cutter.feed(b"y") == []
    assert cutter.feed(b"\n\n") == [b"data: xy\n\n"]


def test_feed_too_large_event_refused() -> None:
    cutter = EventCutter(max_event=10)
    cutter.feed(b"data: 1\n\n" * 5 + b"123456")
    with pytest.raises(EventTooLarge):
        cutter.feed(b"123456")


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"data: x", b"\r", b"\n\n"]), max_size=40))
def test_feed_any_bytes_joined_are_the_stream(pieces: list[bytes]) -> None:
    events, rest = cut(pieces)
    assert b"".join(events) + rest == b"".join(pieces)
    assert all(events)


@given(st.lists(st.binary(min_size=1, max_size=8)), st.randoms(use_true_random=False))
def test_feed_lf_stream_pieces_do_not_matter(lines: list[bytes], random) -> None:
    stream = b"".join(
        b"data: " + line.replace(b"\r", b"").replace(b"\n", b"") + b"\n\n" for line in lines
    )
    pieces, start = [], 0
    while start < len(stream):
        step = random.randint(1, 9)
        pieces.append(stream[start : start + step])
        start += step
    assert cut(pieces) == cut([stream])


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'event: a\ndata: {"x":1}\n\n', b'{"x":1}'),
        (b"data:1\r\ndata: 2\r\n\r\n", b"1\n2"),
        (b": ping\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
        (b"data:  two blanks\n\n", b" two blanks"),
    ],
)
def test_event_data_joins_lines(event: bytes, data: bytes) -> None:
    assert event_data(event) == data
