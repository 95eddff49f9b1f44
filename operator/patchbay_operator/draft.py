"""
From resources and values to the snapshot: `draft(…)` decides which resource takes part and says why not.

Pure. Values come first and win, then the oldest resource; whoever comes later and claims the same name is
told so. Nothing is dropped in silence: each resource gets a `Verdict`, and one that is wrong leaves the rest
as it is. Not here: what is read from the cluster to decide it (gathering.py), publishing, status.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from patchbay_gateway.kernel import config as model
from patchbay_gateway.plugins.building import build_snapshot, implicit_id
from patchbay_operator.api.provider_credential import PROVIDER_FIELDS
from patchbay_operator.objects.naming import child_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from patchbay_gateway.plugins.snapshot import PriceEntry, Snapshot
    from patchbay_operator.api.client_key import ClientKeySpec
    from patchbay_operator.api.model_route import ModelRouteSpec
    from patchbay_operator.api.plugin import PluginSpec
    from patchbay_operator.api.provider_credential import ProviderCredentialSpec
    from patchbay_operator.installation import Installation
    from patchbay_operator.resources import Resource

ACCEPTED: Final = "Accepted"
INVALID: Final = "Invalid"
CONFLICT: Final = "Conflict"
RESOLVED: Final = "Resolved"
SECRET_NOT_FOUND: Final = "SecretNotFound"  # noqa: S105 - a reason
CONFIG_NOT_FOUND: Final = "ConfigNotFound"
PLUGIN_NOT_FOUND: Final = "PluginNotFound"
PROVIDER_NOT_FOUND: Final = "ProviderNotFound"
MODEL_NOT_FOUND: Final = "ModelNotFound"


@dataclass(frozen=True, slots=True)
class Aspect:
    """A condition's status, reason and sentence."""

    ok: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about one resource."""

    accepted: Aspect
    resolved: Aspect
    included: bool
    """Whether the snapshot holds it."""
    waits: str = ""
    """What it waits for before it is included, when nothing is wrong with it."""
    off: str = ""
    """Why it is left out on purpose."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that the snapshot is made of."""

    base: model.Config
    """The values' configuration."""
    plugins: Sequence[Resource[PluginSpec]] = ()
    credentials: Sequence[Resource[ProviderCredentialSpec]] = ()
    routes: Sequence[Resource[ModelRouteSpec]] = ()
    client_keys: Sequence[Resource[ClientKeySpec]] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Name of each Secret → what changes with its content."""
    configs: Mapping[str, str | None] = field(default_factory=dict)
    """Plugin with `configFrom` → its YAML, None when there is none."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """ClientKey → digest of its key; those without key are missing."""
    base_digests: Mapping[str, str] = field(default_factory=dict)
    """The same for client keys of the values."""
    prices: Sequence[PriceEntry] = ()
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Plugin → `Secret/name` and `ConfigMap/name` without which its pods cannot start."""
    serving: Collection[str] = ()
    """Plugins whose pods are ready, or were once."""


@dataclass(frozen=True, slots=True)
class _Material:
    """What the snapshot says of a Secret's content."""

    fingerprint: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A configuration, what is known of its secrets, and a verdict for each resource."""

    config: model.Config
    verdicts: Mapping[tuple[str, str], Verdict]
    """(kind, name) → verdict."""
    material: Mapping[str, _Material]
    digests: Mapping[str, str]
    prices: Sequence[PriceEntry]
    sources: Mapping[str, Mapping[str, str]]
    """Credential → what of its material is in which Secret, as `name/key`."""

    def snapshot(self, previous: Snapshot | None, now: float) -> Snapshot:
        """Return the snapshot, without a version; *now* in Unix seconds dates new material."""
        built = build_snapshot(
            self.config,
            material=self.material,
            digests=self.digests,
            prices=self.prices,
            previous=previous,
            now=now,
            open_access=False,
        )
        providers = tuple(
            msgspec.structs.replace(
                provider,
                credentials=tuple(
                    msgspec.structs.replace(c, secrets=dict(self.sources.get(c.id, {})))
                    for c in provider.credentials
                ),
            )
            for provider in built.providers
        )
        return msgspec.structs.replace(built, providers=providers)


def draft(gathered: Gathered, installation: Installation) -> Draft:
    """Return what the resources and values come to."""
    drafting = _Drafting(gathered, installation)
    return drafting.run()


class _Drafting:
    """One run over everything, in the order in which things refer to each other."""

    def __init__(self, gathered: Gathered, installation: Installation) -> None:
        self._in = gathered
        self._installation = installation
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        self._sources: dict[str, dict[str, str]] = {}
        self._material: dict[str, _Material] = {}
        self._digests = dict(gathered.base_digests)

    def run(self) -> Draft:
        base = self._in.base
        plugins = [*base.plugins, *self._plugins()]
        providers = [*base.providers, *self._providers({p.id for p in plugins})]
        for provider in providers:
            if not provider.credentials:
                self._material[implicit_id(provider.name)] = _Material("")
        interim = base.model_copy(update={"plugins": tuple(plugins), "providers": tuple(providers)})
        routes = [*base.routes, *self._routes(interim)]
        keys = [*base.client_keys, *self._client_keys()]
        return Draft(
            config=interim.model_copy(
                update={"routes": tuple(routes), "client_keys": tuple(keys)},
            ),
            verdicts=self._verdicts,
            material=self._material,
            digests=self._digests,
            prices=self._in.prices,
            sources=self._sources,
        )

    def _judge(
        self,
        resource: Resource[Any],
        *,
        conflict: str = "",
        invalid: str = "",
        unresolved: tuple[str, str] | None = None,
        included: bool = True,
        waits: str = "",
        off: str = "",
    ) -> None:
        invalid = invalid or resource.problem
        if invalid:
            accepted = Aspect(ok=False, reason=INVALID, message=f"correct it: {invalid}")
        elif conflict:
            accepted = Aspect(ok=False, reason=CONFLICT, message=conflict)
        else:
            accepted = Aspect(ok=True, reason=ACCEPTED, message="it can be used")
        if unresolved is not None:
            resolved = Aspect(ok=False, reason=unresolved[0], message=unresolved[1])
        else:
            resolved = Aspect(ok=True, reason=RESOLVED, message="all that it names is there")
        self._verdicts[resource.key] = Verdict(
            accepted=accepted,
            resolved=resolved,
            included=included and accepted.ok and not waits and not off,
            waits=waits,
            off=off if accepted.ok and resolved.ok else "",
        )

    # Plugins ------------------------------------------------------------------------------------

    def _plugins(self) -> Iterable[model.Plugin]:
        taken = {p.id: "the chart's values" for p in self._in.base.plugins}
        for resource in sorted(self._in.plugins, key=lambda r: r.age):
            if resource.spec is None:
                self._judge(resource)
                continue
            id_ = resource.spec.id or resource.name
            if id_ in taken:
                text = (
                    f"the plugin {id_!r} is declared by {taken[id_]} already; give this another id"
                )
                self._judge(resource, conflict=text)
                continue
            # Its id is taken whatever becomes of it: a younger one must not serve in its place for a moment.
            taken[id_] = f"Plugin {resource.name}"
            config, missing = self._config(resource.name, resource.spec)
            if missing:
                self._judge(resource, unresolved=(CONFIG_NOT_FOUND, missing), included=False)
                continue
            try:
                built = self._plugin(resource.name, resource.spec, id_, config)
            except ValidationError as error:
                self._judge(resource, invalid=_sentence(error))
                continue
            absent = self._in.missing.get(resource.name)
            unresolved = _missing_objects(absent) if absent else None
            replaces = id_ in model.BUILTIN_PLUGINS and resource.spec.image is not None
            if replaces and resource.name not in self._in.serving:
                # What serves now goes on until there is somebody to take its place.
                text = f"it takes the place of the built-in {id_} when its first pod is ready"
                self._judge(resource, unresolved=unresolved, waits=text)
                continue
            self._judge(resource, unresolved=unresolved)
            yield built

    def _config(self, name: str, spec: PluginSpec) -> tuple[dict[str, Any], str]:
        """Return the plugin's own configuration, or why there is none."""
        if spec.config_from is None:
            return dict(spec.config or {}), ""
        text = self._in.configs.get(name)
        if text is None:
            return {}, _missing_config(spec)
        try:
            loaded = yaml.safe_load(text)
        except yaml.YAMLError as error:
            return {}, f"the configuration is no YAML: {str(error).splitlines()[0]}"
        if loaded is not None and not isinstance(loaded, dict):
            return {}, "the configuration is no mapping of keys"
        return loaded or {}, ""

    def _plugin(
        self, name: str, spec: PluginSpec, id_: str, config: dict[str, Any]
    ) -> model.Plugin:
        values = spec.model_dump(
            include=set(model.Plugin.model_fields) - {"id", "address", "config"}, mode="json"
        )
        address = spec.address or self.address(name, spec.port)
        return model.Plugin.model_validate(
            {**values, "id": id_, "address": address, "config": config}
        )

    def address(self, plugin: str, port: int) -> str:
        """Return where a Plugin's pods are found; the dot at the end spares a search path's questions."""
        at = self._installation
        return f"{child_name(plugin)}.{at.namespace}.svc.{at.cluster_domain}.:{port}"

    # Providers ----------------------------------------------------------------------------------

    def _providers(self, plugin_ids: set[str]) -> Iterable[model.Provider]:
        executors = {p for p in model.BUILTIN_PLUGINS if p not in model.AUTH_PROVIDERS}
        known = executors | plugin_ids
        in_values = {p.name for p in self._in.base.providers}
        ids = {c.id: "the chart's values" for p in self._in.base.providers for c in p.credentials}
        ids |= {
            implicit_id(p.name): "the chart's values"
            for p in self._in.base.providers
            if not p.credentials
        }
        pools: dict[str, list[model.Credential]] = {}
        first: dict[str, Resource[ProviderCredentialSpec]] = {}
        for resource in sorted(self._in.credentials, key=lambda r: r.age):
            spec = resource.spec
            if spec is None:
                self._judge(resource)
                continue
            conflict = ""
            if spec.provider in in_values:
                conflict = (
                    f"the provider {spec.provider!r} is declared by the chart's values; "
                    "name another provider, or remove it there"
                )
            elif resource.name in ids:
                conflict = f"the credential {resource.name!r} is declared by {ids[resource.name]}"
            elif spec.provider in first:
                conflict = _disagreement(first[spec.provider], spec)
            if conflict:
                self._judge(resource, conflict=conflict)
                continue
            if spec.plugin not in known:
                names = ", ".join(sorted(known))
                text = f"there is no plugin {spec.plugin!r}; there are {names}; apply a Plugin of that id"
                self._judge(resource, unresolved=(PLUGIN_NOT_FOUND, text), included=False)
                continue
            try:
                credential = self._credential(resource)
                _provider(spec.provider, spec, [credential])
            except ValidationError as error:
                self._judge(resource, invalid=_sentence(error))
                continue
            first.setdefault(spec.provider, resource)
            pools.setdefault(spec.provider, []).append(credential)
        for name, credentials in pools.items():
            yield _provider(name, first[name].spec, credentials)

    def _credential(self, resource: Resource[ProviderCredentialSpec]) -> model.Credential:
        spec = resource.spec
        assert spec is not None
        sources: dict[str, str] = {}
        values: dict[str, Any] = spec.model_dump(
            include={
                *("priority", "weight", "prefix", "proxy_url"),
                *("disabled", "excluded_models", "max_in_flight"),
            },
            mode="json",
        )
        if spec.secret_ref is not None:
            sources["api_key"] = f"{spec.secret_ref.name}/{spec.secret_ref.key}"
            values["api_key_file"] = Path(sources["api_key"])
        if spec.oauth2 is not None:
            wish = spec.oauth2
            sources["refresh_token"] = f"{wish.refresh_token_ref.name}/{wish.refresh_token_ref.key}"
            values["oauth2"] = {
                **wish.model_dump(exclude={"client_secret_ref", "refresh_token_ref"}, mode="json"),
                "refresh_token_file": Path(sources["refresh_token"]),
            }
            if wish.client_secret_ref is not None:
                ref = wish.client_secret_ref
                sources["client_secret"] = f"{ref.name}/{ref.key}"
                values["oauth2"]["client_secret_file"] = Path(sources["client_secret"])
        names = sorted({source.partition("/")[0] for source in sources.values()})
        absent = [name for name in names if name not in self._in.secrets]
        if absent:
            values["disabled"] = True
            text = (
                f"there is no Secret {' and no Secret '.join(absent)}; create it, for example: "
                f"kubectl create secret generic {absent[0]} --from-literal="
                f"{_key_of(absent[0], sources)}=…"
            )
            self._judge(resource, unresolved=(SECRET_NOT_FOUND, text))
        else:
            self._judge(resource)
            self._material[resource.name] = _Material(self._fingerprint(sources, names))
        self._sources[resource.name] = sources
        return model.Credential.model_validate({**values, "id": resource.name})

    def _fingerprint(self, sources: Mapping[str, str], names: Iterable[str]) -> str:
        """Return what changes when the Secrets do; nothing is said of their content."""
        if not sources:
            return ""
        digest = hashlib.sha256()
        for what in sorted(sources):
            digest.update(f"{what}={sources[what]}\n".encode())
        for name in names:
            digest.update(f"{name}@{self._in.secrets[name]}\n".encode())
        return f"secret:{digest.hexdigest()[:40]}"

    # Routes and keys ----------------------------------------------------------------------------

    def _routes(self, config: model.Config) -> Iterable[model.Route]:
        taken = {route.name: "the chart's values" for route in config.routes}
        providers = {p.name for p in config.providers}
        found: list[tuple[Resource[ModelRouteSpec], list[str], list[model.RouteTarget]]] = []
        for resource in sorted(self._in.routes, key=lambda r: r.age):
            spec = resource.spec
            if spec is None:
                self._judge(resource)
                continue
            names = [spec.name or resource.name, *spec.aliases]
            if clash := [name for name in names if name in taken]:
                text = (
                    f"the model {clash[0]!r} is routed by {taken[clash[0]]} already; "
                    "choose another name"
                )
                self._judge(resource, conflict=text)
                continue
            taken |= dict.fromkeys(names, f"ModelRoute {resource.name}")
            targets = [
                model.RouteTarget(provider=t.provider, model=t.model)
                for t in spec.targets
                if t.provider in providers
            ]
            found.append((resource, names, targets))
        models = {*config.public_models, *taken}
        for resource, names, targets in found:
            assert resource.spec is not None
            absent = sorted({t.provider for t in resource.spec.targets} - providers)
            unresolved = None
            if absent:
                known = ", ".join(sorted(providers)) or "none"
                text = (
                    f"there is no provider {absent[0]!r}; there are {known}; "
                    "apply a ProviderCredential of it"
                )
                unresolved = (PROVIDER_NOT_FOUND, text)
            elif lost := [f for f in resource.spec.fallbacks if f not in models]:
                text = f"there is no route or model {lost[0]!r} to fall back to"
                unresolved = (MODEL_NOT_FOUND, text)
            self._judge(resource, unresolved=unresolved, included=bool(targets))
            if targets:
                fallbacks = tuple(f for f in resource.spec.fallbacks if f in models)
                for name in names:
                    yield model.Route(name=name, targets=tuple(targets), fallbacks=fallbacks)

    def _client_keys(self) -> Iterable[model.ClientKey]:
        taken = {key.name: "the chart's values" for key in self._in.base.client_keys}
        digests = {d: f"{n} of the chart's values" for n, d in self._in.base_digests.items()}
        for resource in sorted(self._in.client_keys, key=lambda r: r.age):
            spec = resource.spec
            if spec is None:
                self._judge(resource)
                continue
            if resource.name in taken:
                text = f"a client key {resource.name!r} is declared by {taken[resource.name]}"
                self._judge(resource, conflict=text)
                continue
            digest = self._in.digests.get(resource.name)
            if digest is None:
                self._judge(resource, unresolved=_missing_key(resource), included=False)
                continue
            if digest in digests:
                text = f"its key is that of {digests[digest]}; each needs a key of its own"
                self._judge(resource, conflict=text)
                continue
            taken[resource.name] = f"ClientKey {resource.name}"
            digests[digest] = f"ClientKey {resource.name}"
            off = "spec.disabled keeps it from opening anything" if spec.disabled else ""
            self._judge(resource, off=off)
            if not spec.disabled:
                self._digests[resource.name] = digest
                yield model.ClientKey(
                    name=resource.name, hash=digest, models=spec.models, tenant=spec.tenant
                )


def _sentence(error: ValidationError) -> str:
    found = [
        f"spec.{'.'.join(to_camel(str(part)) for part in e['loc'])}: "
        f"{e['msg'].removeprefix('Value error, ')}"
        for e in error.errors(include_url=False)
    ]
    return "; ".join(found[:5])


def _missing_objects(names: Sequence[str]) -> tuple[str, str]:
    reason = SECRET_NOT_FOUND if names[0].startswith("Secret/") else CONFIG_NOT_FOUND
    text = " and ".join(name.replace("/", " ") for name in names)
    return reason, f"there is no {text}, which its pods read; create it and they start"


def _missing_config(spec: PluginSpec) -> str:
    assert spec.config_from is not None
    ref = spec.config_from.secret_ref or spec.config_from.config_map_ref
    assert ref is not None
    kind = "Secret" if spec.config_from.secret_ref is not None else "ConfigMap"
    return f"there is no key {ref.key!r} in a {kind} {ref.name}; create it, or correct configFrom"


def _missing_key(resource: Resource[ClientKeySpec]) -> tuple[str, str]:
    assert resource.spec is not None
    ref = resource.spec.secret_ref
    if ref is None:
        return SECRET_NOT_FOUND, "its key is about to be made"
    return SECRET_NOT_FOUND, (
        f"there is no key {ref.key!r} of 8 characters or more in a Secret {ref.name}; create it, for "
        f"example: kubectl create secret generic {ref.name} --from-literal={ref.key}=…"
    )


def _key_of(secret: str, sources: Mapping[str, str]) -> str:
    return next(s.partition("/")[2] for s in sources.values() if s.startswith(f"{secret}/"))


def _disagreement(first: Resource[ProviderCredentialSpec], spec: ProviderCredentialSpec) -> str:
    """Return which field of the provider two credentials do not agree on; empty when they agree."""
    assert first.spec is not None
    for name in PROVIDER_FIELDS:
        if getattr(first.spec, name) != getattr(spec, name):
            alias = type(spec).model_fields[name].alias
            return (
                f"{alias} is another than that of {first.name}; all credentials of the provider "
                f"{spec.provider!r} say the same"
            )
    return ""


def _provider(
    name: str, spec: ProviderCredentialSpec | None, credentials: list[model.Credential]
) -> model.Provider:
    assert spec is not None
    values = spec.model_dump(include=set(PROVIDER_FIELDS), mode="json")
    return model.Provider.model_validate({**values, "name": name, "credentials": credentials})
