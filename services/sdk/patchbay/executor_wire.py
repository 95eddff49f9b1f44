"""
Dataclasses of `patchbay.executor` to messages. Hot: runs for every batch of a stream.

Field by field: a message's keyword arguments cost three times as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay.plugin.v1 import executor_pb2
from patchbay.status import headers_to_map
from patchbay.type.v1 import usage_pb2

if TYPE_CHECKING:
    from patchbay.executor import ExecutorResponse, StreamBatch, StreamHead, StreamTail, Usage


def usage_message(usage: Usage, into: usage_pb2.Usage) -> None:
    """Write *usage* into a message."""
    into.estimated = usage.estimated
    add = into.items.add
    for unit, quantity in usage.items:
        item = add()
        item.unit = unit
        item.quantity = quantity


def response_message(answer: ExecutorResponse) -> executor_pb2.ExecutorResponse:
    """Return the message of a whole answer."""
    message = executor_pb2.ExecutorResponse()
    message.payload = answer.payload
    message.status = answer.status
    message.content_type = answer.content_type
    if answer.metadata:
        message.metadata = answer.metadata
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


class BatchWriter:
    """
    Makes the messages of one stream's batches.

    From batch to batch mostly one quantity of the usage changes, so the usage is kept as a message, changed
    where it must be and copied: a third of the cost of building it anew.
    """

    __slots__ = ("_items", "_kept")

    def __init__(self) -> None:
        self._kept = usage_pb2.Usage()
        self._items: list[tuple[str, usage_pb2.UsageItem]] = []

    def message(self, item: StreamBatch) -> executor_pb2.ExecutorStreamResponse:
        """Return the message of a batch."""
        message = executor_pb2.ExecutorStreamResponse()
        batch = message.batch
        batch.chunks.extend(item.chunks)
        if item.usage_so_far is not None:
            batch.usage_so_far.CopyFrom(self._usage(item.usage_so_far))
        return message

    def _usage(self, usage: Usage) -> usage_pb2.Usage:
        kept, items = self._kept, self._items
        if len(items) == len(usage.items) and kept.estimated == usage.estimated:
            for (known, into), (unit, quantity) in zip(items, usage.items, strict=True):
                if known != unit:
                    break
                into.quantity = quantity
            else:
                return kept
        kept.Clear()
        usage_message(usage, kept)
        self._items = [(item.unit, item) for item in kept.items]
        return kept


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
