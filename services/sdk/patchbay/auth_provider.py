"""
Auth providers: the base class of a plugin that reads, makes and refreshes credentials of a provider.

    class Mine(AuthProvider):
        id = "mine"
        ...
        async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
            secret = request.secret()
            secret.check(TOKEN_URL)
            answer = await ask(TOKEN_URL, secret["refresh_token"])
            return AuthRefreshResponse(AuthData(storage={"access_token": answer.token}, expires_at=…))

Material comes in sealed for the plugin and is opened on demand; what the plugin returns under `storage` goes
back sealed with its return key, for the scheduler alone. Neither shows in a `repr`. One call is one try at
the token endpoint: a rotating refresh token may be used up by a call whose answer was lost, and only the
scheduler knows who else is trying. Errors are `patchbay.errors`: UpstreamError for what the provider said,
`invalid_grant()` when only a new login helps.

Not here: messages of the wire (`patchbay.auth_servicer`), the server (`patchbay.serve`), OAuth itself (the
plugin's own matter).
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from patchbay import errors
from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.host_config import HostConfigSummary, read_host_config
from patchbay.plugin.v1 import auth_provider_pb2
from patchbay.wire import json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patchbay.secrets import OpenedSecret, SecretOpener
    from patchbay.type.v1 import secret_pb2

INVALID_GRANT: Final = "INVALID_GRANT"
"""Reason of an UpstreamError: the refresh token is dead, and only a new login helps."""


def invalid_grant(message: str) -> errors.UpstreamError:
    """Return the error of a refresh token that the provider does not accept any more."""
    return errors.UpstreamError(
        400,
        message,
        reason=INVALID_GRANT,
        scope=errors.FaultScope.CREDENTIAL,
        sent=errors.Sent.YES,
    )


@dataclass(frozen=True, slots=True)
class AuthData:
    """A credential made or changed by a plugin (pluginapi: AuthData). Fields left alone keep their values."""

    provider: str = ""
    """Provider key; empty: the request's, then the plugin's identifier."""
    id: str = ""
    """Stable credential id; empty: the request's, then the file's path below the auth directory."""
    file_name: str = ""
    """File it came from or is to be kept in."""
    label: str = ""
    """For people, for example the account's mail address."""
    prefix: str = ""
    """Prefix of model names."""
    proxy_url: str = ""
    """Proxy of this credential."""
    disabled: bool = False
    """Takes the credential out of use."""
    storage: Mapping[str, str] | None = field(default=None, repr=False)
    """Material to keep: `api_key`, `access_token`, `refresh_token`, `token_type` or the plugin's own names;
    absent keys keep their values, empty ones are removed. None: unchanged."""
    metadata: Mapping[str, Any] | None = None
    """Mutable metadata without secrets, replaces the old as a whole; None: unchanged."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Immutable attributes without secrets; empty: unchanged."""
    next_refresh_after: float | None = None
    """Unix seconds: not refreshed before, and then."""
    expires_at: float | None = None
    """Unix seconds when the access material expires; None: nobody knows."""
    access_keys: Sequence[str] = ()
    """Keys of `storage` that executors get; empty: `api_key`, `access_token`, `token_type`."""


@dataclass(frozen=True, slots=True)
class AuthParseRequest:
    """A credential document offered to a plugin: a view on the message."""

    message: auth_provider_pb2.AuthParseRequest
    """The message; not to be changed."""
    opener: SecretOpener = field(repr=False)
    """Opens the secrets of this plugin."""
    plugin_id: str
    """Whose call this is."""
    now: Callable[[], float] = time.time
    """Unix seconds."""

    @property
    def provider(self) -> str:
        """The document's `type`; empty when it says none."""
        return self.message.provider

    @property
    def path(self) -> str:
        """Where the document comes from, for people."""
        return self.message.path

    @property
    def file_name(self) -> str:
        """File name."""
        return self.message.file_name

    @property
    def host(self) -> HostConfigSummary:
        """Host configuration."""
        return read_host_config(self.message.host)

    @property
    def raw_json(self) -> bytes:
        """
        The document (pluginapi: RawJSON).

        Raises:
            FailedPrecondition: It cannot be opened here.
        """
        sealed = self.message.raw_json
        return _open(self.opener, sealed, self.plugin_id, self.now())["document"].encode()


@dataclass(frozen=True, slots=True)
class AuthParseResponse:
    """What a plugin made of a document."""

    handled: bool
    """False leaves the document to others; True without auths: it yields none."""
    auths: Sequence[AuthData] = ()
    """The credentials."""


@dataclass(frozen=True, slots=True)
class AuthLoginStartRequest:
    """Begins a login: a view on the message."""

    message: auth_provider_pb2.AuthLoginStartRequest
    """The message; not to be changed."""
    opener: SecretOpener = field(repr=False)
    """As in AuthParseRequest."""
    plugin_id: str
    """As in AuthParseRequest."""
    now: Callable[[], float] = time.time
    """Unix seconds."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False)
    """What the plugin may ask of the gateway meanwhile (pluginapi: HTTPClient)."""

    @property
    def provider(self) -> str:
        """Provider key."""
        return self.message.provider

    @property
    def base_url(self) -> str:
        """URL of the host's callback, for the provider's redirect."""
        return self.message.base_url

    @property
    def host(self) -> HostConfigSummary:
        """Host configuration."""
        return read_host_config(self.message.host)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the person asked for."""
        return json_object(self.message.metadata, "metadata")

    @property
    def config(self) -> dict[str, Any]:
        """The `oauth2` settings of the configuration, without secrets."""
        return json_object(self.message.config, "config")

    def secret(self) -> OpenedSecret | None:
        """Return the secrets of the settings, None when there are none."""
        return _opened_or_none(self)


@dataclass(frozen=True, slots=True)
class AuthLoginStartResponse:
    """What a person has to do."""

    url: str
    """To open."""
    state: str
    """1 to 128 of A-Z a-z 0-9 - _ . without "..", unique; it is the key of the callback."""
    provider: str = ""
    """Provider key; empty: the request's."""
    expires_at: float | None = None
    """Unix seconds; None: 30 minutes from now."""
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Given back with every poll, for example the PKCE verifier; kept encrypted."""
    user_code: str = ""
    """To type at `url`, for device flows."""
    interval: float | None = None
    """Least seconds between two polls; None: 5."""


class AuthLoginStatus(enum.IntEnum):
    """How a login stands; the numbers are the contract's."""

    PENDING = auth_provider_pb2.AUTH_LOGIN_STATUS_PENDING
    SUCCESS = auth_provider_pb2.AUTH_LOGIN_STATUS_SUCCESS
    ERROR = auth_provider_pb2.AUTH_LOGIN_STATUS_ERROR


@dataclass(frozen=True, slots=True)
class LoginCallback:
    """The query of a provider's redirect to the host's callback."""

    state: str
    """State that the redirect carried."""
    code: str = field(default="", repr=False)
    """Authorization code."""
    error: str = ""
    """The provider's error code."""
    error_description: str = ""
    """Its sentence about it."""


@dataclass(frozen=True, slots=True)
class AuthLoginPollRequest:
    """Asks how a login stands: a view on the message."""

    message: auth_provider_pb2.AuthLoginPollRequest = field(repr=False)
    """The message; not to be changed. It has the verifier and the code."""
    opener: SecretOpener = field(repr=False)
    """As in AuthParseRequest."""
    plugin_id: str
    """As in AuthParseRequest."""
    now: Callable[[], float] = time.time
    """Unix seconds."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False)
    """What the plugin may ask of the gateway meanwhile (pluginapi: HTTPClient)."""

    @property
    def provider(self) -> str:
        """Provider key."""
        return self.message.provider

    @property
    def state(self) -> str:
        """State of the start."""
        return self.message.state

    @property
    def base_url(self) -> str:
        """URL of the host's callback, as in the start."""
        return self.message.base_url

    @property
    def host(self) -> HostConfigSummary:
        """Host configuration."""
        return read_host_config(self.message.host)

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the last answer that had some."""
        return json_object(self.message.metadata, "metadata")

    @property
    def config(self) -> dict[str, Any]:
        """As in the start."""
        return json_object(self.message.config, "config")

    @property
    def callback(self) -> LoginCallback | None:
        """What the provider's redirect brought; None until it came."""
        if not self.message.HasField("callback"):
            return None
        told = self.message.callback
        return LoginCallback(told.state, told.code, told.error, told.error_description)

    def secret(self) -> OpenedSecret | None:
        """Return the secrets of the settings, None when there are none."""
        return _opened_or_none(self)


@dataclass(frozen=True, slots=True)
class AuthLoginPollResponse:
    """How a login stands."""

    status: AuthLoginStatus
    message: str = ""
    """A sentence for the person, without secrets."""
    auths: Sequence[AuthData] = ()
    """The new credentials, with SUCCESS; saved together or not at all."""
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)
    """Replaces that of the next polls; None: unchanged."""
    interval: float | None = None
    """Least seconds until the next poll; None: unchanged."""


@dataclass(frozen=True, slots=True)
class AuthRefreshRequest:
    """Asks for new material: a view on the message."""

    message: auth_provider_pb2.AuthRefreshRequest
    """The message; not to be changed."""
    opener: SecretOpener = field(repr=False)
    """As in AuthParseRequest."""
    plugin_id: str
    """As in AuthParseRequest."""
    now: Callable[[], float] = time.time
    """Unix seconds."""
    time_remaining: float | None = None
    """Seconds until the caller's deadline when the call came; None without one."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False)
    """What the plugin may ask of the gateway meanwhile (pluginapi: HTTPClient)."""

    @property
    def auth_id(self) -> str:
        """Credential id."""
        return self.message.auth_id

    @property
    def auth_provider(self) -> str:
        """Provider key."""
        return self.message.auth_provider

    @property
    def proxy_url(self) -> str:
        """Proxy of this credential; empty: the environment decides."""
        return self.message.proxy_url

    @property
    def host(self) -> HostConfigSummary:
        """Host configuration."""
        return read_host_config(self.message.host)

    @property
    def attributes(self) -> Mapping[str, str]:
        """Immutable attributes of the credential."""
        return self.message.attributes

    @property
    def metadata(self) -> dict[str, Any]:
        """Mutable metadata of the credential."""
        return json_object(self.message.metadata, "metadata")

    @property
    def config(self) -> dict[str, Any]:
        """The credential's `oauth2` settings, without secrets."""
        return json_object(self.message.config, "config")

    def secret(self) -> OpenedSecret:
        """
        Return the material kept, refresh token included; `check` the URL that it goes to.

        Raises:
            FailedPrecondition: expired, for another plugin, or no key to open it with.
        """
        return _open(self.opener, self.message.secret, self.plugin_id, self.now())


@dataclass(frozen=True, slots=True)
class AuthRefreshResponse:
    """New material."""

    auth: AuthData
    """What changed."""
    next_refresh_after: float | None = None
    """Unix seconds; wins over the one in `auth`."""


class AuthProvider(Plugin):
    """A plugin that knows the credentials of a provider. Subclasses implement what they can do."""

    capability_flag: ClassVar = "auth_provider"

    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        """
        Read one credential document, which may hold several.

        Any error leaves it to the host's own parser, or, if this read it before, as it was. Ids and labels
        that stay keep the tokens of several apart.
        """
        raise _lacking(self.id, "parse_auth")

    async def start_login(self, request: AuthLoginStartRequest) -> AuthLoginStartResponse:
        """Begin a login."""
        raise _lacking(self.id, "start_login")

    async def poll_login(self, request: AuthLoginPollRequest) -> AuthLoginPollResponse:
        """Tell how a login stands."""
        raise _lacking(self.id, "poll_login")

    async def refresh_auth(self, request: AuthRefreshRequest) -> AuthRefreshResponse:
        """
        Get new material, in one try.

        Raises:
            UpstreamError: What the provider said; `sent` tells whether the token may be used up,
                `retry_after` when to come back; `invalid_grant()` when only a login helps.
        """
        raise _lacking(self.id, "refresh_auth")


def _opened_or_none(
    request: AuthLoginStartRequest | AuthLoginPollRequest,
) -> OpenedSecret | None:
    if not request.message.HasField("secret"):
        return None
    return _open(request.opener, request.message.secret, request.plugin_id, request.now())


def _open(
    opener: SecretOpener, sealed: secret_pb2.SealedSecret, plugin_id: str, now: float
) -> OpenedSecret:
    if sealed.plugin_id != plugin_id:
        raise errors.FailedPrecondition(
            f"the secret is sealed for plugin {sealed.plugin_id or '(none)'}, not {plugin_id}",
            reason="SECRET_FOREIGN",
            sent=errors.Sent.NO,
        )
    return opener.open(sealed, now)


def _lacking(plugin_id: str, what: str) -> errors.Unimplemented:
    return errors.Unimplemented(f"auth provider {plugin_id} does not serve {what}")
