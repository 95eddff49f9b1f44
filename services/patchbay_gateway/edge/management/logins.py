"""
The management API's part in logins: it passes on what a person and a provider's redirect bring.

Not here: what a login is (the scheduler), routes (routes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from patchbay_gateway.edge.clients import SchedulerCalls

CALLBACK: Final = "/v0/management/oauth-callback"
# A scheduler asks the auth provider, which asks the token endpoint.
_DEADLINE: Final = 65.0


class Logins:
    """
    Asks schedulers.

    Args:
        scheduler: Any of them.
    """

    def __init__(self, scheduler: SchedulerCalls) -> None:
        self._scheduler = scheduler

    async def start(
        self, provider: str, credential_id: str, flow: str, callback_url: str
    ) -> dict[str, Any]:
        """Begin; return what a person has to do."""
        request = scheduler_pb2.StartLoginRequest(
            provider=provider, credential_id=credential_id, flow=flow, callback_url=callback_url
        )
        answer = await self._scheduler.call(methods.START_LOGIN_FLOW, request, deadline=_DEADLINE)
        return {
            "state": answer.state,
            "url": answer.url,
            "user_code": answer.user_code,
            "credential": answer.credential_id,
            "interval": answer.interval.ToMilliseconds() / 1000,
            "expires_at": answer.expires_at.ToJsonString(),
        }

    async def complete(self, state: str, code: str, error: str, description: str) -> None:
        """Pass on what a redirect brought."""
        request = scheduler_pb2.CompleteLoginRequest(
            state=state, code=code, error=error, error_description=description[:1000]
        )
        await self._scheduler.call(methods.COMPLETE_LOGIN, request, deadline=_DEADLINE)

    async def poll(self, state: str) -> dict[str, Any]:
        """Return how it stands: `wait`, `ok` or `error`."""
        request = scheduler_pb2.PollLoginRequest(state=state)
        answer = await self._scheduler.call(methods.POLL_LOGIN_FLOW, request, deadline=_DEADLINE)
        return {
            "status": answer.status,
            "message": answer.message,
            "credential": answer.credential_id,
            "credentials": list(answer.credential_ids),
            "interval": answer.interval.ToMilliseconds() / 1000,
        }
