"""The same ledger on PostgreSQL, where one is installed."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from tests.fakes.journal_events import make_bytes, make_event

from patchbay.errors import InvalidRequest
from patchbay.usage.v1 import usage_pb2
from patchbay_gateway.usage.events import Usage
from patchbay_gateway.usage.ledger import Ledger
from patchbay_gateway.usage.query import GROUPINGS, sums

if TYPE_CHECKING:
    from tests.integration.usage.conftest import Bench

TOKENS = {"input_tokens": 10, "output_tokens": 5}
_NAMES = itertools.count(1)


@pytest.fixture
async def url(postgres: str) -> str:
    """URL of a database that no other test sees."""
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - with the server only

    name = f"ledger{next(_NAMES)}"
    engine = create_async_engine(
        postgres.replace("postgresql:", "postgresql+asyncpg:"), isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    return postgres.replace("/postgres?", f"/{name}?")


async def test_record_on_postgres_is_idempotent(url: str) -> None:
    ledger = await Ledger.open(url)
    events = [make_event(k, i, usage=TOKENS) for k in ("opened", "settled") for i in range(700)]
    events.append(make_event("refused", 9999, outcome="failed"))
    for batch in (events[:900], events, events[600:]):
        await ledger.record(batch)
    for by in GROUPINGS:
        for since in (0, 1_780_000_000_000_000 - 5):
            found = await ledger.read(sums(by, since))
            assert sum(group.attempts for group in found) == 700
            assert sum(group.requests for group in found) == 701
            assert sum(group.input_tokens for group in found) == 7000
    assert await ledger.open_attempts() == 0
    assert len(await ledger.rows()) == 700
    await ledger.aclose()


async def test_record_on_postgres_refuses_what_does_not_fit(url: str) -> None:
    ledger = await Ledger.open(url)
    event = make_event("settled")
    huge = type(event)(
        *(event.kind, 0, event.at, "w1", 1, event.uid, event.described),
        usage=Usage(1 << 63),
        settlement=event.settlement,
    )
    with pytest.raises(InvalidRequest):
        await ledger.record([huge])
    assert await ledger.rows() == []
    await ledger.aclose()


async def test_two_services_on_postgres_share_the_journal(bench: Bench, url: str) -> None:
    """Both start at once on an empty database, read one group, and neither loses nor doubles."""
    bench.database_url = url
    async with asyncio.timeout(200):
        async with bench.service(consumer="a") as first, bench.service(consumer="b"):
            for start in range(0, 1000, 50):
                await bench.send(
                    [
                        make_bytes(kind, i, usage=TOKENS, sequence=2 * i + at)
                        for i in range(start, start + 50)
                        for at, kind in ((1, "opened"), (2, "settled"))
                    ]
                )
            await bench.reaches(2000)
            request = usage_pb2.QueryRequest(by=usage_pb2.GROUP_BY_PROVIDER)
            (row,) = (await first.Query(request, None)).rows  # type: ignore[arg-type]  # unused
            assert (row.attempts, row.output_tokens) == (1000, 5000)
