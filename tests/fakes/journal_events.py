"""Journal events as schedulers write them, with every field set to something a test can recognise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay.type.v1 import error_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.usage.events import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.usage.events import Event

START = 1_780_000_000
"""Unix seconds of the first attempt: ragged, 26 minutes and 40 seconds past an hour."""

_KINDS = {
    "opened": journal_pb2.EVENT_KIND_OPENED,
    "renewed": journal_pb2.EVENT_KIND_RENEWED,
    "settled": journal_pb2.EVENT_KIND_SETTLED,
    "refused": journal_pb2.EVENT_KIND_REFUSED,
}
_OUTCOMES = {
    "succeeded": journal_pb2.OUTCOME_SUCCEEDED,
    "failed": journal_pb2.OUTCOME_FAILED,
    "cancelled": journal_pb2.OUTCOME_CANCELLED,
}
_REACHED = {
    "no": error_pb2.SENT_NO,
    "unknown": error_pb2.SENT_UNKNOWN,
    "yes": error_pb2.SENT_YES,
}


def make_message(
    kind: str,
    request: int = 1,
    *,
    number: int = 1,
    n: int = 0,
    at: float = 0.0,
    opened: float = 0.0,
    writer: str = "w1",
    sequence: int = 0,
    usage: Mapping[str, int] | None = None,
    estimated: bool = False,
    outcome: str = "succeeded",
    reached: str = "yes",
    model: str = "gpt",
    provider: str = "openai",
    credential: str = "main",
    client_key: str = "laptop",
    version: int = 1,
    reason: str = "UPSTREAM_ERROR",
) -> journal_pb2.JournalEvent:
    """Return one event; *at* and *opened* are seconds after `START`."""
    message = journal_pb2.JournalEvent(
        schema=1, kind=_KINDS[kind], n=n, writer=writer, sequence=sequence
    )
    message.at.FromMicroseconds(int((START + at) * 1e6))
    info = message.attempt
    info.request_uid = f"01J{request:023d}"
    info.number = 0 if kind == "refused" else number
    info.attempt_uid = f"{info.request_uid}-{info.number}"
    info.tenant = "default"
    info.installation = "test"
    info.client_key = client_key
    info.client_request_id = "client-1"
    info.model = model
    info.format = "openai"
    info.operation = "chat"
    info.stream = True
    info.snapshot_version = version
    info.opened_at.FromMicroseconds(int((START + opened) * 1e6))
    if kind != "refused":
        info.provider = provider
        info.plugin_id = "openai-compatible"
        info.credential_id = credential
        info.upstream_model = model
    if usage is not None:
        message.usage.estimated = estimated
        for unit, quantity in usage.items():
            message.usage.items.add(unit=unit, quantity=quantity)
    if kind in {"settled", "refused"}:
        end = message.settlement
        end.outcome = _OUTCOMES[outcome]
        end.reached = _REACHED[reached]
        end.http_status = 200 if kind == "settled" else 0
        end.client_status = 200 if kind == "settled" else 404
        end.reason = "" if outcome == "succeeded" else reason
        end.latency.FromMicroseconds(90_000)
        end.first_byte.FromMicroseconds(5_000)
    return message


def make_bytes(kind: str, request: int = 1, **more: object) -> bytes:
    """Return `make_message`, as it is in the stream."""
    return make_message(kind, request, **more).SerializeToString()  # type: ignore[arg-type]


def make_event(kind: str, request: int = 1, **more: object) -> Event:
    """Return `make_message`, decoded."""
    return decode(make_bytes(kind, request, **more))
