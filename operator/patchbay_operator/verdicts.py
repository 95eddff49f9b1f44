"""
What is decided about each resource, and why: the form of a verdict and the words for its reasons.

Not here: the decisions (draft.py and the modules that it calls), conditions made of them (conditions.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from pydantic import ValidationError

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


class Verdicts:
    """The verdicts of one draft."""

    def __init__(self) -> None:
        self.of: dict[tuple[str, str], Verdict] = {}
        """(kind, name) → verdict."""

    def judge(
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
        """
        Decide about *resource*; the last word counts.

        Args:
            resource: Whose verdict.
            conflict: Who has what it claims; empty: nobody.
            invalid: What the configuration's model refuses.
            unresolved: Reason and sentence of what it names and is not there.
            included: Whether the snapshot holds it all the same.
            waits: What it waits for.
            off: Why it is left out on purpose.
        """
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
        self.of[resource.key] = Verdict(
            accepted=accepted,
            resolved=resolved,
            included=included and accepted.ok and not waits and not off,
            waits=waits,
            off=off if accepted.ok and resolved.ok else "",
        )


def sentence(error: ValidationError) -> str:
    """Return what the configuration's model refuses, in terms of a spec."""
    found = [
        f"spec.{'.'.join(to_camel(str(part)) for part in e['loc'])}: "
        f"{e['msg'].removeprefix('Value error, ')}"
        for e in error.errors(include_url=False)
    ]
    return "; ".join(found[:5])
