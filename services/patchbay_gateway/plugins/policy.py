"""
Deadlines and failure policy of each capability: one table, overridable per plugin.

The keys are capability flags; a plugin's `timeouts` and `failure_policies` override a row's deadline and
`on_error`. Data and a look-up only: who calls does what the row says. For execute the executor keeps the
limits upstream and answers UpstreamError 504, an application error; the edge's own are `EDGE_MARGIN`
longer, and only they count against the address.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

EDGE_MARGIN: Final = 10.0
"""Seconds by which the edge's limits for execute exceed the executor's."""


class OnError(enum.Enum):
    """What becomes of the request when the plugin fails or is too slow."""

    NEXT = "next"
    """The next plugin is asked, or the input goes on unchanged; counted."""
    NOT_HANDLED = "not handled"
    """As if this one had not answered; when nobody is left, 401; an exclusive one broken, 503."""
    FAIL_REQUEST = "fail the request"
    KEEP = "warn and keep"
    """What the plugin was to change stays as it is."""
    DROP_INTERCEPTOR = "warn, keep, drop for the rest of the stream"
    FAIL_ATTEMPT = "fail the attempt"
    """With the upstream's status; the loop over attempts decides."""
    KEEP_REGISTRATION = "keep the old registration"
    BUILT_IN = "built-in parser"
    BACK_OFF = "back off, show the state"
    RETRY_FROM_JOURNAL = "retry from the journal"
    LOG = "log"
    BAD_GATEWAY = "502 plain text"
    EXIT = "exit status 1"
    ABSENT = "absent, with the reason"


class WhenOpen(enum.Enum):
    """What happens when no address of the plugin is left."""

    FAIL_CLOSED = "fail closed"
    SKIP = "skip"
    QUEUE = "queue"
    AS_ON_ERROR = "the same"
    NONE = "-"


@dataclass(frozen=True, slots=True)
class Policy:
    """One row."""

    deadline: float | None
    """Seconds for the call; for a stream hook, for one chunk. None: no limit over all."""
    on_error: OnError
    when_open: WhenOpen = WhenOpen.AS_ON_ERROR
    strict: OnError | None = None
    """What `Fail` in `failure_policies` makes of `on_error`; None: it cannot be overridden."""
    lenient: OnError | None = None
    """What `Ignore` makes of it."""
    first_byte: float | None = None
    """Seconds until the first byte of an answer."""
    idle: float | None = None
    """Seconds between two bytes."""
    other_address: bool = False
    """Whether a connection failure is tried once on another address."""


_INTERCEPT = Policy(2.0, OnError.KEEP, strict=OnError.FAIL_REQUEST, other_address=True)
_TRANSFORM = Policy(2.0, OnError.NEXT, WhenOpen.SKIP, other_address=True)
_EXECUTE = Policy(None, OnError.FAIL_ATTEMPT, first_byte=120.0, idle=300.0)
_MODELS = Policy(10.0, OnError.KEEP_REGISTRATION)

POLICIES: Final[Mapping[str, Policy]] = {
    "frontend_auth_provider": Policy(
        2.0, OnError.NOT_HANDLED, WhenOpen.FAIL_CLOSED, other_address=True
    ),
    "model_router": Policy(0.5, OnError.NEXT, WhenOpen.SKIP, other_address=True),
    "scheduler": Policy(0.5, OnError.FAIL_REQUEST, lenient=OnError.NEXT, other_address=True),
    "request_interceptor": _INTERCEPT,
    "response_interceptor": _INTERCEPT,
    "response_stream_interceptor": Policy(
        1.0, OnError.DROP_INTERCEPTOR, strict=OnError.FAIL_REQUEST
    ),
    "request_translator": _TRANSFORM,
    "request_normalizer": _TRANSFORM,
    "response_translator": _TRANSFORM,
    "response_before_translator": _TRANSFORM,
    "response_after_translator": _TRANSFORM,
    "thinking_applier": _TRANSFORM,
    "executor": _EXECUTE,
    "executor.count_tokens": Policy(30.0, OnError.FAIL_ATTEMPT),
    "executor.http_request": _EXECUTE,
    "model_registrar": _MODELS,
    "model_provider": _MODELS,
    "auth_provider.parse": Policy(2.0, OnError.BUILT_IN),
    "auth_provider": Policy(60.0, OnError.BACK_OFF),
    "usage_plugin": Policy(5.0, OnError.RETRY_FROM_JOURNAL, WhenOpen.QUEUE),
    "request_lifecycle_plugin": Policy(5.0, OnError.LOG, WhenOpen.SKIP),
    "management_api": Policy(30.0, OnError.BAD_GATEWAY),
    "command_line_plugin": Policy(None, OnError.EXIT),
    "register": Policy(10.0, OnError.ABSENT, WhenOpen.NONE),
}
"""Capability flag, or flag and operation, to its row."""


def policy(
    capability: str,
    timeouts: Mapping[str, float] | None = None,
    failure_policies: Mapping[str, str] | None = None,
) -> Policy:
    """
    Return the row of *capability* with a plugin's overrides.

    Args:
        capability: A key of POLICIES.
        timeouts: The plugin's `timeouts`, seconds by capability flag.
        failure_policies: The plugin's `failure_policies`, `Fail` or `Ignore` by capability flag.
    """
    row = POLICIES[capability]
    if timeouts and capability in timeouts:
        row = dataclasses.replace(row, deadline=timeouts[capability])
    chosen = (failure_policies or {}).get(capability)
    if chosen == "Fail" and row.strict is not None:
        row = dataclasses.replace(row, on_error=row.strict)
    elif chosen == "Ignore" and row.lenient is not None:
        row = dataclasses.replace(row, on_error=row.lenient)
    return row
