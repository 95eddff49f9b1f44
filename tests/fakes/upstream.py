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
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # Run as a file, the folder on the path is this one and not the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.fakes.script import Script, script_of
from tests.fakes.upstream_connection import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.fakes.upstream_connection import Head


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
        self.protocols: set[Connection] = set()

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

    def arrived(self, head: Head, body: bytes) -> Record:
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
    server = await loop.create_server(lambda: Connection(fake), host, port, backlog=2048)
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
    defaults = script_of(Script(), {}, {"fake": told})
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
