"""
The management API's question to the usage service.

Not here: how the service is reached (kernel/channels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay.usage.v1 import usage_pb2
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from patchbay_gateway.kernel.channels.port import Channel

DEADLINE: Final = 30.0
"""Seconds for a report over a large ledger."""

_GROUPS: Final = {
    "model": usage_pb2.GROUP_BY_MODEL,
    "provider": usage_pb2.GROUP_BY_PROVIDER,
    "credential": usage_pb2.GROUP_BY_CREDENTIAL,
    "client-key": usage_pb2.GROUP_BY_CLIENT_KEY,
    "plugin": usage_pb2.GROUP_BY_PLUGIN,
    "hour": usage_pb2.GROUP_BY_HOUR,
}


class UsageReports:
    """`ManagementPorts.usage` over a channel to the usage service."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __call__(self, since: float | None, by: str) -> list[dict[str, Any]]:
        """
        Return the rows of a report.

        Args:
            since: Unix seconds; None means all.
            by: A value of `port.Grouping`.

        Raises:
            Unavailable: The usage service does not answer.
        """
        request = usage_pb2.QueryRequest(by=_GROUPS[by])
        if since is not None:
            request.since.FromNanoseconds(max(0, int(since * 1e9)))
        answer = await self._channel.unary(methods.QUERY, request, deadline=DEADLINE)
        return [_row(row, by.replace("-", "_")) for row in answer.rows]


def _row(row: usage_pb2.UsageRow, key: str) -> dict[str, Any]:
    return {
        key: row.key,
        "requests": row.requests,
        "attempts": row.attempts,
        "failed": row.failed,
        "lost": row.lost,
        "estimated": row.estimated,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cache_read_tokens": row.cache_read_tokens,
        "cache_creation_tokens": row.cache_creation_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "cost_nano": row.cost_nano,
    }
