"""What the SDKs' requests cost: the ledger against the provider's own count, in every dialect."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from tests.fakes.ledger_check import compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anthropic
    import httpx
    import openai
    from google import genai
    from tests.harness.topology import Services, Up
    from tests.harness.upstream import Upstream
    from tests.integration.sdk.conftest import Place

FAKE = {"cached": 11, "reasoning": 3, "created": 6, "created_1h": 2, "searches": 2}


def rows(ledger: Path, attempts: list[str]) -> list[dict[str, Any]]:
    """Return the ledger's final rows of *attempts*, waiting until all are there."""
    marks = ",".join("?" * len(attempts))
    sql = f"SELECT * FROM attempts WHERE state = 'final' AND attempt_uid IN ({marks})"
    deadline = time.monotonic() + 60
    while True:
        with contextlib.closing(
            sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=60)
        ) as connection:
            connection.row_factory = sqlite3.Row
            found = [dict(row) for row in connection.execute(sql, attempts)]
        if len(found) == len(attempts):
            return found
        assert time.monotonic() < deadline, (len(found), attempts)
        time.sleep(0.1)  # polls another process


def run_openai(sdk: openai.OpenAI, mark: str) -> None:
    for stream in (False, True):
        answer: Any = sdk.chat.completions.create(
            model="fake-model",
            messages=[{"role": "user", "content": mark}],
            stream=stream,
            extra_body={"fake": FAKE},
        )
        if stream:
            list(answer)


def run_anthropic(sdk: anthropic.Anthropic, mark: str) -> None:
    messages: Any = [{"role": "user", "content": mark}]
    for stream in (False, True):
        answer: Any = sdk.messages.create(
            model="claude-fake",
            max_tokens=9,
            messages=messages,
            stream=stream,
            extra_body={"fake": FAKE},
        )
        if stream:
            list(answer)
    sdk.messages.count_tokens(model="claude-fake", messages=messages)


def run_google(sdk: genai.Client, mark: str) -> None:
    from google.genai import types  # noqa: PLC0415 - heavy, and loaded by the fixtures already

    options = types.HttpOptions(extra_body={"fake": FAKE})
    config = types.GenerateContentConfig(http_options=options)
    sdk.models.generate_content(model="gemini-fake", contents=mark, config=config)
    list(sdk.models.generate_content_stream(model="gemini-fake", contents=mark, config=config))
    sdk.models.count_tokens(model="gemini-fake", contents=mark)


@pytest.mark.parametrize("kind", ["up", "services"])
def test_every_token_class_is_the_providers(
    kind: str,
    places: Callable[[str], Place],
    gateways: Callable[[str], Up | Services],
    upstream: Upstream,
) -> None:
    place, mark = places(kind), uuid.uuid4().hex
    with place.openai() as first, place.anthropic() as second, place.google() as third:
        run_openai(first, mark)
        run_anthropic(second, mark)
        run_google(third, mark)
    records = [r for r in upstream.records() if mark in r["body"]]
    assert len(records) == 8
    found = rows(gateways(kind).ledger_path, [r["attempt"] for r in records])
    report = compare(records, found)
    assert report.ok, report
    by_uid = {row["attempt_uid"]: row for row in found}
    for record in records:
        row, told = by_uid[record["attempt"]], record["tokens"]
        assert not row["estimated"]
        for unit in ("cache_read_tokens", "cache_creation_tokens", "reasoning_tokens"):
            assert (row[unit] or 0) == told.get(unit, 0), (record["path"], unit)


async def test_strangers_leave_no_row_and_known_clients_that_are_refused_do(
    gateway: Up | Services, http: httpx.AsyncClient, keyless: httpx.AsyncClient
) -> None:
    body = {"model": f"made-up-{uuid.uuid4().hex}", "messages": []}
    path = "/v1/chat/completions"
    for headers in ({}, {"authorization": "Bearer test-made-up-key"}):
        assert (await keyless.post(path, json=body, headers=headers)).status_code == 401
    assert (await http.post(path, json=body)).status_code == 404
    sql = "SELECT client_key, reason FROM requests WHERE model = ? OR client_key = ''"
    deadline = time.monotonic() + 60
    while True:
        with contextlib.closing(
            sqlite3.connect(f"file:{gateway.ledger_path}?mode=ro", uri=True, timeout=60)
        ) as connection:
            found = connection.execute(sql, [body["model"]]).fetchall()
        # Reports go out in order: a stranger's would be there before.
        if found:
            break
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)  # polls another process
    ((client_key, reason),) = found
    assert client_key
    assert reason == "MODEL_NOT_FOUND"
