"""
Scheduler plugins: the base class of a plugin that chooses credentials (pluginapi: Scheduler).

Only the first by priority is asked, for each attempt. An error fails the request, unless the plugin is
declared with `Ignore`. Not here: the gateway's own scheduler and its strategies.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.wire import APART, of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.errors import Headers


class SchedulerBuiltin(enum.StrEnum):
    """Built-in strategies."""

    UNSPECIFIED = ""
    ROUND_ROBIN = "round-robin"
    """Each in turn."""
    FILL_FIRST = "fill-first"
    """The first until it is full."""


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Inputs of the request."""

    headers: Headers = field(default_factory=list)
    """The client's, without credentials."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the host."""


@dataclass(frozen=True, slots=True)
class SchedulerAuthCandidate:
    """One credential to choose."""

    id: str
    """Credential id."""
    provider: str
    """Provider."""
    priority: int = 0
    """The same for all candidates."""
    status: str = "ready"
    """`ready` or `probing`."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Without anything that looks like a secret."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Empty so far."""
    weight: int = 0
    """Share where the strategy weighs; 0 means 1."""
    in_flight: int = 0
    """Attempts under way on it, everywhere."""


@dataclass(frozen=True, slots=True)
class SchedulerPickRequest:
    """What there is to choose from."""

    model: str
    """Model as the client named it."""
    candidates: Sequence[SchedulerAuthCandidate] = field(
        default=(), metadata=of(SchedulerAuthCandidate)
    )
    """Ready credentials of the highest priority, ordered by id; at least one."""
    provider: str = ""
    """The only provider; empty when there are several."""
    providers: Sequence[str] = ()
    """Every provider that may serve."""
    stream: bool = False
    """Whether a stream is expected."""
    options: SchedulerOptions | None = field(default=None, metadata=of(SchedulerOptions))
    """Inputs of the request."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile; no model calls here."""


@dataclass(frozen=True, slots=True)
class SchedulerPickResponse:
    """A choice."""

    auth_id: str = ""
    """Id of a candidate; wins over `delegate_builtin`."""
    delegate_builtin: SchedulerBuiltin = field(
        default=SchedulerBuiltin.UNSPECIFIED, metadata=of(SchedulerBuiltin)
    )
    """A built-in strategy that is to choose."""
    handled: bool = True
    """False leaves the choice to the configured strategy, as None does."""


class SchedulerPlugin(Plugin):
    """A plugin that chooses credentials."""

    capability_flag: ClassVar = "scheduler"

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Choose; None leaves it to the configured strategy. To be quick: 500 ms at most."""
        raise NotImplementedError
