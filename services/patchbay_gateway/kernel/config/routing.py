"""
The configuration of choice: which credential serves, how often it is tried again, and own model names.

Not here: the credentials themselves (providers.py).
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator

from patchbay_gateway.kernel.config.fields import Name
from patchbay_gateway.kernel.config.quantities import Duration, duration
from patchbay_gateway.kernel.config.section import Section

QUEUE_WAIT_MAX: Final = 60.0
"""Longest `routing.queue.wait`, seconds."""


class Retry(Section):
    """How often a request is tried again; never after the first byte of an answer."""

    rounds: int = Field(default=0, ge=0, le=100)
    """Extra rounds over all credentials."""
    max_credentials: int = Field(default=0, ge=0)
    """Credentials tried in a round; 0 means all. No request is tried more than ten times in all."""
    max_wait: Duration = duration("0s")
    """Longest wait for a cooldown to end between rounds."""


class RouteTarget(Section):
    """One way to serve a route."""

    provider: Name
    """Name of a provider."""
    model: str = Field(min_length=1)
    """Model as that provider names it."""


class Route(Section):
    """A ModelRoute: a model name of one's own and what stands behind it."""

    name: str = Field(min_length=1)
    """What clients ask for."""
    targets: tuple[RouteTarget, ...] = Field(min_length=1)
    """Ways to serve it."""
    fallbacks: tuple[str, ...] = ()
    """Routes or models tried when no target can serve."""


class Affinity(Section):
    """Keeps a session on its credential."""

    enabled: bool = False
    """Switches it on."""
    ttl: Duration = duration("1h")
    """How long a quiet session keeps its credential."""


class Queue(Section):
    """Requests that wait while every ready credential has as many attempts as it may have."""

    length: int = Field(default=100, ge=0, le=10_000)
    """Most requests that wait for the same credentials; 0 refuses at once."""
    wait: Duration = duration("5s")
    """Longest wait."""

    @field_validator("wait", mode="after")
    @classmethod
    def _short(cls, value: float) -> float:
        if value > QUEUE_WAIT_MAX:
            raise ValueError(f"a request waits {QUEUE_WAIT_MAX:.0f}s at most")
        return value


class Routing(Section):
    """How a credential is chosen."""

    strategy: Literal["round-robin", "weighted-round-robin", "fill-first"] = "round-robin"
    """Choice among credentials of the same priority."""
    retry: Retry = Retry()
    """How often a request is tried again."""
    affinity: Affinity = Affinity()
    """Session affinity."""
    queue: Queue = Queue()
    """Wait for a credential that is at its `max_in_flight`."""
    force_model_prefix: bool = False
    """Models of a credential with a prefix are reachable only with it."""
