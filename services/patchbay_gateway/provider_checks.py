"""
Checks of the configured providers, each with a remedy: a part of `patchbay doctor`.

A check looks and changes nothing, and calls no provider's API: a key that would be refused is seen with the
first request; what a running gateway has seen is told. Not here: the other checks (doctor.py), connections
(reaching.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from patchbay.secrets import origin_of
from patchbay_gateway.checks import Check
from patchbay_gateway.executors.proxies import Proxies
from patchbay_gateway.kernel.config import (
    AUTH_PROVIDERS,
    BUILTIN_PLUGINS,
    ConfigError,
    resolve_secret,
)
from patchbay_gateway.scheduler.durable.auth_files import AuthFiles, read_auth_dir
from patchbay_gateway.scheduler.durable.auth_seeds import Planted, plant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from patchbay_gateway.checks import Status
    from patchbay_gateway.kernel.config import Config, Credential, Provider

    Unreachable = Callable[[Iterable[str]], Mapping[str, str]]
    """Returns URL → why not, of those that cannot be reached."""

_SHOWN = 5


def examine_providers(
    config: Config, env: Mapping[str, str], unreachable: Unreachable
) -> Iterator[Check]:
    """Yield the checks of the auth files, of each provider, and of each token endpoint."""
    found = read_auth_dir(config.auth_dir) if config.auth_dir is not None else AuthFiles()
    planted = plant(config, found, env)
    if config.auth_dir is not None:
        yield _auth_files(config, planted)
    places = _Places(planted.config, Proxies(env))
    # Asked once for all, so that slow ones are waited for together.
    failed = unreachable(places.asked())
    for provider in planted.config.providers:
        yield _plugin(planted.config, provider)
        if (place := places.of_provider.get(provider.name)) is not None:
            name = f"provider {provider.name}: base_url"
            yield _reached(name, provider.api_url, place, failed, "base_url")
        yield _credentials(provider, env)
    for (provider_name, url), place in places.of_token_endpoints.items():
        name = f"provider {provider_name}: token endpoint"
        yield _reached(name, url, place, failed, "oauth2.token_url")


def examine_pool(credentials: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Yield what a running gateway's list of credentials gives reason to say, or that all is well."""
    troubled = False
    for shown in credentials:
        refresh = shown["refresh"]
        if shown["disabled"] or refresh is None or refresh["state"] not in _TROUBLED:
            continue
        troubled = True
        status, remedy = _TROUBLED[refresh["state"]]
        why = f": {refresh['last_error']['message']}" if refresh["last_error"] else ""
        state = refresh["state"].replace("_", " ")
        yield Check(f"credential {shown['id']}", status, f"{state}{why}", remedy)
    ready = {c["provider"] for c in credentials if _serves(c)}
    for provider in sorted({c["provider"] for c in credentials} - ready):
        troubled = True
        yield Check(
            f"provider {provider}: pool",
            "warn",
            "no credential can serve a request now",
            "`patchbay credentials list` tells why and until when",
        )
    if not troubled:
        yield Check("pool", "ok", f"{len(credentials)} credentials of {len(ready)} providers")


_TROUBLED: Final[Mapping[str, tuple[Status, str]]] = {
    "needs_login": ("fail", "log in, and put the new refresh token where the old one came from"),
    "ambiguous": ("warn", "wait for the next try; log in again if it is refused"),
    "backoff": (
        "warn",
        "it is tried again; if the client is refused, correct client id and secret",
    ),
}


def _serves(credential: Mapping[str, Any]) -> bool:
    states = {model["state"] for model in credential["models"]}
    # A full one serves again as soon as an attempt of its own ends.
    return not credential["disabled"] and (not states or bool(states & {"ready", "full"}))


class _Places:
    """Which servers are asked: a provider's own, or the proxy on the way to it."""

    def __init__(self, config: Config, proxies: Proxies) -> None:
        self.of_provider: dict[str, str] = {}
        self.of_token_endpoints: dict[tuple[str, str], str] = {}
        for provider in config.providers:
            if provider.api_url and provider.plugin != "echo":
                self.of_provider[provider.name] = _place(
                    provider.api_url, provider.proxy_url, proxies
                )
            for credential in provider.credentials:
                oauth2 = credential.oauth2
                if oauth2 is None or not oauth2.token_url or credential.disabled:
                    continue
                proxy = credential.proxy_url or provider.proxy_url
                key = (provider.name, oauth2.token_url)
                self.of_token_endpoints[key] = _place(oauth2.token_url, proxy, proxies)

    def asked(self) -> list[str]:
        """Return all of them, the providers' first."""
        return [*self.of_provider.values(), *self.of_token_endpoints.values()]


def _place(url: str, setting: str | None, proxies: Proxies) -> str:
    # A setting as it is: kinds that executors refuse are theirs to refuse.
    found = setting if setting and "://" in setting else proxies.choose(url, setting or "") or url
    parts = urlsplit(found)
    # User and password are nothing to be reached, nor to be shown.
    return origin_of(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")


def _auth_files(config: Config, planted: Planted) -> Check:
    used = _count(planted.config) - _count(config)
    told = [f"{r.source} {r.reason}" for r in (*planted.refused, *planted.warnings)]
    if told:
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        return Check(
            "auth_dir",
            "warn",
            f"{used} files are used; " + "; ".join(told[:_SHOWN]) + more,
            "mend the files named; the type in a file is the name of a provider, or its plugin"
            + (
                "; what plugins read shows in `patchbay credentials list`" if config.plugins else ""
            ),
        )
    return Check("auth_dir", "ok", f"{used} files are used")


def _count(config: Config) -> int:
    return sum(len(provider.credentials) for provider in config.providers)


def _plugin(config: Config, provider: Provider) -> Check:
    name = f"provider {provider.name}"
    declared = {plugin.id: plugin for plugin in config.plugins}
    if (plugin := declared.get(provider.plugin)) is not None:
        if not plugin.enabled:
            remedy = f"set enabled: true for plugin {plugin.id}, or use another"
            return Check(name, "fail", f"its plugin {plugin.id} is switched off", remedy)
        return Check(name, "ok", f"plugin {plugin.id} at {plugin.address}")
    if provider.plugin not in set(BUILTIN_PLUGINS) - AUTH_PROVIDERS:
        remedy = "name a built-in executor, or add the plugin under plugins"
        return Check(name, "fail", f"there is no plugin {provider.plugin}", remedy)
    models = len(provider.models)
    if not models:
        remedy = "add models to it; clients find it by them"
        return Check(name, "warn", f"built-in plugin {provider.plugin}, no models", remedy)
    return Check(name, "ok", f"built-in plugin {provider.plugin}, {models} models")


def _reached(name: str, url: str, place: str, failed: Mapping[str, str], key: str) -> Check:
    origin = origin_of(url)
    way = origin if place == origin else f"{origin} by way of the proxy {place}"
    if (why := failed.get(place)) is None:
        return Check(name, "ok", f"{way} can be reached")
    remedy = f"correct {key}, open the way, or name a proxy (proxy_url, HTTPS_PROXY)"
    if "certificate" in why:
        remedy = f"correct {key}, or add the authority to this machine (SSL_CERT_FILE)"
    return Check(name, "fail", f"{way}: {why}", remedy)


def _credentials(provider: Provider, env: Mapping[str, str]) -> Check:
    name = f"provider {provider.name}: credentials"
    enabled = [c for c in provider.credentials if not c.disabled]
    if not provider.credentials:
        return Check(name, "ok", "no credentials: calls carry no key")
    if not enabled:
        remedy = "set disabled: false for one of them"
        return Check(name, "warn", "all credentials are switched off", remedy)
    missing = {c.id: why for c in enabled if (why := _missing(c, env))}
    if missing:
        told = "; ".join(list(missing.values())[:_SHOWN])
        return Check(
            name,
            "fail" if len(missing) == len(enabled) else "warn",
            f"{len(missing)} of {len(enabled)} credentials have no key or token: {told}",
            "export the variables or write the files named; for OAuth, log in again",
        )
    return Check(name, "ok", f"{len(enabled)} credentials with key or token")


def _missing(credential: Credential, env: Mapping[str, str]) -> str:
    """Return why *credential* has no material; empty when it has, or needs none."""
    oauth2 = credential.oauth2
    try:
        if oauth2 is None:
            credential.resolve(env)
            return ""
        resolved = resolve_secret(
            oauth2.refresh_token,
            oauth2.refresh_token_env,
            oauth2.refresh_token_file,
            env,
            where=f"credential {credential.id}",
        )
    except ConfigError as error:
        return error.message
    return "" if resolved or not oauth2.token_url else f"{credential.id} has no refresh token"
