"""Dataclasses of `patchbay.executor` to messages. Hot: runs for every batch of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay.plugin.v1 import executor_pb2
from patchbay.status import headers_to_map

if TYPE_CHECKING:
    from patchbay.executor import ExecutorResponse, StreamBatch, StreamHead, StreamTail, Usage
    from patchbay.type.v1 import usage_pb2


def usage_message(usage: Usage, into: usage_pb2.Usage) -> None:
    """Write *usage* into a message."""
    into.estimated = usage.estimated
    add = into.items.add
    for unit, quantity in usage.items:
        add(unit=unit, quantity=quantity)


def response_message(answer: ExecutorResponse) -> executor_pb2.ExecutorResponse:
    """Return the message of a whole answer."""
    message = executor_pb2.ExecutorResponse(
        payload=answer.payload,
        status=answer.status,
        content_type=answer.content_type,
        metadata=answer.metadata,
    )
    if answer.headers:
        headers_to_map(answer.headers, message.headers)
    if answer.usage is not None:
        usage_message(answer.usage, message.usage)
    return message


def head_message(item: StreamHead) -> executor_pb2.ExecutorStreamResponse:
    """Return the first message of a stream."""
    message = executor_pb2.ExecutorStreamResponse()
    head = message.head
    head.status = item.status
    head.content_type = item.content_type
    headers_to_map(item.headers, head.headers)
    return message


def batch_message(item: StreamBatch) -> executor_pb2.ExecutorStreamResponse:
    """Return the message of a batch."""
    message = executor_pb2.ExecutorStreamResponse()
    batch = message.batch
    batch.chunks.extend(item.chunks)
    if item.usage_so_far is not None:
        usage_message(item.usage_so_far, batch.usage_so_far)
    return message


def tail_message(item: StreamTail) -> executor_pb2.ExecutorStreamResponse:
    """Return the last message of a stream."""
    message = executor_pb2.ExecutorStreamResponse()
    tail = message.tail
    tail.SetInParent()
    if item.metadata:
        tail.metadata = item.metadata
    if item.usage is not None:
        usage_message(item.usage, tail.usage)
    return message
