"""
One attempt at one executor: the call, and its answer to the client.

`Execution.run` ends in one of four ways: the attempt is settled as succeeded and the exchange finished;
a PatchbayError, with `answer.answer_committed` saying whether anything can still be tried; ClientGone or
CancelledError, the client left or we stop. Not here: whether to try again (pipeline.py).
"""

from __future__ import annotations

import asyncio
import functools
import re
from typing import TYPE_CHECKING, Final

from patchbay import errors, status
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.edge import asking
from patchbay_gateway.edge.dialects import blotting, faults
from patchbay_gateway.edge.dialects.openai import NO_CHOICES
from patchbay_gateway.edge.dialects.port import ChunkKind, StreamState
from patchbay_gateway.edge.exchange import ClientGone
from patchbay_gateway.edge.stream import HOLD_BYTES
from patchbay_gateway.kernel import outcomes
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.port import DRAINING, NOT_REGISTERED, OF_THE_WAY
from patchbay_gateway.plugins.header_merge import changed_by_plugins, told
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.response_interceptors import Answered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay.type.v1 import headers_pb2
    from patchbay_gateway.edge.asking import Asked
    from patchbay_gateway.edge.attempts import Attempt
    from patchbay_gateway.edge.judging import Judge
    from patchbay_gateway.edge.outgoing import Outgoing
    from patchbay_gateway.edge.owner import Owner
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.edge.sampling import LimitSampler
    from patchbay_gateway.edge.steps import PluginSteps
    from patchbay_gateway.edge.stream import Answer
    from patchbay_gateway.kernel.channels.port import Metadata, StreamCall
    from patchbay_gateway.plugins.calls import Scope
    from patchbay_gateway.plugins.members import Member
    from patchbay_gateway.plugins.registry import PluginRegistry

_LAST: Final = frozenset({ChunkKind.TERMINAL, ChunkKind.ERROR})

# An event with its end, whatever the line breaks; the last one may lack it.
_EVENT: Final = re.compile(rb".+?(?:\r\n\r\n|\n\n|\r\r|\Z)", re.DOTALL)


class Execution:
    """One attempt's call."""

    def __init__(
        self,
        request: Request,
        attempt: Attempt,
        answer: Answer,
        owner: Owner,
        *,
        judge: Judge,
        sampler: LimitSampler,
        plugins: PluginSteps,
    ) -> None:
        self._request = request
        self._attempt = attempt
        self._answer = answer
        self._owner = owner
        self._judge = judge
        self._sampler = sampler
        self._plugins = plugins
        self._asked: Asked | None = None
        self._outgoing: Outgoing | None = None
        """Set where chunks are changed on their way out."""
        self._began = 0.0
        self._head = executor_pb2.StreamHead()
        self._held: list[bytes] = []
        """Events that came before any content; empty once the answer is committed."""
        self._held_bytes = 0
        self._holding = False
        self.address = ""
        """The address that was called; empty before."""
        self._hide_usage = False
        self._scope: Scope | None = None
        """What the executor may call back in."""
        self._failure: errors.PatchbayError | None = None
        """What a provider's error event said before secrets were taken out of it."""
        self._over = False
        """The provider had its last word and did not end the stream; the call was given up."""

    async def run(self, registry: PluginRegistry, avoid_addresses: list[str]) -> None:
        """
        Pick an address of the lease's plugin, call it, answer the client.

        Args:
            registry: Where addresses come from.
            avoid_addresses: Addresses that failed for this request.

        Raises:
            PatchbayError: What ended the attempt.
            ClientGone: The client left.
        """
        info = self._attempt.lease.attempt
        request = self._request
        provider = request.provider = request.snapshot.provider_by_name.get(info.provider)
        request.upstream_model = info.upstream_model
        member = _pick(registry, info.plugin_id, avoid_addresses)
        if request.number > 1:
            # What an earlier attempt showed says nothing of this one.
            request.state = StreamState()
        asked = self._asked = await asking.ask(  # 7, 8
            request, self._attempt.lease, provider, self._plugins
        )
        if not member.ready:
            # It left, or was told to, while plugins looked at the request.
            member = _pick(registry, info.plugin_id, avoid_addresses)
        self.address = member.address
        # From here on an answer may cost tokens; before, a request whose client leaves just ends.
        self._owner.drain = provider.drain if provider is not None else 0.0
        self._scope = self._attempt.scope = self._plugins.scope(request, info.plugin_id)
        message, self._hide_usage = asked.message, asked.hide_usage
        taken = asked.formats
        request.answered_in = (
            self._plugins.dialects.get(taken.answer) if taken.answer != taken.client else None
        )
        self._answer.begin_attempt()
        # None: the call was given up before anything was learnt about the address.
        failed_there: bool | None = None
        draining = False
        registration = member.registration
        member.begin()
        try:
            await (self._stream if request.stream else self._unary)(member, message)
            failed_there = False
        except asyncio.CancelledError:
            if not self._answer.timed_out:
                raise
            self._answer.timed_out = False
            if self._owner.uncancel():
                raise
            failed_there = True
            raise errors.DeadlineExceeded(
                "the executor did not answer in time", reason="EXECUTOR_TIMEOUT"
            ) from None
        except (errors.Unavailable, errors.DeadlineExceeded) as error:
            draining = error.reason == DRAINING
            if error.reason == NOT_REGISTERED:
                member.forgotten(registration)
            # Only what the channel itself says counts against the address, not a plugin's own words.
            failed_there = error.reason in OF_THE_WAY
            if failed_there:
                # The channel's words are about sockets; they help no client.
                raise errors.Unavailable(
                    "the executor of this request went away; try again",
                    reason="EXECUTOR_LOST",
                    retry_after=1,
                    sent=error.sent,
                ) from error
            raise
        except errors.PatchbayError:
            # An answer of the plugin stands behind it, so the address is well.
            failed_there = False
            raise
        finally:
            if self._scope is not None:
                self._scope.close()
            member.end(failed_there, draining=draining)

    def _metadata(self, member: Member) -> Metadata:
        if self._scope is None:
            return member.metadata()
        return (*member.metadata(), *self._scope.metadata)

    async def _unary(self, member: Member, message: executor_pb2.ExecutorRequest) -> None:
        request, attempt, answer = self._request, self._attempt, self._answer
        count = request.routed.operation == "count_tokens"
        before = request.clock.monotonic()
        try:
            response = await member.channel.unary(
                methods.COUNT_TOKENS if count else methods.EXECUTE,
                message,
                deadline=policy("executor.count_tokens").deadline if count else None,
                metadata=self._metadata(member),
            )
        finally:
            took = request.clock.monotonic() - before
            request.waited += took
            member.seconds += took
        answer.answered()
        attempt.head_arrived = True
        attempt.mark_first_byte()
        self._look_at_limits(response.headers)
        if response.HasField("usage"):
            attempt.used(response.usage)
        if self._owner.left:
            raise ClientGone
        code = response.status or 200
        content_type = response.content_type or "application/json"
        payload = response.payload
        if content_type.startswith("text/event-stream") and payload.find(b"error") >= 0:
            # A stream that nobody asked for; what holds for its errors holds here.
            payload = b"".join(self._shown(_EVENT.findall(payload)))
        upstream: Headers = []
        shown: Headers | None = None
        assert self._asked is not None
        if self._asked.context is not None or self._asked.executed is not None:
            upstream = told(status.headers_from_map(response.headers))
            answered = await self._plugins.answered(  # 11
                request, self._asked, Answered(code, upstream, payload, content_type)
            )
            payload, shown = answered.body, answered.headers
        answer.answer_committed = True
        # Settled before the last byte goes out: what a client has seen whole is never `lost`.
        request.status = code
        attempt.succeed(code)
        extra = _content_type(content_type)
        if not answer.headers_committed:
            extra.append((b"content-length", b"%d" % len(payload)))
        head = request.answer_headers(extra, response.headers)
        if shown is not None:
            head = changed_by_plugins(head, upstream, shown)
        await answer.commit_headers(code, head)
        await answer.write(payload)
        await request.routed.exchange.finish()

    async def _stream(self, member: Member, message: executor_pb2.ExecutorRequest) -> None:
        """Hold chunks back until one has content, then pass them on as they are."""
        request, answer = self._request, self._answer
        self._began = request.clock.monotonic()
        call = member.channel.stream(
            methods.EXECUTE_STREAM, message, deadline=None, metadata=self._metadata(member)
        )
        whole = False
        answer.watch(lambda: self._ended_after_last_word(call))
        try:
            whole = await self._read(call, member)
            if whole and self._outgoing is not None and not self._owner.left:
                await self._give_out(await self._outgoing.end())
        finally:
            answer.watch(None)
            if self._outgoing is not None:
                await self._outgoing.aclose()
            answer.let_go()
            if not answer.answer_committed:
                request.waited += request.clock.monotonic() - self._began
            await call.aclose()
        if self._owner.left:
            raise ClientGone
        withheld = self._outgoing is not None and self._outgoing.withheld
        if not (whole and (self._held or answer.answer_committed or withheld)):
            raise errors.UpstreamError(
                502,
                "the provider's stream ended before it was complete",
                reason=outcomes.TRUNCATED
                if self._held or answer.answer_committed
                else outcomes.EMPTY,
                sent=errors.Sent.YES,
            )
        self._settle_stream()
        if not answer.answer_committed:
            # Complete, but nothing in it counts as content, or interceptors dropped all of it: the client
            # gets what there is.
            await self._commit()
            await self._write(self._held)
        await request.routed.exchange.finish()

    async def _read(
        self, call: StreamCall[executor_pb2.ExecutorStreamResponse], member: Member
    ) -> bool:
        """Pass on what comes and return whether it came to its end."""
        answer, attempt = self._answer, self._attempt
        whole = False
        try:
            async for part in call:
                answer.heard()
                if part.HasField("batch"):
                    batch = part.batch
                    if batch.HasField("usage_so_far"):
                        attempt.used(batch.usage_so_far)
                    if not self._owner.left:
                        chunks: Sequence[bytes] = batch.chunks
                        if self._outgoing is not None:
                            chunks = await self._outgoing.feed(chunks)  # 11
                        await self._give_out(chunks)
                elif part.HasField("head"):
                    member.answered()
                    member.seconds += self._request.clock.monotonic() - self._began
                    self._take_head(part.head)
                elif part.HasField("tail"):
                    whole = True
                    if part.tail.HasField("usage"):
                        attempt.used(part.tail.usage)
        except errors.Cancelled:
            if not self._over:
                raise
            return True
        return whole

    def _ended_after_last_word(self, call: StreamCall[executor_pb2.ExecutorStreamResponse]) -> bool:
        """
        End *call* if the answer is complete: its dialect's last event, or an error's, has come.

        Whoever holds the connection open after that has nothing to say; usage comes before.
        """
        dialect, last = self._request.routed.dialect, self._request.state.last
        self._over = dialect.classify(last, StreamState()) in _LAST or (
            self._outgoing is not None and self._outgoing.complete
        )
        if self._over:
            call.cancel()
        return self._over

    def _take_head(self, head: executor_pb2.StreamHead) -> None:
        asked = self._asked
        assert asked is not None
        self._head = head
        self._attempt.head_arrived = True
        self._look_at_limits(head.headers)
        if asked.context is not None or asked.executed is not None:
            upstream = told(status.headers_from_map(head.headers))
            self._outgoing = self._plugins.outgoing(self._request, asked, upstream)

    async def _give_out(self, chunks: Sequence[bytes]) -> None:
        """Write chunks, or hold them while none has content."""
        if self._answer.answer_committed:
            await self._write(chunks)
            return
        self._held.extend(chunks)
        self._held_bytes += sum(map(len, chunks))
        if self._deliverable(chunks) or self._held_bytes >= HOLD_BYTES:
            self._request.waited += self._request.clock.monotonic() - self._began
            held, self._held = self._held, []
            await self._commit()
            await self._write(held)

    def _look_at_limits(self, told: Mapping[str, headers_pb2.StringList]) -> None:
        dialect = self._request.answered_in or self._request.routed.dialect
        if dialect.limit_signs:
            self._attempt.limits = self._sampler.take(
                self._attempt.lease.attempt.credential_id, told, dialect, self._request.clock
            )

    def _settle_stream(self) -> None:
        """Settle a stream that came to its end: as failed if that end was an error event."""
        request = self._request
        dialect, state = request.routed.dialect, request.state
        if (
            state.last.find(b"error") >= 0
            and dialect.classify(state.last, state) is ChunkKind.ERROR
        ):
            error = self._failure or dialect.in_stream_error(state.last)
            self._attempt.fail(error, 200, self._judge.judge(request, error))
        else:
            self._attempt.succeed(200)
        request.status = 200

    def _deliverable(self, chunks: Sequence[bytes]) -> bool:
        """
        Say whether *chunks*, the newest before any content, have some; if not, see that they are not held
        for ever.

        Raises:
            UpstreamError: An error event came before any content: the attempt failed inside a 200.
        """
        dialect = self._request.routed.dialect
        begun = False
        for chunk in chunks:
            kind = dialect.classify(chunk, self._request.state)
            if kind is ChunkKind.ERROR:
                raise dialect.in_stream_error(chunk)
            if kind is not ChunkKind.LIFECYCLE:
                return True
            # A comment says only that somebody is there; our own keep-alives say the same.
            begun = begun or chunk[:1] != b":"
        if begun and not self._holding:
            self._holding = True
            self._answer.hold(self._give)
        return False

    def _give(self) -> tuple[Headers, bytes]:
        """Return headers and what is held, for an answer that commits itself: no content came for long."""
        request = self._request
        request.waited += request.clock.monotonic() - self._began
        self._attempt.mark_first_byte()
        held, self._held = self._held, []
        request.state.last = held[-1]
        return self._headers(), b"".join(held)

    def _headers(self) -> Headers:
        request, head = self._request, self._head
        translated = self._asked is not None and self._asked.context is not None
        extra = request.stream_headers("" if translated else head.content_type)
        found = request.answer_headers(extra, head.headers)
        if self._outgoing is None or self._outgoing.headers is None:
            return found
        upstream = told(status.headers_from_map(head.headers))
        return changed_by_plugins(found, upstream, self._outgoing.headers)

    async def _commit(self) -> None:
        answer = self._answer
        self._attempt.mark_first_byte()
        answer.let_go()
        answer.answer_committed = True
        if not answer.headers_committed:
            await answer.commit_headers(200, self._headers())

    async def _write(self, chunks: Sequence[bytes]) -> None:
        request = self._request
        dialect = request.routed.dialect
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if self._hide_usage and NO_CHOICES.search(data):
            chunks = [c for c in chunks if c.find(b'"usage"') < 0 or not dialect.is_usage_only(c)]
            data = b"".join(chunks)
        if data.find(b"error") >= 0:
            chunks = self._shown(chunks)
            data = b"".join(chunks)
        if data:
            request.state.last = chunks[-1]
            await self._answer.write(data)

    def _shown(self, chunks: Sequence[bytes]) -> list[bytes]:
        """Return *chunks* with error events of the provider that hold secrets made anew without them."""
        request, shown = self._request, []
        dialect, last = request.routed.dialect, request.state.last
        for chunk in chunks:
            last_but_one, last = last, chunk
            if (
                chunk.find(b"error") >= 0
                and dialect.classify(chunk, StreamState()) is ChunkKind.ERROR
                and not blotting.harmless(chunk, faults.event_json(chunk))
            ):
                self._failure = dialect.in_stream_error(chunk)
                state = StreamState(last=last_but_one)
                last = dialect.stream_error(self._failure, state, request.routed.request_id)
            shown.append(last)
        return shown


def _content_type(text: str) -> Headers:
    # Providers have a handful of them; what is long may be one of many.
    kept = _kept_content_type(text) if len(text) <= 128 else _shown_content_type(text)
    return list(kept)


def _shown_content_type(text: str) -> Sequence[tuple[bytes, bytes]]:
    return told([(b"content-type", text.encode())])


_kept_content_type = functools.lru_cache(maxsize=256)(_shown_content_type)


def _pick(registry: PluginRegistry, plugin_id: str, avoid: list[str]) -> Member:
    """
    Return an address of the plugin.

    Raises:
        Unavailable: NO_EXECUTOR, there is none.
    """
    member = registry.pick_able(plugin_id, "executor", avoid)
    if member is None:
        raise errors.Unavailable(
            "no executor for this model is ready; try again in a moment",
            reason="NO_EXECUTOR",
            retry_after=2,
            sent=errors.Sent.NO,
        )
    return member
