"""
Rules of unary calls: capabilities, deadlines, cancellation, load, sizes, errors.

Not here: what a particular plugin should answer; that is its author's test.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

import grpc

from patchbay.status import DOMAIN
from patchbay.testing import requests
from patchbay.testing.answers import complaints
from patchbay.testing.connection import CallFailed, Failure
from patchbay.testing.rules import NOT_DECLARED, Broken, Rule, Skipped
from patchbay.testing.upstream import Mode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay.testing.rules import Subject

_CODE = grpc.StatusCode
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
# What gRPC for C, Go and Node, for Java, for .NET, for Rust say of a message beyond the limit.
_TOO_LARGE: Final = re.compile(r"larger than max|exceeds (the )?maximum|length too large")
_OUR_FAULT: Final = frozenset(
    {
        "CAPABILITY_NOT_SERVED",
        "PLUGIN_UNKNOWN",
        "PLUGIN_NOT_NAMED",
        "NOT_REGISTERED",
        "TOKEN_INVALID",
        "TOKEN_EXPIRED",
        "DRAINING",
        "INTERNAL",
    }
)
_OPTIONAL: Final = frozenset(
    {"ParseAuth", "StartLogin", "PollLogin", "RefreshAuth", "CountTokens", "HttpRequest"}
)
DEADLINE: Final = 0.05
"""Seconds that a call gets whose end is watched."""
SLACK: Final = 0.45
"""Seconds after it within which the end must be known, on a busy machine."""
PROMPT: Final = 0.1
"""Seconds within which a cancelled call must be over in the plugin."""
TRIES: Final = 3
"""How often what has to be prompt is tried: a busy machine may spoil some, not all."""
_CALLS: Final = 100
_LARGE: Final = 32 << 20
_OVERSIZE: Final = 34 << 20


def _capability(flag: str, service: str) -> Callable[[Subject], Awaitable[None]]:
    async def check(subject: Subject) -> None:
        facts = await subject.facts()
        if flag not in requests.declared_services(facts.capabilities):
            raise Skipped(NOT_DECLARED)
        methods = requests.unary_methods(service)
        skipped = requests.skipped_methods(facts.capabilities)
        subject.upstream.expect(Mode.ANSWER)
        for method in methods:
            if method in skipped:
                continue
            request = requests.representative(facts, service, method)
            try:
                answer = await facts.connection.unary(service, method, request)
            except CallFailed as error:
                if error.failure.code is not _CODE.UNIMPLEMENTED or method not in _OPTIONAL:
                    _judge(error.failure)
                continue
            if found := complaints(method, request, answer):
                raise Broken(f"{method}: {found}")

    return check


def _judge(failure: Failure) -> None:
    """Raise Broken unless *failure* is one that a plugin may mean."""
    unserved = failure.code is _CODE.UNIMPLEMENTED
    if unserved or not failure.reason or failure.reason in _OUR_FAULT:
        raise Broken(str(failure))


async def _undeclared(subject: Subject) -> None:
    facts = await subject.facts()
    declared = requests.declared_services(facts.capabilities)
    for flag, service in requests.all_services().items():
        methods = requests.unary_methods(service)
        if flag in declared or not methods:
            continue
        method = methods[-1]
        try:
            await facts.connection.unary(
                service, method, requests.representative(facts, service, method)
            )
        except CallFailed as error:
            failure = error.failure
            good = failure.code is _CODE.UNIMPLEMENTED or failure.reason == "CAPABILITY_NOT_SERVED"
            if not good:
                raise Broken(f"{flag} is not declared, and {failure}") from None
        else:
            raise Broken(f"{flag} is not declared, and {service}/{method} answers")


async def _deadline(subject: Subject) -> None:
    facts = await subject.facts()
    capabilities = facts.capabilities
    subject.upstream.expect(Mode.SILENT)
    if capabilities.HasField("executor"):
        service, method = "ExecutorService", "Execute"
        request: Any = requests.executor_request(facts)
    else:
        service, method, request = await subject.cheap_call()
    worst = ""
    for _ in range(TRIES):
        worst = await _ends_in_time(subject, facts, (service, method, request))
        if not worst:
            break
    subject.upstream.expect(Mode.ANSWER)
    if worst:
        raise Broken(worst)


async def _ends_in_time(subject: Subject, facts: requests.Facts, call: tuple[str, str, Any]) -> str:
    """Make the call with a short deadline; return what was wrong with its end, empty if nothing."""
    before = time.monotonic()
    try:
        await facts.connection.unary(*call, seconds=DEADLINE)
    except CallFailed as error:
        if error.failure.code not in {_CODE.DEADLINE_EXCEEDED, _CODE.CANCELLED}:
            _judge(error.failure)
    took = time.monotonic() - before
    if took > DEADLINE + SLACK:
        return f"a call with {DEADLINE * 1000:.0f} ms ended after {took * 1000:.0f} ms"
    before = time.monotonic()
    try:
        await facts.connection.unary("PluginService", "Challenge", b"", seconds=SLACK)
    except CallFailed as error:
        if error.failure.code is _CODE.DEADLINE_EXCEEDED:
            return "after it nobody else was answered: the call blocks the process"
    if not await none_in_flight(subject, DEADLINE + SLACK):
        return "the call still runs in the plugin after its deadline"
    return ""


async def none_in_flight(subject: Subject, seconds: float) -> bool:
    """Whether all calls are over within that time, as far as it can be seen."""
    running = subject.running
    if running is None or running.in_flight() is None:
        return True
    until = time.monotonic() + seconds
    while running.in_flight():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.005)
    return True


async def _cancellation(subject: Subject) -> None:
    facts = await subject.facts()
    if not facts.capabilities.HasField("executor"):
        raise Skipped("no call of it lasts; streams.cancellation has its streams")
    took = float("inf")
    for _ in range(TRIES):
        subject.upstream.expect(Mode.SILENT)
        task = asyncio.ensure_future(
            facts.connection.unary(
                "ExecutorService", "Execute", requests.executor_request(facts), seconds=None
            )
        )
        arrived = asyncio.ensure_future(subject.upstream.arrived.wait())
        try:
            await asyncio.wait({task, arrived}, timeout=10.0, return_when=asyncio.FIRST_COMPLETED)
            if not arrived.done():
                raise Skipped("the executor did not call the provider that it was sent to")
            cancelled = time.monotonic()
            task.cancel()
            await asyncio.wait({asyncio.ensure_future(subject.upstream.hung_up.wait())}, timeout=1)
            if subject.upstream.hung_up.is_set():
                took = min(took, subject.upstream.hung_up_at - cancelled)
        finally:
            arrived.cancel()
            task.cancel()
            await asyncio.gather(task, arrived, return_exceptions=True)
            subject.upstream.expect(Mode.ANSWER)
        if took <= PROMPT:
            return
    told = "never" if took == float("inf") else f"after {took * 1000:.0f} ms"
    raise Broken(f"the call was cancelled, and the provider's connection was closed {told}")


async def _concurrency(subject: Subject) -> None:
    connection = await subject.registered()
    service, method, request = await subject.cheap_call()
    subject.upstream.expect(Mode.ANSWER)

    async def once() -> str:
        try:
            await connection.unary(service, method, request, seconds=30)
        except CallFailed as error:
            return f"{error.failure.code.name} {error.failure.reason}"
        return "OK"

    alone = await once()
    together = await asyncio.gather(*(once() for _ in range(_CALLS)))
    others = sorted({result for result in together if result != alone})
    if others:
        raise Broken(f"alone a call ends as {alone}, {_CALLS} at once also as {', '.join(others)}")


async def _outcome(subject: Subject, request: bytes, service: str, method: str) -> str:
    connection = await subject.registered()
    try:
        await connection.unary(service, method, request, seconds=60)
    except CallFailed as error:
        return f"{error.failure.code.name} {error.failure.reason}: {error.failure.message}"
    return "OK"


async def _unknown_fields(subject: Subject) -> None:
    service, method, request = await subject.cheap_call()
    plain = request.SerializeToString()
    # Field 19000 as a number, field 19001 as 3 bytes.
    newer = plain + b"\xc0\xa3\x09\x01" + b"\xca\xa3\x09\x03new"
    subject.upstream.expect(Mode.ANSWER)
    expected = await _outcome(subject, plain, service, method)
    found = await _outcome(subject, newer, service, method)
    if found != expected:
        raise Broken(f"with unknown fields {service}/{method} ends as {found}, else as {expected}")


async def _sized(subject: Subject, size: int) -> tuple[str, str]:
    """Call with a body of *size*; return the method and how the call ended."""
    facts = await subject.facts()
    service, method, request = await subject.cheap_call()
    fields = request.DESCRIPTOR.fields_by_name
    name = "body" if "body" in fields else "payload"
    if name not in fields:
        raise Skipped("no method of the plugin takes a body")
    messages = [{"role": "user", "content": "x" * size}]
    body = json.dumps({"model": requests.MODEL, "messages": messages}).encode()
    if service == "ExecutorService":
        request = requests.executor_request(facts, body=body)
    else:
        setattr(request, name, body)
    subject.upstream.expect(Mode.ANSWER)
    return method, await _outcome(subject, request.SerializeToString(), service, method)


async def _large(subject: Subject) -> None:
    method, outcome = await _sized(subject, _LARGE)
    # Without a reason it is gRPC's own, in whatever words its implementation has for it.
    by_grpc = ("RESOURCE_EXHAUSTED :", "OUT_OF_RANGE :", "UNAVAILABLE :")
    if outcome.startswith((*by_grpc, "INTERNAL", "UNKNOWN")):
        raise Broken(f"{method} with a body of {_LARGE >> 20} MiB ended as {outcome}")


async def _oversize(subject: Subject) -> None:
    method, outcome = await _sized(subject, _OVERSIZE)
    code = outcome.partition(" ")[0]
    if code in {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        raise Broken(f"{method} with {_OVERSIZE >> 20} MiB ended as {outcome}")
    service, method, request = await subject.cheap_call()
    after = await _outcome(subject, request.SerializeToString(), service, method)
    if after.startswith(("UNAVAILABLE", "UNKNOWN", "INTERNAL")):
        raise Broken(f"after a message of {_OVERSIZE >> 20} MiB a call ended as {after}")


async def _error_details(subject: Subject) -> None:
    facts = await subject.facts()
    connection = facts.connection
    service, method, request = await subject.cheap_call()
    provoked: list[Awaitable[Any]] = [
        connection.unary(
            service, method, request, metadata=connection.metadata(plugin_id="nobody-of-that-name")
        ),
        connection.unary("PluginService", "Register", b""),
    ]
    if facts.capabilities.HasField("executor"):
        unknown = requests.executor_request(facts)
        unknown.operation = "no-such-operation"
        unknown.format = "no-such-format"
        provoked.append(connection.unary("ExecutorService", "Execute", unknown))
    await asyncio.gather(*provoked, return_exceptions=True)
    failures = [f for made in subject.connections for f in made.failures]
    if not failures:
        raise Skipped("nothing failed")
    bad = [
        failure
        for failure in failures
        if not made_by_grpc(failure)
        and (not _REASON.fullmatch(failure.reason) or failure.domain != DOMAIN)
    ]
    if bad:
        raise Broken(f"{len(bad)} of {len(failures)} errors, among them {bad[0]}")


def made_by_grpc(failure: Failure) -> bool:
    """Whether the status is none that the plugin made."""
    if failure.details:
        return False
    if failure.code in {_CODE.RESOURCE_EXHAUSTED, _CODE.OUT_OF_RANGE}:
        return _TOO_LARGE.search(failure.message) is not None
    return failure.code in {
        _CODE.UNIMPLEMENTED,
        _CODE.DEADLINE_EXCEEDED,
        _CODE.CANCELLED,
        _CODE.UNAVAILABLE,
    }


async def _secrets_in_errors(subject: Subject) -> None:
    await subject.registered()
    for failure in (f for made in subject.connections for f in made.failures):
        text = f"{failure.message} {dict(failure.metadata)}".encode() + failure.details
        if what := secret_in(text, subject.key):
            raise Broken(f"the error of {failure.path} holds {what}")


def secret_in(text: bytes, key: bytes) -> str:
    """Return what secret there is in *text*, empty if none."""
    if requests.CANARY.encode() in text:
        return "a secret that the plugin was given"
    if key in text or key.hex().encode() in text:
        return "the plugin's key"
    return ""


CAPABILITIES: Final = tuple(
    Rule(
        f"capability.{flag}",
        f"A plugin that declares {flag} serves {service}.",
        "each method with a request as gateways send it",
        _capability(flag, service),
    )
    for flag, service in requests.all_services().items()
    if requests.unary_methods(service)
)

RULES: Final = (
    *CAPABILITIES,
    Rule(
        "capability.undeclared",
        "What is not declared is not served.",
        "one call to each of the other services",
        _undeclared,
    ),
    Rule(
        "calls.deadline",
        "A call whose deadline passes ends, and the process goes on answering.",
        "a call with 50 ms, of an executor to a silent provider; then another one",
        _deadline,
    ),
    Rule(
        "calls.cancellation",
        "A cancelled call is over within 100 ms, also towards the provider.",
        "an executor's call to a silent provider is cancelled; the best of 3",
        _cancellation,
    ),
    Rule(
        "calls.concurrency",
        "100 calls at once end as one alone does.",
        "100 calls of one method",
        _concurrency,
    ),
    Rule(
        "messages.unknown-fields",
        "Fields that a newer gateway sends are ignored.",
        "a call with two fields more",
        _unknown_fields,
    ),
    Rule(
        "messages.large",
        "Messages of 33 MiB are taken.",
        "a body of 32 MiB",
        _large,
    ),
    Rule(
        "messages.oversize",
        "A message that is too large ends its call alone.",
        "a body of 34 MiB, then another call",
        _oversize,
    ),
    Rule(
        "errors.details",
        "Every error says its reason in ErrorInfo of domain patchbay.dev.",
        "all errors of the rules before, and some provoked",
        _error_details,
    ),
    Rule(
        "secrets.errors",
        "No error holds a secret.",
        "every secret of the suite has a mark that is looked for",
        _secrets_in_errors,
    ),
)
"""Those about errors come last: they judge what the others have seen."""
