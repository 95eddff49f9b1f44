"""Requests to token endpoints, and what their answers mean."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import parse_qs

import orjson
import pytest

from patchbay import errors
from patchbay_gateway.executors.oauth2_grant import (
    ERROR_CODE,
    Client,
    Tokens,
    refresh_form,
    token_call,
    tokens_of,
)

NOW = 1_700_000_000.0
JSON = [(b"content-type", b"application/json")]


def call_form(**client: Any) -> tuple[dict[str, str], dict[bytes, bytes]]:
    settings = {"token_url": "https://id.example/token", "client_id": "c", **client}
    call = token_call(Client(**settings), refresh_form("test-r"), 5)
    assert call.fresh
    assert (call.method, call.url) == ("POST", "https://id.example/token")
    form = {k: v[0] for k, v in parse_qs(call.body.decode(), strict_parsing=True).items()}
    return form, dict(call.headers)


def answer(status: int, body: object, **headers: str) -> Tokens:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    pairs = [*JSON, *((k.replace("_", "-").encode(), v.encode()) for k, v in headers.items())]
    return tokens_of(status, pairs, data, NOW, ["test-r", "test-secret", ""])


def refusal(status: int, body: object, **headers: str) -> errors.UpstreamError:
    with pytest.raises(errors.UpstreamError) as caught:
        answer(status, body, **headers)
    assert caught.value.scope is errors.FaultScope.CREDENTIAL
    assert caught.value.sent is errors.Sent.YES
    assert caught.value.body == b""
    return caught.value


def test_client_without_secret_names_itself_in_the_form() -> None:
    form, headers = call_form(client_auth="basic")

    assert form == {"grant_type": "refresh_token", "refresh_token": "test-r", "client_id": "c"}
    assert b"authorization" not in headers


def test_connection_is_not_kept() -> None:
    """One that the server closes as it is used again leaves open whether the token was seen."""
    _, headers = call_form()

    assert headers[b"connection"] == b"close"


def test_secret_goes_into_the_form() -> None:
    form, headers = call_form(client_secret="test-secret", scopes=("a", "b"), extra={"x": "1"})

    assert form["client_secret"] == "test-secret"
    assert (form["scope"], form["x"]) == ("a b", "1")
    assert b"authorization" not in headers


def test_secret_goes_into_basic_authorization_in_form_encoding() -> None:
    """RFC 6749 §2.3.1 encodes both before they are joined by a colon."""
    form, headers = call_form(client_id="c:1", client_secret="test secret%", client_auth="basic")

    scheme, _, value = headers[b"authorization"].partition(b" ")
    assert scheme == b"Basic"
    assert base64.b64decode(value) == b"c%3A1:test+secret%25"
    assert not {"client_id", "client_secret"} & form.keys()


@pytest.mark.parametrize("extra", ["grant_type", "refresh_token", "client_secret", "scope"])
def test_extra_parameters_do_not_replace_ours(extra: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        call_form(extra={extra: "test-x"})
    assert caught.value.reason == "OAUTH_EXTRA_INVALID"
    assert "test-x" not in str(caught.value)


def test_unknown_way_of_authenticating_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest):
        call_form(client_auth="jwt")


def test_answer_with_all_members() -> None:
    found = answer(
        200,
        {
            "access_token": "test-a",
            "refresh_token": "test-r2",
            "token_type": "Bearer",
            "expires_in": 3600,
            "scope": "a b",
            "id_token": "test-i",
        },
    )

    assert found == Tokens("test-a", "test-r2", "test-i", "Bearer", ("a", "b"), NOW + 3600)
    assert "test-" not in repr(found)


@pytest.mark.parametrize(
    ("members", "expires_at"),
    [
        ({}, None),
        ({"expires_in": "3600"}, NOW + 3600),
        ({"expires_in": 0}, NOW),
        ({"expires_in": -1}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": True}, None),
        ({"expires_in": None, "expires_at": NOW + 5}, NOW + 5),
        ({"expires_at": (NOW + 5) * 1000}, NOW + 5),
        ({"expires_at": "2023-11-14T22:13:25Z"}, NOW + 5),
        ({"expires_at": "2023-11-14T22:13:25"}, NOW + 5),
        ({"expires_on": str(int(NOW) + 5)}, NOW + 5),
        ({"expires_at": "never"}, None),
        ({"expires_in": 60, "expires_at": NOW + 5}, NOW + 60),
    ],
)
def test_expiry_in_each_form(members: dict[str, Any], expires_at: float | None) -> None:
    assert answer(200, {"access_token": "test-a", **members}).expires_at == expires_at


def test_answer_as_a_form_is_read() -> None:
    found = tokens_of(
        200,
        [(b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")],
        b"access_token=test-a&expires_in=60&scope=a",
        NOW,
    )
    assert (found.access_token, found.expires_at) == ("test-a", NOW + 60)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": "invalid_grant", "error_description": "expired"}),
        (401, {"error": "invalid_grant"}),
        (200, {"error": "bad_refresh_token"}),
        (401, {"error": {"code": "refresh_token_reused", "message": "used before"}}),
        (403, {"error": {"type": "invalid_grant", "message": "gone"}}),
    ],
)
def test_dead_refresh_token_is_told_apart(status: int, body: object) -> None:
    error = refusal(status, body)

    assert (error.reason, error.http_status) == ("INVALID_GRANT", 400)
    assert "log in again" in error.message


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, {"error": "invalid_client"}), (401, b"<html>"), (400, {"error": "unauthorized_client"})],
)
def test_client_that_is_not_accepted_leaves_the_token_alive(status: int, body: object) -> None:
    assert refusal(status, body).reason == "OAUTH_CLIENT_REFUSED"


def test_other_refusal_keeps_the_code() -> None:
    error = refusal(400, {"error": "invalid_scope"})

    assert (error.reason, error.http_status) == ("OAUTH_REQUEST_REFUSED", 400)
    assert error.metadata == {ERROR_CODE: "invalid_scope"}


@pytest.mark.parametrize(
    ("status", "told", "seconds"),
    [
        (429, "7", 7.0),
        (503, "864000", 3600.0),
        (500, "", None),
        (502, "soon", None),
        (599, "0", 0.0),
    ],
)
def test_passing_failure_says_when_to_come_back(
    status: int, told: str, seconds: float | None
) -> None:
    error = refusal(status, b"<html>busy</html>", **({"retry_after": told} if told else {}))

    assert (error.http_status, error.retry_after) == (status, seconds)
    assert error.reason == "UPSTREAM_ERROR"


def test_overload_with_invalid_grant_in_it_is_a_passing_failure() -> None:
    """A token is not given up for what a server says while it is broken."""
    assert refusal(503, {"error": "invalid_grant"}).reason == "UPSTREAM_ERROR"


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", {}, {"access_token": ""}, {"access_token": 5}, {"access_token": None}],
)
def test_success_without_a_token_is_an_error_without_its_text(body: object) -> None:
    error = refusal(200, body)

    assert (error.http_status, error.reason) == (502, "TOKEN_ANSWER_INVALID")


def test_redirect_is_not_followed() -> None:
    assert refusal(307, b"").reason == "UPSTREAM_REDIRECT"


def test_secrets_of_the_request_are_blotted_out_and_texts_cut() -> None:
    told = f"no test-r nor test-secret\r\n{'x' * 999}"
    error = refusal(400, {"error": "invalid_grant", "error_description": told})

    assert "test-" not in error.message
    assert "\n" not in error.message
    assert len(error.message) < 450
