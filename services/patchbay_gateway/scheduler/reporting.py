"""
Reports to an operator: the models that plugins told, and how credentials stand.

Where an operator publishes, schedulers are the ones that talk to plugins and know the pool; they tell it
through Redis what belongs into the snapshot and into the status of resources. Each scheduler writes what
changed by its own view, which is the others' a second later. Not here: the form (plugins/reports.py).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import Unavailable
from patchbay_gateway.plugins.reports import CREDENTIALS, MODELS, Standing
from patchbay_gateway.plugins.told_models import PluginTold
from patchbay_gateway.scheduler.marks import WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.reports import Reports
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.marks import Mark
    from patchbay_gateway.scheduler.plugin_models import PluginModels
    from patchbay_gateway.scheduler.refresh import Refresher

LOOK_EVERY: Final = 2.0
_TEXT: Final = 500
# Names in one standing; that all rest is said without names.
_NAMES: Final = 32


class Reporter:
    """
    Tells an operator what it cannot know.

    Args:
        reports: Where it is told.
        holder: Says which plugins and credentials there are.
        models: What plugins told.
        credentials: Who has material.
        refresher: How refreshes stand.
        view: What is held against credentials.
        clock: Time.
    """

    def __init__(
        self,
        reports: Reports,
        *,
        holder: SnapshotHolder,
        models: PluginModels,
        credentials: Credentials,
        refresher: Refresher,
        view: HealthView,
        clock: Clock,
    ) -> None:
        self._reports = reports
        self._holder = holder
        self._models = models
        self._credentials = credentials
        self._refresher = refresher
        self._view = view
        self._clock = clock
        self._standings: dict[str, Standing] = {}
        self._told: dict[str, PluginTold] = {}
        self._version = 0

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            with contextlib.suppress(Unavailable):  # nobody can read it either
                await self.look()
            await self._clock.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """
        Report what changed.

        Raises:
            Unavailable: Redis is away.
        """
        snapshot = self._holder.current
        if snapshot is None:
            return
        if await self._reports.version() < self._version:
            self._standings.clear()  # Redis has lost it
            self._told.clear()
        told = await self._present(snapshot)
        standings = {
            credential.id: self._standing(provider, credential)
            for provider in snapshot.providers
            for credential in provider.credentials
        }
        self._told = await self._write(MODELS, told, self._told)
        self._standings = await self._write(CREDENTIALS, standings, self._standings)

    async def _present(self, snapshot: Snapshot) -> dict[str, PluginTold]:
        """Return what plugins told; of what they were not asked here yet, what others reported."""
        told = self._models.told
        enabled = {p.id for p in snapshot.plugins if p.enabled}
        if not self._told and (told or enabled):
            self._told = await self._reports.models()
        ids = {c.id for p in snapshot.providers for c in p.credentials}
        found = {id_: before for id_, before in self._told.items() if id_ in enabled}
        for id_, now in told.items():
            before = found.get(id_, PluginTold())
            kept = {c: models for c, models in before.credentials.items() if c in ids}
            found[id_] = PluginTold(now.fixed or before.fixed, {**kept, **now.credentials})
        return found

    async def _write(
        self,
        kind: str,
        found: Mapping[str, Standing] | Mapping[str, PluginTold],
        before: Mapping[str, Standing] | Mapping[str, PluginTold],
    ) -> dict[str, Any]:
        changed = {name: value for name, value in found.items() if before.get(name) != value}
        gone = set(before) - set(found)
        if changed or gone:
            self._version = await self._reports.write(kind, changed, gone)
        return dict(found)

    def _standing(self, provider: ProviderEntry, credential: CredentialEntry) -> Standing:
        state = self._credentials.obstacle(provider, credential) or "ready"
        if credential.disabled or self._view.disabled(credential.id):
            state = "disabled"
        refresh = self._refresher.status(credential.id)
        error = refresh.last_error if refresh is not None else None
        until, models, last = _resting(
            provider, self._view.marks(credential.id), int(self._clock.now() * 1000)
        )
        return Standing(
            state=state,
            refresh=refresh.state if refresh is not None else "",
            expires_at=refresh.expires_at if refresh is not None else 0.0,
            next_at=refresh.next_at if refresh is not None else 0.0,
            refresh_error=_said(error.http_status, error.code, error.message) if error else "",
            cooling_until=until,
            cooling_models=models,
            last_error=last,
        )


def _resting(
    provider: ProviderEntry, marks: Mapping[str, Mark], now: int
) -> tuple[float, tuple[str, ...], str]:
    """Return until when a credential rests, for which models where not for all, and the last complaint."""
    if not marks:
        return 0.0, (), ""
    closed = {scope: mark for scope, mark in marks.items() if mark.closed(now)}
    until = max((mark.until for mark in closed.values()), default=0) / 1000
    errors = [mark.error for mark in marks.values() if mark.error is not None]
    newest = max(errors, key=lambda e: e.at, default=None)
    last = _said(newest.http_status, newest.code, newest.message) if newest is not None else ""
    models: tuple[str, ...] = ()
    if WHOLE not in closed:
        resting = [m.public for m in provider.models if m.name in closed]
        if len(resting) < len(provider.models):
            models = tuple(sorted(resting)[:_NAMES])
    return until, models, last


def _said(http_status: int, code: str, message: str) -> str:
    status = f"{http_status} " if http_status else ""
    return f"{status}{code}{': ' if code and message else ''}{message}"[:_TEXT].strip()
