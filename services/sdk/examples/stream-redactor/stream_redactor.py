"""
Words taken out of streamed answers: a stream chunk interceptor that rewrites, drops and looks back.

A word that begins in one chunk and ends in the next is seen by looking at the end of what was delivered;
then the whole chunk goes, because what is out is out.
"""

from __future__ import annotations

import re

import yaml

from patchbay.interceptors import (
    StreamChunkInterceptor,
    StreamChunkInterceptRequest,
    StreamChunkInterceptResponse,
    StreamStart,
)

_CONTENT = re.compile(rb'"content":\s*"((?:[^"\\]|\\.)*)"')


class StreamRedactor(StreamChunkInterceptor[list[int]]):
    """Masks words; its state is the number of chunks that it touched in this stream."""

    id = "stream-redactor"
    name = "Stream redactor"
    version = "1.0.0"
    author = "Patchbay"
    needs_request_body = False

    def __init__(self) -> None:
        self._words: tuple[bytes, ...] = (b"swordfish",)

    async def configure(self, config: bytes) -> None:
        """Take `words`."""
        settings = yaml.safe_load(config) or {}
        self._words = tuple(str(word).encode() for word in settings.get("words", ["swordfish"]))

    async def open_stream(self, start: StreamStart) -> list[int]:
        """Begin to count."""
        return [0]

    async def intercept_stream_start(
        self, request: StreamChunkInterceptRequest, state: list[int]
    ) -> StreamChunkInterceptResponse | None:
        """Say that somebody looks."""
        return StreamChunkInterceptResponse(headers=[(b"x-redacted-by", self.id.encode())])

    async def intercept_stream_chunk(
        self, request: StreamChunkInterceptRequest, state: list[int]
    ) -> StreamChunkInterceptResponse | None:
        """Mask a word that is whole; drop a chunk that ends one."""
        body = request.body
        for word in self._words:
            body = body.replace(word, b"*" * len(word))
        said = b"".join(_CONTENT.findall(body))
        before = b"".join(
            text for chunk in request.history_chunks[-8:] for text in _CONTENT.findall(chunk)
        )
        if said and any(_spans(before, said, word) for word in self._words):
            state[0] += 1
            return StreamChunkInterceptResponse(drop_chunk=True)
        if body == request.body:
            return None
        state[0] += 1
        return StreamChunkInterceptResponse(body=body)


def _spans(before: bytes, said: bytes, word: bytes) -> bool:
    """Whether *word* begins at the end of *before* and ends at the beginning of *said*."""
    return any(
        before.endswith(word[:cut]) and said.startswith(word[cut:]) for cut in range(1, len(word))
    )
