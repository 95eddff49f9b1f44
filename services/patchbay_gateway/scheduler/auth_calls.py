"""
Calls to auth providers: the refresh token goes out sealed for the plugin alone, new material comes back.

What is sealed may be sent to the token endpoint's origin only, and only until the intent's deadline; what
comes back is sealed with the plugin's return key and must be for the credential and version that were asked.

Not here: whether to call (refresh.py), where plugins are (plugins/registry.py), the token endpoint's language
(the plugin).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from patchbay.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    PatchbayError,
    Sent,
    Unavailable,
)
from patchbay.keys import return_key, sealing_key
from patchbay.plugin.v1 import auth_provider_pb2
from patchbay.secrets import SecretOpener, origin_of, seal
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.calls import call_member
from patchbay_gateway.scheduler.durable.port import NEVER_ACCESS
from patchbay_gateway.scheduler.refresh_rules import Renewal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.calls import Scope
    from patchbay_gateway.plugins.registry import PluginRegistry
    from patchbay_gateway.plugins.snapshot import OAuth2Entry
    from patchbay_gateway.scheduler.durable.port import CredentialRecord

_BUILT_IN: Final = "oauth2"
RENEWAL_UNREADABLE: Final = "RENEWAL_UNREADABLE"
"""Reason: the plugin answered, and its answer cannot be used; the refresh token may be used up."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One refresh."""

    plugin_id: str
    provider: str
    """Provider key, as the configuration names the provider."""
    settings: OAuth2Entry
    record: CredentialRecord
    """As it stands with our intent in it."""
    client_secret: str = field(repr=False)
    proxy_url: str
    deadline: float
    """Unix seconds: the intent's."""


class AuthProviders(Protocol):
    """Whoever can refresh."""

    def ready(self, plugin_id: str) -> bool:
        """Whether a call could be made now."""
        ...

    async def refresh(self, ask: Ask) -> Renewal:
        """
        Present the refresh token, once.

        Raises:
            PatchbayError: `refresh_rules.certain` tells whether the token is as it was.
        """
        ...


class PluginAuthProviders:
    """
    Auth providers among the plugins.

    Args:
        registry: Where they are.
        plugins_roots: Newest first; plugins' keys are derived from them.
        clock: Tells how much of a deadline is left.
        scope: Opens what a plugin may call back in; None where it is granted nothing.
    """

    def __init__(
        self,
        registry: PluginRegistry,
        *,
        plugins_roots: Sequence[bytes],
        clock: Clock,
        scope: Callable[[str], Scope | None] = lambda _: None,
    ) -> None:
        self._scope = scope
        self._registry = registry
        self._roots = plugins_roots
        self._clock = clock

    def ready(self, plugin_id: str) -> bool:
        """Whether an address of the plugin is there."""
        return self._registry.pick(plugin_id) is not None

    async def refresh(self, ask: Ask) -> Renewal:
        """Call RefreshAuth at one address of the plugin."""
        member = self._registry.pick(ask.plugin_id)
        if member is None:
            raise Unavailable(
                f"auth provider {ask.plugin_id} is not ready",
                reason="NO_AUTH_PROVIDER",
                sent=Sent.NO,
            )
        request = self._request(ask)
        left = ask.deadline - self._clock.now()
        if left <= 0:
            raise DeadlineExceeded(
                "the time for this refresh passed before it began",
                reason="REFRESH_LATE",
                sent=Sent.NO,
            )
        scope = self._scope(ask.plugin_id)
        try:
            answer = await call_member(
                member,
                methods.REFRESH_AUTH,
                request,
                deadline=left,
                metadata=scope.metadata if scope else (),
                timer=self._clock.monotonic,
            )
        finally:
            if scope is not None:
                scope.close()
        return self._renewal(ask, answer)

    def _request(self, ask: Ask) -> auth_provider_pb2.AuthRefreshRequest:
        record, settings = ask.record, ask.settings
        try:
            # A plugin that reads documents may know its endpoint alone; the secret then names none.
            nowhere = not settings.token_url and ask.plugin_id != _BUILT_IN
            origins = [] if nowhere else [origin_of(settings.token_url)]
        except InvalidRequest as error:
            raise InvalidRequest(
                f"token_url: {error.message}", reason=error.reason, sent=Sent.NO
            ) from error
        material = dict(record.material)
        if ask.client_secret:
            material["client_secret"] = ask.client_secret
        return auth_provider_pb2.AuthRefreshRequest(
            auth_id=record.id,
            auth_provider=ask.provider,
            secret=seal(
                sealing_key(plugin_key(self._roots[0], ask.plugin_id)),
                ask.plugin_id,
                record.id,
                record.version,
                origins,
                ask.deadline,
                material,
            ),
            metadata=orjson.dumps(dict(record.metadata)) if record.metadata else b"",
            attributes=record.attributes,
            config=orjson.dumps(
                {
                    "token_url": settings.token_url,
                    "client_id": settings.client_id,
                    "client_auth": settings.client_auth,
                    "scopes": list(settings.scopes),
                    "extra": settings.extra,
                }
            ),
            proxy_url=ask.proxy_url,
        )

    def _renewal(self, ask: Ask, answer: auth_provider_pb2.AuthRefreshResponse) -> Renewal:
        auth = answer.auth
        try:
            storage = self._opened(ask, answer) if auth.HasField("storage") else {}
            metadata = orjson.loads(auth.metadata) if auth.metadata else None
        except (PatchbayError, ValueError) as error:
            raise FailedPrecondition(
                f"the answer of auth provider {ask.plugin_id} cannot be used: {error}",
                reason=RENEWAL_UNREADABLE,
                sent=Sent.UNKNOWN,
            ) from error
        if not storage.get("access_token") and not ask.record.access:
            raise FailedPrecondition(
                f"auth provider {ask.plugin_id} answered without access material",
                reason=RENEWAL_UNREADABLE,
                sent=Sent.UNKNOWN,
            )
        after = answer if answer.HasField("next_refresh_after") else auth
        return Renewal(
            storage={k: v for k, v in storage.items() if k != "client_secret"},
            expires_at=_seconds(auth.expires_at) if auth.HasField("expires_at") else 0.0,
            next_refresh_after=(
                _seconds(after.next_refresh_after) if after.HasField("next_refresh_after") else 0.0
            ),
            access_keys=tuple(k for k in auth.access_keys if k not in NEVER_ACCESS),
            metadata=metadata if isinstance(metadata, dict) else None,
            attributes=dict(auth.attributes),
            label=auth.label,
        )

    def _opened(self, ask: Ask, answer: auth_provider_pb2.AuthRefreshResponse) -> dict[str, str]:
        sealed = answer.auth.storage
        record = ask.record
        if (sealed.plugin_id, sealed.credential_id, sealed.version) != (
            ask.plugin_id,
            record.id,
            record.version,
        ):
            raise FailedPrecondition("it is for another credential or version")
        # The plugin may hold either of two generations of its key.
        opener = SecretOpener(
            [return_key(plugin_key(root, ask.plugin_id)) for root in self._roots], cache_size=1
        )
        return opener.open(sealed, self._clock.now()).material()


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
