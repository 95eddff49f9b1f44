"""
How the answer of a plugin's model call leaves: as it is, or in the format that the plugin wants.

Not here: the call itself, and how its failures are told (models.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.translation import Formats, StreamTranslation, Translation
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.translate.port import Context, StreamTranslator
    from patchbay_gateway.translate.registry import Pair


# An event ends with an empty line (the HTML standard, server-sent events).
_EVENT: Final = re.compile(rb".+?(?:\r\n\r\n|\n\n|\r\r|\Z)", re.DOTALL)


def events(data: bytes) -> list[bytes]:
    """Return the server-sent events of *data*, each with its empty line."""
    if b"\r" in data:
        return _EVENT.findall(data)
    whole = [event + b"\n\n" for event in data.split(b"\n\n")]
    rest = whole.pop()[:-2]
    return [*whole, rest] if rest else whole


class Answer:
    """An answer that stays as it is. Close it in every case."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        """Of errors, and of the answer where no plugin translates it."""
        self._sse = dialect.stream_content_type.startswith(b"text/event-stream")

    async def whole(self, body: bytes) -> bytes:
        """Return a whole body."""
        return body

    async def feed(self, data: bytes) -> list[bytes]:
        """Return the chunks of *data*, which is a whole number of events where there are events."""
        return events(data) if self._sse else [data]

    async def end(self) -> list[bytes]:
        """Return what is still owed after a good end."""
        return []

    async def aclose(self) -> None:
        """Release what it holds."""


class Translated(Answer):
    """An answer in another format than the request."""

    def __init__(self, dialect: Dialect, pair: Pair, context: Context) -> None:
        super().__init__(dialect)
        self._pair = pair
        self._context = context
        self._stream: StreamTranslator | None = None

    async def whole(self, body: bytes) -> bytes:
        """Return the body, translated."""
        assert self._pair.whole is not None
        return self._pair.whole(self._context, body)

    async def feed(self, data: bytes) -> list[bytes]:
        """Return the chunks of *data*, translated."""
        if self._stream is None:
            assert self._pair.stream is not None
            self._stream = self._pair.stream(self._context)
        return [out for chunk in events(data) for out in self._stream.feed(chunk)]

    async def end(self) -> list[bytes]:
        """Return what the translation still owes."""
        return self._stream.end() if self._stream is not None else []


class ByPlugins(Answer):
    """An answer that plugins translate to a format which only they know."""

    def __init__(
        self,
        dialect: Dialect,
        translation: Translation,
        execution: PluginExecution,
        formats: Formats,
        context: Context,
    ) -> None:
        super().__init__(dialect)
        self._translation = translation
        self._what = execution, formats, context
        self._stream: StreamTranslation | None = None

    async def whole(self, body: bytes) -> bytes:
        """Return the body as plugins translate it."""
        return await self._translation.whole(*self._what, body)

    async def feed(self, data: bytes) -> list[bytes]:
        """Return what plugins make of *data*."""
        if self._stream is None:
            self._stream = self._translation.stream(*self._what)
        return await self._stream.feed(events(data) if self._sse else [data])

    async def end(self) -> list[bytes]:
        """Return what plugins still owe."""
        return await self._stream.end() if self._stream is not None else []

    async def aclose(self) -> None:
        """End the calls of plugins."""
        if self._stream is not None:
            await self._stream.aclose()
