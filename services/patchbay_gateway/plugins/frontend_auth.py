"""
Frontend auth: plugins that know clients which the gateway's own keys do not.

Asked in order after the configured keys; the first that knows the client wins. One that declares itself
exclusive is the only one asked, the configured keys included. A plugin never admits anybody by failing:
an error counts as not known, and an exclusive one that cannot be asked answers everybody with 503.
Source: pluginapi, FrontendAuthProvider. Not here: the configured keys (edge/auth.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors, status
from patchbay.plugin.v1 import frontend_auth_provider_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook, Hooks
    from patchbay_gateway.plugins.snapshot import Snapshot

_FLAG: Final = "frontend_auth_provider"
_EXCLUSIVE: Final = "frontend_auth_provider_exclusive"


@dataclass(frozen=True, slots=True)
class Principal:
    """A client that a plugin knows."""

    provider: str
    """`plugin:<id>`."""
    name: str
    tenant: str = "default"
    metadata: Mapping[str, str] | None = None


class FrontendAuth:
    """
    Asks frontend auth plugins.

    Args:
        hooks: Who is asked.
        calls: How.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls

    def exclusive(self, snapshot: Snapshot) -> Hook | None:
        """Return the one plugin that decides alone: the first by priority; None when there is none."""
        hooks = self._hooks.of(snapshot, _EXCLUSIVE)
        return hooks[0] if hooks else None

    def any(self, snapshot: Snapshot) -> bool:
        """Whether anybody can be asked."""
        return bool(self._hooks.of(snapshot, _FLAG))

    async def authenticate(
        self,
        snapshot: Snapshot,
        *,
        method: str,
        path: str,
        headers: Headers,
        query: Mapping[str, Sequence[str]],
        body: bytes,
        remote: str = "",
    ) -> Principal | None:
        """
        Return who the client is; None when nobody knows it.

        Raises:
            Unavailable: FRONTEND_AUTH_UNAVAILABLE, the exclusive plugin cannot be asked.
        """
        message = frontend_auth_provider_pb2.FrontendAuthRequest(
            method=method, path=path, body=body, remote_address=remote
        )
        status.headers_to_map(headers, message.headers)
        for name, values in query.items():
            message.query[name].values.extend(values)
        alone = self.exclusive(snapshot)
        hooks = (alone,) if alone is not None else self._hooks.of(snapshot, _FLAG)
        for hook in hooks:
            try:
                answer = await self._calls.unary(hook, methods.AUTHENTICATE, message)
            except errors.PatchbayError as error:
                warn(hook, error)
                if alone is not None:
                    raise errors.Unavailable(
                        "clients cannot be authenticated at the moment",
                        reason="FRONTEND_AUTH_UNAVAILABLE",
                        retry_after=2,
                        sent=errors.Sent.NO,
                    ) from error
                continue
            if answer.authenticated:
                return Principal(
                    provider=f"plugin:{hook.plugin_id}",
                    name=answer.principal or hook.plugin_id,
                    tenant=answer.metadata.get("tenant", "") or "default",
                    metadata=dict(answer.metadata),
                )
        return None
