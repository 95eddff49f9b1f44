"""
A provider of the suite's own: an HTTP server that executors under test are sent to.

It answers the dialects that Patchbay knows, or, as told, nothing, numbered chunks or chunks without an
end, and sees how far it got and when the executor hung up. Not here: a faithful provider.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import time
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_PIECE: Final = "x" * 4096


class Mode(enum.Enum):
    """What the provider does with the next requests."""

    ANSWER = "answer"
    SILENT = "silent"
    NUMBERED = "numbered"
    """A stream of `COUNT` chunks with the words `n0`, `n1`, …"""
    ENDLESS = "endless"
    CUT = "cut"
    """A stream that ends in the middle of an event."""
    DROP = "drop"
    """The request is read and the connection closed, without a byte of an answer."""
    REFUSE = "refuse"
    """429 with `REFUSAL` and `Retry-After: 7`."""


COUNT: Final = 200
REFUSAL: Final = b'{"error": {"message": "slower, please", "type": "rate_limit_error"}}'
RETRY_AFTER: Final = 7
"""Seconds."""


class FakeUpstream:
    """A provider at `url`, while it is open."""

    def __init__(self) -> None:
        self.mode = Mode.ANSWER
        self.requests = 0
        """Requests that came."""
        self.head = b""
        """Request line and headers of the newest."""
        self.sent = 0
        """Bytes of the newest answer that were written."""
        self.arrived = asyncio.Event()
        """Set when a request has come."""
        self.hung_up_at = 0.0
        """When the executor closed a connection on which an answer was awaited, of `time.monotonic`."""
        self.hung_up = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Base URL without a path."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def expect(self, mode: Mode) -> None:
        """Begin anew in *mode*."""
        self.mode = mode
        self.sent = 0
        self.arrived.clear()
        self.hung_up.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while await self._serve(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            self._mark_hung_up()
        except asyncio.CancelledError:
            return  # ours, at the end: asyncio's own callback would report it
        finally:
            writer.close()

    def _mark_hung_up(self) -> None:
        self.hung_up_at = time.monotonic()
        self.hung_up.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; False at the connection's end."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        line, _, rest = head.decode("latin-1").partition("\r\n")
        path = line.split(" ")[1]
        length = 0
        for header in rest.split("\r\n"):
            name, _, value = header.partition(":")
            if name.strip().lower() == "content-length":
                length = int(value)
        body = await reader.readexactly(length)
        self.requests += 1
        self.head = head
        self.arrived.set()
        streamed = "streamGenerateContent" in path or _asks_for_stream(body)
        if self.mode is Mode.SILENT:
            await reader.read(1)
            self._mark_hung_up()
            return False
        if self.mode is Mode.DROP:
            return False
        if self.mode is Mode.REFUSE:
            writer.write(
                b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n"
                b"retry-after: %d\r\ncontent-length: %d\r\n\r\n"
                % (RETRY_AFTER, len(REFUSAL))
                + REFUSAL
            )
            await writer.drain()
            return True
        if not streamed:
            answer = json.dumps(_whole(path)).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n" % len(answer) + answer
            )
            await writer.drain()
            return True
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        watch = asyncio.ensure_future(reader.read(1))
        try:
            async with contextlib.aclosing(self._events(path)) as events:
                async for event in events:
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    self.sent += len(event)
                    if watch.done():
                        self._mark_hung_up()
                        return False
            if self.mode is not Mode.CUT:
                writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        return False

    async def _events(self, path: str) -> AsyncGenerator[bytes, None]:
        before, after = _frame(path)
        for event in before:
            yield event
        if self.mode is Mode.ENDLESS:
            while True:
                yield _piece(path, _PIECE)
                await asyncio.sleep(0)
        for number in range(COUNT if self.mode is Mode.NUMBERED else 3):
            yield _piece(path, f"n{number} ")
        if self.mode is Mode.CUT:
            yield _piece(path, "half")[:-9]
            return
        for event in after:
            yield event


def _asks_for_stream(body: bytes) -> bool:
    try:
        found = json.loads(body)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("stream") is True


def _sse(data: Any, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def _dialect(path: str) -> str:
    if "generateContent" in path or "GenerateContent" in path:
        return "gemini"
    if "/messages" in path:
        return "claude"
    if "/responses" in path:
        return "openai-response"
    return "openai"


def _whole(path: str) -> Any:
    """Return a whole answer that says `fine`."""
    if "count" in path:
        return {"input_tokens": 1, "totalTokens": 1}
    if "/embeddings" in path:
        data = [{"object": "embedding", "index": 0, "embedding": [0.0]}]
        return {"object": "list", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    name = _dialect(path)
    if name == "gemini":
        part = {"content": {"role": "model", "parts": [{"text": "fine"}]}, "finishReason": "STOP"}
        return {"candidates": [part], "usageMetadata": {"promptTokenCount": 1}}
    if name == "claude":
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "fine"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
    if name == "openai-response":
        content = [{"type": "output_text", "text": "fine"}]
        output = [{"type": "message", "role": "assistant", "content": content}]
        return {"id": "resp_1", "object": "response", "status": "completed", "output": output}
    message = {"role": "assistant", "content": "fine"}
    return {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _piece(path: str, text: str) -> bytes:
    name = _dialect(path)
    if name == "gemini":
        return _sse({"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}}]})
    if name == "claude":
        delta = {"type": "text_delta", "text": text}
        return _sse(
            {"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta"
        )
    if name == "openai-response":
        kind = "response.output_text.delta"
        return _sse({"type": kind, "item_id": "1", "delta": text}, kind)
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return _sse({"id": "1", "object": "chat.completion.chunk", "choices": [choice]})


def _frame(path: str) -> tuple[list[bytes], list[bytes]]:
    """Return the events before and after the content."""
    name = _dialect(path)
    if name == "gemini":
        last = {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP"}
        return [], [_sse({"candidates": [last], "usageMetadata": {"promptTokenCount": 1}})]
    if name == "claude":
        usage = {"input_tokens": 1, "output_tokens": 1}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
        block = {"type": "text", "text": ""}
        return [
            _sse(
                {"type": "message_start", "message": {**message, "usage": usage}}, "message_start"
            ),
            _sse(
                {"type": "content_block_start", "index": 0, "content_block": block},
                "content_block_start",
            ),
        ], [
            _sse({"type": "content_block_stop", "index": 0}, "content_block_stop"),
            _sse(
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage},
                "message_delta",
            ),
            _sse({"type": "message_stop"}, "message_stop"),
        ]
    if name == "openai-response":
        done = {"type": "response.completed", "response": _whole("/responses")}
        created = {
            "type": "response.created",
            "response": {"id": "resp_1", "status": "in_progress"},
        }
        return [_sse(created, "response.created")], [_sse(done, "response.completed")]
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return [], [
        _sse({"id": "1", "object": "chat.completion.chunk", "choices": [end]}),
        _sse("[DONE]"),
    ]
