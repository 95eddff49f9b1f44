"""
An executor of the tests' own as a process: answers with its address, streams on demand.

    python executor_process.py HOST:PORT

Prints `ready` once it listens, and `slow` when it is asked to be. SIGTERM drains it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, ClassVar

from patchbay.executor import (
    Executor,
    ExecutorRequest,
    ExecutorResponse,
    StreamBatch,
    StreamHead,
    StreamItem,
    StreamTail,
)
from patchbay.serve import PluginServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

KEY = b"a test's plugin key, 32 bytes..."


def say(word: str) -> None:
    """Tell the test."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


class Pinger(Executor):
    id = "pinger"
    name = "Pinger"
    version = "1"
    author = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    def __init__(self, address: str) -> None:
        self._address = address

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        if request.payload == b"slow":
            say("slow")
            await asyncio.sleep(60)
        return ExecutorResponse(self._address.encode())

    async def execute_stream(self, request: ExecutorRequest) -> AsyncGenerator[StreamItem, None]:
        yield StreamHead()
        for number in range(int(request.payload)):
            yield StreamBatch([b"%d" % number])
            await asyncio.sleep(0.05)
        yield StreamTail()


async def main(address: str) -> None:
    server = PluginServer([Pinger(address)], {"pinger": [KEY]})
    await server.start(address)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    say("ready")
    await stop.wait()
    await server.drain(10.0, notice=0.3)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
