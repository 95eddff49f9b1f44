"""
Resources as the API server gives them: identity, spec, and what keeps a spec from being understood.

The API server checks a spec against the CRD, so a spec that fails here was stored under an older or newer
definition. Not here: what a resource becomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from patchbay_operator.api.client_key import ClientKeySpec
from patchbay_operator.api.fields import Fields
from patchbay_operator.api.model_route import ModelRouteSpec
from patchbay_operator.api.plugin import PluginSpec
from patchbay_operator.api.provider_credential import ProviderCredentialSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

Spec = TypeVar("Spec", bound=Fields)

SPECS: Mapping[str, type[Fields]] = {
    "Plugin": PluginSpec,
    "ProviderCredential": ProviderCredentialSpec,
    "ModelRoute": ModelRouteSpec,
    "ClientKey": ClientKeySpec,
}


@dataclass(frozen=True, slots=True)
class Resource(Generic[Spec]):
    """One custom resource."""

    kind: str
    name: str
    uid: str
    generation: int
    created: str
    """creationTimestamp; with the name it orders those that compete."""
    spec: Spec | None
    """None when it cannot be understood."""
    problem: str = ""
    """Why it cannot."""

    @property
    def age(self) -> tuple[str, str]:
        """Sorts the oldest first."""
        return self.created, self.name

    @property
    def key(self) -> tuple[str, str]:
        """Kind and name."""
        return self.kind, self.name


def understand(document: Mapping[str, Any]) -> Resource[Any]:
    """Return the resource in *document*, as GET or LIST gave it."""
    metadata = document["metadata"]
    kind = document["kind"]
    spec, problem = None, ""
    try:
        spec = SPECS[kind].model_validate(document.get("spec") or {})
    except ValidationError as error:
        found = [
            f"spec.{'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
            for e in error.errors(include_url=False)
        ]
        problem = "; ".join(found[:5])
    return Resource(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 1),
        created=metadata.get("creationTimestamp") or "",
        spec=spec,
        problem=problem,
    )
