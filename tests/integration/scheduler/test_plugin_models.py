"""Plugins that tell models, and the snapshot that everybody runs on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

from tests.harness.ports import free_port
from tests.integration.scheduler.conftest import ROOTS, acquire

from patchbay import errors
from patchbay.models import (
    AuthModelRequest,
    ModelInfo,
    ModelProvider,
    ModelRegistrar,
    ModelRegistrationRequest,
    ModelRegistrationResponse,
    ModelResponse,
    StaticModelRequest,
)
from patchbay.serve import PluginServer
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from patchbay.capability import Plugin
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.service import SchedulerServicer

FILE = """
providers:
  - name: mine
    plugin: teller
    base_url: http://127.0.0.1:9/v1
    models: [m]
    credentials:
      - {id: one, api_key: test-key-one}
      - {id: two, api_key: test-key-two}
  - {name: other, plugin: openai-compatible, base_url: "http://127.0.0.1:9/v1", models: [o]}
"""


class Named:
    id: ClassVar = "teller"
    name: ClassVar = "Teller"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Teller(Named, ModelProvider, ModelRegistrar):
    def __init__(self) -> None:
        self.fails = False
        self.secrets: dict[str, str] = {}

    async def static_models(self, request: StaticModelRequest) -> ModelResponse:
        if self.fails:
            raise errors.Internal("not now")
        return ModelResponse([ModelInfo(" fixed "), ModelInfo("m"), ModelInfo(" ")])

    async def models_for_auth(self, request: AuthModelRequest) -> ModelResponse:
        if self.fails:
            raise errors.Internal("not now")
        assert request.secret is not None
        self.secrets[request.auth_id] = request.secret["api_key"]
        return ModelResponse([ModelInfo("all"), ModelInfo(f"of-[{request.auth_id}]")])

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        raise AssertionError("a model provider is not asked as a registrar")


class Registrar(Named, ModelRegistrar):
    def __init__(self, provider: str = "OTHER") -> None:
        self.provider = provider

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        return ModelRegistrationResponse(self.provider, [ModelInfo("registered")])


@contextlib.asynccontextmanager
async def telling(
    gateway: Any, plugin: Plugin, port: int = 0
) -> AsyncIterator[tuple[SchedulerServicer, SnapshotHolder, int]]:
    """Run a scheduler that knows the plugin."""
    async with serving(plugin, port) as port:  # noqa: PLR1704 - 0 until then
        declared = f"plugins:\n  - {{id: teller, address: '127.0.0.1:{port}'}}\n"
        async with gateway.scheduler(config=FILE + declared) as (servicer, holder):
            yield servicer, holder, port


@contextlib.asynccontextmanager
async def serving(plugin: Plugin, port: int = 0) -> AsyncIterator[int]:
    """Serve the plugin alone; yield its port."""
    server = PluginServer([plugin], {plugin.id: [plugin_key(ROOTS.plugins[0], plugin.id)]})
    try:
        # Nobody else's while the plugin is away.
        yield await server.start(f"127.0.0.1:{port or free_port()}")
    finally:
        await server.stop()


async def having(holder: SnapshotHolder, condition: Callable[[Snapshot], bool]) -> Snapshot:
    """Return the first snapshot that meets *condition*."""
    changed = asyncio.Event()
    forget = holder.on_change(lambda _: changed.set())
    try:
        async with asyncio.timeout(90):
            while holder.current is None or not condition(holder.current):
                changed.clear()
                await changed.wait()
    finally:
        forget()
    return holder.current


async def test_models_of_a_plugin_are_published_and_routed(gateway: Any) -> None:
    plugin = Teller()
    async with telling(gateway, plugin) as (servicer, holder, _):
        snapshot = await having(holder, lambda s: "of-[two]" in s.targets and "fixed" in s.targets)
        assert [m.name for m in snapshot.provider_by_name["mine"].models] == [
            "m",
            "all",
            "fixed",
            "of-[one]",
            "of-[two]",
        ]
        assert [m.name for m in snapshot.provider_by_name["other"].models] == ["o"]
        for model, ids in {
            "of-[two]": {"two"},
            "all": {"one", "two"},
            "fixed": {"one", "two"},
        }.items():
            used = set()
            for n in range(2):
                request = acquire(snapshot.version, f"{model}{n}-1", model=model)
                request.items[0].providers[:] = ["mine"]
                (result,) = (await servicer.Acquire(request)).results
                used.add(result.lease.attempt.credential_id)
            assert used == ids
    assert plugin.secrets == {"one": "test-key-one", "two": "test-key-two"}


async def test_registrar_adds_to_the_provider_that_it_names(gateway: Any) -> None:
    async with telling(gateway, Registrar()) as (_, holder, _):
        snapshot = await having(holder, lambda s: "registered" in s.targets)
        assert [t.provider for t in snapshot.targets["registered"]] == ["other"]


async def test_models_move_with_the_provider_that_a_plugin_names(gateway: Any) -> None:
    """Its former provider keeps what is its own, and nothing of the plugin's."""
    async with contextlib.AsyncExitStack() as until_restart:
        port = await until_restart.enter_async_context(serving(Registrar("other")))
        declared = f"plugins:\n  - {{id: teller, address: '127.0.0.1:{port}'}}\n"
        async with gateway.scheduler(config=FILE + declared) as (_, holder):
            await having(holder, lambda s: providers_of(s) == ["other"])
            await until_restart.aclose()
            async with serving(Registrar("mine"), port):
                snapshot = await having(holder, lambda s: providers_of(s) == ["mine"])
    assert [m.name for m in snapshot.provider_by_name["other"].models] == ["o"]
    assert [m.name for m in snapshot.provider_by_name["mine"].models] == ["m", "registered"]


def providers_of(snapshot: Snapshot) -> list[str]:
    """Return who has the model of the registrar."""
    return [target.provider for target in snapshot.targets.get("registered", ())]


async def test_models_stay_over_a_restart_with_the_plugin_failing(gateway: Any) -> None:
    plugin = Teller()
    async with telling(gateway, plugin) as (_, holder, port):
        await having(holder, lambda s: "of-[two]" in s.targets and "fixed" in s.targets)
    plugin.fails = True
    async with telling(gateway, plugin, port) as (_, holder, _):
        snapshot = await having(holder, lambda _: True)
        assert "fixed" in snapshot.targets
        plugin.fails = False
