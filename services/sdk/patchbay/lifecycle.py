"""
Lifecycle plugins: the base class of a plugin that hears of the end of requests (pluginapi:
RequestLifecyclePlugin).

Each execution that reached the interceptors ends once, after the fact: the answer does not wait, and errors
are only logged. It is also sent for requests that another interceptor ended before this plugin saw them.
Not here: what was consumed (`patchbay.usage_plugin`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.wire import APART, of

if TYPE_CHECKING:
    from collections.abc import Mapping


class RequestCompletionOutcome(enum.StrEnum):
    """Ends of a request."""

    UNSPECIFIED = ""
    SUCCEEDED = "succeeded"
    """The answer was delivered."""
    FAILED = "failed"
    """An error was delivered, or the answer broke off."""
    REJECTED = "rejected"
    """An interceptor ended it."""
    CANCELED = "canceled"
    """The client left."""


@dataclass(frozen=True, slots=True)
class RequestCompletion:
    """How an execution ended."""

    request_id: str
    """Id of the execution, as in the interceptors."""
    outcome: RequestCompletionOutcome = field(
        default=RequestCompletionOutcome.UNSPECIFIED, metadata=of(RequestCompletionOutcome)
    )
    """The end."""
    trace_id: str = ""
    """Id of the client's request, shared by nested executions."""
    source_format: str = ""
    """Format that the client spoke."""
    model: str = ""
    """Upstream model of the last attempt, else the requested one."""
    requested_model: str = ""
    """Model as the client named it."""
    stream: bool = False
    """Whether a stream was asked for."""
    status_code: int = 0
    """Status for the client; 0 when it left."""
    error: str = ""
    """The error's text, without secrets."""
    started_at: float | None = None
    """Unix seconds."""
    completed_at: float | None = None
    """Unix seconds."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the host."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    attempts: int = 0
    """Attempts that were made."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


class RequestLifecyclePlugin(Plugin):
    """A plugin that hears of the end of requests."""

    capability_flag: ClassVar = "request_lifecycle_plugin"

    async def handle_request_complete(self, request: RequestCompletion) -> None:
        """Take one end. 5 s at most."""
        raise NotImplementedError
