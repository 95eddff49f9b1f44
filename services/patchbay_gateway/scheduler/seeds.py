"""
Seeds: what the configuration gives OAuth-like credentials to begin with.

A seed is the user's and is never written. It counts again only when its refresh token is another one, for the
tokens that it grew into live in the durable store (refresh_rules.sown). Not here: records, auth files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from patchbay.errors import PatchbayError
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.config.secrets import resolve_secret
from patchbay_gateway.scheduler.refresh_rules import Seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.kernel.config import Config
    from patchbay_gateway.kernel.config.providers import Credential, OAuth2

_log = logs.get_logger("scheduler.credentials")


@dataclass(frozen=True, slots=True)
class Seeds:
    """All that the configuration gives."""

    of: Mapping[str, Seed] = field(default_factory=dict)
    """Credential id → seed."""
    broken: frozenset[str] = frozenset()
    """Credentials one of whose secrets is not here: other schedulers refresh them."""


def read_seeds(config: Config, environ: Mapping[str, str]) -> Seeds:
    """
    Return the seeds of *config*; what is missing is named in the log.

    Reads files: not for the event loop.
    """
    found: dict[str, Seed] = {}
    broken: set[str] = set()
    for provider in config.providers:
        for credential in provider.credentials:
            if credential.oauth2 is None:
                continue
            try:
                found[credential.id] = _seed(credential, credential.oauth2, environ)
            except PatchbayError as error:
                _log.warning("credential without token", credential=credential.id, why=str(error))
                broken.add(credential.id)
    return Seeds(found, frozenset(broken))


def seed_hash(refresh_token: str) -> str:
    """Return what tells one seed from another; of nothing but the token that the others descend from."""
    return hashlib.sha256(refresh_token.encode()).hexdigest()


def _seed(credential: Credential, oauth2: OAuth2, environ: Mapping[str, str]) -> Seed:
    where = f"credential {credential.id}"
    refresh = resolve_secret(
        oauth2.refresh_token,
        oauth2.refresh_token_env,
        oauth2.refresh_token_file,
        environ,
        where=where,
    )
    secret = resolve_secret(
        oauth2.client_secret,
        oauth2.client_secret_env,
        oauth2.client_secret_file,
        environ,
        where=where,
    )
    access = resolve_secret(
        None, oauth2.access_token_env, oauth2.access_token_file, environ, where=where
    )
    material = {"refresh_token": refresh or "", "access_token": access or ""}
    return Seed(
        hash=seed_hash(refresh or ""),
        material={name: value for name, value in material.items() if value},
        client_secret=secret or "",
    )
