"""
What of the namespace's Secrets the scheduler may read: those that credentials name, and nothing else.

Pure. One Role names them: the chart makes it and binds the scheduler to it, its rules are the operator's. Not
here: the rights of the operator itself, which are the chart's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchbay_operator.objects.naming import MANAGER, owned, state_secret_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patchbay_operator.api.provider_credential import ProviderCredentialSpec
    from patchbay_operator.installation import Installation
    from patchbay_operator.resources import Resource


def role_name(installation: Installation) -> str:
    """Return the name of the Role, which the chart's RoleBinding names too."""
    return f"{installation.name}-credentials"


def build_role(
    installation: Installation, credentials: Iterable[Resource[ProviderCredentialSpec]]
) -> dict[str, Any]:
    """Return the Role: get on seeds, get and update on what takes rotated tokens."""
    seeds: set[str] = set()
    states: set[str] = set()
    for credential in credentials:
        spec = credential.spec
        if spec is None:
            continue
        # Also a key has a record: management can take it out of use.
        states.add(state_secret_name(credential.name))
        if spec.secret_ref is not None:
            seeds.add(spec.secret_ref.name)
        if spec.oauth2 is not None:
            seeds.add(spec.oauth2.refresh_token_ref.name)
            if spec.oauth2.client_secret_ref is not None:
                seeds.add(spec.oauth2.client_secret_ref.name)
    rules = []
    # Without names a rule would mean every Secret.
    if seeds:
        rules.append(_rule(seeds, ["get"]))
    if states:
        rules.append(_rule(states, ["get", "update"]))
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {
            "name": role_name(installation),
            "namespace": installation.namespace,
        },
        "rules": rules,
    }


def _rule(names: set[str], verbs: list[str]) -> dict[str, Any]:
    return {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": sorted(names),
        "verbs": verbs,
    }


def state_secret(credential: Resource[ProviderCredentialSpec]) -> dict[str, Any]:
    """Return the empty Secret that takes a credential's rotated tokens and goes with it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": state_secret_name(credential.name),
            "labels": {
                "app.kubernetes.io/part-of": "patchbay",
                "app.kubernetes.io/managed-by": MANAGER,
            },
            "ownerReferences": owned("ProviderCredential", credential.name, credential.uid),
        },
        "type": "Opaque",
    }
