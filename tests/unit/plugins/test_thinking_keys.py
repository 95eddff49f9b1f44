"""For which provider a thinking applier is, while it is replaced (plugins/thinking.py)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from patchbay.plugin.v1 import identifier_pb2, transform_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.thinking import ThinkingAppliers

HOOK = SimpleNamespace(plugin_id="p", entry=SimpleNamespace(config_hash="1"))
EXECUTION: Any = SimpleNamespace(snapshot=None, facts=None)


class Replaced:
    """Hooks and calls: one applier, which answers for what it is when a test lets it."""

    def __init__(self) -> None:
        self.generation = 1
        self.asked: asyncio.Queue[asyncio.Future[str]] = asyncio.Queue()

    def matching(self, *_: Any) -> tuple[Any, ...]:
        return (HOOK,)

    async def unary(self, _: Any, method: Any, request: Any) -> identifier_pb2.IdentifierResponse:
        assert method is methods.THINKING_IDENTIFIER
        assert isinstance(request, identifier_pb2.IdentifierRequest)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        return identifier_pb2.IdentifierResponse(identifier=await answer)

    async def ask(self, *_: Any) -> transform_pb2.PayloadResponse:
        return transform_pb2.PayloadResponse(body=b"thought")


async def apply(appliers: ThinkingAppliers, provider: str) -> bytes:
    return await appliers.apply(EXECUTION, provider, "m", level="high", budget=None, body=b"plain")


async def test_word_of_the_version_that_was_replaced_is_not_kept() -> None:
    replaced: Any = Replaced()
    appliers = ThinkingAppliers(replaced, replaced)
    async with asyncio.timeout(60):
        early = asyncio.create_task(apply(appliers, "claude"))
        old = await replaced.asked.get()
        replaced.generation = 2
        late = asyncio.create_task(apply(appliers, "openai"))
        (await replaced.asked.get()).set_result("openai")
        assert await late == b"thought"
        old.set_result("claude")
        assert await early == b"thought"
        assert await apply(appliers, "openai") == b"thought"
        assert await apply(appliers, "claude") == b"plain"
    assert replaced.asked.empty()
