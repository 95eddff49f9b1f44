"""
What no single entry of the configuration can see: duplicates, and references to nothing.

Not here: the shape of entries (model.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.kernel.config.plugins import AUTH_PROVIDERS, BUILTIN_PLUGINS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from patchbay_gateway.kernel.config.model import Config

Location = tuple[str | int, ...]
"""Path of a key, as `("providers", 0, "base_url")`."""


def check_references(config: Config) -> list[tuple[Location, str]]:
    """Return what is wrong between the entries of *config*: the path of each, and a sentence."""
    return [
        *_duplicates(config),
        *_unknown_plugins(config),
        *_unknown_auth_providers(config),
        *_unknown_targets(config),
    ]


def _duplicates(config: Config) -> Iterator[tuple[Location, str]]:
    def named(
        section: str, entries: Iterable[tuple[Location, str]]
    ) -> Iterator[tuple[Location, str]]:
        seen: set[str] = set()
        for path, name in entries:
            if name in seen:
                yield path, f"{name!r} appears twice in {section}"
            seen.add(name)

    for section in ("client_keys", "management_keys", "providers", "routes"):
        entries = enumerate(getattr(config, section))
        yield from named(section, (((section, i, "name"), e.name) for i, e in entries))
    plugins = ((("plugins", i, "id"), p.id) for i, p in enumerate(config.plugins))
    yield from named("plugins", plugins)
    # Usage and leases know a credential by its id alone, so it is unique over all providers.
    credentials = (
        (("providers", i, "credentials", j, "id"), credential.id)
        for i, provider in enumerate(config.providers)
        for j, credential in enumerate(provider.credentials)
    )
    yield from named("the credentials of all providers", credentials)


def _unknown_plugins(config: Config) -> Iterator[tuple[Location, str]]:
    known = {*BUILTIN_PLUGINS, *(p.id for p in config.plugins)} - AUTH_PROVIDERS
    for i, provider in enumerate(config.providers):
        if provider.plugin not in known:
            names = ", ".join(sorted(known))
            text = f"no plugin {provider.plugin!r}; known: {names}; name others under plugins"
            yield ("providers", i, "plugin"), text


def _unknown_auth_providers(config: Config) -> Iterator[tuple[Location, str]]:
    known = AUTH_PROVIDERS | {p.id for p in config.plugins}
    for i, provider in enumerate(config.providers):
        for j, credential in enumerate(provider.credentials):
            oauth2 = credential.oauth2
            if oauth2 is not None and oauth2.plugin not in known:
                names = ", ".join(sorted(known))
                text = (
                    f"no auth provider {oauth2.plugin!r}; known: {names}; name others under plugins"
                )
                yield ("providers", i, "credentials", j, "oauth2", "plugin"), text


def _unknown_targets(config: Config) -> Iterator[tuple[Location, str]]:
    providers = {p.name for p in config.providers}
    models = config.public_models
    for i, route in enumerate(config.routes):
        for j, target in enumerate(route.targets):
            if target.provider not in providers:
                names = ", ".join(sorted(providers)) or "none"
                text = f"no provider {target.provider!r}; known: {names}"
                yield ("routes", i, "targets", j, "provider"), text
        for j, fallback in enumerate(route.fallbacks):
            if fallback not in models:
                yield ("routes", i, "fallbacks", j), f"no route or model {fallback!r}"
