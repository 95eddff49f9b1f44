"""
What clients see of a draft: the names of models, and the keys that open them.

Not here: which models providers have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.kernel import config as model
from patchbay_operator.verdicts import MODEL_NOT_FOUND, PROVIDER_NOT_FOUND, SECRET_NOT_FOUND

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patchbay_operator.api.client_key import ClientKeySpec
    from patchbay_operator.api.model_route import ModelRouteSpec
    from patchbay_operator.draft import Gathered
    from patchbay_operator.resources import Resource
    from patchbay_operator.verdicts import Verdicts


class Clients:
    """
    One draft's.

    Args:
        gathered: What there is.
        verdicts: Told of each ModelRoute and ClientKey.
    """

    def __init__(self, gathered: Gathered, verdicts: Verdicts) -> None:
        self._in = gathered
        self._verdicts = verdicts
        self.digests = dict(gathered.base_digests)
        """Client key → digest."""

    def routes(self, config: model.Config) -> Iterable[model.Route]:
        """Return the routes that the configuration gets, besides the values' own."""
        taken = {route.name: "the chart's values" for route in config.routes}
        providers = {p.name for p in config.providers}
        found: list[tuple[Resource[ModelRouteSpec], list[str], list[model.RouteTarget]]] = []
        for resource in sorted(self._in.routes, key=lambda r: r.age):
            spec = resource.spec
            if spec is None:
                self._verdicts.judge(resource)
                continue
            names = [spec.name or resource.name, *spec.aliases]
            if clash := [name for name in names if name in taken]:
                text = (
                    f"the model {clash[0]!r} is routed by {taken[clash[0]]} already; "
                    "choose another name"
                )
                self._verdicts.judge(resource, conflict=text)
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
            self._verdicts.judge(resource, unresolved=unresolved, included=bool(targets))
            if targets:
                fallbacks = tuple(f for f in resource.spec.fallbacks if f in models)
                for name in names:
                    yield model.Route(name=name, targets=tuple(targets), fallbacks=fallbacks)

    def client_keys(self) -> Iterable[model.ClientKey]:
        """Return the keys that the configuration gets, besides the values' own."""
        taken = {key.name: "the chart's values" for key in self._in.base.client_keys}
        digests = {d: f"{n} of the chart's values" for n, d in self._in.base_digests.items()}
        for resource in sorted(self._in.client_keys, key=lambda r: r.age):
            spec = resource.spec
            if spec is None:
                self._verdicts.judge(resource)
                continue
            if resource.name in taken:
                text = f"a client key {resource.name!r} is declared by {taken[resource.name]}"
                self._verdicts.judge(resource, conflict=text)
                continue
            digest = self._in.digests.get(resource.name)
            if digest is None:
                self._verdicts.judge(resource, unresolved=_missing_key(resource), included=False)
                continue
            if digest in digests:
                text = f"its key is that of {digests[digest]}; each needs a key of its own"
                self._verdicts.judge(resource, conflict=text)
                continue
            taken[resource.name] = f"ClientKey {resource.name}"
            digests[digest] = f"ClientKey {resource.name}"
            off = "spec.disabled keeps it from opening anything" if spec.disabled else ""
            self._verdicts.judge(resource, off=off)
            if not spec.disabled:
                self.digests[resource.name] = digest
                yield model.ClientKey(
                    name=resource.name, hash=digest, models=spec.models, tenant=spec.tenant
                )


def _missing_key(resource: Resource[ClientKeySpec]) -> tuple[str, str]:
    assert resource.spec is not None
    ref = resource.spec.secret_ref
    if ref is None:
        return SECRET_NOT_FOUND, "its key is about to be made"
    return SECRET_NOT_FOUND, (
        f"there is no key {ref.key!r} of 8 characters or more in a Secret {ref.name}; create it, for "
        f"example: kubectl create secret generic {ref.name} --from-literal={ref.key}=…"
    )
