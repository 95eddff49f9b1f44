"""
Clients under load: OpenAI chat requests, streamed and not, each answer judged by a client's eyes.

A `Verdict` says what the client saw; a stream that was cut but looks finished is the one thing that must
never happen. Bounded in count and time. Not here: figures (bench/).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


class Verdict(enum.Enum):
    """What a client saw."""

    COMPLETE = "complete"
    ERROR = "error"
    """A status of 400 or more, with a body in the dialect's error shape."""
    TERMINAL_ERROR = "terminal error"
    """A stream that ended with the dialect's error event."""
    CUT = "cut"
    """The connection broke; visible to any client."""
    REFUSED = "refused"
    """No connection."""
    LIES = "lies"
    """A stream that ended cleanly without its end, or an error without an error body."""


@dataclass
class Load:
    """A closed loop of clients against one gateway."""

    base_url: str
    headers: Mapping[str, str]
    model: str = "fake-model"
    clients: int = 8
    extra: Mapping[str, object] = field(default_factory=dict)
    """Added to each request body."""
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lies: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Keep the clients busy while the block runs; afterwards let each end its last request."""
        stop = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120, sock_connect=5)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            for n in range(self.clients):
                group.create_task(self._client(session, n, stop))
            try:
                yield self
            finally:
                stop.set()

    async def _client(self, session: aiohttp.ClientSession, n: int, stop: asyncio.Event) -> None:
        turn = n
        while not stop.is_set():
            verdict = await self.one(session, stream=turn % 2 == 0)
            self.verdicts[verdict] += 1
            turn += 1
            if verdict in {Verdict.REFUSED, Verdict.ERROR, Verdict.CUT}:
                # A real client backs off; without it an outage would be one busy loop.
                await asyncio.sleep(0.02)

    async def one(self, session: aiohttp.ClientSession, *, stream: bool) -> Verdict:
        """Send one request and judge the answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "stream": stream,
            **self.extra,
        }
        try:
            async with session.post(
                f"{self.base_url}/v1/chat/completions", json=body, headers=self.headers
            ) as response:
                self.statuses[response.status] += 1
                data = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            return Verdict.REFUSED
        except (aiohttp.ClientError, TimeoutError):
            return Verdict.CUT
        return self._judge(response.status, data, stream=stream)

    def _judge(self, status: int, data: bytes, *, stream: bool) -> Verdict:
        if status >= 400:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(data)["error"]["message"]:
                    return Verdict.ERROR
            self.lies.append(f"status {status} with body {data[:200]!r}")
            return Verdict.LIES
        if stream:
            if data.endswith(b"data: [DONE]\n\n"):
                return Verdict.COMPLETE
            last = data.rstrip().rpartition(b"data: ")[2]
            if last.startswith(b'{"error"'):
                return Verdict.TERMINAL_ERROR
        else:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(data)["choices"][0]["message"]["content"]:
                    return Verdict.COMPLETE
        self.lies.append(f"stream={stream} ended as {data[-200:]!r}")
        return Verdict.LIES
