"""What a scheduler reports to an operator through a real Redis."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.reports import Reports, Standing
from patchbay_gateway.plugins.snapshot import (
    CredentialEntry,
    ModelEntry,
    PluginEntry,
    ProviderEntry,
    Snapshot,
)
from patchbay_gateway.plugins.told_models import PluginTold, Told
from patchbay_gateway.scheduler.durable.port import Failure
from patchbay_gateway.scheduler.marks import Mark, MarkError
from patchbay_gateway.scheduler.refresh_rules import RefreshStatus
from patchbay_gateway.scheduler.reporting import Reporter

if TYPE_CHECKING:
    from patchbay_gateway.kernel.redis import Store

MINE = ProviderEntry(
    "mine",
    plugin="teller",
    models=(ModelEntry("m"), ModelEntry("n", alias="big")),
    credentials=(CredentialEntry("one", "x", "api_key", 1),),
)


class Scene:
    """A reporter, and all that it looks at."""

    def __init__(self, store: Store) -> None:
        self.clock = ManualClock()
        self.store = store
        self.reports = Reports(store)
        self.holder = SnapshotHolder()
        self.holder.set(Snapshot(1, plugins=(PluginEntry("teller"),), providers=(MINE,)))
        self.told: dict[str, PluginTold] = {}
        self.marks: dict[str, Mark] = {}
        self.obstacle = ""
        self.refresh: RefreshStatus | None = None
        self.reporter = self.make()

    def make(self) -> Reporter:
        """Return another scheduler's."""
        view = SimpleNamespace(marks=lambda _: self.marks, disabled=lambda _: False)
        return Reporter(
            self.reports,
            holder=self.holder,
            models=cast("Any", self),
            credentials=cast("Any", SimpleNamespace(obstacle=lambda *_: self.obstacle)),
            refresher=cast("Any", SimpleNamespace(status=lambda _: self.refresh)),
            view=cast("Any", view),
            clock=self.clock,
        )

    async def standing(self) -> Standing:
        await self.reporter.look()
        return (await self.reports.credentials())["one"]


@pytest.fixture
def scene(store: Store) -> Scene:
    return Scene(store)


async def test_version_grows_with_news_alone(scene: Scene) -> None:
    assert await scene.reports.version() == 0
    await scene.reporter.look()
    first = await scene.reports.version()
    assert first > 0
    await scene.reporter.look()
    await scene.make().look()
    assert await scene.reports.version() == first
    scene.obstacle = "no_material"
    assert (await scene.standing()).state == "no_material"
    assert await scene.reports.version() > first


async def test_rest_of_a_model_and_of_all_is_told_until_it_is_over(scene: Scene) -> None:
    now = int(scene.clock.now() * 1000)
    error = MarkError(429, "QUOTA", "slow down", now)
    scene.marks = {"n": Mark(until=now + 60_000, since=now, reason="QUOTA", error=error)}
    told = await scene.standing()
    assert (told.cooling_until, told.cooling_models) == ((now + 60_000) / 1000, ("big",))
    assert told.last_error == "429 QUOTA: slow down"
    scene.marks[""] = Mark(until=now + 90_000, since=now)
    told = await scene.standing()
    assert (told.cooling_until, told.cooling_models) == ((now + 90_000) / 1000, ())
    await scene.clock.advance(100)
    told = await scene.standing()
    assert (told.cooling_until, told.last_error) == (0.0, "429 QUOTA: slow down")
    scene.marks = {}
    assert await scene.standing() == Standing()


async def test_refresh_is_told_with_its_error(scene: Scene) -> None:
    scene.obstacle = "needs_login"
    failure = Failure("revoked", 1.0, "INVALID_GRANT", 400)
    scene.refresh = RefreshStatus("needs_login", expires_at=7.0, last_error=failure)
    assert await scene.standing() == Standing(
        "needs_login", "needs_login", expires_at=7.0, refresh_error="400 INVALID_GRANT: revoked"
    )


async def test_what_redis_lost_is_told_again(scene: Scene) -> None:
    scene.told = {"teller": PluginTold(Told("", ("m2",)))}
    await scene.reporter.look()
    for key in await scene.store.call("KEYS", scene.store.key("reports*")):
        await scene.store.call("DEL", key)
    await scene.reporter.look()
    assert await scene.reports.models() == scene.told
    assert set(await scene.reports.credentials()) == {"one"}


async def test_scheduler_that_has_not_asked_yet_takes_nothing_back(scene: Scene) -> None:
    told = PluginTold(Told("", ("fixed",)), {"one": Told("", ("own",)), "gone": Told("", ("x",))})
    scene.told = {"teller": told}
    await scene.reporter.look()
    scene.told = {}
    young = scene.make()
    await young.look()
    assert (await scene.reports.models())["teller"].fixed == told.fixed
    scene.told = {"teller": PluginTold(Told("", ("newer",)))}
    await young.look()
    assert await scene.reports.models() == {
        "teller": PluginTold(Told("", ("newer",)), {"one": Told("", ("own",))})
    }


async def test_plugin_and_credential_that_went_are_removed(scene: Scene) -> None:
    scene.told = {"teller": PluginTold(Told("", ("m2",)))}
    await scene.reporter.look()
    scene.told = {}
    scene.holder.set(Snapshot(2))
    await scene.reporter.look()
    assert await scene.reports.models() == {}
    assert await scene.reports.credentials() == {}
