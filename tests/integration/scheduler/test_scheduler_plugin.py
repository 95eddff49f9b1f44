"""A plugin that chooses credentials, and a scheduler on a real Valkey that asks it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, ClassVar

import pytest
from tests.integration.scheduler.conftest import FILE, ROOTS, acquire

from patchbay import errors
from patchbay.scheduler_plugin import (
    SchedulerBuiltin,
    SchedulerPickRequest,
    SchedulerPickResponse,
    SchedulerPlugin,
)
from patchbay.serve import PluginServer
from patchbay.type.v1 import headers_pb2
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.scheduler.service import SchedulerServicer


class Chooser(SchedulerPlugin):
    id: ClassVar = "chooser"
    name: ClassVar = "Chooser"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self) -> None:
        self.answers: list[SchedulerPickResponse | Exception] = []
        self.seen: list[SchedulerPickRequest] = []
        self.asked = asyncio.Semaphore(0)
        self.hold = asyncio.Event()
        self.hold.set()

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        self.seen.append(request)
        self.asked.release()
        await self.hold.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


CAPPED = FILE.replace("{id: two,", "{id: two, max_in_flight: 1,").replace(
    "providers:", "routing: {queue: {length: 0}}\nproviders:"
)


@contextlib.asynccontextmanager
async def asking(
    gateway: Any, plugin: Chooser, config: str = FILE, extra: str = ""
) -> AsyncIterator[tuple[SchedulerServicer, SnapshotHolder]]:
    """Run a scheduler that knows the plugin."""
    server = PluginServer([plugin], {plugin.id: [plugin_key(ROOTS.plugins[0], plugin.id)]})
    port = await server.start("127.0.0.1:0")
    # Its deadline is no test's subject here.
    patient = ", timeouts: {scheduler: 60s}"
    declared = f"plugins:\n  - {{id: chooser, address: '127.0.0.1:{port}'{patient}{extra}}}\n"
    try:
        async with gateway.scheduler(config=config + declared) as (servicer, holder):
            async with asyncio.timeout(90):
                while not servicer.plugins.registry.declared("chooser"):
                    await servicer.plugins.registry.wait_ready(["chooser"], 1)
            yield servicer, holder
    finally:
        plugin.hold.set()
        await server.stop()


async def leased(servicer: SchedulerServicer, holder: SnapshotHolder, uid: str, **more: Any) -> Any:
    """Return the result of one attempt."""
    assert holder.current is not None
    answer = await servicer.Acquire(acquire(holder.current.version, uid, **more))
    return answer.results[0]


async def test_chosen_credential_serves(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [SchedulerPickResponse(auth_id="two")]
    async with asking(gateway, plugin) as (servicer, holder):
        for n in range(3):
            told = {"x-tier": headers_pb2.StringList(values=["gold"])}
            result = await leased(servicer, holder, f"r{n}-1", headers=told)
            assert result.lease.attempt.credential_id == "two", result
    assert [c.id for c in plugin.seen[0].candidates] == ["one", "three", "two"]
    assert {c.status for c in plugin.seen[0].candidates} == {"ready"}
    options = plugin.seen[0].options
    assert options is not None
    assert list(options.headers) == [(b"x-tier", b"gold")]
    assert options.metadata["attempt"] == 1


async def test_delegate_uses_the_strategy_it_names(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [SchedulerPickResponse(delegate_builtin=SchedulerBuiltin.FILL_FIRST)]
    async with asking(gateway, plugin) as (servicer, holder):
        chosen = [(await leased(servicer, holder, f"r{n}-1")).lease for n in range(3)]
    assert {lease.attempt.credential_id for lease in chosen} == {"one"}


@pytest.mark.parametrize(
    "answer", [SchedulerPickResponse(handled=False), SchedulerPickResponse("x")]
)
async def test_configured_strategy_chooses_otherwise(
    gateway: Any, answer: SchedulerPickResponse
) -> None:
    plugin = Chooser()
    plugin.answers = [answer]
    async with asking(gateway, plugin) as (servicer, holder):
        chosen = [(await leased(servicer, holder, f"r{n}-1")).lease for n in range(3)]
    assert [lease.attempt.credential_id for lease in chosen] == ["one", "three", "two"]


async def test_error_fails_the_attempt_and_leaves_no_trace(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [errors.Internal("broken")]
    async with asking(gateway, plugin) as (servicer, holder):
        result = await leased(servicer, holder, "r-1")
    assert result.refusal.reason == "PLUGIN_FAILED"


async def test_error_that_is_ignored_leaves_the_choice(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [errors.Internal("broken")]
    extra = ", failure_policies: {scheduler: Ignore}"
    async with asking(gateway, plugin, extra=extra) as (servicer, holder):
        assert (await leased(servicer, holder, "r-1")).HasField("lease")


async def test_full_credential_is_no_candidate(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [SchedulerPickResponse(auth_id="two")]
    async with asking(gateway, plugin, CAPPED) as (servicer, holder):
        first = await leased(servicer, holder, "r1-1")
        second = await leased(servicer, holder, "r2-1")
    assert first.lease.attempt.credential_id == "two"
    assert second.HasField("lease")
    assert [c.id for c in plugin.seen[-1].candidates] == ["one", "three"]


async def test_last_place_goes_to_one_of_two_that_chose_it(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [SchedulerPickResponse(auth_id="two")]
    plugin.hold.clear()
    async with asking(gateway, plugin, CAPPED) as (servicer, holder):
        both = [asyncio.ensure_future(leased(servicer, holder, f"r{n}-1")) for n in range(2)]
        for _ in both:
            await plugin.asked.acquire()
        plugin.hold.set()
        chosen = [r.lease.attempt.credential_id for r in await asyncio.gather(*both)]
    assert chosen.count("two") == 1
    assert all(chosen)


async def test_batch_does_not_wait_for_the_plugin(gateway: Any) -> None:
    """Attempts that a plugin decides are asked for again, each alone."""
    plugin = Chooser()
    plugin.answers = [SchedulerPickResponse(auth_id="two")]
    plugin.hold.clear()
    extra = ", match: {client_keys: [other]}"
    async with asking(gateway, plugin, extra=extra) as (servicer, holder):
        assert holder.current is not None
        request = acquire(holder.current.version, "r1-1", "r2-1")
        request.items[1].attempt.client_key = "other"
        async with asyncio.timeout(90):
            answer = await servicer.Acquire(request)
    assert answer.results[0].HasField("lease")
    assert answer.results[1].refusal.reason == "CREDENTIALS_QUEUED"
    assert not plugin.seen


async def test_pinned_attempt_has_no_choice(gateway: Any) -> None:
    plugin = Chooser()
    plugin.answers = [SchedulerPickResponse(auth_id="two")]
    async with asking(gateway, plugin) as (servicer, holder):
        assert holder.current is not None
        request = acquire(holder.current.version, "r1-1")
        request.items[0].pinned_credential_id = "three"
        answer = await servicer.Acquire(request)
    assert answer.results[0].lease.attempt.credential_id == "three"
    assert not plugin.seen
