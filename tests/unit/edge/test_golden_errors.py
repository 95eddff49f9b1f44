"""
Errors in each dialect, against files.

tests/golden/errors/<dialect>.json holds, per case, what a client sees: status, headers, body, and the
terminal event of a stream. `PATCHBAY_GOLDEN=write` makes them anew; read the difference before committing.
"""

import json
import os
from pathlib import Path

import pytest
import structlog

from patchbay import errors
from patchbay_gateway.edge.dialects.port import ModelCard, StreamState
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.routes.paths import MethodNotAllowed
from patchbay_gateway.kernel import outcomes

GOLDEN = Path(__file__).parents[2] / "golden"
OPENAI_BODY = (
    b'{\n  "error": {"message": "slow down", "type": "tokens",'
    b' "param": null, "code": "rate_limit_exceeded"}\n}'
)
CLAUDE_BODY = (
    b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},'
    b'"request_id":"req_1"}'
)
GEMINI_BODY = b'{"error":{"code":400,"message":"bad part","status":"INVALID_ARGUMENT"}}'
JSON = "application/json"
# Well-formed errors that quote what the provider was sent, in the sentence and beside it.
QUOTES = "sent Authorization: Bearer abcdefghijkl"
OPENAI_QUOTES = {
    "error": {
        "message": QUOTES,
        "type": "server_error",
        "param": "headers",
        "code": "bad_header",
        "internal": {"api_key": "abcdefghijkl"},
    }
}
CLAUDE_QUOTES = {
    "type": "error",
    "error": {"type": "api_error", "message": QUOTES, "headers": {"x-api-key": "abcdefghijkl"}},
    "request_id": "req_1",
}
GEMINI_QUOTES = {
    "error": {
        "code": 500,
        "message": QUOTES,
        "status": "INTERNAL",
        "details": [{"@type": "x/DebugInfo", "detail": "?key=abcdefghijkl0"}],
    }
}
HIDDEN = "team-credential at https://upstream.internal"

CASES: dict[str, errors.PatchbayError] = {
    "invalid_request": errors.InvalidRequest("'model' is missing", reason="MISSING_MODEL"),
    "body_too_large": errors.InvalidRequest("too large", reason="BODY_TOO_LARGE"),
    "body_timeout": errors.InvalidRequest("too slow", reason="BODY_TIMEOUT"),
    "unsupported_media": errors.InvalidRequest("no lzma", reason="UNSUPPORTED_MEDIA"),
    "method_not_allowed": MethodNotAllowed("POST"),
    "missing_key": errors.Unauthenticated("no API key", reason="MISSING_KEY"),
    "permission_denied": errors.PermissionDenied("not from there", reason="FOREIGN_ORIGIN"),
    "no_route": errors.NotFound("no route GET /x", reason="NO_ROUTE"),
    "unknown_model": errors.NotFound("the model 'x' does not exist", reason="MODEL_NOT_FOUND"),
    "dialect_not_available": errors.InvalidRequest(
        "the model 'x' speaks openai only", reason="DIALECT_NOT_AVAILABLE"
    ),
    "resource_exhausted": errors.ResourceExhausted("all are cooling down", retry_after=11.2),
    "unavailable": errors.Unavailable("no scheduler answers", reason="NO_SCHEDULER"),
    "unavailable_retry_after": errors.Unavailable("draining", retry_after=2.5),
    "aborted": errors.Aborted("lost a race"),
    "executor_secret": errors.FailedPrecondition(
        f"the secret of {HIDDEN} has expired", reason="SECRET_EXPIRED"
    ),
    "executor_origin": errors.PermissionDenied(
        f"the credential may not be sent to {HIDDEN}", reason="SECRET_ORIGIN"
    ),
    "executor_token": errors.Unauthenticated(f"bad token of {HIDDEN}", reason="TOKEN_INVALID"),
    "executor_unknown": errors.NotFound(f"no executor {HIDDEN}", reason="PLUGIN_UNKNOWN"),
    "message_too_large": errors.ResourceExhausted(
        f"Sent message larger than max ({HIDDEN})", reason="MESSAGE_TOO_LARGE"
    ),
    "deadline_exceeded": errors.DeadlineExceeded("no answer in 130 s"),
    "cancelled": errors.Cancelled("gone"),
    "internal": errors.Internal("a secret of ours"),
    "internal_with_id": errors.Internal("a secret of ours", metadata={"error_id": "e-1"}),
    "upstream_openai_shape": errors.UpstreamError(
        429, body=OPENAI_BODY, content_type=JSON, retry_after=3
    ),
    "upstream_claude_shape": errors.UpstreamError(529, body=CLAUDE_BODY, content_type=JSON),
    "upstream_gemini_shape": errors.UpstreamError(400, body=GEMINI_BODY, content_type=JSON),
    "upstream_should_not_retry": errors.UpstreamError(
        500, "it broke", headers=[(b"x-should-retry", b"false")]
    ),
    "upstream_html": errors.UpstreamError(
        502, body=b"<html>Bad Gateway</html>", content_type="text/html"
    ),
    "upstream_text": errors.UpstreamError(
        400, body=b"bad field; sent Authorization: Bearer abcdefghijkl", content_type="text/plain"
    ),
    "upstream_other_json": errors.UpstreamError(
        422, body=b'{"detail":"no such field"}', content_type=JSON
    ),
    **{
        f"upstream_{name}_quotes": errors.UpstreamError(
            500, body=json.dumps(document).encode(), content_type=JSON
        )
        for name, document in (
            ("openai", OPENAI_QUOTES),
            ("claude", CLAUDE_QUOTES),
            ("gemini", GEMINI_QUOTES),
        )
    },
    "upstream_credential_refused": errors.UpstreamError(
        401,
        body=b'{"error":{"message":"Incorrect API key provided: tes***ey","type":"invalid_request_error",'
        b'"param":null,"code":"invalid_api_key"}}',
        content_type=JSON,
    ),
    "upstream_forbidden": errors.UpstreamError(403, body=CLAUDE_BODY, content_type=JSON),
    "upstream_connect": errors.UpstreamError(502, "the provider cannot be reached"),
    "upstream_timeout": errors.UpstreamError(504, "no first byte within 120 s"),
    "upstream_odd_status": errors.UpstreamError(302, "the provider answered 302"),
}
IN_STREAM = {
    "openai": b"data: %b\n\n" % json.dumps(OPENAI_QUOTES).encode(),
    "openai-response": b"event: error\ndata: %b\n\n"
    % json.dumps({"type": "error", **OPENAI_QUOTES["error"], "sequence_number": 8}).encode(),
    "claude": b"event: error\ndata: %b\n\n" % json.dumps(CLAUDE_QUOTES).encode(),
    "gemini": b"data: %b\n\n" % json.dumps(GEMINI_QUOTES).encode(),
}
"""The same as events of a stream, by dialect."""
CARDS = [ModelCard("zeta", "p1", 1_700_000_000), ModelCard("alpha/beta", "p2")]


def against(path: Path, seen: object) -> None:
    text = json.dumps(seen, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if os.environ.get("PATCHBAY_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert json.loads(path.read_text()) == seen


@pytest.mark.parametrize("name", dialects())
def test_errors_are_as_written_down(name: str) -> None:
    dialect = dialects()[name]
    seen = {}
    for case, error in CASES.items():
        answer = dialect.error(error, "req-1")
        state = StreamState(last=b'event: x\ndata: {"type":"x","sequence_number":7}\n\n')
        seen[case] = {
            "status": answer.status,
            "headers": [[n.decode(), v.decode()] for n, v in answer.headers],
            "body": json.loads(answer.body),
            "stream": dialect.stream_error(error, state, "req-1").decode(),
        }
    if name in IN_STREAM:
        reported = dialect.in_stream_error(IN_STREAM[name])
        state = StreamState(last=b'event: x\ndata: {"type":"x","sequence_number":7}\n\n')
        seen["in_stream_quotes"] = {
            "body": json.loads(dialect.error(reported, "req-1").body),
            "stream": dialect.stream_error(reported, state, "req-1").decode(),
        }
    against(GOLDEN / "errors" / f"{name}.json", seen)


@pytest.mark.parametrize("name", dialects())
def test_model_lists_are_as_written_down(name: str) -> None:
    dialect = dialects()[name]
    seen = {
        "list": json.loads(dialect.model_list(CARDS)),
        "empty": json.loads(dialect.model_list([])),
        "detail": json.loads(dialect.model_detail(CARDS[1])),
    }
    against(GOLDEN / "models" / f"{name}.json", seen)


@pytest.mark.parametrize("name", dialects())
@pytest.mark.parametrize("case", CASES)
def test_errors_keep_the_rules_of_all(name: str, case: str) -> None:
    """No internal text, no provider's refusal of our credential as the client's, one SSE frame."""
    dialect, error = dialects()[name], CASES[case]
    answer = dialect.error(error, "req-1")
    event = dialect.stream_error(error, StreamState(), "req-1")
    assert 400 <= answer.status <= 599
    assert b"a secret of ours" not in answer.body + event
    assert b"abcdefghijkl" not in answer.body + event
    assert b"team-credential" not in answer.body + event
    assert b"upstream.internal" not in answer.body + event
    if case.startswith("executor_"):
        assert answer.status == 502
    if case == "message_too_large":
        assert answer.status == 413
    if case in {"upstream_credential_refused", "upstream_forbidden"}:
        assert answer.status == 502
        assert b"invalid_api_key" not in answer.body
    if name != "gemini-json":
        assert event.endswith(b"\n\n")
        assert event.count(b"\n\n") == 1
    if error.retry_after is not None:
        assert b"retry-after" in dict(answer.headers)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("openai", OPENAI_BODY),
        ("openai-response", OPENAI_BODY),
        ("claude", CLAUDE_BODY),
        ("gemini", GEMINI_BODY),
    ],
)
def test_upstream_body_of_the_same_shape_passes_byte_for_byte(name: str, body: bytes) -> None:
    error = errors.UpstreamError(400, body=body, content_type=JSON)
    assert dialects()[name].error(error, "r").body == body
    others = {"openai", "claude", "gemini"} - {name, "openai" if "openai" in name else ""}
    for other in others:
        assert dialects()[other].error(error, "r").body != body


def test_what_an_executor_said_is_in_the_log_once() -> None:
    """A question for the status alone, without a request id, logs nothing."""
    error, dialect = CASES["executor_secret"], dialects()["openai"]
    with structlog.testing.capture_logs() as logged:
        dialect.error(error, "")
        dialect.error(error, "req-1")
    assert [entry["request_id"] for entry in logged] == ["req-1"]
    assert HIDDEN in logged[0]["why"]


@pytest.mark.parametrize("case", ["executor_secret", "message_too_large"])
def test_same_call_would_fail_again_so_sdks_are_told_not_to_repeat_it(case: str) -> None:
    headers = dict(dialects()["openai"].error(CASES[case], "req-1").headers)
    assert headers[b"x-should-retry"] == b"false"
    assert not outcomes.decide(CASES[case]).again
