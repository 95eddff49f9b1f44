"""For each rule of the suite a plugin that breaks it, without our SDK, and the suite catches it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.fakes.raw_plugin import KEY, NOT_SERVING, RawPlugin, UpstreamFailedError

from patchbay.testing.conformance import FAIL, RULES, SKIPPED, check
from patchbay.testing.requests import all_services

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from patchbay.testing.conformance import Report


class NotServing(RawPlugin):
    async def tell_health(self, value: Any) -> None:
        await super().tell_health(NOT_SERVING)


class OtherKey(RawPlugin):
    def proof(self, *parts: bytes) -> bytes:
        return super().proof(*parts)[::-1]


class Anybody(RawPlugin):
    async def challenge(self, request: Any, context: Any) -> Any:
        request.plugin_id = self.id
        return await super().challenge(request, context)


class AnyNonce(RawPlugin):
    async def challenge(self, request: Any, context: Any) -> Any:
        request.host_nonce = request.host_nonce.ljust(16)
        return await super().challenge(request, context)


class AnyHost(RawPlugin):
    def knows(self, request: Any) -> bool:
        return True


class NonceForever(RawPlugin):
    def use_nonce(self, nonce: bytes) -> str | None:
        return self.nonces.get(nonce)


class Nameless(RawPlugin):
    def registration(self) -> Any:
        answer = super().registration()
        answer.metadata.name = " "
        return answer


class Newer(RawPlugin):
    def registration(self) -> Any:
        answer = super().registration()
        answer.schema_version = 2
        return answer


class FollowsTheHost(RawPlugin):
    async def register(self, request: Any, context: Any) -> Any:
        answer = await super().register(request, context)
        answer.protocol_version = request.protocol_versions[0]
        return answer


class AnyHash(RawPlugin):
    async def reconfigure(self, request: Any, context: Any) -> Any:
        self.configs[request.config_hash] = request.config
        return self.registration()


class Counting(RawPlugin):
    def registration(self) -> Any:
        answer = super().registration()
        self.count = getattr(self, "count", 0) + 1
        answer.metadata.version = str(self.count)
        return answer


class Deaf(RawPlugin):
    async def answer(self, name: str, request: Any, context: Any) -> Any:
        if name == "NotifyRegistration":
            raise LookupError(name)
        return await super().answer(name, request, context)


class AnyConfig(RawPlugin):
    async def refuse_config(self, context: Any) -> None:
        pass


class OneConfig(RawPlugin):
    async def reconfigure(self, request: Any, context: Any) -> Any:
        self.configs.clear()
        return await super().reconfigure(request, context)


class AnyToken(RawPlugin):
    def token_fault(self, metadata: dict[str, str]) -> str:
        return ""


class Shuffled(RawPlugin):
    async def chunks(self, request: Any) -> AsyncGenerator[bytes, None]:
        kept = [chunk async for chunk in super().chunks(request)]
        for chunk in sorted(kept):
            yield chunk


class Hoarder(RawPlugin):
    """Takes from the provider whatever it gives, read or not."""

    async def chunks(self, request: Any) -> AsyncGenerator[bytes, None]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()

        async def fill() -> None:
            async for chunk in RawPlugin.chunks(self, request):
                queue.put_nowait(chunk)

        task = asyncio.ensure_future(fill())
        try:
            while True:
                yield await queue.get()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Stubborn(RawPlugin):
    """Goes on with the provider when the gateway has long left."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[asyncio.Task[Any]] = []

    async def ask(self, request: Any) -> Any:
        task = asyncio.ensure_future(super().ask(request))
        self.kept.append(task)
        return await asyncio.shield(task)

    async def chunks(self, request: Any) -> AsyncGenerator[bytes, None]:
        reader, _ = await self.ask(request)  # and never closes it
        while size := int(await reader.readline(), 16):
            yield (await reader.readexactly(size + 2))[:-2]

    async def aclose(self) -> None:
        await super().aclose()
        for task in self.kept:
            task.cancel()
        for result in await asyncio.gather(*self.kept, return_exceptions=True):
            if not isinstance(result, BaseException):
                result[1].close()


class Eager(RawPlugin):
    """Comes back to a provider that hung up."""

    async def ask(self, request: Any) -> Any:
        try:
            return await super().ask(request)
        except UpstreamFailedError:
            return await super().ask(request)


class Vague(RawPlugin):
    """Says that the provider failed, and not how."""

    async def refuse(self, context: Any, error: Any) -> None:
        await super().refuse(context, UpstreamFailedError(error.code, error.reason, 500))


class Finishes(RawPlugin):
    """Ends every answer well, also one that broke off."""

    async def chunks(self, request: Any) -> AsyncGenerator[bytes, None]:
        with contextlib.suppress(UpstreamFailedError):
            async for chunk in super().chunks(request):
                yield chunk


class Careless(RawPlugin):
    """Does not ask where a secret may go."""

    def credential(self, request: Any) -> str:
        asked = type(request)(secret=request.secret)
        asked.provider.base_url = request.secret.allowed_origins[0]
        return super().credential(asked)


class Miscounts(RawPlugin):
    def intercepted(self, name: str, request: Any) -> list[Any]:
        answers = super().intercepted(name, request)
        if name == "InterceptStreamChunk":
            del answers[0].more[:]
        return answers


class Twice(RawPlugin):
    def intercepted(self, name: str, request: Any) -> list[Any]:
        return super().intercepted(name, request) * 2


class ServesMore(RawPlugin):
    def __init__(self) -> None:
        super().__init__()
        self.flags -= {"usage_plugin"}


class Blocking(RawPlugin):
    async def ask(self, request: Any) -> Any:
        time.sleep(0.7)  # noqa: ASYNC251 - what is wrong with it
        return await super().ask(request)


class FewAtOnce(RawPlugin):
    async def answer(self, name: str, request: Any, context: Any) -> Any:
        if self.running > 20:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
        await asyncio.sleep(0.01)
        return await super().answer(name, request, context)


class Strict(RawPlugin):
    def parse(self, kind: Any, data: bytes) -> Any:
        message = kind.FromString(data)
        size = message.ByteSize()
        message.DiscardUnknownFields()
        if size != message.ByteSize():
            raise ValueError("a field that I do not know")
        return message


class Small(RawPlugin):
    message_limit = 4 << 20


class Chokes(RawPlugin):
    message_limit = 64 << 20

    async def answer(self, name: str, request: Any, context: Any) -> Any:
        if request.ByteSize() > 33 << 20:
            raise MemoryError
        return await super().answer(name, request, context)


class Bare(RawPlugin):
    async def execute(self, request: Any, context: Any) -> Any:
        if request.format != "openai":
            raise ValueError(request.format)
        return await super().execute(request, context)


class Telling(RawPlugin):
    async def execute(self, request: Any, context: Any) -> Any:
        if request.format != "openai":
            key = self.log or "test-canary-7f3a9c-key"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"cannot use {key}")
        return await super().execute(request, context)


class Sudden(RawPlugin):
    async def drain(self) -> None:
        await self._server.stop(None)
        self.ended.set()


class Chatty(RawPlugin):
    async def answer(self, name: str, request: Any, context: Any) -> Any:
        self.log += f"{name} with the key {KEY.hex()}\n"
        return await super().answer(name, request, context)


def without(flag: str) -> Callable[[], RawPlugin]:
    """Return a plugin that declares *flag* and does not serve it."""

    class Empty(RawPlugin):
        def serves(self, service: str) -> bool:
            return service != all_services()[flag]

    return Empty


BROKEN: dict[str, Callable[[], RawPlugin]] = {
    "health.serving": NotServing,
    "handshake.challenge": OtherKey,
    "handshake.wrong-id": Anybody,
    "handshake.nonce-length": AnyNonce,
    "handshake.wrong-key": AnyHost,
    "handshake.nonce-once": NonceForever,
    "handshake.register": Nameless,
    "handshake.schema": Newer,
    "handshake.newer-host": FollowsTheHost,
    "handshake.config-hash": AnyHash,
    "handshake.idempotent": Counting,
    "handshake.notify": Deaf,
    "metadata.unknown-config": AnyConfig,
    "metadata.previous-config": OneConfig,
    "metadata.token": AnyToken,
    "streams.order": Shuffled,
    "streams.backpressure": Hoarder,
    "streams.cancellation": Stubborn,
    "streams.interceptor": Miscounts,
    "streams.transform": Twice,
    "provider.once": Eager,
    "provider.failure": Vague,
    "provider.truncated": Finishes,
    "provider.secret": Careless,
    "capability.undeclared": ServesMore,
    "calls.deadline": Blocking,
    "calls.cancellation": Stubborn,
    "calls.concurrency": FewAtOnce,
    "messages.unknown-fields": Strict,
    "messages.large": Small,
    "messages.oversize": Chokes,
    "errors.details": Bare,
    "secrets.errors": Telling,
    "health.drain": Sudden,
    "secrets.logs": Chatty,
    **{
        f"capability.{flag}": without(flag)
        for flag in all_services()
        if flag != "response_stream_interceptor"
    },
}
JUDGES_OTHERS = {"secrets.errors": "errors.details", "secrets.logs": "handshake.register"}


@contextlib.asynccontextmanager
async def judged(plugin: RawPlugin, *only: str) -> AsyncIterator[Report]:
    address = await plugin.start()
    try:
        yield await check(address, plugin.id, KEY, running=plugin, only=only or None)
    finally:
        await plugin.aclose()


def test_every_rule_has_its_broken_plugin() -> None:
    assert set(BROKEN) == {rule.id for rule in RULES}


async def test_good_plugin_without_sdk_breaks_no_rule() -> None:
    async with judged(RawPlugin()) as report:
        assert report.passed, report.table()
        assert not [r.id for r in report.results if r.result == SKIPPED]


@pytest.mark.parametrize("rule", sorted(BROKEN))
async def test_broken_plugin_is_caught_by_its_rule(rule: str) -> None:
    before = [JUDGES_OTHERS[rule]] if rule in JUDGES_OTHERS else []
    async with judged(BROKEN[rule](), rule, *before) as report:
        result = {r.id: r for r in report.results}[rule]
        assert result.result == FAIL, report.table()
        assert result.detail
