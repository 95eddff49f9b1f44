"""
Errors on the wire: the error tree to google.rpc.Status and back.

A failed RPC carries Status{code, message, details: ErrorInfo{reason, domain "patchbay.dev", metadata},
RetryInfo?, UpstreamError?}. An exception outside the tree leaves the process as INTERNAL with an id that
the log line repeats; its text stays here. Not here: which service raises what (proto/README.md).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from google.rpc import code_pb2, error_details_pb2, status_pb2

from patchbay import errors
from patchbay.type.v1 import error_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import grpc

    from patchbay.type.v1 import headers_pb2

DOMAIN = "patchbay.dev"
DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key of the rich status (gRPC's own convention)."""

# A provider's error page larger than this says nothing more (proto: UpstreamError.body).
MAX_ERROR_BODY = 1 << 20

_CLASSES: dict[int, type[errors.PatchbayError]] = {
    cls.code.value[0]: cls
    for cls in (
        errors.InvalidRequest,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.NotFound,
        errors.ResourceExhausted,
        errors.FailedPrecondition,
        errors.Aborted,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Cancelled,
        errors.Unimplemented,
        errors.Internal,
    )
}

_UPSTREAM_CODES = {
    400: code_pb2.INVALID_ARGUMENT,
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    408: code_pb2.DEADLINE_EXCEEDED,
    409: code_pb2.ABORTED,
    429: code_pb2.RESOURCE_EXHAUSTED,
    504: code_pb2.DEADLINE_EXCEEDED,
}


def headers_to_map(
    headers: Iterable[tuple[bytes, bytes]], into: Mapping[str, headers_pb2.StringList]
) -> None:
    """Add *headers* to the message map *into* (a protobuf `map<string, StringList>`)."""
    for name, value in headers:
        into[name.decode("latin-1")].values.append(value.decode("latin-1"))


def headers_from_map(source: Mapping[str, headers_pb2.StringList]) -> errors.Headers:
    """Return the headers of a message map as pairs; what no header can hold becomes a question mark."""
    return [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name in source
        for value in source[name].values
    ]


def code_of(error: BaseException) -> int:
    """Return the gRPC code that *error* has on the wire."""
    if isinstance(error, errors.UpstreamError):
        other = code_pb2.INVALID_ARGUMENT if error.http_status < 500 else code_pb2.UNAVAILABLE
        return int(_UPSTREAM_CODES.get(error.http_status, other))
    kind = type(error) if isinstance(error, errors.PatchbayError) else errors.PatchbayError
    return int(kind.code.value[0])


def to_status(error: BaseException, *, error_id: str = "") -> status_pb2.Status:
    """
    Return the wire form of *error*.

    Args:
        error: Any exception. Outside the tree, or Internal: only *error_id* is told.
        error_id: What the log line of the exception carries.
    """
    if not isinstance(error, errors.PatchbayError) or isinstance(error, errors.Internal):
        error = errors.PatchbayError(f"internal error {error_id}".strip(), reason="INTERNAL")
    code = code_of(error)
    metadata = error.metadata
    if error.sent:
        metadata = {**metadata, "sent": error.sent.name}
    status = status_pb2.Status(code=code, message=error.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_after * 1000))
        status.details.add().Pack(retry)
    if isinstance(error, errors.UpstreamError):
        detail = error_pb2.UpstreamError(
            http_status=error.http_status,
            body=error.body[:MAX_ERROR_BODY],
            content_type=error.content_type,
            scope=error.scope.value,  # type: ignore[arg-type]
            sent=error.sent.value,  # type: ignore[arg-type]
        )
        headers_to_map(error.headers, detail.headers)
        if error.retry_after is not None:
            detail.retry_after.FromMilliseconds(math.ceil(error.retry_after * 1000))
        status.details.add().Pack(detail)
    return status


def from_status(status: status_pb2.Status) -> errors.PatchbayError:
    """Return the error that *status* describes. Unknown codes become Internal, none is dropped."""
    reason, metadata, retry_after, upstream = "", {}, None, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Is(error_pb2.UpstreamError.DESCRIPTOR):
            upstream = error_pb2.UpstreamError()
            detail.Unpack(upstream)
    if upstream is not None:
        found = errors.UpstreamError(
            upstream.http_status,
            status.message or None,
            headers=headers_from_map(upstream.headers),
            body=upstream.body,
            content_type=upstream.content_type,
            retry_after=upstream.retry_after.ToMilliseconds() / 1000
            if upstream.HasField("retry_after")
            else None,
            scope=errors.FaultScope(upstream.scope),
            sent=errors.Sent(upstream.sent),
            reason=reason or None,
        )
        metadata.pop("sent", None)
        found.metadata.update(metadata)
        return found
    sent = (
        errors.Sent[metadata.pop("sent")]
        if metadata.get("sent") in errors.Sent.__members__
        else None
    )
    return _CLASSES.get(status.code, errors.Internal)(
        status.message,
        reason=reason or None,
        metadata=metadata,
        retry_after=retry_after,
        sent=sent or errors.Sent.UNSPECIFIED,
    )


def from_code(
    code: int, message: str, *, reason: str = "", retry_after: float | None = None
) -> errors.PatchbayError:
    """Return the error of a numeric canonical *code*; unknown codes become Internal."""
    return _CLASSES.get(code, errors.Internal)(
        message, reason=reason or None, retry_after=retry_after
    )


def from_rpc_error(
    code: grpc.StatusCode, message: str, trailing: Sequence[tuple[str, str | bytes]]
) -> errors.PatchbayError:
    """Return the error of a failed gRPC call, from its rich status or else its plain code."""
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            return from_status(status_pb2.Status.FromString(value))
    return _CLASSES.get(code.value[0], errors.Internal)(message)
