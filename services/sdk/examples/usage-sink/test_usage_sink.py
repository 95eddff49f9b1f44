"""Tests of the example: a line for each attempt, once, also after a restart; the contract."""

import asyncio
import json
from pathlib import Path

import pytest
from usage_sink import UsageSink

from patchbay import errors
from patchbay.testing.harness import conformance_of
from patchbay.usage_plugin import UsageDetail, UsageItem, UsageRecord

RECORD = UsageRecord(
    "01A-1", "m", provider="openai", detail=UsageDetail([UsageItem("input_tokens", 3)])
)


def test_record_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def life() -> None:
        plugin = UsageSink()
        await plugin.configure(f"path: {path}".encode())
        await asyncio.gather(*(plugin.handle_usage(RECORD) for _ in range(3)))

    asyncio.run(life())
    asyncio.run(life())
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["usage"] == {"input_tokens": 3}


def test_path_that_cannot_be_is_told(tmp_path: Path) -> None:
    config = f"path: {tmp_path}/nowhere/usage.jsonl".encode()
    with pytest.raises(errors.InvalidRequest, match="No such file"):
        asyncio.run(UsageSink().configure(config))


def test_contract_is_kept(tmp_path: Path) -> None:
    configs = {UsageSink.id: f"path: {tmp_path}/usage.jsonl".encode()}
    (report,) = asyncio.run(conformance_of(UsageSink(), configs=configs))
    assert report.passed, report.table()
