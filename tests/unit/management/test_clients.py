"""The question to the usage service."""

from __future__ import annotations

from typing import Any

import pytest

from patchbay.usage.v1 import usage_pb2
from patchbay_gateway.edge.management.clients import UsageReports
from patchbay_gateway.edge.management.port import Grouping


class Ledger:
    """A channel to a usage service that answers one row."""

    def __init__(self) -> None:
        self.request: usage_pb2.QueryRequest | None = None

    async def unary(self, method: Any, request: Any, *, deadline: float, metadata: Any = ()) -> Any:
        self.request = request
        row = usage_pb2.UsageRow(
            key="k",
            requests=1,
            attempts=2,
            failed=3,
            lost=4,
            estimated=5,
            input_tokens=6,
            output_tokens=7,
            cache_read_tokens=8,
            cache_creation_tokens=9,
            reasoning_tokens=10,
            cost_nano=11,
        )
        return usage_pb2.QueryResponse(rows=[row])


async def test_row_has_every_key_of_a_report():
    rows = await UsageReports(Ledger())(None, "client-key")  # type: ignore[arg-type]

    assert rows == [
        {
            "client_key": "k",
            "requests": 1,
            "attempts": 2,
            "failed": 3,
            "lost": 4,
            "estimated": 5,
            "input_tokens": 6,
            "output_tokens": 7,
            "cache_read_tokens": 8,
            "cache_creation_tokens": 9,
            "reasoning_tokens": 10,
            "cost_nano": 11,
        }
    ]


@pytest.mark.parametrize("by", list(Grouping))
async def test_every_grouping_is_asked_for(by):
    ledger = Ledger()

    (row,) = await UsageReports(ledger)(1.5, by.value)  # type: ignore[arg-type]

    assert ledger.request is not None
    name = usage_pb2.GroupBy.Name(ledger.request.by)
    assert name == f"GROUP_BY_{by.value.upper().replace('-', '_')}"
    assert ledger.request.since.ToMilliseconds() == 1500
    assert next(iter(row)) == by.value.replace("-", "_")
