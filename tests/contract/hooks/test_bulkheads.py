"""A plugin that hangs holds what is its own: other plugins of its capability go on, behind both channels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay.lifecycle import RequestCompletion, RequestLifecyclePlugin
from patchbay.management import (
    ManagementAPI,
    ManagementRegistrationRequest,
    ManagementRegistrationResponse,
    ManagementRoute,
)
from patchbay.plugin.v1 import scheduler_plugin_pb2
from patchbay.scheduler_plugin import SchedulerPickRequest, SchedulerPickResponse, SchedulerPlugin
from patchbay_gateway.plugins.lifecycle import AT_ONCE, WAITING, Completion, Lifecycle
from patchbay_gateway.plugins.management_api import ManagementPlugins
from patchbay_gateway.plugins.scheduler_plugin import AT_ONCE as QUESTIONS
from patchbay_gateway.plugins.scheduler_plugin import Choice, SchedulerPlugins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)
PATIENT: dict[str, Any] = {
    "timeouts": {"request_lifecycle_plugin": 60.0, "scheduler": 60.0, "management_api": 60.0}
}


class Named:
    name: ClassVar = "Named"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Gate:
    """Counts who has come, and lets nobody through before it is open."""

    def __init__(self) -> None:
        self._came = asyncio.Semaphore(0)
        self.open = asyncio.Event()

    async def passed(self) -> None:
        self._came.release()
        await self.open.wait()

    async def until(self, many: int) -> None:
        for _ in range(many):
            await asyncio.wait_for(self._came.acquire(), 60)


class Stuck(Named, RequestLifecyclePlugin, SchedulerPlugin, ManagementAPI):
    id: ClassVar = "stuck"

    def __init__(self) -> None:
        self.gate = Gate()

    async def handle_request_complete(self, completion: RequestCompletion) -> None:
        await self.gate.passed()

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        await self.gate.passed()
        return None

    async def register_management(
        self, request: ManagementRegistrationRequest
    ) -> ManagementRegistrationResponse:
        await self.gate.passed()
        return ManagementRegistrationResponse(routes=[ManagementRoute("late")])


class Well(Named, RequestLifecyclePlugin, SchedulerPlugin, ManagementAPI):
    id: ClassVar = "well"
    routes: ClassVar[Sequence[ManagementRoute]] = (ManagementRoute("well"),)

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()

    async def handle_request_complete(self, completion: RequestCompletion) -> None:
        self.heard.put_nowait(completion.request_id)

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        return SchedulerPickResponse(auth_id="a")


async def test_lifecycle_plugin_that_hangs_keeps_no_other_from_hearing(channel: str) -> None:
    async with hosting([stuck := Stuck(), well := Well()], channel, stuck=PATIENT) as hosted:
        lifecycle = Lifecycle(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        wanted = {f"r{n}" for n in range(AT_ONCE * 3)}
        for name in wanted:
            lifecycle.complete(execution, Completion(request_id=name))
        heard = {await asyncio.wait_for(well.heard.get(), 60) for _ in wanted}
        assert heard == wanted
        assert not stuck.gate.open.is_set()
        stuck.gate.open.set()
        # What waited is told once there is room for it.
        await stuck.gate.until(len(wanted))
        await lifecycle.aclose()
        assert lifecycle.dropped == 0


async def test_lifecycle_plugin_that_hangs_holds_a_bounded_number_of_ends(channel: str) -> None:
    async with hosting([stuck := Stuck()], channel, stuck=PATIENT) as hosted:
        lifecycle = Lifecycle(hosted.hooks, hosted.calls)
        execution = hosted.execution()
        for _ in range(AT_ONCE + WAITING + 7):
            lifecycle.complete(execution, Completion(request_id="r"))
        assert lifecycle.dropped == 7
        stuck.gate.open.set()
        await lifecycle.aclose()


def question() -> scheduler_plugin_pb2.SchedulerPickRequest:
    candidate = scheduler_plugin_pb2.SchedulerAuthCandidate(id="a", provider="p", status="ready")
    return scheduler_plugin_pb2.SchedulerPickRequest(model="m", candidates=[candidate])


async def test_scheduler_plugin_that_hangs_holds_only_those_who_ask_it(channel: str) -> None:
    async with hosting([stuck := Stuck(), Well()], channel, stuck=PATIENT) as hosted:
        plugins = SchedulerPlugins(hosted.hooks, hosted.calls)
        hooks = {hook.plugin_id: hook for hook in hosted.hooks.of(hosted.snapshot, "scheduler")}
        held = [
            asyncio.ensure_future(plugins.pick(hooks["stuck"], question()))
            for _ in range(QUESTIONS + 5)
        ]
        await stuck.gate.until(QUESTIONS)
        assert await plugins.pick(hooks["well"], question()) == Choice(auth_id="a")
        assert not any(task.done() for task in held)
        stuck.gate.open.set()
        assert await asyncio.gather(*held) == [None] * len(held)


def pages(hosted: Hosted) -> ManagementPlugins:
    return ManagementPlugins(
        hosted.registry, hosted.hooks, hosted.calls, lambda: hosted.snapshot, patience=0.2
    )


async def served(found: ManagementPlugins, path: str) -> str:
    """Return who has a route, once somebody has: a busy machine may need longer than the patience."""
    while (hook := await found.route("GET", f"/v0/management/{path}")) is None:  # noqa: ASYNC110 - asked again
        await asyncio.sleep(0.01)
    return hook.plugin_id


async def test_plugin_that_does_not_register_its_routes_delays_no_others(channel: str) -> None:
    async with hosting([stuck := Stuck(), Well()], channel, stuck=PATIENT) as hosted:
        found = pages(hosted)
        assert await served(found, "well") == "well"
        assert not stuck.gate.open.is_set()
        stuck.gate.open.set()
        assert await served(found, "late") == "stuck"
        await found.aclose()


async def test_questions_about_routes_end_with_their_asker(channel: str) -> None:
    async with hosting([stuck := Stuck()], channel, stuck=PATIENT) as hosted:
        found = pages(hosted)
        assert await found.route("GET", "/v0/management/late") is None
        await stuck.gate.until(1)
        await found.aclose()
        stuck.gate.open.set()
