"""
Between the client's format and the executor's: native translation, and plugins around and instead of it.

Where a native translator exists: a request is translated, then normalizers see the target's payload; an
answer passes the before-normalizers, the native translator, the after-normalizers. Where none does, or both
formats are the same: a request gets the model's name, normalizers see the source's payload, the first
translator plugin that answers wins, else the body stays; answers likewise, between the normalizers.

"Exists" is judged for requests, whole answers and streams apart. Failures and empty bodies pass a payload on
as it was (plugins/policy.py). Source: pluginapi, translators and normalizers. Not here: the native
translations (translate/), which format is chosen (formats.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import orjson

from patchbay import errors
from patchbay.plugin.v1 import transform_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.beside import with_room
from patchbay_gateway.plugins.calls import warn
from patchbay_gateway.plugins.conversation import AHEAD, Conversation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.kernel.channels.port import Method
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.translate.port import Context, StreamTranslator
    from patchbay_gateway.translate.registry import Registry

_Message = transform_pb2.ResponseTransformRequest
_Payload = transform_pb2.PayloadResponse


class Formats(msgspec.Struct, frozen=True, gc=False):
    """The formats of one attempt."""

    client: str
    executor: str
    """What the executor gets, and answers in unless it declares no answers in it."""
    answered: str = ""
    """What it answers in, where that is another format."""

    @property
    def answer(self) -> str:
        """The format of the executor's answer."""
        return self.answered or self.executor


class Translation:
    """
    Translates payloads of executions.

    Args:
        native: What the gateway translates itself.
        hooks: Which plugins take part.
        calls: How they are asked.
    """

    def __init__(self, native: Registry, hooks: Hooks, calls: PluginCalls) -> None:
        self._native = native
        self._hooks = hooks
        self._calls = calls

    def any(self, snapshot: Snapshot, flag: str) -> bool:
        """Whether some plugin has the capability *flag*."""
        return bool(self._hooks.of(snapshot, flag))

    def idle(self, execution: PluginExecution, formats: Formats) -> bool:
        """Whether nothing at all happens between the two: bytes pass as they are."""
        return formats.client == formats.executor == formats.answer and not any(
            self._of(execution, flag) for flag in _FLAGS
        )

    # -- requests -----------------------------------------------------------------------------------

    async def request(
        self, execution: PluginExecution, formats: Formats, *, model: str, body: bytes
    ) -> bytes:
        """
        Return *body* as the executor takes it.

        Args:
            execution: Which one.
            formats: From the client's to the executor's.
            model: Upstream model.
            body: In the client's format.

        Raises:
            InvalidRequest: The native translator cannot express it.
        """
        native = self._native.pair(formats.client, formats.executor).request
        if native is not None:
            body = native(model, body, execution.stream)
            return await self._normalized(execution, formats, model, body)
        body = await self._normalized(execution, formats, model, _renamed(body, model))
        for hook in self._of(execution, "request_translator"):
            message = self._asked(execution, formats, model, body)
            answer = await self._calls.ask(hook, methods.TRANSLATE_REQUEST, message, execution)
            if answer is not None and answer.body:
                return answer.body
        return body

    async def _normalized(
        self, execution: PluginExecution, formats: Formats, model: str, body: bytes
    ) -> bytes:
        for hook in self._of(execution, "request_normalizer"):
            message = self._asked(execution, formats, model, body)
            answer = await self._calls.ask(hook, methods.NORMALIZE_REQUEST, message, execution)
            if answer is not None and answer.body:
                body = answer.body
        return body

    @staticmethod
    def _asked(
        execution: PluginExecution, formats: Formats, model: str, body: bytes
    ) -> transform_pb2.RequestTransformRequest:
        return transform_pb2.RequestTransformRequest(
            from_format=formats.client,
            to_format=formats.executor,
            model=model,
            stream=execution.stream,
            body=body,
            operation=execution.operation,
        )

    # -- answers ------------------------------------------------------------------------------------

    async def whole(
        self, execution: PluginExecution, formats: Formats, context: Context, body: bytes
    ) -> bytes:
        """
        Return a whole answer as the client takes it.

        Raises:
            UpstreamError: *body* is no answer.
        """
        body = await self._chain(
            execution,
            formats,
            context,
            body,
            "response_before_translator",
            methods.NORMALIZE_RESPONSE_BEFORE,
        )
        native = self._native.pair(formats.client, formats.answer).whole
        if native is not None:
            body = native(context, body)
        else:
            for hook in self._of(execution, "response_translator"):
                message = _answer(execution, formats, context, body)
                answer = await self._calls.ask(hook, methods.TRANSLATE_RESPONSE, message, execution)
                if answer is not None and answer.body:
                    body = answer.body
                    break
        return await self._chain(
            execution,
            formats,
            context,
            body,
            "response_after_translator",
            methods.NORMALIZE_RESPONSE_AFTER,
        )

    async def _chain(
        self,
        execution: PluginExecution,
        formats: Formats,
        context: Context,
        body: bytes,
        flag: str,
        method: Method[_Message, _Payload],
    ) -> bytes:
        for hook in self._of(execution, flag):
            message = _answer(execution, formats, context, body)
            answer = await self._calls.ask(hook, method, message, execution)
            if answer is not None and answer.body:
                body = answer.body
        return body

    def stream(
        self, execution: PluginExecution, formats: Formats, context: Context
    ) -> StreamTranslation:
        """Return the translation of one streamed answer. Close it in every case."""
        native = self._native.pair(formats.client, formats.answer).stream
        before = self._of(execution, "response_before_translator")
        after = self._of(execution, "response_after_translator")
        instead = () if native is not None else self._of(execution, "response_translator")
        return StreamTranslation(
            self._calls,
            execution,
            formats,
            context,
            native=native(context) if native is not None else None,
            before=before,
            instead=instead,
            after=after,
        )

    def _of(self, execution: PluginExecution, flag: str) -> tuple[Hook, ...]:
        return self._hooks.matching(execution.snapshot, flag, execution.facts)


_FLAGS: Final = (
    "request_normalizer",
    "request_translator",
    "response_before_translator",
    "response_translator",
    "response_after_translator",
)


class StreamTranslation:
    """
    One streamed answer on its way to the client's format; chunks are whole events.

    A native translator that returns nothing suppresses a chunk. A plugin gives one chunk for one.
    """

    def __init__(
        self,
        calls: PluginCalls,
        execution: PluginExecution,
        formats: Formats,
        context: Context,
        *,
        native: StreamTranslator | None,
        before: Sequence[Hook],
        instead: Sequence[Hook],
        after: Sequence[Hook],
    ) -> None:
        self._native = native
        self._before = [
            _Voice(calls, h, methods.NORMALIZE_RESPONSE_BEFORE_STREAM, execution, formats, context)
            for h in before
        ]
        self._instead = [
            _Voice(calls, h, methods.TRANSLATE_RESPONSE_STREAM, execution, formats, context)
            for h in instead
        ]
        self._after = [
            _Voice(calls, h, methods.NORMALIZE_RESPONSE_AFTER_STREAM, execution, formats, context)
            for h in after
        ]

    async def feed(self, chunks: Sequence[bytes]) -> list[bytes]:
        """
        Return the client's chunks for those of the executor that came together.

        Raises:
            UpstreamError: A chunk reports a failure of the provider.
        """
        found = list(chunks)
        for voice in self._before:
            found = await voice.changed(found)
        if self._native is not None:
            found = [out for chunk in found for out in self._native.feed(chunk)]
        else:
            found = await self._translated(found)
        return await self._finished(found)

    async def _translated(self, chunks: list[bytes]) -> list[bytes]:
        """Return each chunk as the first plugin that has an answer to it gives it."""
        left = list(range(len(chunks)))
        found = list(chunks)
        for voice in self._instead:
            answers = await voice.say([chunks[at] for at in left])
            for at, answer in zip(left, answers, strict=True):
                found[at] = answer or chunks[at]
            left = [at for at, answer in zip(left, answers, strict=True) if not answer]
        return found

    async def end(self) -> list[bytes]:
        """
        Return what is still owed when the executor's stream ended well.

        Raises:
            UpstreamError: It ended before its own end.
        """
        return await self._finished(self._native.end()) if self._native is not None else []

    async def aclose(self) -> None:
        """End every plugin's call. Idempotent."""
        for voice in (*self._before, *self._instead, *self._after):
            await voice.aclose()

    async def _finished(self, chunks: list[bytes]) -> list[bytes]:
        for voice in self._after:
            chunks = await voice.changed(chunks)
        return chunks


class _Voice:
    """One plugin's part in one stream; once it failed it is silent for the rest."""

    def __init__(
        self,
        calls: PluginCalls,
        hook: Hook,
        method: Method[_Message, _Payload],
        execution: PluginExecution,
        formats: Formats,
        context: Context,
    ) -> None:
        self._calls = calls
        self._hook = hook
        self._method = method
        self._execution = execution
        self._formats = formats
        self._context: Context | None = context
        self._conversation: Conversation[_Message, _Payload] | None = None
        self._silent = False

    async def changed(self, chunks: list[bytes]) -> list[bytes]:
        """Return the plugin's chunks; where it has nothing to say, what it was given."""
        answers = await self.say(chunks)
        return [answer or chunk for chunk, answer in zip(chunks, answers, strict=True)]

    async def say(self, chunks: Sequence[bytes]) -> list[bytes]:
        """
        Return the plugin's chunks; empty ones where it has nothing to say.

        They came together, so the plugin gets them without waiting for its answers.
        """
        answers = [b""] * len(chunks)
        given = [at for at, chunk in enumerate(chunks) if chunk]
        for start in range(0, len(given), AHEAD):
            if self._silent:
                break
            await self._ask(chunks, given[start : start + AHEAD], answers)
        return answers

    async def _ask(
        self, chunks: Sequence[bytes], some: Sequence[int], answers: list[bytes]
    ) -> None:
        try:
            if self._conversation is None:
                self._conversation = Conversation(
                    self._calls, self._hook, self._method, self._execution
                )
            for at in some:
                await self._conversation.send(
                    _answer(self._execution, self._formats, self._context, chunks[at])
                )
                self._context = None
            for at in some:
                answers[at] = (await self._conversation.hear()).body
        except errors.PatchbayError as error:
            warn(self._hook, error)
            self._silent = True
            await self.aclose()

    async def aclose(self) -> None:
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            await conversation.aclose()


def _answer(
    execution: PluginExecution, formats: Formats, context: Context | None, body: bytes
) -> _Message:
    message = _Message(
        from_format=formats.answer,
        to_format=formats.client,
        model=execution.requested_model,
        stream=execution.stream,
        body=body,
        operation=execution.operation,
    )
    if context is not None:
        message.original_request, message.translated_request = with_room(
            execution.snapshot, body, context.original_request, context.translated_request
        )
    return message


def _renamed(body: bytes, model: str) -> bytes:
    """Return *body* with its top-level `model` replaced, where it has one that differs."""
    if b'"model"' not in body:
        return body
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    if not isinstance(document, dict) or document.get("model") in {None, model}:
        return body
    document["model"] = model
    return orjson.dumps(document)
