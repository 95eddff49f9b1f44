"""
A plugin without our SDK: raw gRPC, everything that the contract asks, each step a method to override.

It follows "Without our SDK" of proto/README.md and declares every capability. Not here: what is broken in
it (tests/conformance/test_broken_plugins.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tests.fakes.raw_secrets import RefusedSecretError, opened

from patchbay.keys import channel_key, sealing_key
from patchbay.plugin.v1 import executor_pb2, plugin_pb2
from patchbay.testing.requests import all_services
from patchbay.type.v1 import error_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KEY = b"the key of a plugin without SDK."
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
NUL = b"\0"
LIMIT = 33 << 20


class UpstreamFailedError(Exception):
    """A call to the provider failed."""

    def __init__(self, code: grpc.StatusCode, reason: str, status: int, **more: Any) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.detail = error_pb2.UpstreamError(http_status=status, **more)


async def fail(
    context: Any, code: grpc.StatusCode, reason: str, detail: Any = None, **metadata: str
) -> None:
    """End the call with the details that the contract asks for."""
    wire = status_pb2.Status(code=code.value[0], message=f"it is {reason.lower()}")
    wire.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason, domain="patchbay.dev", metadata=metadata)
    )
    if detail is not None:
        wire.details.add().Pack(detail)
    await context.abort(
        code, wire.message, (("grpc-status-details-bin", wire.SerializeToString()),)
    )


class RawPlugin(grpc.GenericRpcHandler):
    """A good plugin."""

    id = "raw"
    message_limit = LIMIT

    def __init__(self) -> None:
        self.flags = set(all_services())
        self.channel_key = channel_key(KEY)
        self.configs: dict[str, bytes] = {}
        self.nonces: dict[bytes, str] = {}
        self.running = 0
        self.log = ""
        self.health = health.aio.HealthServicer()
        self.ended = asyncio.Event()
        self._server: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    # The process.

    async def start(self) -> str:
        """Listen; return the address."""
        options = [
            ("grpc.max_receive_message_length", self.message_limit),
            ("grpc.max_send_message_length", self.message_limit),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", 256 << 10),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self,))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        await self.tell_health(SERVING)
        return f"127.0.0.1:{port}"

    async def tell_health(self, value: Any) -> None:
        """Tell watchers."""
        await self.health.set("", value)

    def logs(self) -> str:
        """As patchbay.testing.rules.Running."""
        return self.log

    def in_flight(self) -> int | None:
        """As Running."""
        return self.running

    async def stop(self) -> None:
        """As Running."""
        task = asyncio.ensure_future(self.drain())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """End as one should."""
        await self.tell_health(NOT_SERVING)
        await asyncio.sleep(0.2)
        await self._server.stop(1)
        self.ended.set()

    async def wait(self, seconds: float) -> bool:
        """As Running."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), min(seconds, 5))
        return self.ended.is_set()

    async def aclose(self) -> None:
        """End at once."""
        # Not while `drain` waits for the same: its cancellation would be that of what both wait for.
        await self._server.stop(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Calls.

    def parse(self, kind: Any, data: bytes) -> Any:
        """Return the message in *data*."""
        return kind.FromString(data)

    def service(self, details: Any) -> Any:
        """Find the method of a call."""
        service, _, name = details.method[1:].rpartition("/")
        try:
            found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
        except KeyError:
            return None
        if not self.serves(service.rpartition(".")[2]):
            return None
        kind = message_factory.GetMessageClass(found.input_type)
        streamed = found.server_streaming

        async def unary(request: Any, context: Any) -> Any:
            self.running += 1
            try:
                if await self.admit(service, name, context):
                    return await self.answer(name, request, context)
            except (RefusedSecretError, UpstreamFailedError) as error:
                await self.refuse(context, error)
            finally:
                self.running -= 1

        async def stream(request: Any, context: Any) -> Any:
            self.running += 1
            try:
                if not await self.admit(service, name, context):
                    return
                items = (
                    self.both_ways(name, request)
                    if found.client_streaming
                    else self.execute_stream(request)
                )
                async with contextlib.aclosing(items):
                    async for item in items:
                        await context.write(item)
            except (RefusedSecretError, UpstreamFailedError) as error:
                await self.refuse(context, error)
            finally:
                self.running -= 1

        make = getattr(
            grpc,
            f"{'stream' if found.client_streaming else 'unary'}_"
            f"{'stream' if streamed else 'unary'}_rpc_method_handler",
        )
        return make(
            stream if streamed else unary,
            request_deserializer=lambda data: self.parse(kind, data),
            response_serializer=lambda message: message.SerializeToString(),
        )

    async def refuse(self, context: Any, error: Any) -> None:
        """End a call that failed at the provider, or before."""
        await fail(context, error.code, error.reason, getattr(error, "detail", None))

    def serves(self, service: str) -> bool:
        """Whether the service is there."""
        return True

    async def admit(self, service: str, name: str, context: Any) -> bool:
        """Check the metadata of a call."""
        if name in {"Challenge", "Register"}:
            return True
        metadata = dict(context.invocation_metadata())
        reason = self.token_fault(metadata)
        if reason:
            await fail(context, grpc.StatusCode.UNAUTHENTICATED, reason)
        config = metadata.get("patchbay-config", "")
        if config and config not in self.configs:
            await self.refuse_config(context)
        return True

    def token_fault(self, metadata: dict[str, str]) -> str:
        """Return the reason against a token, empty if there is none."""
        head, _, mac = metadata.get("patchbay-token", "").rpartition(".")
        named = metadata.get("patchbay-plugin", self.id)
        caller, _, expiry = head.removeprefix("v1.").rpartition(".")
        text = NUL.join([b"call", self.id.encode(), caller.encode(), expiry.encode()])
        good = hmac.new(self.channel_key, text, hashlib.sha256).hexdigest()
        if named != self.id or not hmac.compare_digest(good, mac):
            return "TOKEN_INVALID"
        return "TOKEN_EXPIRED" if int(expiry) + 30 < time.time() else ""

    async def refuse_config(self, context: Any) -> None:
        """Refuse an unknown configuration."""
        await fail(context, grpc.StatusCode.UNAVAILABLE, "NOT_REGISTERED", sent="NO")

    async def answer(self, name: str, request: Any, context: Any) -> Any:
        """Answer one unary call."""
        own = {
            "Challenge": self.challenge,
            "Register": self.register,
            "Reconfigure": self.reconfigure,
            "Execute": self.execute,
        }.get(name)
        if own is not None:
            return await own(request, context)
        return self.default(name)

    def default(self, name: str) -> Any:
        """Return the answer of a capability that does nothing."""
        for service in ("PluginService", *all_services().values()):
            descriptor = descriptor_pool.Default().FindServiceByName(
                f"patchbay.plugin.v1.{service}"
            )
            if name in descriptor.methods_by_name:
                kind = descriptor.methods_by_name[name].output_type
                message: Any = message_factory.GetMessageClass(kind)()
                values = {
                    "identifier": "raw",
                    "provider": "raw",
                    "state": "s",
                    "url": "http://127.0.0.1",
                }
                for field, value in values.items():
                    if field in kind.fields_by_name:
                        setattr(message, field, value)
                if "status_code" in kind.fields_by_name:
                    message.status_code = 200
                return message
        raise AssertionError(name)

    # The handshake.

    def proof(self, *parts: bytes) -> bytes:
        """Return a proof."""
        return hmac.new(self.channel_key, NUL.join(parts), hashlib.sha256).digest()

    def nonce(self) -> bytes:
        """Return a nonce."""
        return secrets.token_bytes(16)

    async def challenge(self, request: Any, context: Any) -> Any:
        """Answer Challenge."""
        if request.plugin_id != self.id:
            await fail(context, grpc.StatusCode.NOT_FOUND, "PLUGIN_UNKNOWN")
        if len(request.host_nonce) != 16:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_NONCE")
        nonce = self.nonce()
        self.nonces[nonce] = request.host_id
        parts = (b"challenge-plugin", self.id.encode(), request.host_id.encode())
        proof = self.proof(*parts, request.host_nonce + nonce)
        return plugin_pb2.ChallengeResponse(plugin_nonce=nonce, proof=proof)

    def use_nonce(self, nonce: bytes) -> str | None:
        """Return whose nonce it is, None for nobody's."""
        return self.nonces.pop(nonce, None)

    def knows(self, request: Any) -> bool:
        """Whether the host's proof is right."""
        parts = (request.plugin_id, request.host_id, request.config_hash)
        made = self.proof(b"challenge-host", *(p.encode() for p in parts), request.plugin_nonce)
        return hmac.compare_digest(made, request.proof)

    async def register(self, request: Any, context: Any) -> Any:
        """Answer Register."""
        if self.use_nonce(request.plugin_nonce) != request.host_id or not request.host_id:
            await fail(context, grpc.StatusCode.UNAUTHENTICATED, "CHALLENGE_UNKNOWN")
        if not self.knows(request):
            await fail(context, grpc.StatusCode.UNAUTHENTICATED, "PROOF_INVALID")
        return await self.reconfigure(request, context)

    async def reconfigure(self, request: Any, context: Any) -> Any:
        """Take a configuration."""
        if hashlib.sha256(request.config).hexdigest() != request.config_hash:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, "CONFIG_HASH_MISMATCH")
        self.configs[request.config_hash] = request.config
        return self.registration()

    def registration(self) -> plugin_pb2.RegisterResponse:
        """Return who it is."""
        answer = plugin_pb2.RegisterResponse(
            protocol_version=1,
            schema_version=1,
            plugin_id=self.id,
            metadata=plugin_pb2.Metadata(name="Raw", version="1", author="tests"),
        )
        for flag in self.flags - {"executor"}:
            setattr(answer.capabilities, flag, True)
        if "executor" in self.flags:
            executor = answer.capabilities.executor
            executor.input_formats.append("openai")
            executor.output_formats.append("openai")
        return answer

    # Capabilities that do something.

    def credential(self, request: Any) -> str:
        """Return what the provider is shown."""
        found = opened(sealing_key(KEY), self.id, request.secret, request.provider.base_url)
        return found["api_key"]

    async def ask(self, request: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Call the provider; return its answer after the head."""
        shown = self.credential(request)
        url = urlsplit(request.provider.base_url)
        reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=1 << 20)
        body = request.payload
        head = (
            f"POST {url.path}/chat/completions HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {shown}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        try:
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                await self.refused(answer.decode(), reader)
        except asyncio.IncompleteReadError:
            writer.close()
            unavailable = grpc.StatusCode.UNAVAILABLE
            raise UpstreamFailedError(unavailable, "UPSTREAM_CONNECTION", 502) from None
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def refused(self, head: str, reader: asyncio.StreamReader) -> None:
        """Raise the provider's 429."""
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        failed = UpstreamFailedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "UPSTREAM_ERROR", 429, body=body
        )
        failed.detail.retry_after.seconds = int(headers["retry-after"])
        raise failed

    async def execute(self, request: Any, context: Any) -> Any:
        """Answer one call of a model."""
        if request.format != "openai":
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, "OPERATION_NOT_SUPPORTED")
        json.loads(request.payload)
        _, writer = await self.ask(request)
        writer.close()
        return executor_pb2.ExecutorResponse(status=200, payload=b"{}")

    async def chunks(self, request: Any) -> AsyncGenerator[bytes, None]:
        """Yield the provider's events."""
        reader, writer = await self.ask(request)
        try:
            while size := int(await reader.readline() or b"x", 16):
                yield (await reader.readexactly(size + 2))[:-2]
        except (asyncio.IncompleteReadError, ValueError):
            raise UpstreamFailedError(
                grpc.StatusCode.UNAVAILABLE, "UPSTREAM_TRUNCATED", 502
            ) from None
        finally:
            writer.close()

    async def execute_stream(self, request: Any) -> AsyncGenerator[Any, None]:
        """Stream one answer."""
        message = executor_pb2.ExecutorStreamResponse
        yield message(head=executor_pb2.StreamHead(status=200))
        async with contextlib.aclosing(self.chunks(request)) as chunks:
            async for chunk in chunks:
                yield message(batch=executor_pb2.StreamBatch(chunks=[chunk]))
        yield message(tail=executor_pb2.StreamTail())

    async def both_ways(self, name: str, requests: Any) -> AsyncGenerator[Any, None]:
        """Answer a stream, one for one."""
        async for request in requests:
            for answer in self.intercepted(name, request):
                yield answer

    def intercepted(self, name: str, request: Any) -> list[Any]:
        """Return the answers to one message of a stream."""
        answer = self.default(name)
        if name == "InterceptStreamChunk":
            answer.chunk_index = request.chunk_index
            for number in range(len(request.more)):
                answer.more.add(chunk_index=request.chunk_index + 1 + number)
        return [answer]
