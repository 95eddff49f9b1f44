"""Callbacks of plugins, with real processes in both topologies: models, HTTP, credentials, logs."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.observing import until
from tests.integration.plugins.calling_back import IDS, World, make_world

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=["up", "services"])
def made_world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """All processes, running, the plugins registered."""
    world = make_world(request.param, tmp_path_factory.mktemp(f"callbacks-{request.param}"))
    world.upstream.process.start(wait=0)
    for plugin in world.plugins.values():
        plugin.start()
    try:
        world.upstream.process.wait_ready()
        world.gateway.start()
        deadline = time.monotonic() + 60
        while True:
            answer = world.gateway.managed("plugins")
            if all(p["ready"] for p in answer if p["id"] in IDS):
                break
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)  # polls another process
        yield world
    finally:
        world.gateway.stop()
        for plugin in world.plugins.values():
            plugin.stop()
        world.upstream.process.stop()


@pytest.fixture
def world(made_world: World) -> World:
    """All processes; nothing noted yet."""
    made_world.log.unlink(missing_ok=True)
    return made_world


# -- models -------------------------------------------------------------------------------------------


def test_two_hundred_model_calls_at_once_come_back_and_leave_nothing(world: World) -> None:
    """None waits for another's end, and the memory of the edge stays what it was."""
    many = {"op": "many", "model": "echo", "count": 200}
    world.ask(many)  # what is loaded and pooled once
    edge = world.gateway.processes["up" if "up" in world.gateway.processes else "edge"]
    before = edge.rss()
    for _ in range(2):
        (found,) = world.ask(many)
        assert len(found) == 200
        # The words of a stream are in events of their own.
        assert [n for n, said in enumerate(found) if str(n) not in said] == []
    assert edge.rss() - before < 64 << 20
    assert world.ask({"op": "model", "model": "echo"})[0]["status"] == 200


def test_model_call_goes_through_the_whole_pipeline(world: World) -> None:
    (found,) = world.ask({"op": "model", "model": "fake-model", "text": "from a plugin"})
    assert found["status"] == 200
    assert found["type"] == "application/json"
    assert found["body"]["choices"][0]["message"]["content"]
    assert {"x-request-id", "x-patchbay-provider"} <= set(found["headers"])
    assert [r for r in world.upstream.records() if "from a plugin" in r["body"]]


def test_streamed_model_call_gives_the_chunks_that_a_client_gets(world: World) -> None:
    (found,) = world.ask({"op": "stream", "model": "echo", "text": "one two three"})
    assert found["status"] == 200
    assert found["type"].startswith("text/event-stream")
    assert found["chunks"][-1] == "data: [DONE]\n\n"
    assert all(c.endswith("\n\n") and c.count("\n\n") == 1 for c in found["chunks"])
    assert "three" in "".join(found["chunks"])


def test_nested_stream_reaches_the_client_through_the_plugins_executor(world: World) -> None:
    command = json.dumps({"model": "echo", "text": "all of these words"})
    body = {"model": "alpha-x", "stream": True, "messages": [{"role": "user", "content": command}]}
    answer = httpx.post(
        f"{world.gateway.base_url}/v1/chat/completions",
        headers=world.gateway.headers(),
        json=body,
        timeout=60,
        verify=False,
    )
    assert answer.status_code == 200
    assert "words" in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_scope_inherits_client_headers_and_trace_and_given_headers_replace_them(
    world: World,
) -> None:
    world.ask(
        {"op": "model", "model": "echo"},
        {"op": "model", "model": "echo", "headers": {"x-own": "2"}},
        headers={"x-mine": "1"},
    )
    outer, inherited, replaced = [
        n for n in world.notes() if n.get("hook") == "before" and n["plugin"] == "beta"
    ]
    assert inherited["trace"] == replaced["trace"] == outer["trace"]
    assert len({outer["request"], inherited["request"], replaced["request"]}) == 3
    assert (outer["source"], inherited["source"]) == ("", "plugin_host_model_callback")
    assert inherited["headers"]["x-mine"] == "1"
    assert "authorization" not in inherited["headers"]
    assert replaced["headers"]["x-own"] == "2"
    assert "x-mine" not in replaced["headers"]
    rows = world.ledger(
        "select distinct client_key from attempts where request_uid in (?, ?)",
        inherited["request"],
        replaced["request"],
    )
    assert rows == [("tests",)]


def test_failure_before_the_answer_has_the_status_that_a_client_would_get(world: World) -> None:
    whole, stream, status = world.ask(
        {"op": "model", "model": "nobody"},
        {"op": "stream", "model": "nobody"},
        {"op": "stream", "model": "echo", "headers": {"x-echo-status": "418"}},
    )
    for found in (whole, stream):
        assert (found["error"], found["reason"]) == ("UpstreamError", "MODEL_NOT_FOUND")
        assert found["status"] == 404
        assert json.loads(found["body"])["error"]["code"] == "model_not_found"
    assert status["status"] == 418


def test_stream_that_breaks_ends_with_an_error_and_not_with_its_event(world: World) -> None:
    (found,) = world.ask({"op": "stream", "model": "echo", "text": "a b c d",
                          "headers": {"x-echo-fail-after": "2"}})  # fmt: skip
    assert found["error"] == "UpstreamError"
    assert found["status"] == 502


def test_answer_comes_in_another_format_when_it_can(world: World) -> None:
    claude, stream, gemini = world.ask(
        {"op": "model", "model": "echo", "text": "say it", "exit": "claude"},
        {"op": "stream", "model": "echo", "text": "say it", "exit": "claude"},
        {"op": "model", "model": "echo", "exit": "gemini"},
    )
    assert claude["body"]["type"] == "message"
    assert claude["body"]["content"][0]["text"] == "say it"
    assert stream["chunks"][0].startswith("event: message_start")
    assert "event: message_stop" in stream["chunks"][-1]
    assert (gemini["error"], gemini["reason"]) == ("InvalidRequest", "NO_TRANSLATION")


def test_plugin_that_ends_a_nested_call_answers_with_its_status(world: World) -> None:
    # As a JSON escape, so that only the nested request has the words.
    text = json.dumps([{"op": "model", "model": "echo", "text": "end at beta"}])
    found = world.say(text.replace("end at", "\\u0065nd at"))
    assert found[0]["status"] == 429, found
    assert found[0]["reason"] == "TERMINATED_BY_PLUGIN"
    assert json.loads(found[0]["body"]) == {"ended": True}


def test_caller_is_left_out_for_one_level_only(world: World) -> None:
    inner = [{"op": "model", "model": "echo", "text": "deep"}]
    body = {
        "model": "beta-x",
        "messages": [{"role": "user", "content": json.dumps(inner)}],
    }
    world.ask({"op": "model", "model": "beta-x", "body": body})
    notes = world.notes()
    asked = {
        hook: {
            model: [n["plugin"] for n in notes if n.get("hook") == hook and n["model"] == model]
            for model in ("alpha-x", "beta-x", "echo")
        }
        for hook in ("before", "route")
    }
    assert asked["before"] == {
        "alpha-x": ["alpha", "beta", "gamma"],
        "beta-x": ["beta", "gamma"],
        "echo": ["alpha", "gamma"],
    }
    assert asked["route"]["beta-x"] == ["beta"]
    assert asked["route"]["echo"] == ["alpha", "gamma"]


def test_executor_that_calls_itself_ends_at_the_depth_limit(world: World) -> None:
    (found,) = world.ask({"op": "again"}, model="loop")
    assert "more than 8 deep" in json.dumps(found)
    assert len([n for n in world.notes() if n.get("hook") == "execute"]) == 9


def test_execution_with_model_calls_in_it_is_nested_and_has_no_tokens(world: World) -> None:
    world.ask({"op": "model", "model": "echo", "text": "four words are here"})
    outer = next(n for n in world.notes() if n.get("model") == "alpha-x" and n["hook"] == "before")
    inner = next(n for n in world.notes() if n.get("model") == "echo" and n["hook"] == "before")
    ask = "select nested, input_tokens, output_tokens from attempts where request_uid = ? and state != 'open'"
    assert world.ledger(ask, outer["request"]) == [(1, None, None)]
    assert world.ledger(ask, inner["request"]) == [(0, 4, 4)]


def test_execution_without_model_calls_keeps_its_tokens(world: World) -> None:
    world.ask({"op": "log", "text": "hi"})
    outer = next(n for n in world.notes() if n.get("model") == "alpha-x" and n["hook"] == "before")
    ask = "select nested, input_tokens, output_tokens from attempts where request_uid = ? and state != 'open'"
    assert world.ledger(ask, outer["request"]) == [(0, 1000, 1000)]


@pytest.mark.parametrize("what", ["leak", "leak a stream"])
def test_call_that_outlives_its_scope_ends_with_it(world: World, what: str) -> None:
    httpx.post(
        f"{world.gateway.base_url}/v1/chat/completions",
        headers=world.gateway.headers(),
        json={"model": "echo", "messages": [{"role": "user", "content": f"{what}; leak at alpha"}]},
        timeout=60,
        verify=False,
    )
    found = world.wait_note(lambda n: "leaked" in n)
    assert found["leaked"] == "SCOPE_ENDED"
    assert found["began"] is (what == "leak a stream")


def test_client_that_leaves_ends_the_nested_call(world: World) -> None:
    mark = secrets.token_hex(8)
    asked = {
        "model": "fake-model",
        "messages": [{"role": "user", "content": mark}],
        "fake": {"chunks": 2000, "delay_ms": 50},
    }
    command = json.dumps({"model": "fake-model", "body": asked})
    body = {"model": "alpha-x", "stream": True, "messages": [{"role": "user", "content": command}]}
    with httpx.stream(
        "POST",
        f"{world.gateway.base_url}/v1/chat/completions",
        headers=world.gateway.headers(),
        json=body,
        timeout=60,
        verify=False,
    ) as answer:
        next(answer.iter_bytes())
    (record,) = (r for r in world.upstream.records() if mark in r["body"])
    until(
        lambda: any(r["aborted"] for r in world.upstream.records() if r["id"] == record["id"]),
        60,
        "the provider's answer goes on",
    )


def test_deadline_of_the_callback_ends_the_nested_call(world: World) -> None:
    slow = {"x-echo-delay-ms": "60000"}
    (found,) = world.ask(
        # Time enough for the call to begin.
        {"op": "model", "model": "echo", "text": "slow", "headers": slow, "seconds": 3}
    )
    assert found["error"] == "DeadlineExceeded"
    inner = next(n for n in world.notes() if n.get("model") == "echo" and n["hook"] == "before")
    ask = "select outcome from attempts where request_uid = ? and state != 'open'"
    assert world.ledger(ask, inner["request"]) == [("cancelled",)]


def test_outside_of_a_scope_the_plugin_is_the_client(world: World) -> None:
    (found,) = world.ask({"op": "model", "model": "echo", "outside": True})
    assert found["status"] == 200
    inner = next(n for n in world.notes() if n.get("model") == "echo" and n["hook"] == "before")
    rows = world.ledger(
        "select client_key, tenant from attempts where request_uid = ? and state != 'open'",
        inner["request"],
    )
    assert rows == [("plugin:alpha", "default")]


# -- grants -------------------------------------------------------------------------------------------


def test_plugin_without_grants_may_write_lines_and_nothing_else(world: World) -> None:
    found = world.ask(
        {"op": "log", "text": "gamma was here"},
        {"op": "model", "model": "echo"},
        {"op": "stream", "model": "echo"},
        {"op": "http", "url": f"{world.upstream.url}/models"},
        {"op": "auths"},
        {"op": "save", "name": "x.json", "document": {"type": "looping", "api_key": "test-x"}},
        model="gamma-x",
    )
    assert found[0] == "logged"
    for each in found[1:]:
        assert (each["error"], each["reason"]) == ("PermissionDenied", "HOST_ACCESS_DENIED"), each
    assert line_of(world, "gamma was here")["plugin"] == "gamma"


def line_of(world: World, text: str) -> dict[str, Any]:
    """Return the line of the gateway's log that has *text*, once it is there."""
    log = world.gateway.processes["up" if "up" in world.gateway.processes else "edge"].log

    def found() -> list[str]:
        lines = log.read_text().splitlines(keepends=True)
        return [line for line in lines if text in line and line.endswith("\n")]

    line: dict[str, Any] = json.loads(until(found, 60, f"no line has {text}")[0])
    return line


def test_line_in_the_log_names_plugin_and_request(world: World) -> None:
    text = f"line {secrets.token_hex(4)}"
    assert world.ask({"op": "log", "text": text}) == ["logged"]
    line = line_of(world, text)
    outer = next(n for n in world.notes() if n["hook"] == "before")
    assert (line["plugin"], line["text"], line["level"]) == ("alpha", text, "warning")
    assert line["request_id"] == outer["request"]
    assert line["fields"] == {"extra": {"a": 1}}


# -- HTTP ---------------------------------------------------------------------------------------------


def test_http_goes_to_a_host_that_the_grant_spells_out(world: World) -> None:
    url = f"{world.upstream.url}/chat/completions"
    body = {"model": "fake-model", "messages": [{"role": "user", "content": "by hand"}]}
    whole, stream, wrong = world.ask(
        {"op": "http", "url": url, "method": "POST", "body": json.dumps(body)},
        {"op": "http", "url": url, "method": "POST", "stream": True,
         "body": json.dumps({**body, "stream": True})},
        {"op": "http", "url": url, "method": "POST",
         "body": json.dumps({**body, "fake": {"status": 503}})},
    )  # fmt: skip
    assert whole["status"] == 200
    assert json.loads(whole["body"])["choices"]
    assert stream["status"] == 200
    assert len(stream["sizes"]) >= 1
    assert max(stream["sizes"]) <= 32 << 10
    assert wrong["status"] == 503
    asked = [r for r in world.upstream.records() if "by hand" in r["body"]]
    assert {r["headers"].get("x-told") for r in asked} == {"yes"}


def test_http_to_loopback_is_refused_where_only_a_pattern_covers_it(world: World) -> None:
    found = world.ask(
        {"op": "http", "url": f"{world.upstream.url}/models"},
        {"op": "http", "url": f"http://localhost:{world.upstream.port}/v1/models"},
        {"op": "http", "url": "http://127.1:80/"},
        {"op": "http", "url": "http://example.com/"},
        {"op": "http", "url": "file:///etc/passwd"},
        model="beta-x",
    )
    assert [f["reason"] for f in found] == [
        "HTTP_ADDRESS_REFUSED",
        "HTTP_ADDRESS_REFUSED",
        "HTTP_ADDRESS_REFUSED",
        "HTTP_ADDRESS_REFUSED",
        "INVALID_URL",
    ]


# -- credentials --------------------------------------------------------------------------------------


def test_own_credentials_are_listed_and_opened_and_others_unknown(world: World) -> None:
    (own,), (all_,) = world.ask({"op": "auths"}), world.ask({"op": "auths"}, model="beta-x")
    assert {a[0] for a in all_} >= {"alpha-key", "first", "second"}
    index = {a[0]: a[3] for a in all_}
    assert [a[:3] for a in own if a[0] == "alpha-key"] == [["alpha-key", "looping", "ready"]]
    assert "first" not in {a[0] for a in own}
    document, runtime, foreign = world.ask(
        {"op": "auth", "index": index["alpha-key"]},
        {"op": "runtime", "index": index["alpha-key"]},
        {"op": "auth", "index": index["first"]},
    )
    assert document == {"type": "looping", "api_key": "test-alpha-key"}
    assert runtime == "ready"
    assert (foreign["error"], foreign["reason"]) == ("NotFound", "AUTH_UNKNOWN")
    (other,) = world.ask({"op": "auth", "index": index["first"]}, model="beta-x")
    assert other["api_key"] == "test-upstream-key-1"


def test_saved_document_becomes_a_credential(world: World) -> None:
    document = {"type": "looping", "api_key": "test-saved-key", "note": "kept"}
    (path,) = world.ask({"op": "save", "name": "saved.json", "document": document})
    assert path == str(world.auth_dir / "saved.json")
    assert json.loads((world.auth_dir / "saved.json").read_text()) == document
    assert (world.auth_dir / "saved.json").stat().st_mode & 0o777 == 0o600
    deadline = time.monotonic() + 60
    while True:
        (auths,) = world.ask({"op": "auths"})
        found = [a for a in auths if a[0] == "saved"]
        if found and found[0][2] == "ready":
            break
        assert time.monotonic() < deadline, auths
        time.sleep(0.1)  # polls another process
    (again,) = world.ask({"op": "auth", "index": found[0][3]})
    assert again == document


def test_wrong_names_and_documents_are_not_kept(world: World) -> None:
    good = {"type": "looping", "api_key": "test-key"}
    found = world.ask(
        {"op": "save", "name": "../up.json", "document": good},
        {"op": "save", "name": "plain.txt", "document": good},
        {"op": "save", "name": "a.json", "document": {**good, "weight": 1.5}},
        {"op": "save", "name": "b.json", "document": {**good, "weight": "invalid"}},
        {"op": "save", "name": "c.json", "document": {**good, "type": "strange"}},
        {"op": "save", "name": "d.json", "document": {**good, "type": "fake"}},
        {"op": "save", "name": "first.json", "document": good},
    )
    assert [f["reason"] for f in found] == [
        "INVALID_AUTH_NAME",
        "INVALID_AUTH_NAME",
        "INVALID_AUTH_DOCUMENT",
        "INVALID_AUTH_DOCUMENT",
        "INVALID_AUTH_DOCUMENT",
        "AUTH_UNKNOWN",
        "AUTH_CONFIGURED",
    ]
    assert not [p for p in world.auth_dir.iterdir() if p.name in {"a.json", "b.json", "up.json"}]
