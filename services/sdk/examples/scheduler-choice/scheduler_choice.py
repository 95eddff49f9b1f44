"""Which credential serves: a scheduler plugin that names one, delegates, or forbids."""

from __future__ import annotations

import yaml

from patchbay import errors
from patchbay.scheduler_plugin import (
    SchedulerBuiltin,
    SchedulerPickRequest,
    SchedulerPickResponse,
    SchedulerPlugin,
)


class SchedulerChoice(SchedulerPlugin):
    """Does what its configuration says: `auth_id`, `delegate`, `deny`."""

    id = "scheduler-choice"
    name = "Scheduler choice"
    version = "1.0.0"
    author = "Patchbay"

    def __init__(self) -> None:
        self._auth_id = ""
        self._delegate = SchedulerBuiltin.UNSPECIFIED
        self._deny = False

    async def configure(self, config: bytes) -> None:
        """Take the settings; an unknown `delegate` leaves the choice to the gateway."""
        settings = yaml.safe_load(config) or {}
        self._auth_id = str(settings.get("auth_id", ""))
        self._deny = bool(settings.get("deny", False))
        wanted = str(settings.get("delegate", ""))
        known = {strategy.value: strategy for strategy in SchedulerBuiltin}
        self._delegate = known.get(wanted, SchedulerBuiltin.UNSPECIFIED)

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Choose."""
        if self._deny:
            raise errors.PermissionDenied("the scheduler plugin denies every request")
        if any(candidate.id == self._auth_id for candidate in request.candidates):
            return SchedulerPickResponse(auth_id=self._auth_id)
        if self._delegate is not SchedulerBuiltin.UNSPECIFIED:
            return SchedulerPickResponse(delegate_builtin=self._delegate)
        return None
