"""Rate-limit headers."""

import pytest

from patchbay_gateway.edge.dialects.limits import Limit, parse

NOW = 1_800_000_000.0


def test_openai_headers() -> None:
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "6m0s",
        "content-type": "text/plain",
    }
    assert parse(headers.items(), NOW) == [
        Limit("requests", 60, 59, 1.0),
        Limit("tokens", 150000, 149984, 360.0),
    ]


def test_anthropic_headers() -> None:
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "50000",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:01:00Z",
        "anthropic-ratelimit-unified-status": "allowed",
        "anthropic-ratelimit-unified-reset": "1800000900",
    }
    assert parse(headers.items(), NOW) == [
        Limit("input_tokens", 50000, 0, 60.0),
        Limit("unified", 0, -1, 900.0),
    ]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-ratelimit-limit": "5", "x-ratelimit-remaining": "4"}, [Limit("requests", 5, 4)]),
        ({"x-ratelimit-remaining-tokens": "many"}, []),
        ({"x-ratelimit-remaining-tokens": "-4"}, []),
        ({"x-ratelimit-remaining-" + "x" * 60: "4"}, []),
        ({"x-ratelimit-remaining-a b": "4"}, []),
        ({"x-ratelimit-policy-tokens": "4"}, []),
        ({"anthropic-ratelimit-remaining": "4"}, []),
        ({"x-ratelimit-limit-tokens": "1e999"}, []),
        ({"x-ratelimit-reset-tokens": "2027-99-99"}, []),
    ],
)
def test_odd_headers(headers: dict[str, str], expected: list[Limit]) -> None:
    assert parse(headers.items(), NOW) == expected


def test_many_units_are_cut() -> None:
    headers = {f"x-ratelimit-limit-u{n}": "1" for n in range(50)}
    assert len(parse(headers.items(), NOW)) == 8
