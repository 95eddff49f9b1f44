"""
The management API's questions about credentials and models, put to a scheduler.

Times are RFC 3339 in UTC, null when unknown. Never material. Not here: what the states mean (the
scheduler), the routes (routes.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel.channels import methods

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.timestamp_pb2 import Timestamp

    from patchbay.plugin.v1 import auth_data_pb2
    from patchbay_gateway.edge.clients import SchedulerCalls

# A scheduler looks at Redis and at its durable store before it answers.
_DEADLINE: Final = 10.0
# No provider can have that name.
_NOBODY: Final = "-"


class Pool:
    """
    Asks schedulers about the pool.

    Args:
        scheduler: Any of them.
    """

    def __init__(self, scheduler: SchedulerCalls) -> None:
        self._scheduler = scheduler

    async def credentials(
        self, ids: tuple[str, ...] = (), provider: str = ""
    ) -> list[dict[str, Any]]:
        """
        Return the state of credentials, ordered by provider and id.

        Raises:
            Unavailable: No scheduler answers, or it has no configuration yet.
        """
        request = scheduler_pb2.ListCredentialsRequest(ids=ids, provider=provider)
        answer = await self._scheduler.call(methods.LIST_CREDENTIALS, request, deadline=_DEADLINE)
        return [credential_view(c, degraded=answer.degraded) for c in answer.credentials]

    async def auth_files(self) -> list[dict[str, Any]]:
        """
        Return auth files, and kept credentials, of which not everything is used, and why.

        Raises:
            Unavailable: No scheduler answers, or it has no configuration yet.
        """
        # Of no credential: only the files are wanted.
        request = scheduler_pb2.ListCredentialsRequest(provider=_NOBODY)
        answer = await self._scheduler.call(methods.LIST_CREDENTIALS, request, deadline=_DEADLINE)
        return [
            {"file": f.source, "used": f.used, "plugin": f.plugin_id or None, "why": f.reason}
            for f in answer.files
        ]

    async def keep(self, plugin_id: str, auths: Iterable[auth_data_pb2.AuthData]) -> list[str]:
        """
        Keep credentials that a plugin's command line brought; return their ids.

        Raises:
            FailedPrecondition: They cannot be used, or have no place here.
            NotFound: The plugin has no part in such credentials.
            Unavailable: They cannot be kept now.
        """
        request = scheduler_pb2.KeepAuthsRequest(plugin_id=plugin_id, auths=auths, origin="command")
        answer = await self._scheduler.call(methods.KEEP_AUTHS, request, deadline=_DEADLINE)
        return list(answer.credential_ids)

    async def remove(self, credential_id: str) -> None:
        """
        Forget a credential that a login, a command or a plugin brought.

        Raises:
            NotFound: None is kept under that id.
            FailedPrecondition: It stands in the configuration or in a file.
        """
        request = scheduler_pb2.RemoveCredentialRequest(credential_id=credential_id)
        await self._scheduler.call(methods.REMOVE_CREDENTIAL, request, deadline=_DEADLINE)

    async def reset(self, credential_id: str, model: str) -> dict[str, Any]:
        """
        Forget what is held against a credential; only for *model*, as the provider names it, if not empty.

        Raises:
            NotFound: No such credential.
        """
        request = scheduler_pb2.ResetCredentialRequest(
            credential_id=credential_id, upstream_model=model
        )
        answer = await self._scheduler.call(methods.RESET_CREDENTIAL, request, deadline=_DEADLINE)
        return credential_view(answer)

    async def switch(self, credential_id: str, *, disabled: bool) -> dict[str, Any]:
        """
        Take a credential out of use, or back into it; with the id of a file that holds several, all of them.

        Of several the first is returned, with all ids under `switched`.

        Raises:
            NotFound: No such credential.
            FailedPrecondition: The configuration disables it, or its file holds others too.
        """
        request = scheduler_pb2.SetCredentialDisabledRequest(
            credential_id=credential_id, disabled=disabled
        )
        answer = await self._scheduler.call(
            methods.SET_CREDENTIAL_DISABLED, request, deadline=_DEADLINE
        )
        if not answer.shared_source:
            return credential_view(answer)
        listed = await self.credentials(provider=answer.provider)
        together = [c["id"] for c in listed if c["source"] == answer.source]
        return {**credential_view(answer), "switched": together}

    async def models(self) -> dict[str, dict[str, Any]]:
        """
        Return public model name → whether it can be served now, by whom, and what stands in the way.

        Raises:
            Unavailable: No scheduler answers, or it has no configuration yet.
        """
        request = scheduler_pb2.ListModelsRequest(include_unavailable=True)
        answer = await self._scheduler.call(methods.LIST_MODELS, request, deadline=_DEADLINE)
        return {
            model.id: {
                "available": model.available,
                "providers": list(model.providers),
                "obstacles": [
                    {
                        "provider": o.provider,
                        "credential": o.credential_id,
                        "reason": o.reason,
                        "until": instant(o.until) if o.HasField("until") else None,
                    }
                    for o in model.obstacles
                ],
            }
            for model in answer.models
        }


def credential_view(
    status: scheduler_pb2.CredentialStatus, *, degraded: bool = False
) -> dict[str, Any]:
    """Return one credential as JSON values."""
    return {
        "id": status.id,
        "auth_index": status.auth_index,
        "provider": status.provider,
        "plugin": status.plugin_id,
        "kind": status.kind,
        "version": status.version,
        "priority": status.priority,
        "weight": status.weight,
        "disabled": status.disabled,
        "disabled_by": status.disabled_by or None,
        "source": status.source or None,
        "brought_by": status.brought_by or None,
        "shared_source": status.shared_source,
        "in_flight": status.in_flight,
        "max_in_flight": status.max_in_flight,
        "succeeded": status.succeeded,
        "failed": status.failed,
        "models": [
            {
                "model": model.model,
                "upstream_model": model.upstream_model,
                "state": model.state,
                "reason": model.reason or None,
                "until": instant(model.until) if model.HasField("until") else None,
                "last_error": _error(model.last_error) if model.HasField("last_error") else None,
            }
            for model in status.models
        ],
        "refresh": _refresh(status.refresh) if status.HasField("refresh") else None,
        "rate_limits": [
            {
                "unit": limit.unit,
                "limit": limit.limit or None,
                "remaining": limit.remaining if limit.remaining >= 0 else None,
                "reset_seconds": limit.reset.ToMilliseconds() / 1000
                if limit.HasField("reset")
                else None,
            }
            for limit in status.rate_limits
        ],
        "last_error": _error(status.last_error) if status.HasField("last_error") else None,
        "degraded": degraded,
    }


def _refresh(refresh: scheduler_pb2.RefreshStatus) -> dict[str, Any]:
    return {
        "state": refresh.state,
        "expires_at": instant(refresh.expires_at) if refresh.HasField("expires_at") else None,
        "refreshed_at": instant(refresh.refreshed_at) if refresh.HasField("refreshed_at") else None,
        "next_at": instant(refresh.next_at) if refresh.HasField("next_at") else None,
        "last_error": _error(refresh.last_error) if refresh.HasField("last_error") else None,
    }


def _error(error: scheduler_pb2.LastError) -> dict[str, Any]:
    return {
        "http_status": error.http_status or None,
        "code": error.code or None,
        "message": error.message,
        "at": instant(error.at) if error.HasField("at") else None,
    }


def instant(at: Timestamp) -> str:
    """Return *at* as RFC 3339, to the second."""
    return datetime.fromtimestamp(at.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
