"""The executors `claude` and `gemini` over real sockets: what fails, until when, and whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.executors.calls import is_whole, refusal
from tests.integration.executors.claude_and_gemini.asking import (
    base,
    make_request,
    of_claude,
    of_gemini,
)

from patchbay import errors

if TYPE_CHECKING:
    from tests.fakes.upstream import FakeUpstream
    from tests.integration.executors.claude_and_gemini.asking import Tested


STATUSES = [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("stream", [False, True])
async def test_error_status_is_kept_whole(
    executor: Tested, fake: FakeUpstream, status: int, *, stream: bool
) -> None:
    request = make_request(
        executor, base(fake), stream=stream, status=status, retry_after="7", error="no way"
    )
    is_whole(await refusal(executor, request, stream=stream), status)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"retry_after": "0"}, 0),
        ({"retry_after": "5"}, 5),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "864000"}, 3600),
        ({"retry_after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"retry_after": "2", "retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "later", "retry_after": "3"}, 3),
        ({}, None),
    ],
    ids=str,
)
async def test_retry_after_in_each_form(
    executor: Tested, fake: FakeUpstream, told: dict[str, Any], seconds: float | None
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, **told))
    assert caught.value.retry_after == seconds


async def test_failure_in_a_200_body_is_a_failure(executor: Tested, fake: FakeUpstream) -> None:
    with pytest.raises(errors.UpstreamError, match="oops") as caught:
        await executor.execute(make_request(executor, base(fake), error_after=0, error="oops"))
    assert caught.value.http_status in {500, 503}
    with pytest.raises(errors.UpstreamError, match="oops"):
        await executor.count_tokens(
            make_request(executor, base(fake), "count_tokens", error_after=0, error="oops")
        )


@of_gemini
@pytest.mark.parametrize(
    ("told", "seconds", "scope"),
    [
        ({"retry_delay": "17s"}, 17, errors.FaultScope.MODEL),
        ({"retry_delay": "0.5s"}, 0.5, errors.FaultScope.MODEL),
        ({"retry_delay": "864000s"}, 3600, errors.FaultScope.MODEL),
        ({"retry_delay": "soon"}, None, errors.FaultScope.MODEL),
        ({"retry_delay": "17s", "retry_after": "2"}, 2, errors.FaultScope.MODEL),
        ({"quota": "model"}, None, errors.FaultScope.MODEL),
        ({"quota": "project", "retry_delay": "9s"}, 9, errors.FaultScope.CREDENTIAL),
    ],
    ids=str,
)
async def test_gemini_quota_says_when_and_whose(
    executor: Tested,
    fake: FakeUpstream,
    told: dict[str, Any],
    seconds: float | None,
    scope: errors.FaultScope,
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, **told))
    assert (caught.value.retry_after, caught.value.scope) == (seconds, scope)


@pytest.mark.parametrize(
    ("bare", "scope"),
    [(True, errors.FaultScope.REQUEST), (False, errors.FaultScope.MODEL)],
    ids=["no such path", "no such model"],
)
async def test_count_without_such_a_path_is_no_fault_of_the_credential(
    executor: Tested, fake: FakeUpstream, scope: errors.FaultScope, *, bare: bool
) -> None:
    request = make_request(executor, base(fake), "count_tokens", status=404, bare_error=bare)
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.count_tokens(request)
    assert caught.value.scope is scope


@of_claude
@pytest.mark.parametrize(
    ("told", "scope"),
    [
        ({"status": 400, "error": "Your credit balance is too low"}, errors.FaultScope.CREDENTIAL),
        ({"status": 400, "error": "messages: field required"}, errors.FaultScope.REQUEST),
        ({"status": 402}, errors.FaultScope.CREDENTIAL),
        ({"status": 529}, errors.FaultScope.UNSPECIFIED),
    ],
    ids=str,
)
async def test_claude_error_says_whose_it_is(
    executor: Tested, fake: FakeUpstream, told: dict[str, Any], scope: errors.FaultScope
) -> None:
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), **told))
    assert caught.value.scope is scope


@of_claude
async def test_claude_limit_that_is_spent_says_when_it_is_not(
    executor: Tested, fake: FakeUpstream
) -> None:
    """Without a Retry-After the reset of the limit that ran out counts, at most an hour."""
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, limits="spent"))
    assert caught.value.retry_after == 3600
    with pytest.raises(errors.UpstreamError) as caught:
        await executor.execute(make_request(executor, base(fake), status=429, limits="fine"))
    assert caught.value.retry_after is None
