"""
Serves auth providers: messages of the contract to the requests that plugins see, and their answers back.

Not here: what plugins do (`patchbay.auth_provider`), credentials on their way back (`patchbay.auth_wire`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from patchbay import errors
from patchbay.auth_provider import (
    AuthLoginPollRequest,
    AuthLoginStartRequest,
    AuthParseRequest,
    AuthProvider,
    AuthRefreshRequest,
)
from patchbay.auth_wire import auth_message, set_time
from patchbay.host_client import UNREACHABLE, HostClient, HostConnections
from patchbay.plugin.v1 import auth_provider_pb2, auth_provider_pb2_grpc, identifier_pb2
from patchbay.wire import json_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patchbay.auth_provider import AuthData
    from patchbay.capability import Plugin
    from patchbay.executor import CallContext
    from patchbay.plugin.v1 import auth_data_pb2
    from patchbay.secrets import SecretOpener
    from patchbay.type.v1 import secret_pb2

AUTH_PROVIDER_SERVICE: Final = "patchbay.plugin.v1.AuthProviderService"


class AuthProviderServicer(auth_provider_pb2_grpc.AuthProviderServiceServicer):
    """
    Serves auth providers: messages in, dataclasses out, material sealed on the way back.

    Args:
        called: Returns the plugin, in the configuration, that a call's metadata name.
        opener: Opens secrets sealed for any of them.
        return_keys: Plugin id → its return key (`patchbay.keys.return_key` of the newest key).
        hosts: The ways back to hosts; None: there are none.
        now: Unix seconds.
    """

    def __init__(
        self,
        called: Callable[[Any], Plugin],
        *,
        opener: SecretOpener,
        return_keys: Mapping[str, bytes],
        hosts: HostConnections | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._called = called
        self._opener = opener
        self._return_keys = return_keys
        self._hosts = hosts
        self._now = now

    async def Identifier(  # noqa: N802 - the method's name on the wire
        self, request: identifier_pb2.IdentifierRequest, context: CallContext
    ) -> identifier_pb2.IdentifierResponse:
        """Name the provider key."""
        return identifier_pb2.IdentifierResponse(identifier=self._provider(context).identifier)

    async def ParseAuth(  # noqa: N802 - the method's name on the wire
        self, request: auth_provider_pb2.AuthParseRequest, context: CallContext
    ) -> auth_provider_pb2.AuthParseResponse:
        """Read a document."""
        plugin = self._provider(context)
        answer = await plugin.parse_auth(
            AuthParseRequest(request, self._opener, plugin.id, self._now)
        )
        return auth_provider_pb2.AuthParseResponse(
            handled=answer.handled, auths=[self._message(plugin, auth) for auth in answer.auths]
        )

    async def StartLogin(  # noqa: N802 - the method's name on the wire
        self, request: auth_provider_pb2.AuthLoginStartRequest, context: CallContext
    ) -> auth_provider_pb2.AuthLoginStartResponse:
        """Begin a login."""
        plugin = self._provider(context)
        answer = await plugin.start_login(
            AuthLoginStartRequest(
                request, self._opener, plugin.id, self._now, self._callbacks(plugin, context)
            )
        )
        message = auth_provider_pb2.AuthLoginStartResponse(
            provider=answer.provider or request.provider,
            url=answer.url,
            state=answer.state,
            metadata=json_bytes(answer.metadata),
            user_code=answer.user_code,
        )
        set_time(message.expires_at, answer.expires_at)
        if answer.interval is not None:
            message.interval.FromNanoseconds(int(answer.interval * 1e9))
        return message

    async def PollLogin(  # noqa: N802 - the method's name on the wire
        self, request: auth_provider_pb2.AuthLoginPollRequest, context: CallContext
    ) -> auth_provider_pb2.AuthLoginPollResponse:
        """Tell how a login stands."""
        plugin = self._provider(context)
        answer = await plugin.poll_login(
            AuthLoginPollRequest(
                request, self._opener, plugin.id, self._now, self._callbacks(plugin, context)
            )
        )
        message = auth_provider_pb2.AuthLoginPollResponse(
            status=answer.status.value,
            message=answer.message,
            auths=[self._message(plugin, auth) for auth in answer.auths],
            metadata=json_bytes(answer.metadata),
        )
        if answer.interval is not None:
            message.interval.FromNanoseconds(int(answer.interval * 1e9))
        return message

    async def RefreshAuth(  # noqa: N802 - the method's name on the wire
        self, request: auth_provider_pb2.AuthRefreshRequest, context: CallContext
    ) -> auth_provider_pb2.AuthRefreshResponse:
        """Get new material."""
        plugin = self._provider(context)
        remaining = getattr(context, "time_remaining", None)
        answer = await plugin.refresh_auth(
            AuthRefreshRequest(
                request,
                self._opener,
                plugin.id,
                self._now,
                remaining() if remaining is not None else None,
                self._callbacks(plugin, context),
            )
        )
        message = auth_provider_pb2.AuthRefreshResponse(
            auth=self._message(plugin, answer.auth, request.secret)
        )
        set_time(message.next_refresh_after, answer.next_refresh_after)
        return message

    def _provider(self, context: CallContext) -> AuthProvider:
        plugin = self._called(context)
        if not isinstance(plugin, AuthProvider):
            raise errors.NotFound(
                f"plugin {plugin.id} is no auth provider", reason="CAPABILITY_NOT_SERVED"
            )
        return plugin

    def _callbacks(self, plugin: Plugin, context: CallContext) -> HostClient:
        if self._hosts is None:
            return UNREACHABLE
        return self._hosts.client(plugin.id, context.invocation_metadata())

    def _message(
        self, plugin: Plugin, auth: AuthData, origin: secret_pb2.SealedSecret | None = None
    ) -> auth_data_pb2.AuthData:
        return auth_message(
            auth,
            plugin.id,
            self._return_keys.get(plugin.id),
            self._now(),
            credential_id=origin.credential_id if origin is not None else "",
            version=origin.version if origin is not None else 0,
        )
