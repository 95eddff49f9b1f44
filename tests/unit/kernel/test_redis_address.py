"""URLs of servers, taken apart."""

from __future__ import annotations

import ssl

import pytest

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel.redis_address import RedisAddress, parse_address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", RedisAddress(hosts=(("localhost", 6379),))),
        ("redis://cache", RedisAddress(hosts=(("cache", 6379),))),
        ("redis://cache:1/2", RedisAddress(hosts=(("cache", 1),), db=2)),
        ("redis://[::1]:7?db=3", RedisAddress(hosts=(("::1", 7),), db=3)),
        ("redis://:p%40ss@h", RedisAddress(hosts=(("h", 6379),), password="p@ss")),
        ("redis://u:p@h", RedisAddress(hosts=(("h", 6379),), username="u", password="p")),
        ("unix:///run/my%20dir/v.sock?db=1", RedisAddress(path="/run/my dir/v.sock", db=1)),
        (
            "redis+sentinel://u:p@a,b:2/main/4?sentinel_password=s",
            RedisAddress(
                hosts=(("a", 26379), ("b", 2)),
                service="main",
                db=4,
                username="u",
                password="p",
                sentinel_password="s",
            ),
        ),
    ],
)
def test_parse_address_forms(url, expected):
    assert parse_address(url) == expected


def test_parse_address_tls_verifies_unless_told_otherwise():
    strict = parse_address("rediss://cache").tls
    assert strict is not None
    assert strict.verify_mode is ssl.CERT_REQUIRED
    lax = parse_address("rediss+sentinel://a/main?ssl_cert_reqs=none").tls
    assert lax is not None
    assert lax.verify_mode is ssl.CERT_NONE
    assert parse_address("redis://cache").tls is None


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://cache", "redis, rediss, unix"),
        ("redis://a,b", "redis\\+sentinel"),
        ("redis+sentinel://a:1", "service"),
        ("redis://a/x", "'x'"),
        ("redis://a:x", "'x'"),
        ("redis://a?timeout=3", "'timeout'"),
        ("unix://", "path"),
        ("rediss://a?ssl_ca_certs=/nonexistent", "certificates"),
    ],
)
def test_parse_address_wrong_url_is_refused_with_the_part_at_fault(url, part):
    with pytest.raises(FailedPrecondition, match=part):
        parse_address(url)


def test_address_shows_no_password():
    address = parse_address("redis+sentinel://u:hidden@a/main?sentinel_password=hidden")
    assert "hidden" not in f"{address} {address!r}"
