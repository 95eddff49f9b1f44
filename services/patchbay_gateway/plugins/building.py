"""
From a configuration to a snapshot: what a file or custom resources say becomes what all services run on.

Pure: secrets and prices are read before. The only memory is the previous snapshot, whose credential versions
go on: a version grows when the material's fingerprint changes. The result depends on nothing else, so that
publishers with the same configuration make the same snapshot.

Not here: reading and watching files (scheduler/watching.py), publishing (distribution.py).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from patchbay_gateway.kernel.config import BUILTIN_PLUGINS
from patchbay_gateway.plugins import snapshot as form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay_gateway.kernel import config as model
    from patchbay_gateway.kernel.config import Config

KEYLESS: Final = "none"
"""Kind of a credential that sends no key."""


class Material(Protocol):
    """What is said here of secret material."""

    @property
    def fingerprint(self) -> str:
        """Tells equal material from changed; empty where there is none."""
        ...


def implicit_id(provider: str) -> str:
    """Return the id of the credential that a provider without credentials has."""
    return f"{provider}-default"


def build_snapshot(
    config: Config,
    *,
    material: Mapping[str, Material],
    digests: Mapping[str, str],
    prices: Sequence[form.PriceEntry],
    previous: form.Snapshot | None,
    now: float,
    open_access: bool,
) -> form.Snapshot:
    """
    Return the snapshot of *config*, without a version of its own.

    Args:
        config: The configuration.
        material: Credential id → material; a credential without keeps what it was published with.
        digests: Name of client key → digest; a key without is left out.
        prices: Of the prices file, in its order.
        previous: What was published last, for credential versions.
        now: Unix seconds; the first version of new material.
        open_access: Whether clients without key are answered.
    """
    known = {
        credential.id: credential
        for provider in (previous.providers if previous else ())
        for credential in provider.credentials
    }
    return form.Snapshot(
        version=0,
        plugins=_plugins(config),
        routes=tuple(
            form.RouteEntry(
                name=route.name,
                targets=tuple(form.TargetEntry(t.provider, t.model) for t in route.targets),
                fallbacks=route.fallbacks,
            )
            for route in config.routes
        ),
        providers=tuple(
            _provider(provider, config, material, known, now) for provider in config.providers
        ),
        prices=tuple(prices),
        client_keys=tuple(
            form.ClientKeyEntry(key.name, digests[key.name], key.models, key.tenant)
            for key in config.client_keys
            if key.name in digests
        ),
        settings=_settings(config, open_access=open_access),
    )


def _plugins(config: Config) -> tuple[form.PluginEntry, ...]:
    declared = {plugin.id for plugin in config.plugins}
    entries = [
        form.PluginEntry(id=id_, builtin=True) for id_ in BUILTIN_PLUGINS if id_ not in declared
    ]
    for plugin in config.plugins:
        yaml = plugin.config_yaml()
        entries.append(
            form.PluginEntry(
                id=plugin.id,
                priority=plugin.priority,
                enabled=plugin.enabled,
                addresses=(form.AddressEntry(plugin.address),),
                config=yaml,
                config_hash=hashlib.sha256(yaml.encode()).hexdigest(),
                match={k: v for k, v in plugin.match.model_dump().items() if v},
                capabilities=plugin.capabilities,
                failure_policies=dict(plugin.failure_policies),
                timeouts=dict(plugin.timeouts),
                host_access=plugin.host_access.model_dump(mode="json"),
                public=plugin.public,
            )
        )
    return tuple(sorted(entries, key=lambda e: (-e.priority, e.id)))


def _provider(
    provider: model.Provider,
    config: Config,
    material: Mapping[str, Material],
    known: Mapping[str, form.CredentialEntry],
    now: float,
) -> form.ProviderEntry:
    credentials = [
        _credential(credential.id, material, known, now, credential)
        for credential in provider.credentials
    ] or [_credential(implicit_id(provider.name), material, known, now, None)]
    return form.ProviderEntry(
        name=provider.name,
        plugin=provider.plugin,
        base_url=provider.api_url,
        models=tuple(form.ModelEntry(m.name, m.alias) for m in provider.models),
        proxy_url=provider.proxy_url or "",
        retry=_retry(provider.retry.over(config.routing.retry)),
        drain=provider.on_disconnect.drain,
        include_usage=provider.include_usage,
        attempt_header=provider.attempt_header or "",
        token_factor=provider.token_factor,
        credentials=tuple(credentials),
        cooldown=form.CoolingEntry(
            **provider.cooldown.model_dump(exclude={"scope"}), scope=provider.cooldown.scope or ""
        ),
        errors=tuple(
            form.ErrorRuleEntry(rule.status, rule.action, rule.match, rule.match_regex)
            for rule in provider.errors
        ),
    )


def _credential(
    id_: str,
    material: Mapping[str, Material],
    known: Mapping[str, form.CredentialEntry],
    now: float,
    source: model.Credential | None,
) -> form.CredentialEntry:
    kind = source.kind if source is not None else KEYLESS
    found = material.get(id_)
    before = known.get(id_)
    if found is not None:
        fingerprint = found.fingerprint
    else:
        # Another publisher may have it, and does not lose it because this one was not given it.
        fingerprint = before.fingerprint if before is not None and before.kind == kind else ""
    if before is not None and (before.kind, before.fingerprint) == (kind, fingerprint):
        version = before.version
    else:
        # Seconds, so that a version grows even when the previous snapshot was lost.
        version = max(before.version + 1 if before is not None else 1, int(now))
    auth_index = hashlib.sha256(id_.encode()).hexdigest()[:12]
    if source is None:
        return form.CredentialEntry(id_, auth_index, kind, version, fingerprint)
    return form.CredentialEntry(
        id=id_,
        auth_index=auth_index,
        kind=kind,
        version=version,
        fingerprint=fingerprint,
        priority=source.priority,
        weight=source.weight,
        prefix=source.prefix or "",
        proxy_url=source.proxy_url or "",
        disabled=source.disabled,
        excluded_models=source.excluded_models,
        max_in_flight=source.max_in_flight,
        oauth2=_oauth2(source.oauth2) if source.oauth2 is not None else None,
    )


def _oauth2(source: model.OAuth2) -> form.OAuth2Entry:
    return form.OAuth2Entry(
        token_url=source.token_url,
        client_id=source.client_id,
        scopes=source.scopes,
        client_auth=source.client_auth,
        extra=dict(source.extra),
        refresh_lead=source.refresh_lead,
        plugin=source.plugin,
        authorization_url=source.authorization_url or "",
        authorization_extra=dict(source.authorization_extra),
        device_authorization_url=source.device_authorization_url or "",
    )


def _retry(retry: model.Retry) -> form.RetryEntry:
    return form.RetryEntry(retry.rounds, retry.max_credentials, retry.max_wait)


def _settings(config: Config, *, open_access: bool) -> form.SettingsEntry:
    return form.SettingsEntry(
        strategy=config.routing.strategy,
        retry=_retry(config.routing.retry),
        affinity=form.AffinityEntry(**config.routing.affinity.model_dump()),
        queue=form.QueueEntry(**config.routing.queue.model_dump()),
        streaming=form.StreamingEntry(**config.streaming.model_dump()),
        headers_passthrough=config.headers.passthrough,
        headers_patchbay=config.headers.patchbay,
        body_limit=config.limits.body,
        in_flight_limit=config.limits.in_flight,
        force_model_prefix=config.routing.force_model_prefix,
        open_access=open_access,
    )
