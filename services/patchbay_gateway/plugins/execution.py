"""
One execution as plugins are told of it: filled by the pipeline once, read by every step.

Not here: what changes along the way (headers, bodies), which the steps take and return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchbay_gateway.plugins.hooks import Facts
    from patchbay_gateway.plugins.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class PluginExecution:
    """What is the same in every hook of one execution."""

    request_id: str
    """The execution's own id: the request_uid."""
    trace_id: str
    """The client's request's; nested executions share it."""
    snapshot: Snapshot
    facts: Facts
    operation: str
    stream: bool
    metadata: bytes = b""
    """JSON object: request_path, idempotency_key and the like."""
    depth: int = 0
    """How many executions this one is nested in."""
    skip: str = ""
    """Plugin that started this execution: its own interceptors, router and lifecycle are not asked."""
    origin: object = None
    """The request as whoever made this knows it; callbacks inherit from it. Opaque to plugins."""

    @property
    def source_format(self) -> str:
        """The client's format."""
        return self.facts.format

    @property
    def requested_model(self) -> str:
        """The model as the client named it."""
        return self.facts.model
