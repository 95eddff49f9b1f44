"""A request that is right for either executor, and where the fake provider is for both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from tests.integration.executors.calls import addressed

from patchbay.plugin.v1 import executor_pb2

if TYPE_CHECKING:
    from tests.fakes.upstream import FakeUpstream

    from patchbay.executor import ExecutorRequest
    from patchbay_gateway.executors.claude import ClaudeExecutor
    from patchbay_gateway.executors.gemini import GeminiExecutor

    Tested = ClaudeExecutor | GeminiExecutor

BODIES: dict[str, dict[str, Any]] = {
    "claude": {"max_tokens": 99, "messages": [{"role": "user", "content": "hello there"}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}]},
}

# What only one of them has.
of_gemini = pytest.mark.parametrize("executor", ["gemini"], indirect=True)
of_claude = pytest.mark.parametrize("executor", ["claude"], indirect=True)


def make_request(
    executor: Tested,
    url: str,
    operation: str = "chat",
    *,
    stream: bool = False,
    origins: tuple[str, ...] | None = None,
    material: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    model: str = "m",
    alt: str = "",
    idle: float = 60,
    **fake: Any,
) -> ExecutorRequest:
    body = dict(BODIES[executor.id]) | {"fake": fake}
    if executor.id == "claude":
        body |= {"model": model, "stream": stream}
    message = executor_pb2.ExecutorRequest(
        model=model,
        format=executor.id,
        operation=operation,
        stream=stream,
        alt=alt,
        payload=orjson.dumps(body),
    )
    return addressed(
        message,
        executor.id,
        url,
        origins=origins,
        material=material,
        headers=headers,
        first_byte=idle,
        idle=idle,
    )


def base(fake: FakeUpstream) -> str:
    """Return the base URL as SDKs are given it: the bare host."""
    return fake.url.removesuffix("/v1")
