"""The pool's state as messages of the contract. Pure; not here: what the state is (inventory.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from patchbay_gateway.scheduler.marks import MarkError

if TYPE_CHECKING:
    from patchbay.errors import PatchbayError
    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.scheduler.inventory import Standing, Status
    from patchbay_gateway.scheduler.refresh_rules import RefreshStatus

# A limit of the contract; counted in characters, so that it holds for bytes in most languages.
_TEXT: Final = 2048


def fill_refusal(result: scheduler_pb2.AcquireResult, error: PatchbayError) -> None:
    """Make *result* the refusal that *error* says."""
    refusal = result.refusal
    code: Any = error.code.value
    refusal.code = code[0]
    refusal.reason = error.reason
    refusal.message = error.message
    if error.retry_after is not None:
        refusal.retry_after.FromMilliseconds(int(error.retry_after * 1000))
    last_error = getattr(error, "last_error", None)
    if isinstance(last_error, MarkError):
        fill_error(refusal.last_error, last_error)


def fill_error(message: scheduler_pb2.LastError, error: MarkError) -> None:
    """Fill *message* with *error*."""
    message.http_status = error.http_status
    message.code = error.code
    message.message = error.message
    message.at.FromMilliseconds(error.at)


def fill_status(
    message: scheduler_pb2.CredentialStatus,
    status: Status,
    refresh: RefreshStatus | None,
    now: float,
) -> None:
    """Fill *message* with *status*; limits are told from *now* on, Unix seconds."""
    credential, known = status.credential, status.known
    message.id = credential.id
    message.auth_index = credential.auth_index
    message.provider = status.provider.name
    message.plugin_id = status.provider.plugin
    message.kind = credential.kind
    message.version = status.version
    message.priority = credential.priority
    message.weight = credential.weight
    message.disabled = bool(status.disabled_by)
    message.disabled_by = status.disabled_by
    message.in_flight = known.in_flight
    message.max_in_flight = credential.max_in_flight
    message.succeeded = known.succeeded
    message.failed = known.failed
    message.source = credential.file or credential.origin
    message.brought_by = credential.brought_by
    message.shared_source = credential.shared
    if known.error is not None:
        fill_error(message.last_error, known.error)
    for unit, limit, remaining, reset_at in known.limits:
        row = message.rate_limits.add(unit=unit, limit=limit, remaining=remaining)
        if reset_at:
            row.reset.FromMilliseconds(max(0, reset_at - int(now * 1000)))
    for name, upstream_model, standing in status.models:
        _fill_model(message.models.add(model=name, upstream_model=upstream_model), standing)
    if refresh is not None:
        _fill_refresh(message.refresh, refresh)


def _fill_model(message: scheduler_pb2.CredentialModelStatus, standing: Standing) -> None:
    message.state = standing.state
    message.reason = standing.reason
    if standing.until is not None:
        message.until.FromMilliseconds(int(standing.until * 1000))
    if standing.error is not None:
        fill_error(message.last_error, standing.error)


def _fill_refresh(message: scheduler_pb2.RefreshStatus, status: RefreshStatus) -> None:
    message.state = status.state
    for field, at in (
        (message.expires_at, status.expires_at),
        (message.refreshed_at, status.refreshed_at),
        (message.next_at, status.next_at),
    ):
        if at:
            field.FromMilliseconds(int(at * 1000))
    if status.last_error is not None:
        failure = status.last_error
        message.last_error.http_status = failure.http_status
        message.last_error.code = failure.code
        message.last_error.message = failure.message[:_TEXT]
        message.last_error.at.FromMilliseconds(int(failure.at * 1000))
