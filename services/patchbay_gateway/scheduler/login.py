"""
Logins: a person gives a credential its tokens, through the credential's auth provider.

    StartLogin ──▶ auth provider: a URL to open ──▶ person ──▶ provider ──redirect──▶ CompleteLogin
    PollLogin  ──▶ auth provider, with what the redirect brought ──▶ tokens ──▶ durable record

A login is kept in Redis for 30 minutes, encrypted, so any scheduler goes on with it; without Redis there are
no new ones. Its state is the callback's only key: it is taken once, and nobody else knows it. Polls of one
login follow each other, for a code can be redeemed once. What comes back replaces the credential's material,
and a credential that needed a login serves again. Further accounts become credentials of their own, and so
does the first where the provider has none that logs in (keeping.py).

Not here: OAuth itself (the auth provider), routes (edge/management/logins.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
from typing import TYPE_CHECKING, Final

import msgspec
import orjson

from patchbay import errors
from patchbay.keys import sealing_key
from patchbay.plugin.v1 import auth_provider_pb2
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.secrets import origin_of, seal
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.kernel.redis import Script
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.snapshot import OAuth2Entry
from patchbay_gateway.scheduler.auth_data import opened
from patchbay_gateway.scheduler.durable.sealing import RecordCipher
from patchbay_gateway.scheduler.refresh import Refreshable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.plugin.v1 import auth_data_pb2
    from patchbay.type.v1 import secret_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.keys import Roots
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.scheduler.auth_plugins import AuthPlugins
    from patchbay_gateway.scheduler.keeping import Keeper
    from patchbay_gateway.scheduler.refresh import Refresher

LIFE: Final = 1800
"""Seconds that a login may take."""
_DONE: Final = 60
"""Seconds that its end is told."""
_INTERVAL: Final = 5.0
_LOCK_MS: Final = 70_000
_UNLOCK: Final = Script(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)
_STATE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")

_log = logs.get_logger("scheduler.login")


class _Login(msgspec.Struct):
    """One login as it is kept; encrypted, for it has the verifier and the code."""

    credential_id: str
    base_url: str
    metadata: bytes
    interval: float
    expires_at: float
    callback: bytes = b""
    """A LoginCallback; empty until it came."""
    status: str = "wait"
    message: str = ""
    provider: str = ""
    """With `plugin_id`: of a login that makes a credential."""
    plugin_id: str = ""
    credential_ids: tuple[str, ...] = ()
    """Who got tokens."""


class Logins:
    """
    The logins of this installation.

    Args:
        store: Redis.
        holder: Snapshots.
        calls: Calls auth providers.
        keeper: Keeps what comes back.
        plugins: Auth providers, for providers without a credential that logs in.
        refresher: Knows the credentials and their client secrets.
        roots: `store` encrypts logins, `plugins` seals for auth providers.
        clock: Time.
    """

    def __init__(
        self,
        *,
        store: Store,
        holder: SnapshotHolder,
        calls: PluginCalls,
        keeper: Keeper,
        plugins: AuthPlugins,
        refresher: Refresher,
        roots: Roots,
        clock: Clock,
    ) -> None:
        self._store = store
        self._holder = holder
        self._calls = calls
        self._keeper = keeper
        self._auth_plugins = plugins
        self._refresher = refresher
        self._plugins: Sequence[bytes] = roots.plugins
        self._cipher = RecordCipher(roots.store)
        self._clock = clock

    async def start(
        self, request: scheduler_pb2.StartLoginRequest
    ) -> scheduler_pb2.StartLoginResponse:
        """
        Begin a login.

        Raises:
            NotFound: LOGIN_UNKNOWN, no such credential that logs in.
            InvalidRequest: LOGIN_AMBIGUOUS, the provider has several.
            Unavailable: The auth provider, or Redis, does not answer.
            FailedPrecondition: The auth provider's word, for example LOGIN_NOT_CONFIGURED.
            Internal: BAD_LOGIN_STATE, the auth provider's state is none, or in use.
        """
        wanted = await self._wanted(request.provider, request.credential_id)
        answer = await self._calls.unary(
            self._hook(wanted),
            methods.START_LOGIN,
            auth_provider_pb2.AuthLoginStartRequest(
                provider=wanted.provider,
                base_url=request.callback_url,
                metadata=orjson.dumps({"flow": request.flow}) if request.flow else b"",
                config=_config(wanted),
                secret=self._secret(wanted),
            ),
        )
        state, now = answer.state, self._clock.now()
        expires = now + LIFE
        if answer.HasField("expires_at"):
            expires = min(expires, answer.expires_at.ToMilliseconds() / 1000)
        interval = answer.interval.ToMilliseconds() / 1000 or _INTERVAL
        login = _Login(
            wanted.id,
            request.callback_url,
            answer.metadata,
            interval,
            expires,
            provider=wanted.provider,
            plugin_id=wanted.plugin_id,
        )
        if not _STATE.match(state) or ".." in state or not await self._keep(state, login, new=True):
            raise errors.Internal(
                f"the state of auth provider {wanted.plugin_id} is none, or in use",
                reason="BAD_LOGIN_STATE",
            )
        told = scheduler_pb2.StartLoginResponse(
            state=state, url=answer.url, user_code=answer.user_code, credential_id=wanted.id
        )
        told.interval.FromMilliseconds(int(interval * 1000))
        told.expires_at.FromMilliseconds(int(expires * 1000))
        return told

    async def complete(self, request: scheduler_pb2.CompleteLoginRequest) -> None:
        """
        Take what a redirect brought.

        Raises:
            NotFound: LOGIN_UNKNOWN, no such login, or its state was taken before.
            Unavailable: Redis does not answer.
        """
        async with _Locked(self._store, request.state):
            login = await self._login(request.state)
            if login.callback or login.status != "wait":
                raise _unknown()
            login.callback = auth_provider_pb2.LoginCallback(
                code=request.code,
                state=request.state,
                error=request.error,
                error_description=request.error_description,
            ).SerializeToString()
            await self._keep(request.state, login)

    async def poll(self, state: str) -> scheduler_pb2.PollLoginResponse:
        """
        Return how a login stands; when it is done its tokens are kept.

        Raises:
            NotFound: LOGIN_UNKNOWN, no such login, or it is over.
            PatchbayError: The auth provider, the durable store or Redis does not answer; ask again.
        """
        async with _Locked(self._store, state):
            login = await self._login(state)
            if login.status == "wait":
                await self._poll(state, login)
            answer = scheduler_pb2.PollLoginResponse(
                status=login.status,
                message=login.message,
                credential_id=login.credential_id,
                credential_ids=login.credential_ids,
            )
            answer.interval.FromMilliseconds(int(login.interval * 1000))
            return answer

    async def _poll(self, state: str, login: _Login) -> None:
        if login.credential_id:
            wanted = await self._wanted("", login.credential_id)
        else:
            wanted = _making(login.provider, login.plugin_id)
        request = auth_provider_pb2.AuthLoginPollRequest(
            provider=wanted.provider,
            state=state,
            metadata=login.metadata,
            config=_config(wanted),
            secret=self._secret(wanted),
            base_url=login.base_url,
        )
        if login.callback:
            request.callback.ParseFromString(login.callback)
        answer = await self._calls.unary(self._hook(wanted), methods.POLL_LOGIN, request)
        login.metadata = answer.metadata or login.metadata
        login.interval = answer.interval.ToMilliseconds() / 1000 or login.interval
        login.message = answer.message
        if answer.status == auth_provider_pb2.AUTH_LOGIN_STATUS_ERROR:
            login.status, login.message = "error", answer.message or "Authentication failed"
        elif answer.status == auth_provider_pb2.AUTH_LOGIN_STATUS_SUCCESS:
            try:
                ids = await self._save(wanted, list(answer.auths) or [answer.auth])
            except (errors.FailedPrecondition, errors.NotFound) as error:
                # Asking again changes nothing, and the code is used up.
                login.status, login.message = "error", f"not kept: {error.message}"
                _log.warning("a login cannot be kept", plugin=wanted.plugin_id, why=error.message)
            else:
                login.credential_ids, login.status = ids, "ok"
                login.credential_id = login.credential_id or ids[0]
        await self._keep(state, login)

    # -- what comes back --------------------------------------------------------------------------

    async def _save(
        self, wanted: Refreshable, auths: Sequence[auth_data_pb2.AuthData]
    ) -> tuple[str, ...]:
        found = opened(auths, wanted.plugin_id, self._plugins, self._clock.now())
        if not found or not all(auth.material for auth in found):
            raise errors.FailedPrecondition(
                f"auth provider {wanted.plugin_id} answered without material",
                reason="LOGIN_UNREADABLE",
            )
        # Its word for the provider may be another; the login is of the one that was asked for.
        named = [dataclasses.replace(auth, provider=wanted.provider.lower()) for auth in found]
        ids = await self._keeper.keep(
            wanted.plugin_id,
            named,
            origin="login",
            base=wanted.id,
            target=wanted.id,
            everywhere=True,
        )
        _log.info("a login gave credentials their tokens", credentials=ids)
        return tuple(ids)

    # -- what there is ----------------------------------------------------------------------------

    async def _wanted(self, provider: str, credential_id: str) -> Refreshable:
        known = self._refresher.known
        found = [
            each
            for each in known.values()
            if (not provider or each.provider == provider)
            and (not credential_id or each.id == credential_id)
        ]
        # Those that a login or a file brought are meant only by name.
        found = [each for each in found if each.declared] or (found if credential_id else [])
        if not found and not credential_id:
            making = await self._maker(provider)
            if making is not None:
                return making
        if not found:
            name = f"credential {credential_id!r}" if credential_id else f"provider {provider!r}"
            raise errors.NotFound(
                f"{name} has no `oauth2` in the configuration, and no auth provider that is registered "
                "knows it",
                reason="LOGIN_UNKNOWN",
            )
        if len(found) > 1:
            ids = ", ".join(sorted(each.id for each in found))
            raise errors.InvalidRequest(
                f"several credentials of {provider} log in; name one of: {ids}",
                reason="LOGIN_AMBIGUOUS",
            )
        return found[0]

    async def _maker(self, name: str) -> Refreshable | None:
        """Return a login that makes a credential of a configured provider; None when no plugin can."""
        snapshot = self._holder.current
        provider = snapshot.provider_by_name.get(name) if snapshot is not None else None
        if snapshot is None or provider is None:
            return None
        keys = (provider.name.lower(), provider.plugin.lower())
        for plugin in await self._auth_plugins.look(snapshot):
            if plugin.registered and plugin.identifier in keys:
                return _making(provider.name, plugin.hook.plugin_id)
        return None

    def _hook(self, wanted: Refreshable) -> Hook:
        snapshot = self._holder.current
        entry = snapshot.plugin_by_id.get(wanted.plugin_id) if snapshot is not None else None
        if entry is None:
            raise errors.Unavailable(
                f"auth provider {wanted.plugin_id} is not ready", reason="NO_AUTH_PROVIDER"
            )
        row = policy("auth_provider", entry.timeouts, entry.failure_policies)
        return Hook(wanted.plugin_id, "auth_provider", entry, row)

    def _secret(self, wanted: Refreshable) -> secret_pb2.SealedSecret | None:
        secret = self._refresher.client_secret(wanted.id)
        if not secret:
            return None
        return seal(
            sealing_key(plugin_key(self._plugins[0], wanted.plugin_id)),
            wanted.plugin_id,
            wanted.id,
            0,
            [origin_of(wanted.settings.token_url)] if wanted.settings.token_url else [],
            self._clock.now() + 120,
            {"client_secret": secret},
        )

    # -- Redis ------------------------------------------------------------------------------------

    async def _keep(self, state: str, login: _Login, *, new: bool = False) -> bool:
        left = login.expires_at - self._clock.now() if login.status == "wait" else _DONE
        name = f"login:{state}"
        sealed = self._cipher.seal(name, 0, msgspec.msgpack.encode(login))
        value = self._cipher.key_id.encode() + b"\n" + sealed
        only = ("NX",) if new else ()
        milliseconds = max(1, int(left * 1000))
        key = self._store.key("login", state)
        return bool(await self._store.call("SET", key, value, "PX", milliseconds, *only))

    async def _login(self, state: str) -> _Login:
        kept = await self._store.call("GET", self._store.key("login", state))
        if not kept:
            raise _unknown()
        key_id, _, sealed = bytes(kept).partition(b"\n")
        plain = self._cipher.open(f"login:{state}", 0, key_id.decode(), sealed)
        return msgspec.msgpack.decode(plain, type=_Login)


class _Locked:
    """One call at a time for each login."""

    def __init__(self, store: Store, state: str) -> None:
        if not _STATE.match(state):
            raise _unknown()
        self._store = store
        self._key = store.key("login-lock", state)
        self._token = secrets.token_hex(8)

    async def __aenter__(self) -> None:
        if not await self._store.call("SET", self._key, self._token, "NX", "PX", _LOCK_MS):
            raise errors.Aborted(
                "this login is being asked about; ask again", reason="LOGIN_BUSY", retry_after=1.0
            )

    async def __aexit__(self, *_: object) -> None:
        # One that took too long has lost it, perhaps to another call. What stays ends by itself, and must not
        # hide how the call went.
        with contextlib.suppress(errors.Unavailable):
            await self._store.script(_UNLOCK, [self._key], [self._token])


def _making(provider: str, plugin_id: str) -> Refreshable:
    """Return what a login is for that makes a credential: its id is known when it is done."""
    return Refreshable("", provider, plugin_id, OAuth2Entry("", "", plugin=plugin_id))


def _config(wanted: Refreshable) -> bytes:
    settings = wanted.settings
    return orjson.dumps(
        {
            "token_url": settings.token_url,
            "client_id": settings.client_id,
            "client_auth": settings.client_auth,
            "scopes": list(settings.scopes),
            "extra": settings.extra,
            "authorization_url": settings.authorization_url,
            "authorization_extra": settings.authorization_extra,
            "device_authorization_url": settings.device_authorization_url,
        }
    )


def _unknown() -> errors.NotFound:
    return errors.NotFound("no such login, or it is over; begin anew", reason="LOGIN_UNKNOWN")
