"""
One connection of the fake provider: HTTP/1.1 as the script of each request wants it, faults and all.

Not here: what is said (talks.py), what is remembered and what it is started with (upstream.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tests.fakes.script import Json, Script, Talk, dumps, script_of
from tests.fakes.talks import asked, models, talk_of

if TYPE_CHECKING:
    from tests.fakes.upstream import FakeUpstream, Record


@dataclass
class Head:
    """What a request begins with; names of headers in small letters."""

    method: str
    path: str
    headers: dict[str, str]


class _Gone(Exception):
    """The script says to close."""


class _Left(Exception):
    """The caller has left; a write may find out before `connection_lost` is called."""


class Connection(asyncio.Protocol):
    """Answers one request after the other, each by its script."""

    def __init__(self, fake: FakeUpstream) -> None:
        self.fake = fake
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._record: Record | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self.fake.connections += 1
        self.fake.protocols.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fake.protocols.discard(self)
        self._transport = None
        self._writable.set()
        record = self._record
        if record is not None and not record.ended_at:
            record.aborted = True
            self.fake.ended(record)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None or self._task.done():
            self._next()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        request, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = request.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines)
        head = Head(method, path, {k.strip().lower(): v.strip() for k, v in pairs})
        length = int(head.headers.get("content-length", "0"))
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        self._task = asyncio.get_running_loop().create_task(self._answer(head, body))
        self._task.add_done_callback(self._answered)

    def _answered(self, _: asyncio.Task[None]) -> None:
        if self._transport is not None:
            self._next()

    async def _answer(self, head: Head, body: bytes) -> None:
        if head.path.startswith("/__"):
            with contextlib.suppress(_Left):
                await self._own(head)
            return
        record = self._record = self.fake.arrived(head, body)
        try:
            document = json.loads(body) if body[:1] == b"{" else {}
        except ValueError:
            document = {}
        model, record.stream = asked(head.path, head.headers, document)
        record.model = model.partition("@")[0]
        script = script_of(self.fake.defaults, head.headers, document, model)
        if not await self._knows(script, head):
            script = dataclasses.replace(script, status=401, error="invalid credential")
        try:
            if script.stall == "head":
                await asyncio.sleep(script.stall_s)
            if not script.drop:
                await self._play(script, record, document)
            close = script.drop or script.close_idle
        except _Gone:
            close = True
        except _Left:
            close = record.aborted = True
        self.fake.ended(record)
        if close and self._transport is not None:
            self._transport.close()

    async def _knows(self, script: Script, head: Head) -> bool:
        if not script.token and self.fake.accepts is None:
            return True
        headers = head.headers
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        shown = headers.get("x-api-key") or headers.get("x-goog-api-key") or bearer
        if script.token and shown != script.token:
            return False
        return self.fake.accepts is None or await self.fake.accepts(shown)

    async def _play(self, script: Script, record: Record, document: Json) -> None:
        talk = talk_of(script, record, document)
        if script.location:
            await self._whole(script, record, talk, b"", 307, {"location": script.location})
            return
        if self.fake.fails(script):
            told = {"retry-after": script.retry_after, "retry-after-ms": script.retry_after_ms}
            error = talk.failure(script.status)
            if script.padding:
                error["padding"] = "x" * script.padding
            more = {name: value for name, value in told.items() if value}
            body = b"Not Found" if script.bare_error else dumps(script, error)
            await self._whole(script, record, talk, body, script.status, more)
            return
        listed = models(script, record)
        if listed is not None:
            await self._whole(script, record, talk, dumps(script, listed))
            return
        if record.method != "POST" or not record.stream or script.unstreamed:
            if script.error_after >= 0:
                await self._whole(script, record, talk, dumps(script, talk.failure(503)))
                return
            record.tokens = talk.tokens(script.chunks)
            await self._whole(script, record, talk, dumps(script, talk.whole()))
            record.completed = True
            return
        await self._stream(script, record, talk)

    async def _stream(self, script: Script, record: Record, talk: Talk) -> None:
        record.status = 200
        lines = "".join(f"{name}: {value}\r\n" for name, value in talk.head.items())
        await self._send(
            f"HTTP/1.1 200 OK\r\ncontent-type: {talk.stream_type}\r\n{lines}"
            "transfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n".encode()
        )
        if script.stall == "body":
            await asyncio.sleep(script.stall_s)
        if script.error_after != 0:
            for frame in talk.opening():
                await self._frame(script, frame)
        held: list[bytes] = []
        for index in range(script.chunks):
            if script.stall == str(index):
                await self._flush(script, held)
                await asyncio.sleep(script.stall_s)
            if index == script.close_after:
                await self._flush(script, held)
                raise _Gone
            if index == script.error_after:
                break
            if script.delay_ms:
                await asyncio.sleep(script.delay_ms / 1000)
            frame = talk.piece(index)
            if index == script.half_frame_after:
                await self._flush(script, held)
                await self._frame(script, frame[: len(frame) // 2])
                raise _Gone
            held.append(frame)
            record.chunks_sent = index + 1
            if len(held) >= script.frames_per_write:
                await self._flush(script, held)
        await self._flush(script, held)
        if script.close_after >= script.chunks:
            raise _Gone
        if script.stall == str(script.chunks):
            await asyncio.sleep(script.stall_s)
        if script.error_after >= 0:
            await self._frame(script, talk.error())
            await self._send(b"0\r\n\r\n")
            return
        record.tokens = talk.tokens(script.chunks) if talk.reports_usage else {}
        end = b"".join(talk.closing())
        if end:
            await self._frame(script, end)
        if script.stall == "end":
            await asyncio.sleep(script.stall_s)
        await self._send(b"0\r\n\r\n")
        record.completed = True

    async def _flush(self, script: Script, held: list[bytes]) -> None:
        if held:
            await self._frame(script, b"".join(held))
            held.clear()

    async def _frame(self, script: Script, data: bytes) -> None:
        if script.crlf:
            data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        step = script.bytes_per_write or len(data)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            await self._send(b"%x\r\n" % len(part) + part + b"\r\n")
            if script.bytes_per_write:
                await asyncio.sleep(0)

    async def _whole(
        self,
        script: Script,
        record: Record,
        talk: Talk,
        body: bytes,
        status: int = 200,
        more: dict[str, str] | None = None,
    ) -> None:
        headers = talk.head | (more or {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"HTTP/1.1 {status} Fake\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{lines}\r\n"
        )
        record.status = status
        if script.stall == "body":
            await self._send(head.encode())
            await asyncio.sleep(script.stall_s)
            head = ""
        if 0 <= script.close_after < script.chunks:
            await self._send(head.encode() + body[: len(body) // 2])
            raise _Gone
        await self._send(head.encode() + body)

    async def _send(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise _Left
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()

    async def _own(self, head: Head) -> None:
        if head.path == "/__reset":
            self.fake.records.clear()
        body = json.dumps([dataclasses.asdict(r) for r in self.fake.records]).encode()
        await self._send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
