"""Headers that pass, the budget of bytes, paths."""

import pytest

from patchbay import errors
from patchbay_gateway.edge import headers
from patchbay_gateway.edge.budget import ByteBudget
from patchbay_gateway.edge.routes import paths


def test_for_plugins_strips_connection_body_form_and_credentials() -> None:
    given = [
        (b"host", b"x"),
        (b"connection", b"close, X-Private"),
        (b"x-private", b"1"),
        (b"te", b"trailers"),
        (b"content-length", b"2"),
        (b"content-encoding", b"gzip"),
        (b"accept-encoding", b"br"),
        (b"cookie", b"a=b"),
        (b"authorization", b"Bearer test-key"),
        (b"x-api-key", b"test-key"),
        (b"x-goog-api-key", b"test-key"),
        (b"content-type", b"application/json"),
        (b"openai-beta", b"x"),
        (b"x-custom", b"1"),
        (b"x-custom", b"2"),
    ]
    assert headers.for_plugins(given) == given[-4:]


def test_from_upstream_strips_hop_by_hop_security_and_fingerprints() -> None:
    given = [
        (b"connection", b"x-hop"),
        (b"x-hop", b"1"),
        (b"set-cookie", b"a=b"),
        (b"content-length", b"2"),
        (b"content-encoding", b"gzip"),
        (b"transfer-encoding", b"chunked"),
        (b"access-control-allow-origin", b"*"),
        (b"x-litellm-model", b"m"),
        (b"cf-aig-step", b"0"),
        (b"x-patchbay-model", b"forged"),
        (b"x-request-id", b"theirs"),
        (b"openai-processing-ms", b"12"),
        (b"x-ratelimit-remaining-tokens", b"9"),
    ]
    assert headers.from_upstream(given) == given[-2:]


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        (b"", b""),
        (b"alt=sse", b"alt=sse"),
        (b"alt=sse&key=test-key&x=%20y", b"alt=sse&x=%20y"),
        (b"KEY=test-key&auth_token=a&access_token=b", b""),
        (b"%6Bey=test-key&monkey=1", b"monkey=1"),
    ],
)
def test_query_for_plugins_loses_credentials_only(query: bytes, kept: bytes) -> None:
    assert headers.query_for_plugins(query) == kept


def test_answer_headers_leave_out_what_is_not_known() -> None:
    assert headers.answer_headers("r", patchbay=False, model="m") == [(b"x-request-id", b"r")]
    assert headers.answer_headers("r", patchbay=True, model="mödel\r\nx: y", attempts=0) == [
        (b"x-request-id", b"r"),
        (b"x-patchbay-model", b"m?del??x: y"),
        (b"x-patchbay-attempts", b"0"),
    ]


def test_answer_headers_of_a_stream_forbid_buffering() -> None:
    """A proxy before us that gathers a stream would make it come late and in one piece."""
    assert {(b"x-accel-buffering", b"no"), (b"cache-control", b"no-cache")} <= set(
        headers.SSE_HEADERS
    )


def test_budget_refuses_and_gives_back() -> None:
    budget = ByteBudget(lambda: 100)
    with budget.charge() as first:
        first(60)
        second = budget.charge()
        with pytest.raises(errors.Unavailable) as caught:
            second(41)
        assert caught.value.retry_after == 1
        second(40)
        assert budget.used == 100
        second.refund(10)
        first(10)
        second.release()
        second.release()
        assert budget.used == 70
    assert budget.used == 0
    budget.take(500)  # alone, a body larger than all may pass


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages/x", "claude"),
        ("/anthropic/x", "claude"),
        ("/genai/x", "gemini"),
        ("/v1beta/x", "gemini"),
        ("/openai/v1/responses/x", "openai-response"),
        ("/openai/x", "openai"),
        ("/x", ""),
    ],
)
def test_guess_dialect(path: str, dialect: str) -> None:
    assert paths.guess_dialect(path) == dialect


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1beta/models/g:embedContent"),
        ("POST", "/v1beta/models/:generateContent"),
        ("GET", "/v1/models/"),
        ("POST", "/v1/chat/completions/"),
        ("GET", "/openai/openai/v1/models"),
        ("GET", "/"),
    ],
)
def test_resolve_unknown_path(method: str, path: str) -> None:
    with pytest.raises(errors.NotFound):
        paths.resolve(method, path)


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", "/v1/models", paths.Target("models", "openai")),
        ("GET", "/openai/v1/models", paths.Target("models", "openai")),
        ("GET", "/anthropic/v1/models/a/b", paths.Target("model", "claude", model="a/b")),
        ("GET", "/v1beta/models/llama3:8b", paths.Target("model", "gemini", model="llama3:8b")),
        ("GET", "/genai/v1beta/models", paths.Target("models", "gemini")),
        ("GET", "/v1/models/llama3:8b", paths.Target("model", "openai", model="llama3:8b")),
        (
            "POST",
            "/v1/models/g:streamGenerateContent",
            paths.Target("run", "gemini", "chat", model="g", stream=True),
        ),
        (
            "POST",
            "/genai/v1/models/g:countTokens",
            paths.Target("run", "gemini", "count_tokens", model="g", stream=False),
        ),
        ("HEAD", "/healthz", paths.Target("health", "openai")),
    ],
)
def test_resolve_reads(method: str, path: str, target: paths.Target) -> None:
    assert paths.resolve(method, path) == target


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/messages", "POST"),
        ("PUT", "/anthropic/v1/messages", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("GET", "/v1beta/models/g:generateContent", "POST"),
    ],
)
def test_resolve_other_method(method: str, path: str, allow: str) -> None:
    with pytest.raises(paths.MethodNotAllowed) as caught:
        paths.resolve(method, path)
    assert caught.value.allow == allow
