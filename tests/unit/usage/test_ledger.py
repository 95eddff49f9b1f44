"""The ledger on SQLite: one row per attempt, rollups that agree, reports, schema."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect
from tests.fakes import ledger_check
from tests.fakes.journal_events import START, make_event

from patchbay.errors import FailedPrecondition, InvalidRequest, Unavailable
from patchbay_gateway.plugins.snapshot import PriceEntry
from patchbay_gateway.usage import migrations
from patchbay_gateway.usage.events import Usage
from patchbay_gateway.usage.ledger import Ledger
from patchbay_gateway.usage.query import GROUPINGS, sums
from patchbay_gateway.usage.reduce import HOUR
from patchbay_gateway.usage.watermarks import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Connection

    from patchbay_gateway.usage.query import Sums

TOKENS = {"input_tokens": 10, "output_tokens": 5, "images": 1}
PRICES = (PriceEntry("*", "*", {"input_tokens": 10**6, "images": 5 * 10**6}),)


async def report(ledger: Ledger, by: str = "model", since: int = 0) -> list[Sums]:
    return await ledger.read(sums(by, since))


async def test_record_of_opened_and_settled_leaves_one_row_and_its_sums(ledger: Ledger) -> None:
    await ledger.add_prices(1, PRICES)
    progress = await ledger.record(
        [make_event("opened", sequence=1), make_event("settled", at=1, usage=TOKENS, sequence=2)]
    )
    assert progress == {"w1": Progress(2)}
    (row,) = await ledger.rows()
    assert (row.state, row.outcome, row.cost_nano) == ("final", "succeeded", 15)
    assert row.usage is not None
    assert row.usage.other == (("images", 1),)
    (total,) = await report(ledger)
    assert (total.key, total.requests, total.attempts) == ("gpt", 1, 1)
    assert (total.input_tokens, total.cost_nano) == (10, 15)


async def test_record_of_the_same_again_changes_nothing(ledger: Ledger) -> None:
    events = [
        make_event("opened", sequence=1),
        make_event("renewed", n=1, at=15, usage=TOKENS, sequence=2),
        make_event("settled", at=20, usage=TOKENS, sequence=3),
        make_event("refused", 2, outcome="failed", sequence=4),
    ]
    await ledger.record(events)
    before = (await ledger.rows(), await report(ledger))
    for event in reversed(events):
        await ledger.record([event, event])
    assert (await ledger.rows(), await report(ledger)) == before


async def test_record_of_more_than_one_statement_takes(ledger: Ledger) -> None:
    """1,000 attempts: every size of the prepared inserts, and two parts of the look-up."""
    kinds = ("opened", "settled")
    events = [make_event(kind, i, usage=TOKENS) for kind in kinds for i in range(1000)]
    await ledger.record(events[:1000])
    assert await ledger.open_attempts() == 1000
    await ledger.record(events[1000:])
    assert await ledger.open_attempts() == 0
    (total,) = await report(ledger)
    assert total.attempts == 1000


async def test_record_refused_by_the_database_writes_nothing(ledger: Ledger) -> None:
    huge = msgspec.structs.replace(make_event("settled", 2), usage=Usage(1 << 63))
    events = [make_event("settled", 1), huge]
    with pytest.raises(InvalidRequest):
        await ledger.record(events)
    assert await ledger.rows() == []


async def test_record_into_a_broken_database_is_no_fault_of_the_events(
    ledger: Ledger, tmp_path: Path
) -> None:
    """Else every event would be put aside as if it were garbage."""
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute("DROP TABLE events")
    connection.commit()
    connection.close()
    with pytest.raises(Unavailable, match="no such table"):
        await ledger.record([make_event("settled")])


async def test_silent_attempt_is_lost_and_corrected_later(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.record(
        [make_event("opened"), make_event("renewed", n=1, at=15, usage=TOKENS)],
    )
    before = int((START + 16) * 1e6)
    uids = await ledger.silent_since(before, 10)
    assert len(uids) == 1
    assert await ledger.mark_lost(uids, before) == 1
    assert await ledger.mark_lost(uids, before) == 0
    (total,) = await report(ledger)
    assert (total.lost, total.estimated, total.output_tokens) == (1, 1, 5)
    await ledger.record([make_event("settled", at=99, usage={"output_tokens": 50})])
    (total,) = await report(ledger)
    assert (total.lost, total.estimated, total.output_tokens, total.attempts) == (0, 0, 50, 1)
    assert ledger_check.check([], tmp_path / "ledger.db").attempts == 1


async def test_attempt_that_showed_life_meanwhile_is_not_lost(ledger: Ledger) -> None:
    await ledger.record([make_event("opened")])
    before = int((START + 10) * 1e6)
    uids = await ledger.silent_since(before, 10)
    await ledger.record([make_event("renewed", n=1, at=30)])
    assert await ledger.mark_lost(uids, before) == 0


async def test_watermarks_survive_and_gaps_are_given_up(ledger: Ledger) -> None:
    await ledger.record([make_event("opened", sequence=5, writer="a")], skipped=[("b", 1)])
    assert await ledger.watermarks() == {"a": Progress(0, ((5, 5),)), "b": Progress(1)}
    assert await ledger.skip_gaps({"a": 3}) == {}
    assert await ledger.skip_gaps({"a": 0, "b": 1}) == {"a": Progress(5)}
    assert (await ledger.watermarks())["a"] == Progress(5)


async def test_prices_are_kept_for_those_who_come_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    first = await Ledger.open(url)
    await first.add_prices(100, PRICES)
    await first.add_prices(200, PRICES)
    await first.aclose()
    second = await Ledger.open(url)
    await second.record([make_event("settled", usage=TOKENS, version=150)])
    (row,) = await second.rows()
    assert (second.book.newest, row.cost_nano, row.price_version) == (100, 15, 150)
    await second.aclose()


async def test_prices_that_could_not_be_kept_are_kept_with_the_next_ones(tmp_path: Path) -> None:
    """Attempts that come late, after a restart, would be priced by an older list."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    first = await Ledger.open(url)
    write = first._database.write

    async def away(_: object) -> None:
        raise Unavailable("locked")

    first._database.write = away  # type: ignore[method-assign, assignment] # for a moment
    with pytest.raises(Unavailable):
        await first.add_prices(100, PRICES)
    first._database.write = write  # type: ignore[method-assign] # it is back
    await first.add_prices(100, PRICES)
    await first.aclose()
    second = await Ledger.open(url)
    assert second.book.newest == 100
    await second.aclose()


# -- reports --------------------------------------------------------------------------------------


async def test_report_by_each_grouping(ledger: Ledger) -> None:
    await ledger.record(
        [
            make_event("settled", 1, usage=TOKENS),
            make_event("settled", 2, opened=3600, credential="b", client_key="k", model="m2"),
            make_event("refused", 3, outcome="failed"),
        ]
    )
    keys = {by: [group.key for group in await report(ledger, by)] for by in GROUPINGS}
    hour = START * 1_000_000 // HOUR * HOUR
    assert keys == {
        "model": ["gpt", "m2"],
        "provider": ["", "openai"],
        "credential": ["", "b", "main"],
        "client-key": ["k", "laptop"],
        "plugin": ["", "openai-compatible"],
        "hour": [hour, hour + HOUR],
    }
    by_model = {group.key: group for group in await report(ledger)}
    assert (by_model["gpt"].requests, by_model["gpt"].attempts, by_model["gpt"].failed) == (2, 1, 1)


async def test_models_that_do_not_exist_are_rows_but_no_groups(ledger: Ledger) -> None:
    """Whoever makes names up must not make rollups; in whole hours and in the ragged one alike."""
    await ledger.record(
        [
            make_event(
                "refused", i, outcome="failed", model=f"made-up-{i}", reason="MODEL_NOT_FOUND"
            )
            for i in range(5)
        ]
    )
    for since in (0, int(START * 1e6) - 1):
        (group,) = await report(ledger, since=since)
        assert (group.key, group.requests, group.failed) == ("", 5, 5)


@given(
    since=st.integers(-100, 3 * 3600),
    opened=st.lists(st.integers(0, 2 * 3600), min_size=1, max_size=6),
)
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_report_since_any_instant_counts_what_was_opened_then_or_later(
    tmp_path_factory: pytest.TempPathFactory, since: int, opened: list[int]
) -> None:
    async def scenario() -> None:
        path = tmp_path_factory.mktemp("ledger") / "ledger.db"
        ledger = await Ledger.open(f"sqlite:///{path}")
        events = [make_event("settled", i, opened=at, usage=TOKENS) for i, at in enumerate(opened)]
        refused = [
            make_event("refused", 100 + i, opened=at, outcome="failed")
            for i, at in enumerate(opened[:2])
        ]
        await ledger.record([*events, *refused, make_event("opened", 999, opened=max(opened))])
        found = await report(ledger, "hour", int((START + since) * 1e6))
        later = sum(at >= since for at in opened)
        turned_away = sum(at >= since for at in opened[:2])
        assert sum(group.attempts for group in found) == later
        assert sum(group.requests for group in found) == later + turned_away
        assert sum(group.input_tokens for group in found) == 10 * later
        await ledger.aclose()

    asyncio.run(scenario())


# -- schema ---------------------------------------------------------------------------------------


def _shape(connection: Connection) -> dict[str, object]:
    inspector = inspect(connection)
    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            inspector.get_pk_constraint(table)["constrained_columns"],
            sorted((i["name"] or "", i["column_names"]) for i in inspector.get_indexes(table)),
        )
        for table in inspector.get_table_names()
    }


async def test_migrations_lead_to_the_schema_of_today(ledger: Ledger, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'history.db'}")
    with engine.begin() as connection:
        migrations.migrate(connection)
        migrations.upgrade(connection)
        history = _shape(connection)
    engine.dispose()
    assert history == await ledger.read(_shape)
    assert "rollups" in history


async def test_migrations_head_is_the_newest_revision() -> None:
    from alembic.config import Config  # noqa: PLC0415 - slow to import
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - the same

    config = Config()
    assert migrations.__file__ is not None
    config.set_main_option("script_location", migrations.__file__.removesuffix("/__init__.py"))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


async def test_ledger_of_a_newer_release_is_refused_with_a_remedy(
    ledger: Ledger, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    await ledger.aclose()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(FailedPrecondition, match="9999, newer"):
        await Ledger.open(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:"])
async def test_ledger_at_a_wrong_url_says_what_to_write(url: str) -> None:
    with pytest.raises(FailedPrecondition, match="sqlite"):
        await Ledger.open(url)
