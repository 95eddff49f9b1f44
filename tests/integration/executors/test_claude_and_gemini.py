"""The executors `claude` and `gemini` over real sockets, against the fake upstream: what both must do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
import pytest
from tests.fakes.identity import running_identity
from tests.fakes.script import PIXEL, Script
from tests.fakes.upstream import FakeUpstream, introspecting, running_upstream

from patchbay import errors, secrets
from patchbay.executor import (
    ExecutorHTTPRequest,
    ExecutorRequest,
    StreamBatch,
    StreamHead,
    StreamTail,
)
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.executors.aiohttp_upstream import AiohttpUpstream
from patchbay_gateway.executors.claude import ClaudeExecutor
from patchbay_gateway.executors.gemini import GeminiExecutor
from patchbay_gateway.executors.http1_upstream import Http1Upstream
from patchbay_gateway.executors.proxies import Proxies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay.executor import StreamItem

    Tested = ClaudeExecutor | GeminiExecutor

KEY = bytes(range(32))
KINDS = ["claude", "gemini"]
BODIES: dict[str, dict[str, Any]] = {
    "claude": {"max_tokens": 99, "messages": [{"role": "user", "content": "hello there"}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}]},
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with running_upstream(Script(chunks=4)) as upstream:
        yield upstream


@pytest.fixture(params=KINDS)
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[Tested]:
    upstream = Http1Upstream(Proxies({}), AiohttpUpstream(Proxies({})))
    executor: Tested = GeminiExecutor(upstream)
    if request.param == "claude":
        executor = ClaudeExecutor(upstream)
    yield executor
    await executor.aclose()
    await upstream.aclose()
    # Only the test and the fixture's own task remain: nothing of a call is left behind.
    for _ in range(100):
        await asyncio.sleep(0)
        left = [t for t in asyncio.all_tasks() if "_answer" not in repr(t)]
        if len(left) <= 2:
            return
    raise AssertionError(left)


def make_request(
    executor: Tested,
    url: str,
    operation: str = "chat",
    *,
    stream: bool = False,
    origins: tuple[str, ...] | None = None,
    material: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    model: str = "m",
    alt: str = "",
    idle: float = 60,
    **fake: Any,
) -> ExecutorRequest:
    body = dict(BODIES[executor.id]) | {"fake": fake}
    if executor.id == "claude":
        body |= {"model": model, "stream": stream}
    message = executor_pb2.ExecutorRequest(
        model=model,
        format=executor.id,
        operation=operation,
        stream=stream,
        alt=alt,
        payload=orjson.dumps(body),
        attempt_uid="01UID-1",
    )
    message.secret.CopyFrom(
        secrets.seal(
            KEY,
            executor.id,
            "main",
            1,
            origins if origins is not None else (url,),
            time.time() + 60,
            material or {"api_key": "test-key"},
        )
    )
    provider = message.provider
    provider.base_url = url
    provider.attempt_header = "X-Patchbay-Attempt"
    provider.first_byte_timeout.FromMilliseconds(int(idle * 1000))
    provider.idle_timeout.FromMilliseconds(int(idle * 1000))
    for header, value in (headers or {}).items():
        message.headers[header].values.append(value)
    return ExecutorRequest(message, secrets.SecretOpener([KEY]), executor.id)


async def collect(
    executor: Tested, request: ExecutorRequest
) -> tuple[list[StreamItem], errors.PatchbayError | None]:
    items: list[StreamItem] = []
    try:
        async for item in executor.execute_stream(request):
            items.append(item)  # noqa: PERF401 - what came before an error is wanted
    except errors.PatchbayError as error:
        return items, error
    return items, None


def chunks_of(items: list[StreamItem]) -> list[bytes]:
    return [chunk for item in items if isinstance(item, StreamBatch) for chunk in item.chunks]


def base(fake: FakeUpstream) -> str:
    """Return the base URL as SDKs are given it: the bare host."""
    return fake.url.removesuffix("/v1")


async def test_body_passes_unchanged_and_usage_has_every_class(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(
        executor, base(fake), cached=30, created=20, created_1h=5, reasoning=2, searches=1
    )
    answer = await executor.execute(request)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert fake.last.completed
    assert fake.last.body.encode() == request.payload
    assert answer.usage is not None
    assert not answer.usage.estimated
    assert dict(answer.usage.items) == fake.last.tokens
    assert fake.last.tokens["output_tokens"] == 6
    if executor.id == "claude":
        assert fake.last.tokens["cache_creation_1h_tokens"] == 5
        assert fake.last.tokens["input_tokens"] > 50


async def test_answer_without_usage_is_estimated(executor: Tested, fake: FakeUpstream) -> None:
    request = make_request(executor, base(fake), usage="never")
    usage = (await executor.execute(request)).usage
    assert usage is not None
    assert usage.estimated
    assert dict(usage.items) == {
        "input_tokens": round(len(request.payload) / 4),
        "output_tokens": 6,
    }


async def test_path_and_headers_are_the_providers(executor: Tested, fake: FakeUpstream) -> None:
    client = {
        "openai-organization": "org",
        "anthropic-beta": "a-beta,b-beta",
        "x-goog-user-project": "mine",
        "x-goog-api-key": "clients-own",
        "user-agent": "client/1",
        "x-forwarded-for": "1.2.3.4",
    }
    await executor.execute(make_request(executor, base(fake), headers=client))
    sent = fake.last.headers
    common = {
        "host", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
        "x-patchbay-attempt",
    }  # fmt: skip
    assert fake.last.attempt == "01UID-1"
    assert sent["user-agent"].startswith("patchbay/")
    if executor.id == "claude":
        assert fake.last.path == "/v1/messages"
        assert sent["x-api-key"] == "test-key"
        assert sent["anthropic-version"] == "2023-06-01"
        assert sent["anthropic-beta"] == "a-beta,b-beta"
        assert set(sent) == common | {"x-api-key", "anthropic-version", "anthropic-beta"}
    else:
        assert fake.last.path == "/v1beta/models/m:generateContent"
        assert sent["x-goog-api-key"] == "test-key"
        assert set(sent) == common | {"x-goog-api-key", "x-goog-user-project"}


async def test_version_of_the_client_is_kept(executor: Tested, fake: FakeUpstream) -> None:
    await executor.execute(
        make_request(executor, base(fake), headers={"anthropic-version": "2099-01-01"})
    )
    assert fake.last.headers.get("anthropic-version") == (
        "2099-01-01" if executor.id == "claude" else None
    )


async def test_base_url_with_a_version_is_not_given_another(
    executor: Tested, fake: FakeUpstream
) -> None:
    version = "/v1" if executor.id == "claude" else "/v1beta"
    await executor.execute(make_request(executor, f"{base(fake)}/proxied{version}/"))
    assert fake.last.path.startswith(f"/proxied{version}/m")


async def test_oauth_token_goes_as_bearer(executor: Tested, fake: FakeUpstream) -> None:
    request = make_request(
        executor,
        base(fake),
        material={"access_token": "test-token"},
        headers={"anthropic-beta": "a-beta"},
        token="test-token",
    )
    await executor.execute(request)
    sent = fake.last.headers
    assert sent["authorization"] == "Bearer test-token"
    assert not {"x-api-key", "x-goog-api-key"} & set(sent)
    if executor.id == "claude":
        assert "oauth-2025-04-20" in sent["anthropic-beta"]


async def test_token_lives_as_long_as_its_identity_server_says(executor: Tested) -> None:
    """The fake asks the identity server about each token, as a provider does."""
    async with (
        running_identity("family") as identity,
        introspecting(f"http://127.0.0.1:{identity.port}/introspect") as accepts,
        running_upstream(Script(chunks=4), accepts=accepts) as fake,
    ):
        family = identity.books.families["family"]
        token = identity.books.next_access(family, 60)
        request = make_request(executor, base(fake), material={"access_token": token})
        assert (await executor.execute(request)).status == 200
        identity.books.expire("family")
        with pytest.raises(errors.UpstreamError) as caught:
            await executor.execute(request)
    assert caught.value.http_status == 401
    assert caught.value.scope is errors.FaultScope.CREDENTIAL


async def test_secret_for_another_origin_never_leaves(executor: Tested, fake: FakeUpstream) -> None:
    with pytest.raises(errors.PermissionDenied):
        await executor.execute(
            make_request(executor, base(fake), origins=("https://api.example.com",))
        )
    assert not fake.records


async def test_count_tokens_answers_and_bills_nothing(executor: Tested, fake: FakeUpstream) -> None:
    answer = await executor.count_tokens(make_request(executor, base(fake), "count_tokens"))
    count = orjson.loads(answer.payload)
    assert (count.get("input_tokens") or count["totalTokens"]) > 0
    assert answer.usage is None


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"bytes_per_write": 7},
        {"frames_per_write": 64},
        {"crlf": True},
        {"spaces": True},
        {"pings": True, "reasoning": 3, "tools": 2, "cached": 40, "created": 9, "created_1h": 4},
        {"picture": True, "searches": 2},
    ],
    ids=str,
)
async def test_stream_bytes_unchanged_whole_events_and_usage(
    executor: Tested, fake: FakeUpstream, way: dict[str, Any]
) -> None:
    """However the bytes arrive, the chunks are whole events and joined they are the provider's bytes."""
    items, error = await collect(executor, make_request(executor, base(fake), stream=True, **way))
    assert error is None
    head, tail = items[0], items[-1]
    assert isinstance(head, StreamHead)
    assert head.content_type.startswith("text/event-stream")
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items) == fake.last.tokens
    assert not tail.usage.estimated
    end = b"\r\n\r\n" if way.get("crlf") or executor.id == "gemini" else b"\n\n"
    chunks = chunks_of(items)
    assert all(chunk.endswith(end) and chunk.count(end) == 1 for chunk in chunks)
    assert sum(b'"word' in c or b': "word' in c for c in chunks) >= 4


async def test_usage_so_far_never_falls(executor: Tested, fake: FakeUpstream) -> None:
    request = make_request(executor, base(fake), stream=True, chunks=20, cached=3, delay_ms=1)
    items, _ = await collect(executor, request)
    told = [i.usage_so_far for i in items if isinstance(i, StreamBatch) and i.usage_so_far]
    outputs = [dict(u.items)["output_tokens"] for u in told]
    # One a chunk, unless the machine is so busy that several chunks arrive as one.
    assert len(outputs) >= 10
    assert all(dict(u.items)["cache_read_tokens"] == 3 for u in told)
    assert outputs[-2] >= 18
    assert outputs[:-1] == sorted(outputs[:-1])


async def test_stream_without_usage_is_estimated(executor: Tested, fake: FakeUpstream) -> None:
    request = make_request(executor, base(fake), stream=True, usage="never")
    items, error = await collect(executor, request)
    assert error is None
    tail = items[-1]
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert tail.usage.estimated
    assert dict(tail.usage.items)["output_tokens"] == 6


STATUSES = [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("stream", [False, True])
async def test_error_status_is_kept_whole(
    executor: Tested, fake: FakeUpstream, status: int, *, stream: bool
) -> None:
    request = make_request(
        executor, base(fake), stream=stream, status=status, retry_after="7", error="no way"
    )
    if stream:
        items, error = await collect(executor, request)
        assert not items
    else:
        with pytest.raises(errors.UpstreamError) as caught:
            await executor.execute(request)
        error = caught.value
    assert isinstance(error, errors.UpstreamError)
    assert error.http_status == status
    assert orjson.loads(error.body)["error"]["message"] == "no way"
    assert error.content_type == "application/json"
    assert error.retry_after == 7
    assert error.sent is errors.Sent.YES
    assert (b"retry-after", b"7") in error.headers


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"retry_after": "0"}, 0),
        ({"retry_after": "5"}, 5),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "864000"}, 3600),
        ({"retry_after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"retry_after": "2", "retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "later", "retry_after": "3"}, 3),
        ({}, None),
    ],
    ids=str,
)
async def test_retry_after_in_each_form(
    executor: Tested, fake: FakeUpstream, told: dict[str, Any], seconds: float | None
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, **told))
    assert caught.value.retry_after == seconds


async def test_failure_in_a_200_body_is_a_failure(executor: Tested, fake: FakeUpstream) -> None:
    with pytest.raises(errors.UpstreamError, match="oops") as caught:
        await executor.execute(make_request(executor, base(fake), error_after=0, error="oops"))
    assert caught.value.http_status in {500, 503}
    with pytest.raises(errors.UpstreamError, match="oops"):
        await executor.count_tokens(
            make_request(executor, base(fake), "count_tokens", error_after=0, error="oops")
        )


async def test_failure_in_a_stream_before_content_is_raised_not_delivered(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, error_after=0, error="oops")
    items, error = await collect(executor, request)
    assert not chunks_of(items)
    assert isinstance(error, errors.UpstreamError)
    assert error.message == "oops"
    assert error.http_status == (529 if executor.id == "claude" else 503)
    assert error.sent is errors.Sent.YES
    assert "oops" in error.body.decode()


async def test_failure_in_a_stream_after_content_is_the_clients_to_see(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, error_after=2, error="oops")
    items, error = await collect(executor, request)
    assert error is None
    assert b"oops" in chunks_of(items)[-1]
    assert b"error" in chunks_of(items)[-1]


async def test_json_where_a_stream_was_due_is_a_failure(
    executor: Tested, fake: FakeUpstream
) -> None:
    """A relay that ignores `stream` must not look like an empty answer."""
    request = make_request(executor, base(fake), stream=True, unstreamed=True)
    items, error = await collect(executor, request)
    assert not items
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (502, "UPSTREAM_NOT_A_STREAM")


@pytest.mark.parametrize(
    "way",
    [{"close_after": 3}, {"half_frame_after": 3}, {"finish": False, "done": False}],
    ids=str,
)
async def test_stream_broken_off_delivers_whole_events_then_fails(
    executor: Tested, fake: FakeUpstream, way: dict[str, Any]
) -> None:
    items, error = await collect(executor, make_request(executor, base(fake), stream=True, **way))
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (502, "UPSTREAM_TRUNCATED")
    text = b"".join(chunks_of(items))
    assert [b"word%d " % i in text for i in range(3)] == [True, True, True]
    last = items[-1]
    assert isinstance(last, StreamBatch)
    assert last.chunks[-1].endswith(b"\n\n") or last.chunks[-1].endswith(b"\r\n\r\n")


async def test_message_delta_without_message_stop_is_truncated(
    executor: Tested, fake: FakeUpstream
) -> None:
    """Anthropic's last word is `message_stop`; Google's is a `finishReason`, which was there."""
    request = make_request(executor, base(fake), stream=True, done=False)
    items, error = await collect(executor, request)
    if executor.id == "claude":
        assert isinstance(error, errors.UpstreamError)
        assert error.reason == "UPSTREAM_TRUNCATED"
    else:
        assert error is None
        assert isinstance(items[-1], StreamTail)


@pytest.mark.parametrize("stall", ["head", "body", "2"])
async def test_stalled_stream_is_a_504(executor: Tested, fake: FakeUpstream, stall: str) -> None:
    request = make_request(executor, base(fake), stream=True, idle=0.2, stall=stall)
    _, error = await collect(executor, request)
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.reason) == (504, "UPSTREAM_TIMEOUT")
    await fake.until(lambda: fake.last.aborted)


async def test_stall_after_the_last_word_is_no_failure(
    executor: Tested, fake: FakeUpstream
) -> None:
    """A provider that says all and keeps the connection open costs a wait, not the answer."""
    request = make_request(executor, base(fake), stream=True, idle=1, stall="end")
    items, error = await collect(executor, request)
    assert error is None
    tail = items[-1]
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items)["output_tokens"] == 4


async def test_generator_closed_between_chunks_cuts_the_provider(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, chunks=50, delay_ms=20)
    items = executor.execute_stream(request)
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, StreamBatch):
                break
    await fake.until(lambda: fake.last.aborted)
    assert fake.last.chunks_sent < 10


async def test_plain_request_carries_the_credential_alone(
    executor: Tested, fake: FakeUpstream
) -> None:
    url = f"{base(fake)}/v1/models"
    message = executor_pb2.ExecutorHTTPRequest(method="get", url=url)
    for name in ("x-api-key", "x-goog-api-key", "authorization", "x-extra"):
        message.headers[name].values.append("brought")
    message.secret.CopyFrom(
        secrets.seal(KEY, executor.id, "main", 1, (url,), time.time() + 60, {"api_key": "test-k"})
    )
    request = ExecutorHTTPRequest(message, secrets.SecretOpener([KEY]), executor.id)
    answer = await executor.http_request(request)
    assert answer.status == 200
    sent = fake.last.headers
    assert [v for v in sent.values() if v == "brought"] == ["brought"]
    assert sent["x-api-key" if executor.id == "claude" else "x-goog-api-key"] == "test-k"


async def test_operation_of_another_dialect_is_refused(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake))
    request.message.operation = "embeddings"
    with pytest.raises(errors.InvalidRequest):
        await executor.execute(request)
    assert not fake.records


# What only one of them has.


of_gemini = pytest.mark.parametrize("executor", ["gemini"], indirect=True)
of_claude = pytest.mark.parametrize("executor", ["claude"], indirect=True)


@of_gemini
@pytest.mark.parametrize("model", ["m", "a/b:c d", "tunedModels/x", "models/m"])
async def test_gemini_model_is_quoted_into_the_path(
    executor: Tested, fake: FakeUpstream, model: str
) -> None:
    await executor.execute(make_request(executor, base(fake), model=model))
    whole = model.startswith(("tunedModels/", "models/"))
    name = quote(model, safe="/") if whole else "models/" + quote(model, safe="")
    assert fake.last.path == f"/v1beta/{name}:generateContent"


@of_gemini
async def test_gemini_stream_as_array_is_json_with_every_event(
    executor: Tested, fake: FakeUpstream
) -> None:
    request = make_request(executor, base(fake), stream=True, alt="json", tools=1, picture=True)
    items, error = await collect(executor, request)
    assert error is None
    head, tail = items[0], items[-1]
    assert isinstance(head, StreamHead)
    assert head.content_type.startswith("application/json")
    found = orjson.loads(b"".join(chunks_of(items)))
    parts = [p for each in found for p in each["candidates"][0]["content"]["parts"]]
    assert "".join(p.get("text", "") for p in parts) == "word0 word1 word2 word3 "
    assert parts[-2]["inlineData"]["data"] == PIXEL
    assert parts[-1]["functionCall"]["args"] == {"city": "Zürich", "days": 3}
    assert isinstance(tail, StreamTail)
    assert tail.usage is not None
    assert dict(tail.usage.items) == fake.last.tokens
    assert fake.last.path.endswith("?alt=sse")


@of_gemini
@pytest.mark.parametrize("way", [{"error_after": 2}, {"close_after": 2}], ids=str)
async def test_gemini_stream_as_array_never_closes_when_it_failed(
    executor: Tested, fake: FakeUpstream, way: dict[str, Any]
) -> None:
    items, error = await collect(
        executor, make_request(executor, base(fake), stream=True, alt="json", **way)
    )
    assert isinstance(error, errors.UpstreamError)
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(b"".join(chunks_of(items)))


@of_gemini
@pytest.mark.parametrize("stream", [False, True])
async def test_gemini_blocked_prompt_is_an_answer(
    executor: Tested, fake: FakeUpstream, *, stream: bool
) -> None:
    request = make_request(executor, base(fake), stream=stream, chunks=0, blocked="SAFETY")
    if stream:
        items, error = await collect(executor, request)
        assert error is None
        assert b'"SAFETY"' in chunks_of(items)[-1]
    else:
        assert b'"SAFETY"' in (await executor.execute(request)).payload


@of_gemini
@pytest.mark.parametrize("after", [0, 2])
async def test_gemini_bare_error_in_a_stream_is_raised(
    executor: Tested, fake: FakeUpstream, after: int
) -> None:
    """Google writes some errors as indented JSON among the events; nobody's parser takes that."""
    request = make_request(
        executor, base(fake), stream=True, error_after=after, bare_error=True, error="oops"
    )
    items, error = await collect(executor, request)
    assert isinstance(error, errors.UpstreamError)
    assert (error.http_status, error.message) == (503, "oops")
    assert len(chunks_of(items)) == after


@of_gemini
@pytest.mark.parametrize(
    ("told", "seconds", "scope"),
    [
        ({"retry_delay": "17s"}, 17, errors.FaultScope.MODEL),
        ({"retry_delay": "0.5s"}, 0.5, errors.FaultScope.MODEL),
        ({"retry_delay": "864000s"}, 3600, errors.FaultScope.MODEL),
        ({"retry_delay": "soon"}, None, errors.FaultScope.MODEL),
        ({"retry_delay": "17s", "retry_after": "2"}, 2, errors.FaultScope.MODEL),
        ({"quota": "model"}, None, errors.FaultScope.MODEL),
        ({"quota": "project", "retry_delay": "9s"}, 9, errors.FaultScope.CREDENTIAL),
    ],
    ids=str,
)
async def test_gemini_quota_says_when_and_whose(
    executor: Tested,
    fake: FakeUpstream,
    told: dict[str, Any],
    seconds: float | None,
    scope: errors.FaultScope,
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, **told))
    assert (caught.value.retry_after, caught.value.scope) == (seconds, scope)


@pytest.mark.parametrize(
    ("bare", "scope"),
    [(True, errors.FaultScope.REQUEST), (False, errors.FaultScope.MODEL)],
    ids=["no such path", "no such model"],
)
async def test_count_without_such_a_path_is_no_fault_of_the_credential(
    executor: Tested, fake: FakeUpstream, scope: errors.FaultScope, *, bare: bool
) -> None:
    request = make_request(executor, base(fake), "count_tokens", status=404, bare_error=bare)
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.count_tokens(request)
    assert caught.value.scope is scope


@of_claude
@pytest.mark.parametrize(
    ("told", "scope"),
    [
        ({"status": 400, "error": "Your credit balance is too low"}, errors.FaultScope.CREDENTIAL),
        ({"status": 400, "error": "messages: field required"}, errors.FaultScope.REQUEST),
        ({"status": 402}, errors.FaultScope.CREDENTIAL),
        ({"status": 529}, errors.FaultScope.UNSPECIFIED),
    ],
    ids=str,
)
async def test_claude_error_says_whose_it_is(
    executor: Tested, fake: FakeUpstream, told: dict[str, Any], scope: errors.FaultScope
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), **told))
    assert caught.value.scope is scope


@of_claude
async def test_claude_limit_that_is_spent_says_when_it_is_not(
    executor: Tested, fake: FakeUpstream
) -> None:
    """Without a Retry-After the reset of the limit that ran out counts, at most an hour."""
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, limits="spent"))
    assert caught.value.retry_after == 3600
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, limits="fine"))
    assert caught.value.retry_after is None
