"""
A provider that does what a test tells it to, and remembers everything that reached it.

Run it as a process (`python tests/fakes/upstream.py --port N --log FILE`; port 0 prints the one it got)
or embed it (`async with running_upstream() as fake`). It speaks, below any prefix, OpenAI chat, completions,
responses and embeddings, Anthropic messages and count_tokens, Gemini generate, stream and count, and lists
models in each. What it shall do (`Script`) comes, later ones first, from its defaults, the model name
(`anything@chunks=64,delay_ms=20`), headers (`x-fake-chunks: 64`) and the body (`"fake": {"chunks": 64}`).
A credential is looked at only where the script names the one it wants, or with `--introspect URL`, where an
identity server is asked whether an access token lives.

`GET /__log` answers all records as JSON; `--log` gets a line when a request has arrived and one when it
has ended. Not here: speed for benchmarks (bench/ has its own).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if __name__ == "__main__":
    # Run as a file, the folder on the path is this one and not the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.fakes.script import Json, Script, Talk, dumps
from tests.fakes.talks import asked, models, talk_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass
class Record:
    """One request that arrived."""

    id: int
    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int
    body: str
    attempt: str
    """Value of the attempt header, or empty."""
    model: str = ""
    stream: bool = False
    arrived_at: float = 0.0
    """Unix seconds, as all times here."""
    status: int = 0
    """What was answered; 0 when no head was sent."""
    chunks_sent: int = 0
    completed: bool = False
    """A whole answer of status 200 was handed to the socket."""
    aborted: bool = False
    """The caller left before the end."""
    ended_at: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    """What was reported to the caller as usage, for completed answers."""


class FakeUpstream:
    """The server's memory and settings; `running_upstream` gives it a socket."""

    def __init__(
        self,
        defaults: Script | None = None,
        *,
        attempt_header: str = "x-patchbay-attempt",
        log: Path | None = None,
        accepts: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        """
        Args:
            defaults: What to do with requests that say nothing.
            attempt_header: Name of the header that carries an attempt.
            log: Where lines go.
            accepts: Asked whether a credential lives; None: every one does.
        """
        self.defaults = defaults or Script()
        self.accepts = accepts
        self.records: list[Record] = []
        self.connections = 0
        """Connections accepted so far."""
        self.port = 0
        self._attempt_header = attempt_header
        self._log = log.open("a", buffering=1) if log else None
        self._changed = asyncio.Event()
        self._failed: Counter[str] = Counter()
        self.protocols: set[_Connection] = set()

    @property
    def url(self) -> str:
        """Base URL as a provider's base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def last(self) -> Record:
        """The newest record."""
        return self.records[-1]

    async def until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until *condition* holds; it is asked after each change of a record."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def fails(self, script: Script) -> bool:
        """Say whether this request is to fail with the script's status, and count it."""
        if script.status < 400 or (script.fails and self._failed[script.mark] >= script.fails):
            return False
        self._failed[script.mark] += 1
        return True

    def arrived(self, head: _Head, body: bytes) -> Record:
        """Note a request."""
        record = Record(
            id=len(self.records) + 1,
            method=head.method,
            path=head.path,
            headers=head.headers,
            body_bytes=len(body),
            body=body[:4096].decode("utf-8", "replace"),
            attempt=head.headers.get(self._attempt_header, ""),
            arrived_at=time.time(),
        )
        self.records.append(record)
        self._write("arrived", record)
        return record

    def ended(self, record: Record) -> None:
        """Note its end."""
        record.ended_at = time.time()
        self._write("ended", record)

    def _write(self, event: str, record: Record) -> None:
        self._changed.set()
        if self._log:
            self._log.write(json.dumps({"event": event} | dataclasses.asdict(record)) + "\n")

    def close(self) -> None:
        """Cut every connection."""
        for protocol in list(self.protocols):
            protocol.abort()
        if self._log:
            self._log.close()


@dataclass
class _Head:
    method: str
    path: str
    headers: dict[str, str]


class _Gone(Exception):
    """The script says to close."""


class _Left(Exception):
    """The caller has left; a write may find out before `connection_lost` is called."""


class _Connection(asyncio.Protocol):
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
        head = _Head(method, path, {k.strip().lower(): v.strip() for k, v in pairs})
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

    async def _answer(self, head: _Head, body: bytes) -> None:
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
        script = _script(self.fake.defaults, head, document, model)
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

    async def _knows(self, script: Script, head: _Head) -> bool:
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

    async def _own(self, head: _Head) -> None:
        if head.path == "/__reset":
            self.fake.records.clear()
        body = json.dumps([dataclasses.asdict(r) for r in self.fake.records]).encode()
        await self._send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )


def _script(defaults: Script, head: _Head, document: Json, model: str = "") -> Script:
    told: dict[str, Any] = {}
    _, _, suffix = model.partition("@")
    for pair in suffix.split(",") if suffix else ():
        key, _, value = pair.partition("=")
        told[key] = value
    for name, value in head.headers.items():
        if name.startswith("x-fake-"):
            told[name[7:].replace("-", "_")] = value
    if isinstance(document.get("fake"), dict):
        told.update(document["fake"])
    changes = {}
    for item in dataclasses.fields(Script):
        if item.name in told:
            changes[item.name] = _typed(type(getattr(defaults, item.name)), told[item.name])
    return dataclasses.replace(defaults, **changes)


def _typed(kind: type, value: Any) -> Any:
    if kind is bool:
        return value in {True, "1", "true", "True"}
    if kind is int and isinstance(value, str) and "." in value:
        return float(value)
    return kind(value)


@contextlib.asynccontextmanager
async def running_upstream(
    defaults: Script | None = None,
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    attempt_header: str = "x-patchbay-attempt",
    log: Path | None = None,
    accepts: Callable[[str], Awaitable[bool]] | None = None,
) -> AsyncIterator[FakeUpstream]:
    """Serve until the block ends; `fake.port` is the port."""
    fake = FakeUpstream(defaults, attempt_header=attempt_header, log=log, accepts=accepts)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(fake), host, port, backlog=2048)
    fake.port = server.sockets[0].getsockname()[1]
    try:
        yield fake
    finally:
        server.close()
        fake.close()
        await asyncio.sleep(0)
        await server.wait_closed()


@contextlib.asynccontextmanager
async def introspecting(url: str) -> AsyncIterator[Callable[[str], Awaitable[bool]]]:
    """Give what asks an identity server whether an access token lives (RFC 7662)."""
    import httpx  # noqa: PLC0415 - only where it is wanted; it takes a while to load

    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as client:

        async def lives(token: str) -> bool:
            answer = await client.get(url, params={"token": token})
            return answer.json().get("active") is True

        yield lives


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--attempt-header", default="x-patchbay-attempt")
    parser.add_argument("--set", action="append", default=[], help="a default: chunks=64")
    parser.add_argument("--introspect", help="URL that says whether an access token lives")
    options = parser.parse_args()
    told = dict(pair.split("=", 1) for pair in options.set)
    defaults = _script(Script(), _Head("", "", {}), {"fake": told})
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        accepts = None
        if options.introspect:
            accepts = await stack.enter_async_context(introspecting(options.introspect))
        fake = await stack.enter_async_context(
            running_upstream(
                defaults,
                port=options.port,
                host=options.host,
                attempt_header=options.attempt_header,
                log=options.log,
                accepts=accepts,
            )
        )
        print(f"listening on {fake.url}", flush=True)  # noqa: T201 - the caller waits for this line
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main())
