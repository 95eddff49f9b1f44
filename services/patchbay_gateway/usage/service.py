"""
The usage service on the wire: questions to the ledger (`patchbay.usage.v1.UsageService`).

Not here: the sums (query.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from patchbay.errors import InvalidRequest, Unavailable
from patchbay.usage.v1 import usage_pb2, usage_pb2_grpc
from patchbay_gateway.usage.query import Sums, sums

if TYPE_CHECKING:
    from patchbay_gateway.kernel.channels.port import CallContext
    from patchbay_gateway.usage.consumer import Consumer
    from patchbay_gateway.usage.ledger import Ledger
    from patchbay_gateway.usage.stream import Stream

SERVICE: Final = "patchbay.usage.v1.UsageService"

_GROUPINGS: Final = {
    usage_pb2.GROUP_BY_MODEL: "model",
    usage_pb2.GROUP_BY_PROVIDER: "provider",
    usage_pb2.GROUP_BY_CREDENTIAL: "credential",
    usage_pb2.GROUP_BY_CLIENT_KEY: "client-key",
    usage_pb2.GROUP_BY_PLUGIN: "plugin",
    usage_pb2.GROUP_BY_HOUR: "hour",
}


class UsageServicer(usage_pb2_grpc.UsageServiceServicer):
    """
    The servicer.

    Args:
        ledger: Asked.
        stream: Asked for dead letters.
        consumer: Asked whether it reads.
    """

    def __init__(self, ledger: Ledger, stream: Stream, consumer: Consumer) -> None:
        self._ledger = ledger
        self._stream = stream
        self._consumer = consumer

    async def Query(  # noqa: N802 - the contract's name
        self, request: usage_pb2.QueryRequest, context: CallContext
    ) -> usage_pb2.QueryResponse:
        """
        Sum the ledger.

        Raises:
            InvalidRequest: No grouping, or one that is unknown.
            Unavailable: The ledger's database is away.
        """
        by = _GROUPINGS.get(request.by)
        if by is None:
            raise InvalidRequest("name a grouping of the report", reason="NO_GROUPING")
        since = request.since.ToMicroseconds() if request.HasField("since") else 0
        found = await self._ledger.read(sums(by, max(0, since)))
        return usage_pb2.QueryResponse(rows=[_row(each) for each in found])

    async def GetProgress(  # noqa: N802 - the contract's name
        self, request: usage_pb2.GetProgressRequest, context: CallContext
    ) -> usage_pb2.GetProgressResponse:
        """
        Tell how far the ledger is; dead letters are 0 while Redis is away.

        Raises:
            Unavailable: The ledger's database is away.
        """
        try:
            dead = await self._stream.dead_letters()
        except Unavailable:
            dead = 0
        progress = await self._ledger.watermarks()
        return usage_pb2.GetProgressResponse(
            watermarks={writer: reached.sequence for writer, reached in progress.items()},
            dead_letters=dead,
            open_attempts=await self._ledger.open_attempts(),
        )

    def health(self) -> str | None:
        """Return why the journal is not read, None when it is: a check of /readyz."""
        return self._consumer.trouble or None


def _row(group: Sums) -> usage_pb2.UsageRow:
    key = group.key
    if isinstance(key, int):
        key = datetime.fromtimestamp(key // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return usage_pb2.UsageRow(
        key=key,
        requests=group.requests,
        attempts=group.attempts,
        failed=group.failed,
        lost=group.lost,
        estimated=group.estimated,
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
        cache_read_tokens=group.cache_read_tokens,
        cache_creation_tokens=group.cache_creation_tokens,
        reasoning_tokens=group.reasoning_tokens,
        cost_nano=group.cost_nano,
    )
