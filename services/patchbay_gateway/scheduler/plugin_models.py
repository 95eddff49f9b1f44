"""
The models that plugins tell, asked for by schedulers and added to the snapshot by whoever publishes it.

So edges and schedulers agree on them, and clients see them in the model lists. Asked again after each
handshake and when a credential changes; what cannot be had stays, also over a restart. Where an operator
publishes, it is told of them (reporting.py).

The models of one credential are told by the first plugin, in order, that has to do with it: its executor, its
auth provider, or the auth provider that knows its provider key. One that answers for another provider is
passed over; one that fails is not.

Not here: the calls (plugins/models.py), what they add to a snapshot (plugins/told_models.py), publishing
(watching.py).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

from patchbay.errors import PatchbayError
from patchbay.plugin.v1 import model_provider_pb2, plugin_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.plugins import models
from patchbay_gateway.plugins.grants import grants_of
from patchbay_gateway.plugins.told_models import PluginTold, Told, with_told
from patchbay_gateway.scheduler.auth_plugins import AuthPlugins

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.hosted import HostedPlugins

_LOOK_EVERY: Final = 0.5
_AGAIN: Final = 10.0

_log = logs.get_logger("scheduler.models")


@dataclass(slots=True)
class _Asked:
    """One question's answer, and what it was asked after."""

    after: tuple[Any, ...] = ()
    told: Told | None = None
    retry_at: float = 0.0
    passed_on: bool = False
    """Whether the answer is for another provider."""


@dataclass(slots=True)
class _Known:
    fixed: _Asked = field(default_factory=_Asked)
    credentials: dict[str, _Asked] = field(default_factory=dict)


class PluginModels:
    """
    Asks plugins for models and adds them to snapshots.

    Args:
        plugins: Those that this process talks to.
        holder: The snapshot in use.
        credentials: Seals access material for the plugin that is asked.
        clock: Time.
        auth_plugins: The auth providers among them; default made of *plugins*.
    """

    def __init__(
        self,
        plugins: HostedPlugins,
        holder: SnapshotHolder,
        credentials: Credentials,
        *,
        clock: Clock,
        auth_plugins: AuthPlugins | None = None,
    ) -> None:
        self._plugins = plugins
        self._auth_plugins = auth_plugins or AuthPlugins(plugins, clock=clock)
        self._holder = holder
        self._credentials = credentials
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def run(self, changed: Callable[[], None]) -> None:
        """Ask until cancelled; call *changed* when the answers are others than before."""
        while True:
            snapshot = self._holder.current
            if snapshot is not None and await self._ask(snapshot):
                changed()
            await self._clock.sleep(_LOOK_EVERY)

    # -- asking -----------------------------------------------------------------------------------

    async def _ask(self, snapshot: Snapshot) -> bool:
        hooks = self._hooks(snapshot)
        gone = self._known.keys() - {p.id for p in snapshot.plugins if p.enabled}
        for plugin_id in gone:
            del self._known[plugin_id]
        changed = bool(gone)
        keys = {
            plugin.hook.plugin_id: plugin.identifier
            for plugin in (await self._auth_plugins.look(snapshot) if hooks else ())
        }
        claimed: set[str] = set()
        for hook in hooks:
            registered = self._plugins.registry.declaring(hook.plugin_id, hook.capability)
            if not registered:
                continue
            capabilities = registered[0].capabilities
            known = self._known.setdefault(hook.plugin_id, _Known())
            if models.fixed_scope(capabilities):
                changed |= await self._once(hook, known.fixed, tuple(registered), self._fixed(hook))
            if hook.capability == models.PROVIDER and models.credential_scope(capabilities):
                changed |= await self._ask_credentials(
                    snapshot, hook, known, tuple(registered), keys.get(hook.plugin_id, ""), claimed
                )
        return changed

    def _hooks(self, snapshot: Snapshot) -> list[Hook]:
        providers = self._plugins.hooks.of(snapshot, models.PROVIDER)
        first = {hook.plugin_id for hook in providers}
        registrars = self._plugins.hooks.of(snapshot, models.REGISTRAR)
        return [*providers, *(hook for hook in registrars if hook.plugin_id not in first)]

    async def _ask_credentials(
        self,
        snapshot: Snapshot,
        hook: Hook,
        known: _Known,
        registered: tuple[Any, ...],
        identifier: str,
        claimed: set[str],
    ) -> bool:
        """Ask for the models of credentials that nobody answered for yet, and add them to *claimed*."""
        changed = False
        wanted: set[str] = set()
        for provider in snapshot.providers:
            for credential in provider.credentials:
                if credential.id in claimed or not _concerns(
                    hook.plugin_id, identifier, provider, credential
                ):
                    continue
                wanted.add(credential.id)
                asked = known.credentials.setdefault(credential.id, _Asked())
                version = self._credentials.version(credential)
                changed |= await self._once(
                    hook,
                    asked,
                    (*registered, version),
                    self._of_credential(hook, provider, credential),
                )
                asked.passed_on = asked.told is not None and not _answers(asked.told, provider)
                if not asked.passed_on:
                    claimed.add(credential.id)
        for id_ in known.credentials.keys() - wanted:
            del known.credentials[id_]
            changed = True
        return changed

    async def _once(
        self,
        hook: Hook,
        asked: _Asked,
        after: tuple[Any, ...],
        question: Callable[[], Awaitable[Told]],
    ) -> bool:
        """Ask if it was not asked after *after*; return whether the answer is news."""
        same = len(after) == len(asked.after) and all(
            # Every handshake is news, though a process that took another's place answers it alike.
            a is b or (a == b and not isinstance(a, plugin_pb2.RegisterResponse))
            for a, b in zip(after, asked.after, strict=True)
        )
        if same or self._clock.monotonic() < asked.retry_at:
            return False
        try:
            told = await question()
        except PatchbayError as error:
            asked.retry_at = self._clock.monotonic() + _AGAIN
            _log.warning(
                "a plugin does not tell its models; those it told before stay",
                plugin=hook.plugin_id,
                why=error.message,
            )
            return False
        news = told != asked.told
        asked.told, asked.after, asked.retry_at = told, after, 0.0
        return news

    def _fixed(self, hook: Hook) -> Callable[[], Awaitable[Told]]:
        return lambda: models.fixed_models(self._plugins.calls, hook)

    def _of_credential(
        self, hook: Hook, provider: ProviderEntry, credential: CredentialEntry
    ) -> Callable[[], Awaitable[Told]]:
        async def ask() -> Told:
            secret, metadata = None, b""
            if _trusted(hook, provider, credential):
                with contextlib.suppress(PatchbayError):
                    secret, _ = self._credentials.sealed(
                        msgspec.structs.replace(provider, plugin=hook.plugin_id), credential
                    )
                    kept = self._credentials.metadata(credential)
                    metadata = orjson.dumps(dict(kept)) if kept else b""
            request = model_provider_pb2.AuthModelRequest(
                auth_id=credential.id,
                auth_provider=provider.name,
                secret=secret,
                metadata=metadata,
                attributes=self._credentials.attributes(credential),
                base_url=provider.base_url,
                proxy_url=credential.proxy_url or provider.proxy_url,
            )
            return await models.credential_models(self._plugins.calls, hook, request)

        return ask

    # -- adding -----------------------------------------------------------------------------------

    @property
    def told(self) -> dict[str, PluginTold]:
        """Return plugin id → what it told so far."""
        return {
            plugin_id: PluginTold(
                known.fixed.told,
                {
                    id_: asked.told
                    for id_, asked in known.credentials.items()
                    if asked.told and not asked.passed_on
                },
            )
            for plugin_id, known in self._known.items()
        }

    def add(self, draft: Snapshot, previous: Snapshot | None) -> Snapshot:
        """
        Return *draft* with the models that plugins told.

        Args:
            draft: Made of the configuration alone.
            previous: Whose models of plugins stay where the plugin was not asked yet.
        """
        return with_told(draft, previous, self.told)


def _concerns(
    plugin_id: str, identifier: str, provider: ProviderEntry, credential: CredentialEntry
) -> bool:
    """Whether a plugin has to do with a credential."""
    if _owns(plugin_id, provider, credential):
        return True
    return bool(identifier) and identifier in {provider.name.lower(), provider.plugin.lower()}


def _owns(plugin_id: str, provider: ProviderEntry, credential: CredentialEntry) -> bool:
    oauth2 = credential.oauth2
    return plugin_id in {provider.plugin, credential.brought_by} or (
        oauth2 is not None and oauth2.plugin == plugin_id
    )


def _trusted(hook: Hook, provider: ProviderEntry, credential: CredentialEntry) -> bool:
    """Whether a plugin gets access material: by its part in the credential, or by a grant."""
    return _owns(hook.plugin_id, provider, credential) or grants_of(hook.entry).auths == "all"


def _answers(told: Told, provider: ProviderEntry) -> bool:
    return told.provider in {"", provider.name.lower(), provider.plugin.lower()}
