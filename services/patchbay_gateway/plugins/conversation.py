"""
A bidirectional call: one message there, one answer back, in order, until the stream that it belongs to ends.

For the hooks that see a streamed answer chunk by chunk. Messages may be sent ahead of the answers. Each
answer has a deadline of its own; none in time counts against the address, as a passed deadline does. Not
here: what the messages say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic

from patchbay import errors
from patchbay_gateway.kernel.channels.port import (
    CALL_DEADLINE,
    NOT_REGISTERED,
    TRANSPORT,
    Req,
    Res,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.kernel.channels.port import Method, StreamCall
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook

AHEAD: Final = 64
"""Most messages that are sent before their answers are read: as many as may wait at any hop."""


class Conversation(Generic[Req, Res]):
    """
    One call of one plugin. Close it in every case.

    Raises:
        Unavailable: PLUGIN_UNAVAILABLE, no address is left.
    """

    def __init__(
        self,
        calls: PluginCalls,
        hook: Hook,
        method: Method[Req, Res],
        execution: PluginExecution | None,
    ) -> None:
        self._deadline = hook.policy.deadline
        self._member = calls.pick(hook, [])
        self._scope = calls.scopes.open(hook, execution)
        self._outgoing: asyncio.Queue[Req | None] = asyncio.Queue(AHEAD)
        self._failed: bool | None = False
        self._timer = calls.timer
        self._asked_at: float | None = None
        """When the first message was sent, until its answer is here."""
        self._asked = False
        self._closed = False
        self._registration = self._member.registration
        self._member.begin()
        metadata = self._scope.metadata if self._scope is not None else ()
        self._call: StreamCall[Res] = self._member.channel.bidi(
            method, self._messages(), deadline=None, metadata=(*self._member.metadata(), *metadata)
        )

    async def say(self, message: Req) -> Res:
        """
        Return the answer to *message*.

        Raises:
            PatchbayError: The plugin's error, or that it ended the call; DeadlineExceeded when it was too
            slow.
        """
        await self.send(message)
        return await self.hear()

    async def send(self, message: Req) -> None:
        """Send *message*; at most `AHEAD` may be without an answer."""
        if not self._asked:
            self._asked = True
            self._asked_at = self._timer()
        await self._outgoing.put(message)

    async def hear(self) -> Res:
        """
        Return the next answer.

        Raises:
            PatchbayError: As `say`.
        """
        try:
            async with asyncio.timeout(self._deadline):
                answer = await anext(self._call)
        except StopAsyncIteration:
            raise errors.Internal("the plugin ended the call before the stream") from None
        except asyncio.CancelledError:
            # Given up by its caller before the address told anything.
            self._failed = None
            raise
        except TimeoutError:
            self._failed = True
            raise errors.DeadlineExceeded(
                "the plugin did not answer in time", reason=CALL_DEADLINE
            ) from None
        except errors.PatchbayError as error:
            self._failed = error.reason == TRANSPORT
            if error.reason == NOT_REGISTERED:
                self._member.forgotten(self._registration)
            raise
        self._member.answered()
        if self._asked_at is not None:
            # The first stands for all: no clock is looked at per chunk.
            self._member.seconds += self._timer() - self._asked_at
            self._asked_at = None
        return answer

    async def aclose(self) -> None:
        """End the call: the plugin sees the end of the messages, and after that is cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            while not self._outgoing.empty():
                self._outgoing.get_nowait()
            self._outgoing.put_nowait(None)
            await self._call.aclose()
        finally:
            self._member.end(self._failed)
            if self._scope is not None:
                self._scope.close()

    async def _messages(self) -> AsyncIterator[Req]:
        while (message := await self._outgoing.get()) is not None:
            yield message
