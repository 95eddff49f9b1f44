"""Durations and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay_gateway.kernel.config.quantities import (
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15s", 15.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
        ("250ms", 0.25),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("0s", 0.0),
        ("0", 0.0),
        (0, 0.0),
    ],
)
def test_duration_with_a_unit_becomes_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["15", 15, "", "s", "1x", "-1s", "1 s", "1s2", True, None, [1]])
def test_duration_without_a_unit_is_refused_with_the_form(text):
    with pytest.raises(ValueError, match="write it like 250ms, 15s, 5m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("32MiB", 32 << 20),
        ("1GiB", 1 << 30),
        ("512KiB", 512 << 10),
        ("10MB", 10_000_000),
        ("100B", 100),
        ("0.5KiB", 512),
        ("4096", 4096),
        (4096, 4096),
        ("64 mib", 64 << 20),
    ],
)
def test_size_with_a_unit_becomes_bytes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["MiB", "-1", -1, "1TB?", "", True, None])
def test_size_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="write it like 512KiB"):
        parse_size(text)


@given(st.integers(0, 10**9))
def test_duration_written_and_read_is_the_same(milliseconds):
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(
        milliseconds / 1000
    )


@given(st.integers(0, 1 << 45))
def test_size_written_and_read_is_the_same(size):
    assert parse_size(format_size(size)) == size
