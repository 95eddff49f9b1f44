"""
Calls of an executor in this process: a sealed request, what was streamed, that nothing of it stays.

Not here: bodies, which are each dialect's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from patchbay import errors, secrets
from patchbay.executor import Executor, ExecutorRequest, StreamBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.executor import StreamItem
    from patchbay.plugin.v1 import executor_pb2

KEY = bytes(range(32))
"""Opens the secrets of all executors here."""


def addressed(
    message: executor_pb2.ExecutorRequest,
    plugin_id: str,
    url: str,
    *,
    origins: Sequence[str] | None = None,
    material: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    first_byte: float = 60,
    idle: float = 60,
) -> ExecutorRequest:
    """
    Give *message* a provider and a secret for it, and return it as the executor gets it.

    Args:
        message: What is asked.
        plugin_id: Whose key seals the secret.
        url: The provider's base URL.
        origins: Where the secret may go; None: to *url*.
        material: What the secret holds; None: an API key.
        headers: The client's.
        first_byte: Seconds.
        idle: Seconds.
    """
    message.attempt_uid = "01UID-1"
    message.secret.CopyFrom(
        secrets.seal(
            KEY,
            plugin_id,
            "main",
            1,
            origins if origins is not None else (url,),
            time.time() + 60,
            material or {"api_key": "test-key"},
        )
    )
    provider = message.provider
    provider.base_url = url
    provider.attempt_header = "X-Patchbay-Attempt"
    provider.first_byte_timeout.FromMilliseconds(int(first_byte * 1000))
    provider.idle_timeout.FromMilliseconds(int(idle * 1000))
    for header, value in (headers or {}).items():
        message.headers[header].values.append(value)
    return ExecutorRequest(message, secrets.SecretOpener([KEY]), plugin_id)


async def collect(
    executor: Executor, request: ExecutorRequest, began: asyncio.Event | None = None
) -> tuple[list[StreamItem], errors.PatchbayError | None]:
    """Return all items and the error that ended them; *began* is set with the first content."""
    items: list[StreamItem] = []
    try:
        async for item in executor.execute_stream(request):
            items.append(item)
            if began is not None and isinstance(item, StreamBatch):
                began.set()
    except errors.PatchbayError as error:
        return items, error
    return items, None


async def refusal(
    executor: Executor, request: ExecutorRequest, *, stream: bool
) -> errors.UpstreamError:
    """Return the error with which a call ends that delivers nothing."""
    if stream:
        items, error = await collect(executor, request)
        assert not items
    else:
        with pytest.raises(errors.UpstreamError) as caught:
            await executor.execute(request)
        error = caught.value
    assert isinstance(error, errors.UpstreamError)
    return error


def is_whole(error: errors.UpstreamError, status: int) -> None:
    """Check that all of `status=…, retry_after="7", error="no way"` has come through."""
    assert error.http_status == status
    assert orjson.loads(error.body)["error"]["message"] == "no way"
    assert error.content_type == "application/json"
    assert error.retry_after == 7
    assert error.sent is errors.Sent.YES
    assert (b"retry-after", b"7") in error.headers


async def leave_after_the_first_chunk(executor: Executor, request: ExecutorRequest) -> None:
    """Close a stream between two chunks."""
    items = executor.execute_stream(request)
    async with contextlib.aclosing(items):
        async for item in items:
            if isinstance(item, StreamBatch):
                break


def chunks_of(items: list[StreamItem]) -> list[bytes]:
    return [chunk for item in items if isinstance(item, StreamBatch) for chunk in item.chunks]


async def nothing_left() -> None:
    """Fail unless only the test and the fixture's own task remain: nothing of a call is left behind."""
    for _ in range(100):
        await asyncio.sleep(0)
        left = [t for t in asyncio.all_tasks() if "_answer" not in repr(t)]
        if len(left) <= 2:
            return
    raise AssertionError(left)
