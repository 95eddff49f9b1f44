"""A model's name with a suffix that asks for thinking, through the pipeline."""

from __future__ import annotations

import json

import pytest
from tests.harness import virtual_time
from tests.harness.pipeline import Edge, Script, pool


@pytest.mark.parametrize(("allowed", "status"), [("m", 200), ("other", 404)])
def test_allow_list_speaks_of_the_model_and_not_of_its_suffix(allowed: str, status: int) -> None:
    async def ask() -> None:
        edge = Edge(Script(), pool("a"), models=(allowed,))
        assert (await edge.ask(b'{"model":"m(high)"}')).status == status

    virtual_time.run(ask())


def test_suffix_is_taken_off_and_written_in_the_providers_words() -> None:
    async def ask() -> None:
        script = Script()
        assert (await Edge(script, pool("a")).ask(b'{"model":"m(high)"}')).status == 200
        (request,) = script.requests
        assert json.loads(request.payload) == {"model": "up", "reasoning_effort": "high"}
        assert script.acquired[0].attempt.model == "m"

    virtual_time.run(ask())


def test_name_that_is_unknown_without_its_suffix_too_is_told_as_it_was_asked() -> None:
    async def ask() -> None:
        client = await Edge(Script(), pool("a")).ask(b'{"model":"nobody(high)"}')
        assert client.status == 404
        assert b"nobody(high)" in client.answer

    virtual_time.run(ask())
