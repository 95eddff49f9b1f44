"""
A streamed answer on its way out: translated, then shown to stream chunk interceptors.

Exists only where one of both happens; else bytes pass as they are (execution.py). What comes out is in
the client's dialect and in whole events. Not here: when the answer is committed (stream.py), the chain
(plugins/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.edge.dialects.port import ChunkKind, StreamState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.translation import StreamTranslation
    from patchbay_gateway.plugins.stream_interceptors import StreamChain


class Outgoing:
    """
    One attempt's stream. Close it in every case.

    Args:
        dialect: The client's.
        provider: The provider's, where it is another one that is known.
        translation: None where the formats agree and no plugin translates or normalizes.
        chain: None without interceptors.
    """

    def __init__(
        self,
        dialect: Dialect,
        translation: StreamTranslation | None,
        chain: StreamChain | None,
        *,
        provider: Dialect | None = None,
    ) -> None:
        self._provider = provider
        self._seen = StreamState()
        self._dialect = dialect
        self._translation = translation
        self._chain = chain
        self._begun = False
        self._last = b""
        self.withheld = False
        """Whether interceptors had content to look at: that none is left is their doing then."""

    @property
    def complete(self) -> bool:
        """Whether the provider's own dialect says that its answer is."""
        provider = self._provider
        return (
            provider is not None
            and provider.classify(self._last, StreamState()) is ChunkKind.TERMINAL
        )

    @property
    def headers(self) -> Headers | None:
        """The answer's headers as interceptors left them; None without interceptors."""
        return self._chain.headers if self._chain is not None else None

    async def feed(self, chunks: Sequence[bytes]) -> list[bytes]:
        """
        Return the client's chunks for the executor's.

        Raises:
            UpstreamError: A chunk reports a failure of the provider.
            Unavailable: PLUGIN_FAILED.
        """
        for chunk in chunks:
            self._look(chunk)
        if chunks:
            self._last = chunks[-1]
        if self._translation is not None:
            chunks = await self._translation.feed(chunks)
        return await self._intercepted(chunks)

    async def end(self) -> list[bytes]:
        """
        Return what is still owed once the executor's stream ended well.

        Raises:
            UpstreamError: It ended before its own end.
            Unavailable: PLUGIN_FAILED.
        """
        if self._translation is None:
            return []
        return await self._intercepted(await self._translation.end())

    async def aclose(self) -> None:
        """End every plugin's call. Idempotent."""
        if self._translation is not None:
            await self._translation.aclose()
        if self._chain is not None:
            await self._chain.aclose()

    async def _intercepted(self, chunks: Sequence[bytes]) -> list[bytes]:
        if self._chain is None:
            return list(chunks)
        out: list[bytes] = []
        content: list[bytes] = []
        for chunk in chunks:
            if not chunk:
                continue
            if self._is_error(chunk):
                # Failures are not content: no interceptor sees them (pluginapi).
                out += await self._shown(self._chain, content)
                out.append(chunk)
                content = []
            else:
                content.append(chunk)
        return out + await self._shown(self._chain, content)

    async def _shown(self, chain: StreamChain, content: list[bytes]) -> list[bytes]:
        if content and not self._begun:
            self._begun = self.withheld = True
            await chain.begin()
        return await chain.feed_all(content)

    def _look(self, chunk: bytes) -> None:
        """Raise the failure that a chunk of another dialect reports, in that dialect's words."""
        provider = self._provider
        if (
            provider is not None
            and b"error" in chunk
            and provider.classify(chunk, self._seen) is ChunkKind.ERROR
        ):
            raise provider.in_stream_error(chunk)

    def _is_error(self, chunk: bytes) -> bool:
        return b"error" in chunk and self._dialect.classify(chunk, StreamState()) is ChunkKind.ERROR
