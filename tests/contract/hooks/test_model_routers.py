"""Model routers, asked as the pipeline asks them, behind both channels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.router import ModelRouter, ModelRouteRequest, ModelRouteResponse, ModelRouteTargetKind
from patchbay_gateway.plugins.model_router import ModelRoute, ModelRouters
from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)
KIND = ModelRouteTargetKind


class Router(ModelRouter):
    """Answers what the test put in."""

    name: ClassVar = "Router"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self, answer: ModelRouteResponse | Exception | None) -> None:
        self.answer = answer
        self.seen: list[ModelRouteRequest] = []

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        self.seen.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class First(Router):
    id: ClassVar = "first"


class Second(Router):
    id: ClassVar = "second"


class Hanging(Router):
    id: ClassVar = "hanging"

    async def route_model(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        await asyncio.Event().wait()
        raise AssertionError


def to(kind: ModelRouteTargetKind, target: str = "", model: str = "") -> ModelRouteResponse:
    return ModelRouteResponse(handled=True, target_kind=kind, target=target, target_model=model)


async def route(
    hosted: Hosted, executors: tuple[str, ...] = ("first", "other"), **changes: Any
) -> ModelRoute | None:
    providers = (
        ProviderEntry(
            "openai",
            plugin="openai-compatible",
            credentials=(CredentialEntry("c", "c", "api_key", 1),),
        ),
        ProviderEntry(
            "spare",
            plugin="claude",
            credentials=(CredentialEntry("d", "d", "api_key", 1, disabled=True),),
        ),
        ProviderEntry("bare", plugin="claude"),
    )
    snapshot = Snapshot(1, plugins=hosted.snapshot.plugins, providers=providers)
    routers = ModelRouters(hosted.hooks, hosted.calls)
    execution = hosted.execution(snapshot=snapshot, **changes)
    return await routers.route(
        routers.of(execution),
        execution,
        headers=[(b"x-a", b"1")],
        query={"alt": ["sse"]},
        body=b'{"model":"gpt-5.5"}',
        serves=executors.__contains__,
    )


async def test_first_that_handles_wins(channel: str) -> None:
    first, second = First(to(KIND.EXECUTOR, "other")), Second(to(KIND.SELF))
    async with hosting([first, second], channel) as hosted:
        assert await route(hosted) == ModelRoute("first", executor="other")
        assert second.seen == []


@pytest.mark.parametrize(
    "answer",
    [
        None,
        ModelRouteResponse(handled=False, target_kind=KIND.SELF),
        errors.FailedPrecondition("no", reason="NO"),
        RuntimeError("a bug"),
        to(KIND.EXECUTOR, "not-there"),
        to(KIND.EXECUTOR),
        to(KIND.UNSPECIFIED, "other"),
        to(KIND.PROVIDER, "unknown"),
        to(KIND.PROVIDER, "spare"),
        to(KIND.PROVIDER, "bare"),
        to(KIND.PROVIDER),
    ],
    ids=str,
)
async def test_answer_that_leads_nowhere_passes_the_question_on(
    channel: str, answer: ModelRouteResponse | Exception | None
) -> None:
    async with hosting([First(answer), Second(to(KIND.EXECUTOR, "other"))], channel) as hosted:
        assert await route(hosted) == ModelRoute("second", executor="other")


async def test_router_that_hangs_costs_its_deadline(channel: str) -> None:
    limits = {"timeouts": {"model_router": 0.2}}
    plugins = [Hanging(None), Second(to(KIND.EXECUTOR, "other"))]
    async with hosting(plugins, channel, hanging=limits) as hosted:
        assert await route(hosted) == ModelRoute("second", executor="other")


async def test_self_is_the_routers_own_executor(channel: str) -> None:
    async with hosting([First(to(KIND.SELF, "other"))], channel) as hosted:
        assert await route(hosted) == ModelRoute("first", executor="first")
        assert await route(hosted, executors=()) is None


async def test_provider_needs_a_credential_and_may_name_a_model(channel: str) -> None:
    async with hosting([first := First(to(KIND.PROVIDER, "openai", " gpt-5 "))], channel) as hosted:
        assert await route(hosted) == ModelRoute("first", provider="openai", model="gpt-5")
        first.answer = to(KIND.PROVIDER, " openai")
        assert await route(hosted) == ModelRoute("first", provider="openai", model="gpt-5.5")


async def test_router_sees_the_request_and_who_is_available(channel: str) -> None:
    async with hosting([first := First(None)], channel) as hosted:
        assert await route(hosted, operation="count_tokens") is None
        (seen,) = first.seen
        assert list(seen.available_providers) == ["openai"]
        assert (seen.source_format, seen.requested_model) == ("openai", "gpt-5.5")
        assert (seen.operation, seen.stream) == ("count_tokens", False)
        assert seen.body == b'{"model":"gpt-5.5"}'
        assert (b"x-a", b"1") in list(seen.headers)


async def test_plugin_that_started_the_execution_is_not_asked_where_it_goes(channel: str) -> None:
    first, second = First(to(KIND.SELF)), Second(to(KIND.EXECUTOR, "other"))
    async with hosting([first, second], channel) as hosted:
        assert await route(hosted, skip="first") == ModelRoute("second", executor="other")
        assert first.seen == []
