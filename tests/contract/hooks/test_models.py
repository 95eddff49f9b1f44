"""Plugins that tell models, asked as a scheduler asks them, behind both channels."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec
import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.executor import Executor
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
from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.plugins.snapshot import CredentialEntry, ModelEntry, ProviderEntry, Snapshot
from patchbay_gateway.scheduler.plugin_models import PluginModels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)


class Named:
    name: ClassVar = "Named"
    version: ClassVar = "1"
    author: ClassVar = "tests"


class Registrar(Named, ModelRegistrar):
    """Registers what the test put in."""

    def __init__(self, answer: ModelRegistrationResponse | Exception) -> None:
        self.answer = answer

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class First(Registrar):
    id: ClassVar = "first"


class Second(Registrar):
    id: ClassVar = "second"


class Teller(Named, ModelProvider, Executor):
    """Tells a model of its own and one of each credential."""

    id: ClassVar = "first"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)

    async def static_models(self, request: StaticModelRequest) -> ModelResponse:
        return ModelResponse([ModelInfo("fixed")])

    async def models_for_auth(self, request: AuthModelRequest) -> ModelResponse:
        return ModelResponse([ModelInfo(f"of-{request.auth_id}")])


def told(provider: str, *models: str) -> ModelRegistrationResponse:
    return ModelRegistrationResponse(provider, [ModelInfo(name) for name in models])


def draft(hosted: Hosted) -> Snapshot:
    """Return a configuration with a provider for each plugin."""
    providers = tuple(
        ProviderEntry(
            name,
            plugin=name,
            models=(ModelEntry("configured"),),
            credentials=(CredentialEntry(f"{name}-key", "x", "api_key", 1),),
        )
        for name in ("first", "second")
    )
    return Snapshot(1, plugins=hosted.snapshot.plugins, providers=providers)


class Asking:
    """The scheduler's part, and the snapshot that it makes."""

    def __init__(self, hosted: Hosted) -> None:
        self.holder = SimpleNamespace(current=draft(hosted))
        self.changed = asyncio.Event()
        credentials = SimpleNamespace(
            version=lambda _: 1, attributes=lambda _: {}, sealed=self._nothing
        )
        plugins = SimpleNamespace(registry=hosted.registry, hooks=hosted.hooks, calls=hosted.calls)
        self.models = PluginModels(
            cast("Any", plugins), cast("Any", self.holder), cast("Any", credentials),
            clock=SystemClock(),
        )  # fmt: skip

    def _nothing(self, *_: object) -> None:
        raise errors.Unavailable("no material here", reason="NO_MATERIAL")

    async def found(self, *wanted: set[str]) -> list[set[str]]:
        """Return the models of each provider, once they are as *wanted*."""
        async with asyncio.timeout(90):
            while True:
                snapshot = self.models.add(self.holder.current, None)
                found = [{m.name for m in p.models} for p in snapshot.providers]
                if found == list(wanted):
                    return found
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def asking(hosted: Hosted) -> AsyncIterator[Asking]:
    made = Asking(hosted)
    task = asyncio.create_task(made.models.run(made.changed.set))
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_registered_models_join_the_provider_that_is_named(channel: str) -> None:
    plugins = [First(told(" SECOND ", " one ", "", "one")), Second(told("unknown", "two"))]
    async with hosting(plugins, channel) as hosted, asking(hosted) as made:
        await made.found({"configured"}, {"configured", "one", "two"})


async def test_who_fails_or_names_nobody_costs_nobody_else(channel: str) -> None:
    failure = errors.FailedPrecondition("no", reason="NO")
    for answer in (failure, told(" ", "lost"), told("first", " ")):
        plugins = [First(answer), Second(told("second", "two"))]
        async with hosting(plugins, channel) as hosted, asking(hosted) as made:
            await made.found({"configured"}, {"configured", "two"})


async def test_models_of_a_plugin_that_went_go_too(channel: str) -> None:
    plugins = [First(told("first", "one")), Second(told("second", "two"))]
    async with hosting(plugins, channel) as hosted, asking(hosted) as made:
        await made.found({"configured", "one"}, {"configured", "two"})
        left = tuple(p for p in made.holder.current.plugins if p.id == "second")
        made.holder.current = msgspec.structs.replace(made.holder.current, version=2, plugins=left)
        await made.found({"configured"}, {"configured", "two"})


async def test_two_plugins_may_tell_the_same_model(channel: str) -> None:
    """Each for its provider; which of them serves is a matter of routing."""
    plugins = [First(told("first", "same")), Second(told("second", "same", "configured"))]
    async with hosting(plugins, channel) as hosted, asking(hosted) as made:
        await made.found({"configured", "same"}, {"configured", "same"})
        snapshot = made.models.add(made.holder.current, None)
        assert [t.provider for t in snapshot.targets["same"]] == ["first", "second"]
        configured = [m for p in snapshot.providers for m in p.models if m.name == "configured"]
        assert not any(m.told_by for m in configured)


@pytest.mark.parametrize(
    ("scope", "models"),
    [
        (plugin_pb2.EXECUTOR_MODEL_SCOPE_STATIC, {"fixed"}),
        (plugin_pb2.EXECUTOR_MODEL_SCOPE_OAUTH, {"of-first-key"}),
        (plugin_pb2.EXECUTOR_MODEL_SCOPE_BOTH, {"fixed", "of-first-key"}),
    ],
)
async def test_scope_says_which_models_are_asked_for(
    channel: str, scope: plugin_pb2.ExecutorModelScope.ValueType, models: set[str]
) -> None:
    class Scoped(Teller):
        model_scope: ClassVar = scope

    async with hosting([Scoped()], channel) as hosted, asking(hosted) as made:
        await made.found({"configured", *models}, {"configured"})
