"""
Rules of executors towards their provider: how often it is called, what of its failures arrives, where
secrets go.

Not here: cancellation, order, readers that are slow (`patchbay.testing.rules_streams`, `rules_calls`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.rpc import status_pb2

from patchbay.testing import requests
from patchbay.testing.connection import CallFailed
from patchbay.testing.rules import NOT_DECLARED, Broken, Rule, Skipped
from patchbay.testing.rules_handshake import refused
from patchbay.testing.upstream import REFUSAL, RETRY_AFTER, Mode
from patchbay.type.v1 import error_pb2

if TYPE_CHECKING:
    from patchbay.testing.connection import Failure
    from patchbay.testing.rules import Subject

_CODE = grpc.StatusCode
_SERVICE: Final = "ExecutorService"
_NOT_CALLED: Final = "the executor does not call the provider that it was sent to"


async def _calling(subject: Subject) -> requests.Facts:
    """Return what requests are made from; Skipped unless a good call reaches the provider."""
    facts = await subject.facts()
    if not facts.capabilities.HasField("executor"):
        raise Skipped(NOT_DECLARED)
    subject.upstream.expect(Mode.ANSWER)
    before = subject.upstream.requests
    try:
        await facts.connection.unary(_SERVICE, "Execute", requests.executor_request(facts))
    except CallFailed as error:
        raise Skipped(f"the executor does not answer here: {error}") from None
    if subject.upstream.requests == before:
        raise Skipped(_NOT_CALLED)
    return facts


async def _whole(facts: requests.Facts, request: Any) -> Failure | None:
    """Return the failure of a call, None if it succeeded."""
    try:
        await facts.connection.unary(_SERVICE, "Execute", request)
    except CallFailed as error:
        return error.failure
    return None


async def _streamed(facts: requests.Facts, request: Any) -> tuple[Failure | None, bool]:
    """Return the failure of a stream, None if it succeeded, and whether it had its tail."""
    path = f"{_SERVICE}/ExecuteStream"
    call = facts.connection.stream(_SERVICE, "ExecuteStream", request)
    tail = False
    try:
        while (message := await facts.connection.read(call, path)) is not None:
            tail = tail or message.HasField("tail")
    except CallFailed as error:
        return error.failure, tail
    finally:
        call.cancel()
    return None, tail


def _upstream_error(failure: Failure) -> error_pb2.UpstreamError:
    """Return the detail of *failure*; Broken where it has none."""
    found = error_pb2.UpstreamError()
    for detail in status_pb2.Status.FromString(failure.details).details:
        if detail.Is(found.DESCRIPTOR):
            detail.Unpack(found)
            return found
    raise Broken(f"the provider failed, and the error has no UpstreamError: {failure}")


async def _once(subject: Subject) -> None:
    facts = await _calling(subject)
    request = requests.executor_request(facts)
    # What makes some HTTP libraries send a request again by themselves.
    request.headers["idempotency-key"].values.append("conformance")
    before = subject.upstream.requests
    subject.upstream.expect(Mode.DROP)
    try:
        failure = await _whole(facts, request)
    finally:
        subject.upstream.expect(Mode.ANSWER)
    if failure is None:
        raise Broken("the provider closed the connection without an answer, and the call succeeded")
    if (times := subject.upstream.requests - before) != 1:
        raise Broken(f"one call came to the provider {times} times: retries are the edge's")
    _upstream_error(failure)


async def _failure(subject: Subject) -> None:
    facts = await _calling(subject)
    subject.upstream.expect(Mode.REFUSE)
    try:
        whole = await _whole(facts, requests.executor_request(facts))
        streamed, _ = await _streamed(facts, requests.executor_request(facts, stream=True))
    finally:
        subject.upstream.expect(Mode.ANSWER)
    for failure in (whole, streamed):
        if failure is None:
            raise Broken("the provider answered 429, and the call succeeded")
        if failure.code is _CODE.UNIMPLEMENTED:
            continue
        found = _upstream_error(failure)
        wrong = []
        if failure.code is not _CODE.RESOURCE_EXHAUSTED:
            wrong.append(f"the code is {failure.code.name} and not RESOURCE_EXHAUSTED")
        if found.http_status != 429:
            wrong.append(f"http_status is {found.http_status}")
        if found.body != REFUSAL:
            wrong.append("the body is not the provider's")
        if found.retry_after.seconds != RETRY_AFTER:
            wrong.append(f"retry_after is {found.retry_after.seconds} s and not {RETRY_AFTER}")
        if wrong:
            raise Broken(f"{failure.path} of a provider that answers 429: {', '.join(wrong)}")


async def _truncated(subject: Subject) -> None:
    facts = await _calling(subject)
    subject.upstream.expect(Mode.CUT)
    try:
        failure, tail = await _streamed(facts, requests.executor_request(facts, stream=True))
    finally:
        subject.upstream.expect(Mode.ANSWER)
    if tail:
        raise Broken(
            "the provider's answer broke off, and the executor's has a tail: it looks whole"
        )
    if failure is not None and failure.code is not _CODE.UNIMPLEMENTED:
        _upstream_error(failure)


async def _secret(subject: Subject) -> None:
    facts = await _calling(subject)
    upstream, seal = subject.upstream, facts.connection.seal
    if requests.CANARY.encode() not in upstream.head:
        raise Skipped("the executor sends no credential to its provider")
    before = upstream.requests
    here = [upstream.url]
    elsewhere = seal(requests.material(), ["https://elsewhere.example"])
    expired = seal(requests.material(), here, seconds=-1)
    foreign = seal(requests.material(), here)
    foreign.plugin_id = "another"
    unknown = seal(requests.material(), here)
    unknown.key_id = "0" * 16
    changed = seal(requests.material(), here)
    changed.version += 1
    for sealed, code, reason, what in (
        (elsewhere, _CODE.PERMISSION_DENIED, "SECRET_ORIGIN", "a secret for another origin"),
        (expired, _CODE.FAILED_PRECONDITION, "SECRET_EXPIRED", "a secret of yesterday"),
        (foreign, _CODE.FAILED_PRECONDITION, "SECRET_FOREIGN", "a secret for another plugin"),
        (unknown, _CODE.FAILED_PRECONDITION, "SECRET_KEY_UNKNOWN", "a secret of an unknown key"),
        (changed, _CODE.FAILED_PRECONDITION, "SECRET_INVALID", "a secret that was changed"),
    ):
        request = requests.executor_request(facts)
        request.secret.CopyFrom(sealed)
        await refused(facts.connection.unary(_SERVICE, "Execute", request), code, reason, what)
    if upstream.requests != before:
        raise Broken("the provider was called with a secret that was refused")


RULES: Final = (
    Rule(
        "provider.once",
        "One call is one request at the provider.",
        "a provider that reads the request and hangs up, after one that kept the connection",
        _once,
    ),
    Rule(
        "provider.failure",
        "A provider's failure arrives whole: status, body, when to come back.",
        "a provider that answers 429, whole and streamed",
        _failure,
    ),
    Rule(
        "provider.truncated",
        "An answer that breaks off never looks finished.",
        "a provider whose stream ends in the middle of an event",
        _truncated,
    ),
    Rule(
        "provider.secret",
        "A secret that is expired, foreign, changed or for another origin goes nowhere.",
        "a call with each",
        _secret,
    ),
)
"""What can be seen at a provider."""
