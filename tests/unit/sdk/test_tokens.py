"""Call tokens (patchbay/tokens.py)."""

from __future__ import annotations

import pytest

from patchbay import errors
from patchbay.tokens import (
    LEEWAY,
    LIFETIME,
    PluginAuthenticator,
    ServiceAuthenticator,
    TokenSource,
    TokenVerifier,
    mint,
)

KEY = b"test-key of a channel, 32 bytes."
OTHER = b"another test-key, also 32 bytes."


class Hand:
    """The hand of a clock."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def now() -> Hand:
    return Hand()


def test_token_has_the_documented_form() -> None:
    """The vector of proto/README.md."""
    assert mint(bytes(range(32)), "echo", "edge-1", 1_700_000_300) == (
        "v1.edge-1.1700000300.ecd8b3d03b28c632d474d88f34eef7b43a15aa569afac1fcbfbf429e9cf0bae8"
    )


def test_token_source_keeps_a_token_for_half_its_life(now: Hand) -> None:
    source = TokenSource(KEY, "echo", "edge-1", now=now)
    first = source.current()
    now.at += LIFETIME / 2 - 1
    assert source.current() == first
    now.at += 1
    assert source.current() != first


def test_verifier_returns_the_caller_dots_included(now: Hand) -> None:
    verifier = TokenVerifier(lambda _: [OTHER, KEY], now=now)
    token = TokenSource(KEY, "echo", "edge.a.b", now=now).current()
    assert verifier.verify("echo", token) == "edge.a.b"
    assert verifier.verify("echo", token) == "edge.a.b"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: "",
        lambda _: "v1...",
        lambda token: token + "0",
        lambda token: token.replace("edge-1", "edge-2"),
        lambda token: token.replace("v1.", "v2.", 1),
        lambda token: ".".join([*token.split(".")[:2], "9999999999", token.split(".")[3]]),
        lambda token: token.replace("17", "\u0661\u0667", 1),
    ],
)
def test_verifier_refuses_a_token_that_was_changed(now: Hand, spoil) -> None:
    token = TokenSource(KEY, "echo", "edge-1", now=now).current()
    with pytest.raises(errors.Unauthenticated) as caught:
        TokenVerifier(lambda _: [KEY], now=now).verify("echo", spoil(token))
    assert caught.value.reason == "TOKEN_INVALID"


def test_verifier_refuses_the_token_of_another_audience_or_key(now: Hand) -> None:
    token = TokenSource(KEY, "echo", "edge-1", now=now).current()
    known: dict[str, list[bytes]] = {"other": [KEY], "echo": [OTHER]}
    verifier = TokenVerifier(lambda audience: known.get(audience, []), now=now)
    for audience in ("other", "echo", "unknown"):
        with pytest.raises(errors.Unauthenticated):
            verifier.verify(audience, token)


def test_verifier_refuses_an_old_token_even_when_it_knew_it(now: Hand) -> None:
    verifier = TokenVerifier(lambda _: [KEY], now=now)
    token = TokenSource(KEY, "echo", "edge-1", now=now).current()
    verifier.verify("echo", token)
    now.at += LIFETIME + LEEWAY + 1
    with pytest.raises(errors.Unauthenticated) as caught:
        verifier.verify("echo", token)
    assert caught.value.reason == "TOKEN_EXPIRED"


def test_service_authenticator_binds_a_token_to_its_service(now: Hand) -> None:
    authenticate = ServiceAuthenticator([KEY], now=now)
    metadata = TokenSource(KEY, "p.v1.A", "edge-1", now=now).metadata()
    authenticate("/p.v1.A/Method", metadata)
    with pytest.raises(errors.Unauthenticated):
        authenticate("/p.v1.B/Method", metadata)
    with pytest.raises(errors.Unauthenticated):
        authenticate("/p.v1.A/Method", ())


def test_plugin_authenticator_leaves_the_handshake_to_its_proofs(now: Hand) -> None:
    authenticate = PluginAuthenticator(lambda _: [KEY], ["echo"], now=now)
    authenticate("/patchbay.plugin.v1.PluginService/Challenge", ())
    authenticate("/patchbay.plugin.v1.PluginService/Register", ())
    for name in ("PluginService/Reconfigure", "ExecutorService/Execute"):
        with pytest.raises(errors.Unauthenticated):
            authenticate(f"/patchbay.plugin.v1.{name}", ())


def test_plugin_authenticator_needs_no_name_where_one_plugin_is_served(now: Hand) -> None:
    authenticate = PluginAuthenticator(lambda _: [KEY], ["echo"], now=now)
    metadata = TokenSource(KEY, "echo", "edge-1", now=now).metadata()
    authenticate("/patchbay.plugin.v1.ExecutorService/Execute", metadata)
