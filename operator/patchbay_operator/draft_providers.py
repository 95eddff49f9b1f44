"""
The providers of a draft: which ProviderCredentials take part, and the providers that they agree on.

Not here: contents of Secrets, which nobody here reads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from patchbay_gateway.kernel import config as model
from patchbay_gateway.plugins.building import implicit_id
from patchbay_operator.api.provider_credential import PROVIDER_FIELDS
from patchbay_operator.verdicts import PLUGIN_NOT_FOUND, SECRET_NOT_FOUND, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from patchbay_operator.api.provider_credential import ProviderCredentialSpec
    from patchbay_operator.draft import Gathered
    from patchbay_operator.resources import Resource
    from patchbay_operator.verdicts import Verdicts


class Providers:
    """
    One draft's.

    Args:
        gathered: What there is.
        verdicts: Told of each ProviderCredential.
    """

    def __init__(self, gathered: Gathered, verdicts: Verdicts) -> None:
        self._in = gathered
        self._verdicts = verdicts
        self.sources: dict[str, dict[str, str]] = {}
        """Credential → what of its material is in which Secret, as `name/key`."""
        self.fingerprints: dict[str, str] = {}
        """Credential whose Secrets are there → what changes when they do."""

    def drafted(self, plugin_ids: set[str]) -> Iterable[model.Provider]:
        """Return those that the configuration gets, besides the values' own."""
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
                self._verdicts.judge(resource)
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
                self._verdicts.judge(resource, conflict=conflict)
                continue
            if spec.plugin not in known:
                names = ", ".join(sorted(known))
                text = f"there is no plugin {spec.plugin!r}; there are {names}; apply a Plugin of that id"
                self._verdicts.judge(resource, unresolved=(PLUGIN_NOT_FOUND, text), included=False)
                continue
            try:
                credential = self._credential(resource)
                _provider(spec.provider, spec, [credential])
            except ValidationError as error:
                self._verdicts.judge(resource, invalid=sentence(error))
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
            self._verdicts.judge(resource, unresolved=(SECRET_NOT_FOUND, text))
        else:
            self._verdicts.judge(resource)
            self.fingerprints[resource.name] = self._fingerprint(sources, names)
        self.sources[resource.name] = sources
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
