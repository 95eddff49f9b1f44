"""
Asks the scheduler to refresh a credential that its provider has just refused, once for all who wait here.

Requests that meet the same refusal share one call; one that leaves does not take it from the others. Not
here: who refreshes, and once for the whole fleet (scheduler).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from patchbay import errors
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.policy import EDGE_MARGIN, policy

if TYPE_CHECKING:
    from patchbay_gateway.edge.clients import SchedulerCalls

_log = logs.get_logger("edge.refreshes")


class Refreshes:
    """Refreshes under way; one per edge."""

    def __init__(self, scheduler: SchedulerCalls) -> None:
        self._scheduler = scheduler
        self._calls: dict[tuple[str, int], asyncio.Task[bool]] = {}

    async def refresh(self, lease: scheduler_pb2.Lease) -> bool:
        """Return whether there is a newer version of the lease's credential."""
        key = (lease.attempt.credential_id, lease.credential_version)
        call = self._calls.get(key)
        if call is None:
            call = asyncio.get_running_loop().create_task(self._call(*key))
            self._calls[key] = call
            call.add_done_callback(lambda _: self._calls.pop(key, None))
        return await asyncio.shield(call)

    async def aclose(self) -> None:
        """Stop waiting; who waits is cancelled."""
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _call(self, credential_id: str, version: int) -> bool:
        request = scheduler_pb2.RefreshCredentialRequest(
            credential_id=credential_id, version=version
        )
        deadline = (policy("auth_provider").deadline or 60.0) + EDGE_MARGIN
        try:
            answer = await self._scheduler.call(
                methods.REFRESH_CREDENTIAL, request, deadline=deadline
            )
        except errors.PatchbayError as error:
            _log.info(
                "a refused credential was not refreshed",
                credential=credential_id,
                reason=error.reason,
            )
            return False
        return answer.version > version
