"""The SDK's client of HostService against a host that writes down what it is asked."""

# ruff: noqa: N802 - methods of a servicer have their names on the wire

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import errors, keys
from patchbay.host.v1 import auth_pb2, host_pb2, http_pb2, log_pb2, model_pb2
from patchbay.host_client import UNREACHABLE, HostClient, HostConnections
from patchbay.host_types import HostModelExecutionRequest, HTTPRequest
from patchbay.management import ManagementAPI, ManagementRequest, ManagementResponse
from patchbay.plugin.v1 import management_api_pb2
from patchbay.secrets import SecretOpener, seal
from patchbay.serve import PluginServer, connect_host
from patchbay.server import Server
from patchbay.tokens import HostAuthenticator, TokenSource
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEY = b"test-key of the calling plugin.."
PLUGIN_KEYS = {"caller": [KEY]}


class FakeHost:
    """Answers each call with what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.cancelled = asyncio.Event()

    def _note(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        self.metadata = dict(context.invocation_metadata())

    async def HttpDo(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        if "private" in request.url:
            raise errors.PermissionDenied("not there", reason="HTTP_ADDRESS_REFUSED")
        answer = http_pb2.HTTPResponse(status_code=404, body=request.body)
        answer.headers["x-a"].values.append("b")
        return answer

    async def HttpDoStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._note(request, context)
        yield http_pb2.HTTPStreamResponse(head=http_pb2.HTTPStreamHead(status_code=200))
        yield http_pb2.HTTPStreamResponse(payload=b"one")
        yield http_pb2.HTTPStreamResponse(payload=b"two")

    async def ExecuteModel(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        if request.model == "busy":
            raise errors.UpstreamError(429, "busy", retry_after=3, body=b"{}")
        return model_pb2.HostModelExecutionResponse(status_code=200, body=request.body)

    async def ExecuteModelStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self._note(request, context)
        if request.model == "busy":
            raise errors.UpstreamError(502, "no upstream")
        head = model_pb2.HostModelStreamHead(status_code=200, content_type="text/event-stream")
        yield model_pb2.HostModelStreamResponse(head=head)
        yield model_pb2.HostModelStreamResponse(
            batch=model_pb2.HostModelStreamBatch(chunks=[b"a", b"b"])
        )
        if request.model == "endless":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if request.model == "broken":
            raise errors.UpstreamError(502, "it broke", reason="UPSTREAM_TRUNCATED")
        yield model_pb2.HostModelStreamResponse(batch=model_pb2.HostModelStreamBatch(chunks=[b"c"]))

    async def ListAuths(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return auth_pb2.HostAuthListResponse(
            files=[auth_pb2.HostAuthFileEntry(id="main", auth_index="1", provider=request.provider)]
        )

    async def GetAuth(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        document = {"document": '{"type":"x","refresh_token":"test-refresh"}'}
        sealed = seal(keys.sealing_key(KEY), "caller", "main", 1, (), 4e9, document)
        return auth_pb2.HostAuthGetResponse(auth_index="1", name="main.json", json=sealed)

    async def GetAuthRuntime(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        if request.auth_index != "1":
            raise errors.NotFound("no such credential", reason="AUTH_UNKNOWN")
        entry = auth_pb2.HostAuthFileEntry(id="main", auth_index="1", status="ready")
        entry.last_refresh.FromSeconds(1_800_000_000)
        return auth_pb2.HostAuthGetRuntimeResponse(auth=entry)

    async def SaveAuth(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return auth_pb2.HostAuthSaveResponse(name=request.name, path="somewhere")

    async def Log(self, request: Any, context: Any) -> Any:
        self._note(request, context)
        return log_pb2.HostLogResponse()


@pytest.fixture
async def host(
    tmp_path: Path,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after all is closed
) -> AsyncIterator[tuple[FakeHost, str]]:
    fake = FakeHost()
    server = Server(
        {host_pb2.DESCRIPTOR.services_by_name["HostService"].full_name: fake},
        authenticate=HostAuthenticator(
            lambda id_: [keys.channel_key(key) for key in PLUGIN_KEYS.get(id_, ())]
        ),
    )
    await server.start(f"unix:{tmp_path}/host")
    yield fake, f"unix:{tmp_path}/host"
    await server.stop()


@pytest.fixture
async def client(host: tuple[FakeHost, str]) -> AsyncIterator[HostClient]:
    connections = HostConnections(PLUGIN_KEYS, host_address="")
    granted = (("patchbay-callback", host[1]), ("patchbay-scope", "scope-1"))
    yield connections.client("caller", granted)
    await connections.aclose()


async def test_a_callback_proves_the_plugin_and_names_the_scope(
    host: tuple[FakeHost, str], client: HostClient
) -> None:
    await client.log("info", "hello", count=3)
    (asked,) = host[0].asked
    assert (asked.level, asked.message) == (log_pb2.LOG_LEVEL_INFO, "hello")
    assert json.loads(asked.fields) == {"count": 3}
    assert host[0].metadata["patchbay-scope"] == "scope-1"
    assert host[0].metadata["patchbay-plugin"] == "caller"


async def test_without_a_scope_calls_go_to_the_address_of_the_environment(
    host: tuple[FakeHost, str],
) -> None:
    environ = {"PATCHBAY_PLUGIN_KEY": KEY.hex(), "PATCHBAY_HOST_ADDRESS": host[1]}
    async with connect_host("caller", environ) as client:
        await client.log("warn", "outside")
    assert "patchbay-scope" not in host[0].metadata


async def test_a_plugin_with_another_key_is_a_stranger(host: tuple[FakeHost, str]) -> None:
    connections = HostConnections({"caller": [bytes(32)]}, host_address=host[1])
    with pytest.raises(errors.Unauthenticated) as caught:
        await connections.client("caller").log("info", "hello")
    assert caught.value.reason == "TOKEN_INVALID"
    await connections.aclose()


def test_a_token_for_a_plugin_is_none_for_the_host() -> None:
    """What a host shows to a plugin must not open the host to who reads it there."""
    channel_key = keys.channel_key(KEY)
    shown = TokenSource(channel_key, "caller", "host-1").metadata()
    authenticator = HostAuthenticator(lambda _: [channel_key])
    with pytest.raises(errors.Unauthenticated):
        authenticator("/x/y", (("patchbay-plugin", "caller"), *shown))


async def test_without_a_host_the_error_says_what_to_do() -> None:
    assert not UNREACHABLE.reachable
    with pytest.raises(errors.FailedPrecondition, match="host_access") as caught:
        await UNREACHABLE.log("info", "hello")
    assert caught.value.reason == "HOST_NOT_REACHABLE"


async def test_any_http_status_is_an_answer(client: HostClient) -> None:
    request = HTTPRequest("https://a.example/x", "POST", [(b"x-a", b"1")], b"body")
    answer = await client.http_do(request)
    assert (answer.status_code, answer.headers, answer.body) == (404, [(b"x-a", b"b")], b"body")


async def test_a_refusal_keeps_its_reason(client: HostClient) -> None:
    with pytest.raises(errors.PermissionDenied) as caught:
        await client.http_do(HTTPRequest("http://private.example"))
    assert caught.value.reason == "HTTP_ADDRESS_REFUSED"


async def test_http_answers_are_streamed(client: HostClient) -> None:
    async with await client.http_do_stream(HTTPRequest("https://a.example")) as stream:
        assert stream.status_code == 200
        assert [chunk async for chunk in stream] == [b"one", b"two"]


async def test_a_model_call_says_whether_it_streams(
    host: tuple[FakeHost, str], client: HostClient
) -> None:
    asked = HostModelExecutionRequest("gpt-5.5", b"{}", query=[("alt", "x")])
    assert (await client.execute_model(asked)).body == b"{}"
    async with await client.execute_model_stream(asked) as stream:
        assert [chunk async for chunk in stream] == [b"a", b"b", b"c"]
    assert [request.stream for request in host[0].asked] == [False, True]
    assert host[0].asked[0].query["alt"].values == ["x"]


async def test_a_failed_model_call_has_the_status_of_the_provider(client: HostClient) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await client.execute_model(HostModelExecutionRequest("busy", b"{}"))
    assert (caught.value.http_status, caught.value.retry_after) == (429, 3)
    with pytest.raises(errors.UpstreamError) as caught:
        await client.execute_model_stream(HostModelExecutionRequest("busy", b"{}"))
    assert caught.value.http_status == 502


async def test_a_stream_that_breaks_tells_after_what_came(client: HostClient) -> None:
    stream = await client.execute_model_stream(HostModelExecutionRequest("broken", b"{}"))
    assert [await anext(stream), await anext(stream)] == [b"a", b"b"]
    with pytest.raises(errors.UpstreamError, match="it broke"):
        await anext(stream)
    await stream.aclose()


async def test_closing_a_stream_cancels_the_model_call(
    host: tuple[FakeHost, str], client: HostClient
) -> None:
    async with await client.execute_model_stream(
        HostModelExecutionRequest("endless", b"{}")
    ) as stream:
        assert await anext(stream) == b"a"
    await asyncio.wait_for(host[0].cancelled.wait(), 30)


async def test_credentials_are_listed_read_and_kept(
    host: tuple[FakeHost, str], client: HostClient
) -> None:
    (entry,) = await client.list_auths("openai")
    assert (entry.id, entry.provider) == ("main", "openai")
    runtime = await client.get_auth_runtime("1")
    assert (runtime.status, runtime.last_refresh) == ("ready", 1_800_000_000)
    found = await client.get_auth("1")
    assert found.document == {"type": "x", "refresh_token": "test-refresh"}
    assert "test-refresh" not in repr(found)
    assert await client.save_auth("new.json", {"type": "x"}) == "somewhere"
    sealed = host[0].asked[-1].json
    opened = SecretOpener([keys.return_key(KEY)]).open(sealed)
    assert (opened.credential_id, json.loads(opened["document"])) == ("new.json", {"type": "x"})


async def test_an_unknown_credential_is_not_found(client: HostClient) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await client.get_auth_runtime("2")
    assert caught.value.reason == "AUTH_UNKNOWN"


class Page(ManagementAPI):
    id = "caller"
    name = "Caller"
    version = "1.0"
    author = "tests"

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        await request.callbacks.log("info", "asked for " + request.path)
        return ManagementResponse(b"ok")


async def test_a_request_carries_the_way_back(host: tuple[FakeHost, str], tmp_path: Path) -> None:
    server = PluginServer([Page()], PLUGIN_KEYS)
    await server.start(f"unix:{tmp_path}/plugin")
    channel = RemoteChannel(f"unix:{tmp_path}/plugin")
    token = TokenSource(keys.channel_key(KEY), "caller", "host-1").metadata()
    granted = (("patchbay-callback", host[1]), ("patchbay-scope", "scope-2"))
    answer = await channel.unary(
        methods.HANDLE_MANAGEMENT,
        management_api_pb2.ManagementRequest(method="GET", path="/status"),
        deadline=60,
        metadata=(("patchbay-plugin", "caller"), *granted, *token),
    )
    assert (answer.body, answer.status_code) == (b"ok", 200)
    assert host[0].asked[0].message == "asked for /status"
    assert host[0].metadata["patchbay-scope"] == "scope-2"
    await channel.close()
    await server.stop()
