"""Tests of the example: the limit, the word, the slot that comes back, the contract."""

import asyncio

import pytest
from request_lifecycle import RequestLifecycle

from patchbay import errors
from patchbay.interceptors import RequestInterceptRequest
from patchbay.lifecycle import RequestCompletion
from patchbay.testing.harness import conformance_of, serving


def request(number: int, body: bytes = b"{}") -> RequestInterceptRequest:
    return RequestInterceptRequest(f"request-{number}", "trace", "openai", "m", "m", body=body)


def test_third_request_is_429_until_one_ends() -> None:
    async def scenario() -> None:
        async with serving(RequestLifecycle(), config=b"max_concurrency: 2") as served:
            method = "InterceptRequestBeforeAuth"
            answers = [await served.call(method, request(number)) for number in range(3)]
            assert [answer.terminate for answer in answers] == [False, False, True]
            assert answers[2].status_code == 429
            assert list(answers[2].response_headers["retry-after"].values) == ["1"]
            # The end of the refused one gives nothing back, that of an admitted one does.
            await served.call("HandleRequestComplete", RequestCompletion("request-2"))
            assert (await served.call(method, request(3))).terminate
            await served.call("HandleRequestComplete", RequestCompletion("request-0"))
            assert not (await served.call(method, request(3))).terminate

    asyncio.run(scenario())


def test_word_is_403() -> None:
    async def scenario() -> None:
        plugin = RequestLifecycle()
        await plugin.configure(b"reject_keyword: swordfish")
        answer = await plugin.intercept_request_before_auth(request(1, b'"swordfish"'))
        assert answer is not None
        assert (answer.terminate, answer.status_code) == (True, 403)

    asyncio.run(scenario())


def test_wrong_limit_is_told() -> None:
    with pytest.raises(errors.InvalidRequest, match="max_concurrency"):
        asyncio.run(RequestLifecycle().configure(b"max_concurrency: 0"))


def test_contract_is_kept() -> None:
    settings = {RequestLifecycle.id: b"max_concurrency: 1000"}
    (report,) = asyncio.run(conformance_of(RequestLifecycle(), configs=settings))
    assert report.passed, report.table()
