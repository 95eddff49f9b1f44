"""
May this credential serve this model at all? The part of the answer that the snapshot alone decides.

A credential serves a public name if it is enabled, its prefix fits the name and no glob of its
`excluded_models` matches the model. Names compare without regard to case in globs only. What changes from
call to call (tried before, pinned, material missing) is selection's. Pure: no I/O, no clock.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patchbay_gateway.plugins.snapshot import (
        CredentialEntry,
        ModelEntry,
        ProviderEntry,
        Snapshot,
        TargetEntry,
    )


class Verdict(enum.Enum):
    """Whether a credential serves a name, or the first reason why not."""

    SERVES = "serves"
    DISABLED = "disabled"
    EXCLUDED = "excluded"
    OTHER_PREFIX = "other prefix"


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern.lower()))


def excluded(credential: CredentialEntry, name: str) -> bool:
    """Whether a glob of *credential* takes the model *name* (without prefix) away."""
    lowered = name.lower()
    return any(_glob(pattern).match(lowered) is not None for pattern in credential.excluded_models)


def judge(credential: CredentialEntry, name: str, public: str, *, force_prefix: bool) -> Verdict:
    """
    Judge whether *credential* serves the client's *name*.

    Args:
        credential: Of the provider that has the model.
        name: As the client says it, perhaps with a prefix.
        public: The model's public name without prefix.
        force_prefix: `routing.force_model_prefix`: a credential with a prefix serves it only so.
    """
    if credential.disabled:
        return Verdict.DISABLED
    plain = name == public and not (force_prefix and credential.prefix)
    if not plain and not (credential.prefix and name == f"{credential.prefix}/{public}"):
        return Verdict.OTHER_PREFIX
    return Verdict.EXCLUDED if excluded(credential, public) else Verdict.SERVES


def _judge_route(credential: CredentialEntry, route: str, publics: list[str]) -> Verdict:
    """A route names its providers itself, so prefixes have no say; exclusions hold for both names."""
    if credential.disabled:
        return Verdict.DISABLED
    if any(excluded(credential, name) for name in (route, *publics)):
        return Verdict.EXCLUDED
    return Verdict.SERVES


def _models(provider: ProviderEntry, target: TargetEntry) -> list[ModelEntry]:
    return [model for model in provider.models if model.name == target.model]


def judged(
    snapshot: Snapshot, name: str
) -> Iterator[tuple[ProviderEntry, TargetEntry, CredentialEntry, Verdict]]:
    """Yield each credential that could be meant by the public *name*, with its verdict."""
    is_route = name in snapshot.route_by_name
    seen: set[tuple[str, str, str]] = set()
    for target in snapshot.targets.get(name, ()):
        provider = snapshot.provider_by_name.get(target.provider)
        if provider is None:
            continue
        publics = [model.public for model in _models(provider, target)]
        for credential in provider.credentials:
            if is_route:
                verdict = _judge_route(credential, name, publics)
            else:
                verdict = _best(
                    judge(credential, name, p, force_prefix=snapshot.settings.force_model_prefix)
                    for p in publics
                )
            # One model under two aliases is one way to serve, named twice in `targets`.
            key = (provider.name, target.model, credential.id)
            if key not in seen:
                seen.add(key)
                yield provider, target, credential, verdict


def _best(verdicts: Iterator[Verdict]) -> Verdict:
    found = list(verdicts)
    if Verdict.SERVES in found:
        return Verdict.SERVES
    relevant = [v for v in found if v is not Verdict.OTHER_PREFIX]
    return relevant[0] if relevant else Verdict.OTHER_PREFIX
