"""ModelRoute: a model name of one's own, and what stands behind it."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from patchbay_operator.api.fields import Fields, Model, Name, rules
from patchbay_operator.api.status import Status


class Target(Fields):
    """One way to serve it."""

    provider: Name
    """Name of a provider."""
    model: Model
    """Model as that provider names it."""


class ModelRouteSpec(Fields):
    """Public names, and targets in order."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.aliases) || !has(self.name) || !self.aliases.exists(a, a == self.name)",
                "aliases repeats name; remove it there",
            ),
            (
                (
                    "!has(self.fallbacks) || !has(self.name) || "
                    "!self.fallbacks.exists(f, f == self.name)"
                ),
                "a route cannot fall back to itself; remove its name from fallbacks",
            ),
        )
    )

    name: Model | None = None
    """What clients ask for; absent: the name of this resource."""
    aliases: Annotated[
        tuple[Model, ...], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """Further names for the same."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=64)]
    """Ways to serve it."""
    fallbacks: Annotated[tuple[Model, ...], Field(max_length=32)] = ()
    """Routes or models tried when no target can serve."""


class ModelRouteStatus(Status):
    """What the operator saw of it."""
