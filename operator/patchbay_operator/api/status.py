"""
What the operator says of a resource: conditions in the form of `metav1.Condition`.

Not here: when which condition is true (`conditions.py` of the package).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from patchbay_operator.api.fields import Fields, keyed_by

ConditionStatus = Literal["True", "False", "Unknown"]

ACCEPTED: Final = "Accepted"
RESOLVED_REFS: Final = "ResolvedRefs"
AVAILABLE: Final = "Available"
PROGRAMMED: Final = "Programmed"
READY: Final = "Ready"
REFRESH_HEALTHY: Final = "RefreshHealthy"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"


class Condition(Fields):
    """One aspect of the resource's state."""

    type: Annotated[str, Field(max_length=316)]
    """Accepted, ResolvedRefs, Available, Programmed, Ready, RefreshHealthy, Reconciling or Stalled."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """Generation of the resource that this was said about."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=32768)]
    """A sentence for people: what is the matter, and what to do."""


Conditions = Annotated[
    tuple[Condition, ...], Field(max_length=16, json_schema_extra=keyed_by("type"))
]


class Status(Fields):
    """What the operator saw; written by it alone."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] | None = None
    """Generation that the rest of the status is about."""
    conditions: Conditions = ()
    """Aspects of its state; Ready sums them up."""
