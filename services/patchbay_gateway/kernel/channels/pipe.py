"""
A bounded queue of messages between two tasks: a stopped reader stops the writer.

One writer, one reader, an end that is an error or none. At most 64 messages or 1 MiB wait. Not here: who
runs the two tasks (inprocess.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

T = TypeVar("T")

MAX_MESSAGES: Final = 64
MAX_BYTES: Final = 1 << 20


class Pipe(Generic[T]):
    """The queue; iterating it is reading it."""

    __slots__ = ("_bytes", "_end", "_items", "_loop", "_reader", "_writer", "ended")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        # Counted since the queue was last empty: no sizes to remember, and never too little.
        self._bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._end: BaseException | None = None
        self.ended = False

    def offer(self, item: T) -> bool:
        """Queue *item* and return whether there is room for another; if not, await `room` first."""
        items = self._items
        items.append(item)
        reader = self._reader
        if reader is not None and not reader.done():
            # Taken before the next one comes, so its size is not worth a look.
            reader.set_result(None)
            return True
        self._bytes += item.ByteSize()  # type: ignore[attr-defined]
        return len(items) < MAX_MESSAGES and self._bytes < MAX_BYTES

    async def room(self) -> None:
        """Return when the reader has emptied the queue."""
        if not self._items:
            return
        self._writer = self._loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def end(self, error: BaseException | None) -> None:
        """Let the reader end after what is queued: plainly, or with *error*. Only the first end counts."""
        if self.ended:
            return
        self.ended = True
        self._end = error
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> T:
        """
        Return the next item.

        Raises:
            StopAsyncIteration: The writer has ended.
            BaseException: The writer has ended with this error.
        """
        items = self._items
        while not items:
            if self.ended:
                if self._end is not None:
                    raise self._end
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            try:
                await self._reader
            except asyncio.CancelledError:
                self.left()
                raise
            finally:
                self._reader = None
        item: T = items.popleft()
        if not items:
            self._bytes = 0
            writer = self._writer
            if writer is not None and not writer.done():
                writer.set_result(None)
        return item

    def left(self) -> None:
        """Take notice that the reader was cancelled while it waited."""

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        return self.get()
