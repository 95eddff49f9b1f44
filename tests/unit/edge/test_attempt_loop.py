"""The attempt loop over a pool in memory, in virtual time: what is tried, held against whom, and told."""

import asyncio
import json
import re

import pytest
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual
from tests.unit.edge.provider_failures import DONE, ROLE, STREAM, TEXT, answered, kinds, told

from patchbay import errors
from patchbay.errors import FaultScope, UpstreamError
from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.kernel.telemetry import PrometheusMetrics
from patchbay_gateway.plugins.policy import EDGE_MARGIN
from patchbay_gateway.plugins.snapshot import (
    ErrorRuleEntry,
    RetryEntry,
    RouteEntry,
    SettingsEntry,
    StreamingEntry,
    TargetEntry,
)


@pytest.mark.parametrize("status", [402, 403, 404, 408, 429, 500, 502, 503, 504, 520, 529])
@pytest.mark.parametrize("stream", [False, True])
@virtual
async def test_failure_before_the_answer_goes_to_the_next_credential(
    status: int, stream: bool
) -> None:
    script = Script()
    script.answers["a", "up"] = [answered(status)]
    if stream:
        script.default = [ROLE, TEXT, DONE]
    client = await Edge(script, pool("a", "b")).ask(STREAM if stream else b'{"model":"m"}')
    assert client.status == 200
    assert script.called == [("a", "up"), ("b", "up")]
    assert kinds(script)[0] != "-"
    assert kinds(script)[1] == "-"
    assert client.headers[b"x-patchbay-attempts"] == b"2"


@pytest.mark.parametrize(
    "error",
    [
        answered(400),
        answered(422),
        answered(413),
        answered(409),
        answered(503, "context_length_exceeded"),
    ],
)
@virtual
async def test_request_fault_stops_at_once_and_is_held_against_nobody(error: UpstreamError) -> None:
    script = Script(default=error)
    client = await Edge(script, pool("a", "b")).ask()
    assert client.status == error.http_status
    assert len(script.called) == 1
    assert kinds(script) == ["-"]


@virtual
async def test_connection_failure_is_tried_elsewhere_and_cools_nothing() -> None:
    script = Script()
    script.answers["a", "up"] = [UpstreamError(502, reason="UPSTREAM_CONNECTION")]
    assert (await Edge(script, pool("a", "b")).ask()).status == 200
    assert kinds(script) == ["CONNECTION", "-"]


@virtual
async def test_report_carries_what_the_provider_said() -> None:
    script = Script(
        default=answered(
            429,
            "rate_limit_exceeded",
            message="slow down, key sk-abcdefghijklmnop",
            retry_after="864000",
            x_ratelimit_limit_requests="60",
            x_ratelimit_remaining_requests="0",
            x_ratelimit_reset_requests="6m0s",
        )
    )
    await Edge(script, pool("a")).ask()
    fault = script.reports[0].fault
    assert fault.error.http_status == 429
    assert fault.error.code == "rate_limit_exceeded"
    assert fault.error.message == "slow down, key [REDACTED]"
    assert fault.retry_after.ToSeconds() == 864_000, "the scheduler caps, the edge does not"
    limit = script.reports[0].rate_limits[0]
    assert (limit.unit, limit.limit, limit.remaining) == ("requests", 60, 0)
    assert limit.reset.ToSeconds() == 360


@virtual
async def test_good_answers_tell_limits_first_seldom_and_when_little_is_left() -> None:
    headers = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "90"}
    script = Script(headers=headers)
    edge = Edge(script, pool("a"))
    for _ in range(20):
        await edge.ask()
    script.headers = {**headers, "x-ratelimit-remaining-requests": "9"}
    for _ in range(5):
        await edge.ask()
    telling = [n for n, report in enumerate(script.reports) if report.rate_limits]
    assert telling == [0, 16, 20, 21, 22, 23, 24]


# Alias pools: several models of one credential behind one name.


@virtual
async def test_alias_pool_rotates_within_the_credential_first() -> None:
    script = Script()
    script.answers["a", "one"] = [answered(503)]
    await Edge(script, pool("a", "b", models=("one", "two"))).ask()
    assert script.called == [("a", "one"), ("a", "two")]


@virtual
async def test_alias_pool_goes_on_after_an_unsupported_model() -> None:
    script = Script()
    script.answers["a", "one"] = [answered(400, message="The model `one` is not supported")]
    client = await Edge(script, pool("a", models=("one", "two"))).ask()
    assert client.status == 200
    assert kinds(script) == ["MODEL_UNSUPPORTED", "-"]


@virtual
async def test_alias_pool_stops_on_a_request_fault() -> None:
    script = Script(default=answered(400))
    await Edge(script, pool("a", "b", models=("one", "two"))).ask()
    assert script.called == [("a", "one")]


@virtual
async def test_alias_pool_leaves_a_credential_whose_account_is_at_fault() -> None:
    script = Script()
    script.answers["a", "one"] = [answered(402)]
    await Edge(script, pool("a", "b", models=("one", "two"))).ask()
    assert script.called == [("a", "one"), ("b", "one")]


@virtual
async def test_alias_pool_stays_within_max_credentials() -> None:
    script = Script(default=answered(500))
    retry = RetryEntry(max_credentials=1)
    client = await Edge(script, pool("a", "b", models=("one", "two"), retry=retry)).ask()
    assert script.called == [("a", "one"), ("a", "two")]
    assert client.status == 500


@virtual
async def test_fallback_to_another_model_of_the_same_credential_is_still_possible() -> None:
    """A model's fault leaves the credential in for the model that the route falls back to."""
    script = Script()
    script.answers["a", "up"] = [answered(503)]
    edge = Edge(
        script,
        pool("a"),
        routes=(RouteEntry("r", (TargetEntry("p", "up"),), ("m",)),),
    )
    await edge.ask(b'{"model":"r"}')
    item = script.acquired[1]
    assert [(t.credential_id, t.upstream_model) for t in item.tried] == [("a", "up")]
    assert not item.exclude_credential_ids


# 401: one refresh, the same credential, then another.


@virtual
async def test_unauthorized_is_refreshed_once_and_tried_again_on_the_same_credential() -> None:
    script = Script(refreshable=True, refresh=[2])
    script.answers["a", "up"] = [answered(401), b"{}"]
    client = await Edge(script, pool("a", "b")).ask()
    assert client.status == 200
    assert script.called == [("a", "up"), ("a", "up")]
    assert script.refreshed == [("a", 1)]
    assert kinds(script) == ["-", "-"], "what was refused is no more"
    numbers = [report.attempt.number for report in script.reports]
    assert numbers == [1, 2], "a retry after a refresh is a new attempt"
    assert script.reports[0].settlement.latency.ToSeconds() == 0, "the refresh is not the call"


@virtual
async def test_unauthorized_twice_goes_to_the_next_credential() -> None:
    script = Script(refreshable=True, refresh=[2])
    script.answers["a", "up"] = [answered(401)]
    client = await Edge(script, pool("a", "b")).ask()
    assert client.status == 200
    assert script.called == [("a", "up"), ("a", "up"), ("b", "up")]
    assert len(script.refreshed) == 1
    assert kinds(script) == ["-", "UNAUTHORIZED", "-"]


@virtual
async def test_unauthorized_refresh_failed_goes_to_the_next_credential() -> None:
    script = Script(refreshable=True, refresh=[errors.FailedPrecondition("needs login")])
    script.answers["a", "up"] = [answered(401)]
    await Edge(script, pool("a", "b")).ask()
    assert script.called == [("a", "up"), ("b", "up")]
    assert kinds(script) == ["UNAUTHORIZED", "-"]


@virtual
async def test_unauthorized_api_key_is_not_refreshed() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(401)]
    await Edge(script, pool("a", "b")).ask()
    assert script.refreshed == []
    assert script.called == [("a", "up"), ("b", "up")]


@virtual
async def test_unauthorized_many_at_once_share_one_refresh() -> None:
    script = Script(refreshable=True, refresh=[2])
    script.answers["a", "up"] = [*(answered(401) for _ in range(10)), b"{}"]
    edge = Edge(script, pool("a"))
    clients = await asyncio.gather(*(edge.ask() for _ in range(10)))
    assert {client.status for client in clients} == {200}
    assert script.refreshed == [("a", 1)]


@virtual
async def test_client_leaving_during_a_refresh_settles_the_attempt() -> None:
    script = Script(refreshable=True, refresh=[2])
    script.answers["a", "up"] = [answered(401), b"{}"]
    await Edge(script, pool("a")).ask(leaves_after=0.5)
    assert len(script.reports) == 1
    assert script.called == [("a", "up")]


# Rounds and waits.


@virtual
async def test_all_cooling_is_429_with_the_earliest_recovery() -> None:
    script = Script(blocked={"a": 30.4, "b": 20.2})
    for dialect in ("openai", "openai-response", "claude", "gemini"):
        client = await Edge(script, pool("a", "b")).ask(dialect=dialect)
        assert client.status == 429
        assert client.headers[b"retry-after"] == b"21"
        assert "cooling down" in told(client)["message"]


@virtual
async def test_all_cooling_says_why_and_what_the_provider_said_last() -> None:
    last = scheduler_pb2.LastError(http_status=520, message="web server is down")
    refusal = scheduler_pb2.Refusal(
        code=8, reason="MODEL_COOLDOWN", message="all are cooling down", last_error=last
    )
    client = await Edge(Script(refusal=refusal), pool("a")).ask()
    error = told(client)
    assert error["code"] == "model_cooldown"
    assert error["message"].endswith("last error was 520: web server is down")


@virtual
async def test_upstream_520_is_not_shown_as_429_of_a_cooling_pool() -> None:
    script = Script(blocked={"b": 60.0}, default=answered(520, message="origin down"))
    client = await Edge(script, pool("a", "b")).ask()
    assert client.status == 520
    assert told(client)["message"] == "origin down"


@virtual
async def test_upstream_429_is_told_with_the_recovery_of_the_pool() -> None:
    script = Script(blocked={"b": 60.0}, default=answered(429, wait=2))
    client = await Edge(script, pool("a", "b")).ask()
    assert client.status == 429
    assert client.headers[b"retry-after"] == b"60"


@virtual
async def test_refused_credential_does_not_hide_a_failure_that_says_more() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(503, message="maintenance")]
    script.answers["b", "up"] = [answered(401)]
    client = await Edge(script, pool("a", "b")).ask()
    assert client.status == 503
    assert told(client)["message"] == "maintenance"


@virtual
async def test_nothing_free_is_503_with_the_reason() -> None:
    refusal = scheduler_pb2.Refusal(
        code=14, reason="NO_CREDENTIAL", message="no credential: a is disabled"
    )
    client = await Edge(Script(refusal=refusal), pool("a")).ask()
    assert client.status == 503
    assert (told(client)["code"], told(client)["message"]) == (
        "no_credential",
        "no credential: a is disabled",
    )
    assert client.headers[b"retry-after"] == b"1"


@virtual
async def test_credentials_busy_is_429_with_a_second_to_wait() -> None:
    refusal = scheduler_pb2.Refusal(code=8, reason="CREDENTIALS_BUSY", message="all are at work")
    client = await Edge(Script(refusal=refusal), pool("a")).ask()
    assert client.status == 429
    assert client.headers[b"retry-after"] == b"1"
    assert told(client)["code"] == "credentials_busy"


@virtual
async def test_should_not_retry_of_a_failing_provider_is_obeyed() -> None:
    script = Script(default=answered(503, x_should_retry="false"))
    client = await Edge(script, pool("a", "b")).ask()
    assert len(script.called) == 1
    assert client.headers[b"x-should-retry"] == b"false"


@virtual
async def test_should_not_retry_of_a_spent_account_still_goes_to_another() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(429, x_should_retry="false")]
    assert (await Edge(script, pool("a", "b")).ask()).status == 200


# Streams: what counts as an answer.


@virtual
@pytest.mark.parametrize(
    ("action", "calls", "held"),
    [
        ("stop", 1, ["-"]),
        ("stop-and-cooldown", 1, ["QUOTA"]),
        ("continue", 2, ["-", "-"]),
        ("continue-and-cooldown", 2, ["QUOTA", "-"]),
    ],
)
async def test_rule_decides_whether_it_goes_on_and_who_cools_down(
    action: str, calls: int, held: list[str]
) -> None:
    script = Script()
    script.answers["a", "up"] = [answered(429, message="daily cap of the moon")]
    rules = (
        ErrorRuleEntry(500, "stop"),
        ErrorRuleEntry(429, "stop", match=("no such text",)),
        ErrorRuleEntry(429, action, match=("x",), match_regex=(r"cap of \w+ moon",)),
        ErrorRuleEntry(429, "stop"),
    )
    await Edge(script, pool("a", "b", errors=rules)).ask()
    assert len(script.called) == calls
    assert kinds(script) == held
    assert script.reports[0].fault.force_cooldown == action.endswith("cooldown")


@virtual
async def test_rule_over_a_request_fault_cools_the_model() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(400)]
    rules = (ErrorRuleEntry(400, "continue-and-cooldown"),)
    assert (await Edge(script, pool("a", "b", errors=rules)).ask()).status == 200
    fault = script.reports[0].fault
    assert fault.force_cooldown
    assert FaultScope(fault.scope) is FaultScope.MODEL


@virtual
async def test_rule_applies_inside_a_200_too() -> None:
    failed = b'data: {"error":{"message":"moon","type":"server_error"}}\n\n'
    script = Script(default=[failed])
    rules = (ErrorRuleEntry(500, "stop", match=("moon",)),)
    await Edge(script, pool("a", "b", errors=rules)).ask(STREAM)
    assert script.called == [("a", "up")]


@virtual
async def test_count_tokens_that_a_provider_lacks_is_held_against_nobody() -> None:
    script = Script(default=answered(404))
    await Edge(script, pool("a")).ask(operation="count_tokens")
    assert kinds(script) == ["-"]


# Callers inside the gateway.


@virtual
async def test_pinned_credential_fails_instead_of_rotating() -> None:
    script = Script(default=answered(500))
    client = await Edge(script, pool("a", "b")).ask(pinned_credential_id="b")
    assert script.called == [("b", "up")]
    assert client.status == 500


@virtual
async def test_on_credential_is_told_each_choice_before_its_call() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(500)]
    chosen: list[tuple[str, int]] = []
    await Edge(script, pool("a", "b")).ask(
        on_credential=lambda credential: chosen.append((credential, len(script.called)))
    )
    assert chosen == [("a", 0), ("b", 1)]


@virtual
async def test_execution_session_reaches_scheduler_and_executor() -> None:
    script = Script()
    await Edge(script, pool("a")).ask(execution_session_id="socket-1")
    assert script.acquired[0].execution_session_id == "socket-1"
    assert json.loads(script.requests[0].metadata) == {"execution_session_id": "socket-1"}


@virtual
async def test_first_attempt_tells_the_scheduler_nothing_of_tries() -> None:
    script = Script()
    await Edge(script, pool("a")).ask()
    item = script.acquired[0]
    assert not item.exclude_credential_ids
    assert not item.tried
    assert not item.session_ids, "affinity is off"


@virtual
async def test_counts_of_requests_attempts_and_streams() -> None:
    script = Script()
    script.answers["a", "up"] = [answered(429)]
    metrics = PrometheusMetrics()
    edge = Edge(script, pool("a", "b"), metrics=metrics)
    await edge.ask()
    script.default = answered(400)
    await edge.ask(STREAM)
    page = metrics.render().decode()
    wanted = [
        'edge_requests_total{dialect="openai",operation="chat",status="200"} 1.0',
        'edge_requests_total{dialect="openai",operation="chat",status="400"} 1.0',
        'edge_attempts_total{outcome="quota",provider="p"} 2.0',
        'edge_attempts_total{outcome="succeeded",provider="p"} 1.0',
        'edge_attempts_total{outcome="request",provider="p"} 1.0',
        "edge_open_streams 0.0",
        'edge_request_duration_seconds_count{dialect="openai",operation="chat",status="2xx"} 1.0',
        'edge_attempt_duration_seconds_count{provider="p"} 4.0',
        'edge_first_byte_seconds_count{provider="p"} 1.0',
        "edge_overhead_seconds_count 1.0",
    ]
    for line in wanted:
        assert f"patchbay_{line}" in page


@virtual
async def test_failure_of_our_own_while_deciding_settles_the_attempt() -> None:
    """A bug in reading an answer must not leave a lease that is renewed for ever."""
    script = Script(default=answered(429))
    rules = (ErrorRuleEntry(429, "continue", match_regex=("(",)),)
    with pytest.raises(re.error):
        await Edge(script, pool("a", errors=rules)).ask()
    assert len(script.reports) == 1


@virtual
async def test_end_of_the_process_that_comes_with_a_deadline_ends_the_request() -> None:
    """Taken for the deadline alone it would begin another attempt, and the process would wait for that."""
    script = Script(default=[1000.0])
    # The answer looks first when its head is overdue, for nothing else is to be looked at sooner.
    limits = StreamingEntry(
        first_byte_timeout=20.0, idle_timeout=5.0, first_byte_grace=0.0, end_grace=0.0
    )
    edge = Edge(script, pool("a", "b"), settings=SettingsEntry(streaming=limits))
    asking = asyncio.ensure_future(edge.ask(STREAM))
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + 20.0 + EDGE_MARGIN, asking.cancel)
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert script.called == [("a", "up")]
    assert script.reports[0].settlement.reason == "SHUTDOWN"
