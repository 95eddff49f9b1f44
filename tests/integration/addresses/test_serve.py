"""`patchbay.serve.serve` as an author's whole program (patchbay/serve.py)."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from patchbay.errors import Unavailable
from patchbay.keys import channel_key
from patchbay.plugin.v1 import executor_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.plugins import handshake
from patchbay_gateway.plugins.handshake import Host

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(32))
PROGRAM = """
import sys
from patchbay.executor import Executor, ExecutorResponse
from patchbay.serve import serve

class Shout(Executor):
    id = name = "shout"
    version, author = "1", "tests"
    input_formats = output_formats = ["openai"]

    async def execute(self, request):
        return ExecutorResponse(request.payload.upper())

serve(Shout(), address=sys.argv[1])
"""


async def start(tmp_path: Path, **environ: str) -> tuple[asyncio.subprocess.Process, str]:
    (tmp_path / "shout.py").write_text(PROGRAM)
    address = f"unix:{tmp_path}/s"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "shout.py"),
        address,
        env={k: v for k, v in os.environ.items() if not k.startswith("PATCHBAY_")} | environ,
        stderr=asyncio.subprocess.PIPE,
    )
    return process, address


async def until_listening(channel: RemoteChannel) -> handshake.Registration:
    """Register as soon as the process is there."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await handshake.register(
                    channel, Host("host-1", "1"), "shout", b"", [channel_key(KEY)]
                )
            except Unavailable:
                await asyncio.sleep(0.05)


async def test_program_serves_until_sigterm_and_ends_with_status_zero(tmp_path: Path) -> None:
    process, address = await start(tmp_path, PATCHBAY_PLUGIN_KEY=KEY.hex())
    channel = RemoteChannel(address)
    registration = await until_listening(channel)
    answer = await channel.unary(
        methods.EXECUTE,
        executor_pb2.ExecutorRequest(payload=b"hello"),
        deadline=None,
        metadata=handshake._metadata(Host("host-1", "1"), "shout", registration),
    )
    assert answer.payload == b"HELLO"
    process.terminate()
    async with asyncio.timeout(60):
        assert await process.wait() == 0
    await channel.close()


async def test_program_without_a_key_says_what_to_set(tmp_path: Path) -> None:
    process, _ = await start(tmp_path)
    _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().startswith("patchbay: no key for plugin shout: set PATCHBAY_PLUGIN_KEY")
