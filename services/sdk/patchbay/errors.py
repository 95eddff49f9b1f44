"""
The one error tree of Patchbay, for plugins and for the gateway.

* PatchbayError
  + InvalidRequest        INVALID_ARGUMENT     the caller's request is wrong; it must change it
  + Unauthenticated       UNAUTHENTICATED      no or a wrong key
  + PermissionDenied      PERMISSION_DENIED    a known caller may not do this
  + NotFound              NOT_FOUND            unknown model, plugin, credential
  + ResourceExhausted     RESOURCE_EXHAUSTED   a limit or quota; `retry_after` says when to come back
  + FailedPrecondition    FAILED_PRECONDITION  the state forbids it; the same call would fail again
  + Aborted               ABORTED              lost a race; start the operation anew
  + Unavailable           UNAVAILABLE          try elsewhere or later; `sent` says whether work may have begun
  + DeadlineExceeded      DEADLINE_EXCEEDED    too slow
  + Cancelled             CANCELLED            the other side gave up
  + Unimplemented         UNIMPLEMENTED        this plugin or address does not serve the method
  + Internal              INTERNAL             our own bug; the text never leaves the process
  + UpstreamError         by status            a provider failed; its answer is kept whole

`patchbay.status` turns them into google.rpc.Status and back. Not here: how an error looks in a client's
dialect (the edge's dialects) and what it means for retries (kernel/outcomes.py).
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar

import grpc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Headers = list[tuple[bytes, bytes]]
"""HTTP headers inside the gateway and the SDK: pairs in order of arrival, names in lower case."""


class Sent(enum.IntEnum):
    """How far an upstream call came; the numbers are `patchbay.type.v1.Sent`'s."""

    UNSPECIFIED = 0
    NO = 1
    UNKNOWN = 2
    YES = 3


class FaultScope(enum.IntEnum):
    """What a failure speaks of; the numbers are `patchbay.type.v1.FaultScope`'s."""

    UNSPECIFIED = 0
    REQUEST = 1
    MODEL = 2
    CREDENTIAL = 3
    PROVIDER = 4


class PatchbayError(Exception):
    """
    Base of the tree.

    Args:
        message: One sentence for people that says what to do; no secrets.
        reason: UPPER_SNAKE constant, at most 63 characters; the default is the class's.
        metadata: Short strings for machines, sent as ErrorInfo.metadata.
        retry_after: Seconds after which the call may be worth repeating.
        sent: Whether work may have begun at a provider.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        sent: Sent = Sent.UNSPECIFIED,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after
        self.sent = sent

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"


class InvalidRequest(PatchbayError):
    """The request is wrong and would be wrong again."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_REQUEST"


class Unauthenticated(PatchbayError):
    """No key, or one that nobody knows."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(PatchbayError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class NotFound(PatchbayError):
    """The thing named does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class ResourceExhausted(PatchbayError):
    """A limit, quota or bound was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class FailedPrecondition(PatchbayError):
    """The present state forbids it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Aborted(PatchbayError):
    """A race was lost; begin the operation anew."""

    code = grpc.StatusCode.ABORTED
    default_reason = "ABORTED"


class Unavailable(PatchbayError):
    """The service cannot be reached or is going away; another address may answer."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceeded(PatchbayError):
    """No answer within the deadline."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(PatchbayError):
    """The other side cancelled the call."""

    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class Unimplemented(PatchbayError):
    """The method is not served here; calling it again changes nothing."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class Internal(PatchbayError):
    """A bug. What crosses the wire is an id to look for in the logs, not this text."""


class UpstreamError(PatchbayError):
    """
    One call to a provider failed.

    Args:
        http_status: The provider's status, 400-599; 502 when the connection failed, 504 when too slow.
        message: For people; defaults to a sentence with the status.
        headers: The provider's headers, lower-case names, hop-by-hop ones removed.
        body: The provider's body as received, cut at 1 MiB.
        content_type: Content type of *body*.
        retry_after: Seconds that the provider asked to wait; None when it did not or sent garbage.
        scope: What the failure says something about.
        sent: How far the call came.
        reason: Default UPSTREAM_ERROR.
    """

    code = grpc.StatusCode.UNKNOWN
    default_reason = "UPSTREAM_ERROR"

    def __init__(
        self,
        http_status: int,
        message: str | None = None,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        content_type: str = "",
        retry_after: float | None = None,
        scope: FaultScope = FaultScope.UNSPECIFIED,
        sent: Sent = Sent.UNKNOWN,
        reason: str | None = None,
    ) -> None:
        super().__init__(
            message or f"the provider answered {http_status}",
            reason=reason,
            retry_after=retry_after,
            sent=sent,
        )
        self.http_status = http_status
        self.headers = list(headers)
        self.body = body
        self.content_type = content_type
        self.scope = scope
