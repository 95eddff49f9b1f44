"""Either executor, over the adapter that serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.executors.calls import nothing_left

from patchbay_gateway.executors.aiohttp_upstream import AiohttpUpstream
from patchbay_gateway.executors.claude import ClaudeExecutor
from patchbay_gateway.executors.gemini import GeminiExecutor
from patchbay_gateway.executors.http1_upstream import Http1Upstream
from patchbay_gateway.executors.proxies import Proxies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.executors.claude_and_gemini.asking import Tested


@pytest.fixture(params=["claude", "gemini"])
async def executor(request: pytest.FixtureRequest) -> AsyncIterator[Tested]:
    upstream = Http1Upstream(Proxies({}), AiohttpUpstream(Proxies({})))
    executor: Tested = GeminiExecutor(upstream)
    if request.param == "claude":
        executor = ClaudeExecutor(upstream)
    yield executor
    await executor.aclose()
    await upstream.aclose()
    await nothing_left()
