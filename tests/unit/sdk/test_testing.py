"""`patchbay.testing`: the harness, the fake host and the suite's report, from an author's side."""

from __future__ import annotations

import json

import pytest

from patchbay import errors
from patchbay.frontend_auth import FrontendAuthProvider, FrontendAuthRequest, FrontendAuthResponse
from patchbay.host_types import HostModelExecutionRequest, HTTPRequest
from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
)
from patchbay.testing.conformance import RULES, Report, Result, check
from patchbay.testing.connection import TEST_KEY, CallFailed
from patchbay.testing.fake_host import FakeHost, Grants, model_answer, model_stream
from patchbay.testing.harness import called_directly, conformance_of, service_of, serving
from patchbay.testing.spawned import spawned
from patchbay.transform import RequestNormalizer, RequestTransformRequest

REQUEST = RequestInterceptRequest("r", "t", "openai", "m", "m", body=b"{}")


class Caller(RequestInterceptor):
    """Does with the gateway what a test says."""

    id, name, version, author = "caller", "Caller", "1", "tests"

    def __init__(self) -> None:
        self.config = b""
        self.todo = "log"

    async def configure(self, config: bytes) -> None:
        self.config = config

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        host, said = request.callbacks, b""
        if self.todo == "log":
            await host.log("warn", "hello", n=1)
        elif self.todo == "http":
            answer = await host.http_do(HTTPRequest("http://api.example/x"))
            said = str(answer.status_code).encode()
        elif self.todo == "model":
            said = (await host.execute_model(HostModelExecutionRequest("m", b"{}"))).body
        elif self.todo == "stream":
            asked = HostModelExecutionRequest("m", b"{}")
            async with await host.execute_model_stream(asked) as stream:
                said = b",".join([chunk async for chunk in stream])
        elif self.todo == "auth":
            document = (await host.get_auth("a")).document
            said = (await host.save_auth("b.json", {**document, "more": 1})).encode()
        return RequestInterceptResponse(body=self.config + said)


class Other(FrontendAuthProvider, RequestNormalizer):
    id, name, version, author = "other", "Other", "1", "tests"

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        raise errors.PermissionDenied("not today", reason="NOT_TODAY")

    async def normalize_request(self, request: RequestTransformRequest) -> bytes | None:
        return request.body.upper()


async def ask(plugin: Caller, host: FakeHost | None, todo: str) -> bytes:
    plugin.todo = todo
    async with serving(plugin, host=host, config=b"c:") as served:
        return bytes((await served.call("InterceptRequestBeforeAuth", REQUEST)).body)


async def test_serving_registers_and_calls_with_dataclasses() -> None:
    async with FakeHost() as host:
        assert await ask(Caller(), host, "log") == b"c:"
        (line,) = host.asked("Log")
        assert (line.message, json.loads(line.fields)) == ("hello", {"n": 1})
        assert host.calls[0].plugin_id == "caller"
        assert host.calls[0].scope


async def test_several_plugins_are_served_at_once() -> None:
    async with serving(Caller(), Other()) as served:
        body = RequestTransformRequest("openai", "openai", "m", b"body")
        answer = await served.call("NormalizeRequest", body, plugin_id="other")
        assert answer.body == b"BODY"
        with pytest.raises(CallFailed) as failed:
            await served.call("Authenticate", FrontendAuthRequest("GET", "/"), plugin_id="other")
        assert (failed.value.failure.reason, failed.value.failure.message) == (
            "NOT_TODAY",
            "not today",
        )


async def test_call_without_a_port_is_the_same() -> None:
    plugin = Caller()
    plugin.todo = "nothing"
    answer = await called_directly(plugin, "InterceptRequestBeforeAuth", REQUEST, config=b"x")
    assert answer.body == b"x"
    with pytest.raises(errors.NotFound):
        await called_directly(plugin, "NormalizeRequest", REQUEST)


def test_method_of_several_services_has_to_be_named() -> None:
    assert service_of("HandleUsage") == "UsagePluginService"
    with pytest.raises(ValueError, match="name the service"):
        service_of("NormalizeResponse")


@pytest.mark.parametrize("todo", ["http", "model", "stream", "auth"])
async def test_host_refuses_what_is_not_granted(todo: str) -> None:
    async with FakeHost(documents={"a": {}}) as host:
        with pytest.raises(CallFailed) as failed:
            await ask(Caller(), host, todo)
        assert failed.value.failure.reason == "HOST_ACCESS_DENIED"


async def test_host_answers_as_told_and_keeps_documents() -> None:
    granted = Grants(models=True, http_hosts=("api.example",), auths="all")
    async with FakeHost(grants=granted, documents={"a": {"k": "v"}}) as host:
        host.answers["ExecuteModel"] = lambda request: model_answer(request.model.encode())
        host.answers["ExecuteModelStream"] = model_stream([b"1", b"2"])
        assert await ask(Caller(), host, "http") == b"c:204"
        assert await ask(Caller(), host, "model") == b"c:m"
        assert await ask(Caller(), host, "stream") == b"c:1,2"
        assert await ask(Caller(), host, "auth") == b"c:b.json"
        assert host.documents["b.json"] == {"k": "v", "more": 1}
        host.answers["ExecuteModel"] = errors.UpstreamError(429)
        with pytest.raises(CallFailed):
            await ask(Caller(), host, "model")


async def test_host_ends_scopes() -> None:
    plugin = Caller()
    async with FakeHost() as host, serving(plugin, host=host) as served:
        await served.call("InterceptRequestBeforeAuth", REQUEST)
        host.end_scope(host.calls[0].scope)
        with pytest.raises(CallFailed) as failed:
            await served.call("InterceptRequestBeforeAuth", REQUEST)
        assert failed.value.failure.reason == "SCOPE_ENDED"


async def test_suite_judges_several_plugins_of_one_address() -> None:
    reports = await conformance_of(Caller(), Other(), only=["handshake.register", "health.drain"])
    assert [report.plugin_id for report in reports] == ["caller", "other"]
    assert [r.result for r in reports[0].results] == ["pass", "skipped"]
    assert [r.result for r in reports[1].results] == ["pass", "pass"]


async def test_suite_says_that_nobody_is_there(tmp_path) -> None:
    with pytest.raises(errors.Unavailable, match="nobody answers"):
        await check(f"unix:{tmp_path}/nobody", "x", TEST_KEY)


async def test_spawned_plugin_that_does_not_start_is_told(tmp_path) -> None:
    file = tmp_path / "no_plugin_here.py"
    file.write_text("x = 1\n")
    with pytest.raises(errors.Unavailable, match="has no plugin"):
        async with spawned(str(file), TEST_KEY):
            pass


def test_report_is_a_table_and_json() -> None:
    results = (
        Result("a.b", "It holds.", "so", "pass", "", 0.1),
        Result("a.c", "It holds too.", "so", "fail", "it was red", 0.1),
        Result("capability.x", "x", "so", "skipped", "not declared", 0.0),
    )
    report = Report("p", "127.0.0.1:1", results)
    assert not report.passed
    assert report.table().splitlines() == [
        "pass     a.b           It holds.",
        "fail     a.c           It holds too.",
        "                       it was red",
        "not declared: x",
        "1 passed, 1 failed, 1 skipped",
    ]
    assert report.as_json()["rules"][1]["detail"] == "it was red"


def test_rules_have_ids_and_sentences_of_their_own() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.sentence.endswith("."), rule.id
        assert rule.how
