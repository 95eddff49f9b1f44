"""Tests of the example: the stamp, what has none, the contract."""

import asyncio
import json

from response_stamp import ResponseStamp

from patchbay.interceptors import ResponseInterceptRequest
from patchbay.testing.harness import called_directly, conformance_of


def test_answer_is_stamped() -> None:
    request = ResponseInterceptRequest("request-1", "openai", "m", "m", b'{"choices":[]}')
    answer = asyncio.run(called_directly(ResponseStamp(), "InterceptResponse", request))
    assert json.loads(answer.body)["stamp"] == {"model": "m", "request_id": "request-1"}
    assert list(answer.headers["x-stamped"].values) == ["yes"]
    assert list(answer.clear_headers) == ["server"]


def test_other_bodies_stay() -> None:
    request = ResponseInterceptRequest("request-1", "openai", "m", "m", b"[1]")
    assert asyncio.run(ResponseStamp().intercept_response(request)) is None


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(ResponseStamp()))
    assert report.passed, report.table()
