"""Thinking appliers, asked as the pipeline asks them, behind both channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay.thinking import ThinkingApplier, ThinkingApplyRequest
from patchbay_gateway.plugins.thinking import ThinkingAppliers

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)


class Applier(ThinkingApplier):
    """Writes the budget behind the payload."""

    id: ClassVar = "applier"
    name: ClassVar = "Applier"
    version: ClassVar = "1"
    author: ClassVar = "tests"
    identifier = "mine"

    async def apply_thinking(self, request: ThinkingApplyRequest) -> bytes | None:
        assert request.config is not None
        return request.body + b" %d" % request.config.budget


async def applied(hosted: Hosted, appliers: ThinkingAppliers, provider: str) -> bytes:
    return await appliers.apply(
        hosted.execution(), provider, "up", level="", budget=7, body=b"payload"
    )


async def test_only_payloads_of_its_provider_are_its_own(channel: str) -> None:
    async with hosting([Applier()], channel) as hosted:
        appliers = ThinkingAppliers(hosted.hooks, hosted.calls)
        assert await applied(hosted, appliers, "mine") == b"payload 7"
        assert await applied(hosted, appliers, "other") == b"payload"


async def test_provider_of_another_version_of_it_is_noticed(channel: str) -> None:
    plugin = Applier()
    async with hosting([plugin], channel) as hosted:
        appliers = ThinkingAppliers(hosted.hooks, hosted.calls)
        assert await applied(hosted, appliers, "other") == b"payload"
        for each in (plugin, Applier):
            each.identifier = "other"
        try:
            hosted.registry.generation += 1
            assert await applied(hosted, appliers, "other") == b"payload 7"
        finally:
            Applier.identifier = "mine"


async def test_request_that_it_does_not_match_is_not_its_own(channel: str) -> None:
    entry = {"match": {"models": ("claude-*",)}}
    async with hosting([Applier()], channel, applier=entry) as hosted:
        appliers = ThinkingAppliers(hosted.hooks, hosted.calls)
        assert await applied(hosted, appliers, "mine") == b"payload"
