"""The executors `claude` and `gemini` over real sockets: what a provider gets, and its whole answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import orjson
import pytest
from tests.fakes.identity import running_identity
from tests.fakes.script import Script
from tests.fakes.upstream import FakeUpstream, introspecting, running_upstream
from tests.integration.executors.calls import KEY, chunks_of, collect
from tests.integration.executors.claude_and_gemini.asking import base, make_request, of_gemini

from patchbay import errors, secrets
from patchbay.executor import ExecutorHTTPRequest
from patchbay.plugin.v1 import executor_pb2

if TYPE_CHECKING:
    from tests.integration.executors.claude_and_gemini.asking import Tested


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
