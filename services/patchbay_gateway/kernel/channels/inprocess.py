"""
The channel within a process: a servicer object is called in a task and an empty context of its own.

What crosses is passed by reference and must not be changed. In strict mode (all tests) messages and
errors are serialised both ways and the message limit holds, so that nothing works here that would fail
over gRPC. For our own built-ins only; hot path of `patchbay up`.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any, Final

from google.rpc import status_pb2

from patchbay import errors, status
from patchbay.server import DEFAULT_MESSAGE_LIMIT, is_foreign, report_foreign, throw_into
from patchbay_gateway.kernel.channels.pipe import Pipe
from patchbay_gateway.kernel.channels.port import (
    ANSWER_TOO_LARGE,
    CALL_DEADLINE,
    MESSAGE_TOO_LARGE,
    Metadata,
    Method,
    Req,
    Res,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Callable,
        Coroutine,
        Mapping,
        Sequence,
    )

    from google.protobuf.message import Message

CLOSE_GRACE: Final = 1.0
"""Seconds that `aclose` waits for a servicer to end its cleaning up; the channel owns it after that."""


class _Context:
    """The servicer's view of one call (port.CallContext), and what the channel keeps of it."""

    __slots__ = ("_metadata", "deadline", "task", "waiter")

    def __init__(self, metadata: Metadata, deadline: float | None) -> None:
        self._metadata = metadata
        self.deadline = deadline
        self.task: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[Any] | None = None
        """Where the caller of a unary call waits."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """Return the caller's metadata."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline, None without one."""
        if self.deadline is None:
            return None
        return max(self.deadline - asyncio.get_running_loop().time(), 0.0)

    def peer(self) -> str:
        """Return where the call comes from."""
        return "inprocess:"


class InProcessChannel:
    """
    Calls servicers of this process.

    Args:
        servicers: Full service name to servicer: coroutine methods for unary RPCs, async generator
            methods for streams.
        strict: Serialise both ways and enforce *message_limit*.
        message_limit: Largest message, bytes; only in strict mode.
    """

    def __init__(
        self,
        servicers: Mapping[str, object],
        *,
        strict: bool = False,
        message_limit: int = DEFAULT_MESSAGE_LIMIT,
    ) -> None:
        self._servicers = dict(servicers)
        self._limit = message_limit if strict else 0
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._running: set[_Context] = set()
        self._closed = False

    async def unary(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> Res:
        """Call and wait for the one answer (port.Channel)."""
        path = method.path
        handler = self._handlers.get(path) or self._find(path)
        if self._limit:
            request = _copied(request, self._limit)
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Res] = loop.create_future()
        context = _Context(metadata, None if deadline is None else loop.time() + deadline)
        task = loop.create_task(
            self._run(path, handler, request, context, waiter), context=contextvars.Context()
        )
        context.task, context.waiter = task, waiter
        self._running.add(context)
        timer = None if deadline is None else loop.call_later(deadline, self._expire, path, waiter)
        try:
            response = await waiter
        except BaseException:
            self._abandon(context)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return _copied(response, self._limit, ANSWER_TOO_LARGE) if self._limit else response

    def stream(
        self,
        method: Method[Req, Res],
        request: Req,
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> _Stream[Res]:
        """Start a server stream (port.Channel)."""
        if self._limit:
            request = _copied(request, self._limit)
        return _Stream(self, method.path, request, None, deadline, metadata)

    def bidi(
        self,
        method: Method[Req, Res],
        requests: AsyncIterable[Req],
        *,
        deadline: float | None,
        metadata: Metadata = (),
    ) -> _Stream[Res]:
        """Start a bidirectional stream (port.Channel)."""
        return _Stream(self, method.path, None, requests, deadline, metadata)

    async def close(self) -> None:
        """Cancel what runs and wait for it. Idempotent."""
        self._closed = True
        self._handlers.clear()
        running = list(self._running)
        tasks = [context.task for context in running if context.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for context in running:
            self._running.discard(context)
            # A task cancelled before its first step has told nobody.
            if context.waiter is not None and not context.waiter.done():
                context.waiter.set_exception(errors.Cancelled("the servicer gave the call up"))

    async def _run(
        self,
        path: str,
        handler: Callable[..., Any],
        request: Message,
        context: _Context,
        waiter: asyncio.Future[Any],
    ) -> None:
        try:
            response = await handler(request, context)
            if not waiter.done():
                waiter.set_result(response)
        except asyncio.CancelledError:
            if not waiter.done():
                waiter.set_exception(errors.Cancelled("the servicer gave the call up"))
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: each becomes an error of the tree
            passed = self._passed(path, error)
            if not waiter.done():
                waiter.set_exception(passed)
        finally:
            self._running.discard(context)

    @staticmethod
    def _expire(path: str, waiter: asyncio.Future[Any]) -> None:
        if not waiter.done():
            waiter.set_exception(_too_slow(path))

    def _abandon(self, context: _Context) -> None:
        """Cancel the servicer of a call that nobody waits for any more."""
        task = context.task
        if task is not None and not task.done():
            # A task cancelled before its first step never reaches its own `finally`.
            task.add_done_callback(lambda _: self._running.discard(context))
            task.cancel()

    def _find(self, path: str) -> Callable[..., Any]:
        service, _, name = path[1:].rpartition("/")
        handler: Callable[..., Any] | None = getattr(self._servicers.get(service), name, None)
        if handler is None:
            raise errors.FailedPrecondition(f"nobody serves {path}", reason="UNIMPLEMENTED")
        if self._closed:
            raise errors.Unavailable("the channel is closed", reason="CHANNEL_CLOSED")
        self._handlers[path] = handler
        return handler

    def _passed(self, path: str, error: Exception) -> errors.PatchbayError:
        """Return what the caller sees of the servicer's *error*."""
        if is_foreign(error):
            return errors.Internal(f"internal error {report_foreign(path, error)}")
        assert isinstance(error, errors.PatchbayError)
        if self._limit:
            wire = status.to_status(error).SerializeToString()
            return status.from_status(status_pb2.Status.FromString(wire))
        return error


class _Stream(Pipe[Res]):
    """One running stream: the servicer's task fills the pipe, the caller empties it."""

    __slots__ = (
        "_channel",
        "_context",
        "_deadline",
        "_path",
        "_pump",
        "_request",
        "_requests",
        "_timer",
    )

    def __init__(
        self,
        channel: InProcessChannel,
        path: str,
        request: Message | None,
        requests: AsyncIterable[Any] | None,
        deadline: float | None,
        metadata: Metadata,
    ) -> None:
        super().__init__()
        self._channel = channel
        self._path = path
        self._request = request
        self._requests = requests
        self._deadline = deadline
        self._context = _Context(metadata, None)
        self._pump: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> AsyncIterator[Res]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Res]:
        if self._context.task is None and not self.ended:
            self._start()
        return self.get()

    def left(self) -> None:
        """Cancel the call that nobody reads any more."""
        self.cancel()

    def _start(self) -> None:
        channel = self._channel
        handler = channel._handlers.get(self._path) or channel._find(self._path)  # noqa: SLF001 - one unit
        loop = asyncio.get_running_loop()
        argument: Any = self._request
        context = self._context
        if self._deadline is not None:
            context.deadline = loop.time() + self._deadline
            self._timer = loop.call_later(self._deadline, self._end_early, _too_slow(self._path))
        if self._requests is not None:
            argument = Pipe[Any]()
            # In the caller's context: the requests are made by the caller.
            self._pump = loop.create_task(self._feed(self._requests, argument))
        context.task = loop.create_task(
            self._produce(handler, argument, context), context=contextvars.Context()
        )
        channel._running.add(context)  # noqa: SLF001
        context.task.add_done_callback(self._finished)

    def _finished(self, _: asyncio.Task[None]) -> None:
        self._channel._running.discard(self._context)  # noqa: SLF001
        if self._timer is not None:
            self._timer.cancel()
        if self._pump is not None:
            self._pump.cancel()
        self.end(errors.Cancelled("the call was cancelled"))  # unless it has ended otherwise

    async def _produce(self, handler: Callable[..., Any], argument: Any, context: _Context) -> None:
        limit = self._channel._limit  # noqa: SLF001
        try:
            generator = handler(argument, context)
            try:
                async for message in generator:
                    copied = _copied(message, limit, ANSWER_TOO_LARGE) if limit else message
                    if not self.offer(copied):
                        await self.room()
            except asyncio.CancelledError as cancelled:
                await throw_into(generator, cancelled)
                raise
            finally:
                await generator.aclose()
            self.end(None)
        except asyncio.CancelledError:
            self.end(errors.Cancelled("the servicer gave the call up"))
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: each becomes an error of the tree
            self.end(self._channel._passed(self._path, error))  # noqa: SLF001

    async def _feed(self, requests: AsyncIterable[Any], pipe: Pipe[Any]) -> None:
        limit = self._channel._limit  # noqa: SLF001
        try:
            async for request in requests:
                if not pipe.offer(_copied(request, limit) if limit else request):
                    await pipe.room()
            pipe.end(None)
        except Exception as error:  # noqa: BLE001 - the caller's own error goes back to the caller
            self._end_early(error)

    def _end_early(self, error: BaseException) -> None:
        self.end(error)
        if self._context.task is not None:
            self._context.task.cancel()

    def cancel(self) -> None:
        """Cancel the call without waiting. Idempotent."""
        self._end_early(errors.Cancelled("the call was cancelled"))

    async def aclose(self) -> None:
        """Cancel the call if it still runs and wait until nothing of it is left. Idempotent."""
        self.cancel()
        tasks = {t for t in (self._context.task, self._pump) if t is not None and not t.done()}
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_GRACE)


def _copied(message: Any, limit: int, reason: str = MESSAGE_TOO_LARGE) -> Any:
    data = message.SerializeToString()
    if len(data) > limit:
        raise errors.ResourceExhausted(
            f"a message of {len(data)} bytes is larger than the limit of {limit}",
            reason=reason,
        )
    return type(message).FromString(data)


def _too_slow(path: str) -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded(f"{path} did not answer in time", reason=CALL_DEADLINE)
