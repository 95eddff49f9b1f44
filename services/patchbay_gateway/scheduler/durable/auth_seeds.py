"""
What auth files add to a configuration: credentials of the providers they belong to, and seeds of tokens.

A file becomes a credential like one that stands below its provider, so that everything after this treats both
alike. A token endpoint that the file does not name is taken from the provider's configured `oauth2`
credentials, if they agree on one; without any, the access token serves until it ends and is not refreshed.

Not here: reading files (auth_files.py), what becomes of seeds (refresh_rules.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from patchbay_gateway.kernel.config import ConfigError, Credential, OAuth2, resolve_secret
from patchbay_gateway.scheduler.durable.auth_files import (
    AuthFiles,
    ProviderKey,
    RefusedFile,
    place,
)
from patchbay_gateway.scheduler.refresh_rules import Seed
from patchbay_gateway.scheduler.seeds import seed_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.auth_documents import AuthDocument
    from patchbay_gateway.kernel.config import Config, Provider
    from patchbay_gateway.scheduler.durable.auth_files import AuthFile

_SOURCES = (
    "refresh_token_env",
    "refresh_token_file",
    "access_token_env",
    "access_token_file",
)


@dataclass(frozen=True, slots=True)
class Planted:
    """A configuration with the credentials of auth files."""

    config: Config = field(repr=False)
    seeds: Mapping[str, Seed] = field(default_factory=dict, repr=False)
    """Credential id → seed, of the files' OAuth credentials."""
    refused: tuple[RefusedFile, ...] = ()
    """Files that are not used, and why."""
    warnings: tuple[RefusedFile, ...] = ()
    """Files that are used otherwise than they are written, and how."""


def plant(config: Config, files: AuthFiles, environ: Mapping[str, str]) -> Planted:
    """Return *config* with what *files* add to it. May read a file of a client secret: blocking."""
    taken = [credential.id for provider in config.providers for credential in provider.credentials]
    keys = [ProviderKey(provider.name, provider.plugin) for provider in config.providers]
    placed, unplaced = place(files.files, keys, taken)
    refused, warnings = [*files.refused, *unplaced], list[RefusedFile]()
    seeds: dict[str, Seed] = {}
    added: dict[str, list[Credential]] = {}
    providers = {provider.name: provider for provider in config.providers}
    for item in placed:
        file, document = item.file, item.file.document
        try:
            credential = _credential(file, providers[item.provider])
            if credential.oauth2 is not None:
                seeds[file.id] = _seed(document, credential.oauth2, environ)
        except ValidationError as error:
            keys_named = ", ".join(str(e["loc"][0]) for e in error.errors() if e["loc"])
            refused.append(RefusedFile(file.source, f"has a wrong {keys_named or 'value'}"))
            continue
        except ConfigError as error:
            refused.append(RefusedFile(file.source, f"cannot be used: {error.message}"))
            continue
        added.setdefault(item.provider, []).append(credential)
        warnings += [RefusedFile(file.source, text) for text in _warnings(document, credential)]
    if added:
        config = config.model_copy(
            update={
                "providers": tuple(
                    provider.model_copy(
                        update={
                            "credentials": (*provider.credentials, *added.get(provider.name, ()))
                        }
                    )
                    for provider in config.providers
                )
            }
        )
    return Planted(config, seeds, tuple(refused), tuple(warnings))


def _credential(file: AuthFile, provider: Provider) -> Credential:
    document = file.document
    plain = Credential.model_validate(
        {
            "id": file.id,
            "api_key": document.material.get("api_key"),
            "priority": document.priority,
            "weight": document.weight,
            "prefix": document.prefix or None,
            "proxy_url": document.proxy_url or None,
            "disabled": document.disabled,
            "excluded_models": document.excluded_models,
        }
    )
    if document.kind == "api_key":
        return plain
    return plain.model_copy(update={"oauth2": _oauth2(document, provider)})


def _oauth2(document: AuthDocument, provider: Provider) -> OAuth2:
    more: dict[str, Any] = {}
    if document.refresh_interval:
        more["refresh_lead"] = document.refresh_interval
    if document.token_url and document.client_id:
        # Not validated as a whole: the file may have no refresh token, which the configuration demands.
        OAuth2.model_validate(
            {"token_url": document.token_url, "client_id": document.client_id, "refresh_token": "-"}
        )
        return OAuth2.model_construct(
            token_url=document.token_url,
            client_id=document.client_id,
            client_secret=document.client_secret or None,
            refresh_token=document.material.get("refresh_token"),
            scopes=document.scopes,
            **more,
        )
    configured = [c.oauth2 for c in provider.credentials if c.oauth2 is not None]
    endpoints = {(found.token_url, found.client_id) for found in configured}
    if len(endpoints) != 1:
        return OAuth2.model_construct(token_url="", client_id="", **more)
    return configured[0].model_copy(
        update={
            **dict.fromkeys(_SOURCES),
            "refresh_token": document.material.get("refresh_token"),
            **more,
        }
    )


def _seed(document: AuthDocument, source: OAuth2, environ: Mapping[str, str]) -> Seed:
    # Without an endpoint the refresh token is of no use, and its presence would announce a refresh.
    left_out = {"id_token"} if source.token_url else {"id_token", "refresh_token"}
    secret = resolve_secret(
        source.client_secret,
        source.client_secret_env,
        source.client_secret_file,
        environ,
        where="client_secret",
    )
    material = {k: v for k, v in document.material.items() if k not in left_out}
    return Seed(
        # Of the refresh token alone where there is one (`AuthDocument.seed_hash`).
        hash=seed_hash(material.get("refresh_token") or material.get("access_token", "")),
        material=material,
        client_secret=secret or "",
        expires_at=document.expires_at or 0.0,
        refreshed_at=document.last_refresh or 0.0,
        label=document.label or document.email,
    )


def _warnings(document: AuthDocument, credential: Credential) -> list[str]:
    found = list(document.warnings)
    without = [name for name in ("base_url", "headers", "model_aliases") if getattr(document, name)]
    if without:
        found.append(f"{', '.join(without)} without effect here: they are the provider's")
    if credential.oauth2 is not None and document.refreshable and not credential.oauth2.token_url:
        found.append(
            "is not refreshed: add token_url and client_id to it, or an oauth2 credential to its provider"
        )
    return found
