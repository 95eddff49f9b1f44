"""
The history of one stream: the chunks that were delivered, as pluginapi sent them with each call.

On the wire each chunk crosses once, and what became of it comes with the next; the rule is in
proto/README.md "The history of a stream". Not here: the call itself (`patchbay.streams_wire`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, overload

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_CHUNKS: Final = 64
MAX_BYTES: Final = 1 << 20


class History(Sequence[bytes]):
    """Delivered chunks, oldest first: at most 64 of them and 1 MiB together."""

    __slots__ = ("_bytes", "_chunks")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._bytes = 0

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return list(self._chunks)[index]
        return self._chunks[index]

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def __repr__(self) -> str:
        return f"<History of {len(self._chunks)} chunks, {self._bytes} bytes>"

    def add(self, chunk: bytes) -> None:
        """Add a delivered chunk; the oldest leave. One of more than 1 MiB leaves the history empty."""
        chunks = self._chunks
        chunks.append(chunk)
        self._bytes += len(chunk)
        while chunks and (len(chunks) > MAX_CHUNKS or self._bytes > MAX_BYTES):
            self._bytes -= len(chunks.popleft())
