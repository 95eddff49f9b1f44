"""The wire adapter of executors: dispatch, dataclasses to messages, closing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from patchbay import errors, secrets
from patchbay.executor import (
    Executor,
    ExecutorHTTPResponse,
    ExecutorResponse,
    ExecutorServicer,
    StreamBatch,
    StreamHead,
    StreamTail,
    Usage,
)
from patchbay.plugin.v1 import executor_pb2, identifier_pb2, plugin_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from patchbay.executor import ExecutorHTTPRequest, ExecutorRequest, StreamItem

KEY = bytes(range(32))
NOW = 1_700_000_000.0


class Context:
    def __init__(self, plugin: str | None = None) -> None:
        self._metadata = [("other", "x")] + ([("patchbay-plugin", plugin)] if plugin else [])

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        return list(self._metadata)


class Told(Executor):
    """Answers what the test put in, and remembers."""

    id = "told"
    name = "Told"
    version = "1"
    author = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai", "mine")
    output_formats: ClassVar[Sequence[str]] = ("openai",)
    operations: ClassVar[Mapping[str, Sequence[str]]] = {"openai": ("chat", "embeddings")}

    def __init__(self, *items: StreamItem | Exception) -> None:
        self.items = items
        self.seen: Any = None
        self.closed = asyncio.Event()

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        self.seen = request
        return ExecutorResponse(
            b"{}", 201, [(b"x-a", b"1")], "application/json", Usage((("input_tokens", 3),)), b"{}"
        )

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        self.seen = request
        try:
            for item in self.items:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed.set()

    async def http_request(self, request: ExecutorHTTPRequest) -> ExecutorHTTPResponse:
        self.seen = request
        return ExecutorHTTPResponse(404, [(b"x-a", b"1")], b"no", "text/plain")


class Other(Told):
    id = "other"


def make_request(**values: Any) -> executor_pb2.ExecutorRequest:
    return executor_pb2.ExecutorRequest(**{"model": "m", "format": "openai", **values})


async def collect(servicer: ExecutorServicer) -> list[executor_pb2.ExecutorStreamResponse]:
    return [m async for m in servicer.ExecuteStream(make_request(), Context())]


def test_capabilities_from_class_attributes() -> None:
    executor = Told().capabilities().executor
    assert list(executor.input_formats) == ["openai", "mine"]
    assert list(executor.output_formats) == ["openai"]
    assert executor.model_scope == plugin_pb2.EXECUTOR_MODEL_SCOPE_BOTH
    assert [(o.format, list(o.operations)) for o in executor.operations] == [
        ("openai", ["chat", "embeddings"])
    ]


async def test_execute_answer_reaches_the_message() -> None:
    message = await ExecutorServicer([Told()]).Execute(make_request(), Context())
    assert message.status == 201
    assert message.headers["x-a"].values == ["1"]
    assert message.usage.items[0].unit == "input_tokens"
    assert message.usage.items[0].quantity == 3
    assert not message.usage.estimated


async def test_stream_items_become_messages_in_order() -> None:
    messages = await collect(
        ExecutorServicer(
            [
                Told(
                    StreamHead(200, [(b"x-a", b"1")], "text/event-stream"),
                    StreamBatch([b"a", b"b"], Usage((("output_tokens", 1),), estimated=True)),
                    StreamBatch([b"c"]),
                    StreamTail(),
                )
            ]
        )
    )
    kinds = [m.WhichOneof("message") for m in messages]
    assert kinds == ["head", "batch", "batch", "tail"]
    assert list(messages[1].batch.chunks) == [b"a", b"b"]
    assert messages[1].batch.usage_so_far.estimated
    assert not messages[2].batch.HasField("usage_so_far")
    assert not messages[3].tail.HasField("usage")


async def test_stream_error_after_a_batch_is_the_end() -> None:
    error = errors.UpstreamError(502)
    servicer = ExecutorServicer([Told(StreamHead(), StreamBatch([b"a"]), error)])
    stream = servicer.ExecuteStream(make_request(), Context())
    assert [await anext(stream), await anext(stream)]
    with pytest.raises(errors.UpstreamError):
        await anext(stream)


async def test_stream_closed_by_caller_closes_the_executors_generator_at_once() -> None:
    executor = Told(StreamHead(), StreamBatch([b"a"]), StreamTail())
    stream = ExecutorServicer([executor]).ExecuteStream(make_request(), Context())
    await anext(stream)
    assert not executor.closed.is_set()
    await stream.aclose()
    assert executor.closed.is_set()


async def test_dispatch_by_metadata() -> None:
    told, other = Told(), Other()
    servicer = ExecutorServicer([told, other])
    await servicer.Execute(make_request(), Context("other"))
    assert other.seen is not None
    assert told.seen is None
    identity = await servicer.Identifier(identifier_pb2.IdentifierRequest(), Context("told"))
    assert identity.identifier == "told"


async def test_dispatch_unknown_plugin_not_found() -> None:
    with pytest.raises(errors.NotFound):
        await ExecutorServicer([Told()]).Execute(make_request(), Context("nobody"))


async def test_dispatch_several_without_name_refused() -> None:
    with pytest.raises(errors.InvalidRequest):
        await ExecutorServicer([Told(), Other()]).Execute(make_request(), Context())


async def test_operation_not_implemented_says_so() -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await ExecutorServicer([Told()]).CountTokens(make_request(), Context())
    assert caught.value.reason == "OPERATION_NOT_SUPPORTED"


async def test_http_request_any_status_is_an_answer() -> None:
    message = executor_pb2.ExecutorHTTPRequest(method="GET", url="https://a.example/")
    answer = await ExecutorServicer([Told()]).HttpRequest(message, Context())
    assert (answer.status_code, answer.body, answer.content_type) == (404, b"no", "text/plain")


def make_sealed(plugin_id: str = "told") -> Any:
    return secrets.seal(KEY, plugin_id, "main", 1, [], NOW + 60, {"api_key": "test-key"})


async def test_secret_opened_only_for_its_plugin() -> None:
    executor = Told()
    opener = secrets.SecretOpener([KEY])
    servicer = ExecutorServicer([executor], opener=opener, now=lambda: NOW)
    await servicer.Execute(make_request(secret=make_sealed()), Context())
    assert executor.seen.secret()["api_key"] == "test-key"
    await servicer.Execute(make_request(secret=make_sealed("other")), Context())
    with pytest.raises(errors.FailedPrecondition) as caught:
        executor.seen.secret()
    assert caught.value.reason == "SECRET_FOREIGN"
    await servicer.Execute(make_request(), Context())
    assert executor.seen.secret() is None


async def test_secret_without_any_key_says_what_to_set() -> None:
    executor = Told()
    await ExecutorServicer([executor]).Execute(make_request(secret=make_sealed()), Context())
    with pytest.raises(errors.FailedPrecondition, match="PATCHBAY_PLUGIN_KEY"):
        executor.seen.secret()


async def test_request_settings_have_defaults_and_fractions() -> None:
    executor = Told()
    servicer = ExecutorServicer([executor])
    await servicer.Execute(make_request(), Context())
    request = executor.seen
    assert (request.first_byte_timeout, request.idle_timeout, request.token_factor) == (
        120.0,
        300.0,
        1.0,
    )
    message = make_request()
    message.provider.first_byte_timeout.FromMilliseconds(1500)
    message.provider.idle_timeout.FromMilliseconds(0)
    message.headers["x-a"].values.extend(["1", "2"])
    await servicer.Execute(message, Context())
    request = executor.seen
    assert (request.first_byte_timeout, request.idle_timeout) == (1.5, 0.0)
    assert request.header("x-a") == "1"
    assert request.header("x-b") == ""
    assert "x-b" not in message.headers
    assert request.headers() == [(b"x-a", b"1"), (b"x-a", b"2")]
