"""Tests of the example: whole and streamed, wrong queries, errors, what is granted, the contract."""

import asyncio
import json
from typing import Any

import pytest
from host_model_callback import HostModelCallback

from patchbay import errors
from patchbay.management import ManagementRequest
from patchbay.testing.fake_host import FakeHost, Grants, model_answer, model_stream
from patchbay.testing.harness import conformance_of, serving

PATH = "/v0/resource/plugins/host-model-callback/status"


def page(answers: dict[str, Any], *, models: bool = True, **query: str) -> tuple[Any, FakeHost]:
    """Return the page for *query* and the host that was asked."""

    async def scenario() -> tuple[Any, FakeHost]:
        host = FakeHost(grants=Grants(models=models), answers=answers)
        async with host, serving(HostModelCallback(), host=host) as served:
            request = ManagementRequest("GET", PATH, query=list(query.items()))
            return await served.call("HandleManagement", request), host

    return asyncio.run(scenario())


def test_whole_answer_is_shown() -> None:
    found, host = page({"ExecuteModel": model_answer(b"<fine>")}, model="m", prompt="hi")
    assert (found.status_code, b"&lt;fine&gt;" in found.body) == (200, True)
    (asked,) = host.asked("ExecuteModel")
    assert (asked.model, asked.entry_protocol, asked.exit_protocol) == ("m", "openai", "openai")
    assert json.loads(asked.body)["messages"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("implicit", ["true", "false"])
def test_chunks_are_shown(implicit: str) -> None:
    answers = {"ExecuteModelStream": model_stream([b"one", b"two"])}
    found, host = page(answers, stream="true", implicit_close=implicit)
    assert b"<dd>one</dd><dt>chunk</dt><dd>two</dd>" in found.body
    assert (b"implicit" in found.body) == (implicit == "true")
    (asked,) = host.asked("ExecuteModelStream")
    assert asked.stream


@pytest.mark.parametrize(
    "query", [{"stream": "perhaps"}, {"body": "{"}, {"entry_protocol": "morse"}]
)
def test_wrong_query_is_400(query: dict[str, str]) -> None:
    found, host = page({}, **query)
    assert found.status_code == 400
    assert not host.calls


def test_failed_call_is_a_page_that_says_so() -> None:
    failure = errors.UpstreamError(429, "come back later")
    found, _ = page({"ExecuteModel": failure})
    assert (found.status_code, b"come back later" in found.body) == (200, True)
    found, _ = page({}, models=False)
    assert b"HOST_ACCESS_DENIED" in found.body


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(HostModelCallback()))
    assert report.passed, report.table()
