"""A plugin's part in requests, from a client's and an operator's side, with real processes."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.observing import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.plugins.conftest import World


def last_body(world: World) -> str:
    """Return the last body that reached the provider."""
    return str(world.upstream.records()[-1]["body"])


def test_interceptor_changes_what_the_provider_gets(world: World) -> None:
    assert world.chat("my secret").status_code == 200
    assert "[redacted]" in last_body(world)
    assert "secret" not in last_body(world)


def test_interceptor_answers_in_the_providers_place(world: World) -> None:
    before = len(world.upstream.records())
    answer = world.chat("please refuse")
    assert answer.status_code == 451
    assert answer.json() == {"refused": True}
    assert answer.headers["x-sample"] == "refused"
    assert len(world.upstream.records()) == before
    (end,) = world.ends(answer)
    assert (end["outcome"], end["status"]) == ("rejected", 451)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["fake-model", "sample-model"])
def test_interceptor_ends_the_request_after_a_credential_was_chosen(
    world: World, model: str, *, stream: bool
) -> None:
    """On a direct route, which needs no credential, too."""
    before = len(world.upstream.records())
    answer = world.chat("please stop late", model=model, stream=stream)
    assert (answer.status_code, answer.json()) == (452, {"stopped": True})
    assert len(world.upstream.records()) == before
    (end,) = world.ends(answer)
    assert (end["outcome"], end["status"]) == ("rejected", 452)


def test_interceptor_ends_a_count_too(world: World) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "please stop late"}]}
    with world.client() as http:
        assert http.post("/v1/messages/count_tokens", json=body).status_code == 452


def test_each_attempt_is_intercepted_from_the_start(world: World) -> None:
    fake = {"status": 500, "fails": 1, "mark": secrets.token_hex(4)}
    assert world.chat("attempt ? my secret", fake=fake).status_code == 200
    first, second = (str(r["body"]) for r in world.upstream.records()[-2:])
    assert "attempt 1" in first
    assert "attempt 2" in second
    assert "my [redacted]" in second


@pytest.mark.parametrize(
    "text", ["please fail", "please hang", "please garble", "please late garble"]
)
def test_interceptor_that_fails_hangs_or_garbles_is_passed_by(world: World, text: str) -> None:
    answer = world.chat(text)
    assert answer.status_code == 200
    assert text in last_body(world)
    assert "no JSON" not in last_body(world)


def test_interceptor_that_dies_costs_no_request_and_comes_back(world: World) -> None:
    assert world.chat("please die").status_code == 200
    assert world.plugin.wait(60) == 1
    until(lambda: not world.plugins()["sample"]["ready"], 60, "the edge knows that it is gone")
    assert world.chat("my secret, nobody looks").status_code == 200
    assert "secret" in last_body(world)
    world.plugin.start()
    world.wait_registered()
    assert world.chat("my secret").status_code == 200
    assert "[redacted]" in last_body(world)


def test_normalizer_has_the_last_word_on_the_payload(world: World) -> None:
    assert world.chat("normalize me").status_code == 200
    assert "normalized for openai" in last_body(world)


def test_answer_interceptor_changes_body_and_headers(world: World) -> None:
    answer = world.chat("say cat", model="echo")
    assert answer.headers["x-sample"] == "seen"
    assert "dog" in answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_failures_are_shown_to_no_interceptor(world: World, *, stream: bool) -> None:
    answer = world.chat("say cat", stream=stream, fake={"status": 400, "error": "no cat here"})
    assert answer.status_code == 400
    assert "x-sample" not in answer.headers
    assert "no cat here" in answer.text
    (end,) = world.ends(answer)
    assert (end["outcome"], end["status"]) == ("failed", 400)
    assert end["error"]


def test_chunk_interceptor_changes_chunks_and_headers(world: World) -> None:
    answer = world.chat("a cat to drop here", model="echo", stream=True)
    assert answer.status_code == 200
    assert answer.headers["x-sample"] == "streamed"
    assert "dog" in answer.text
    assert "cat" not in answer.text
    assert "drop" not in answer.text
    assert "here" in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_stream_whose_first_chunks_were_dropped_is_still_tried_again(world: World) -> None:
    """A second attempt numbers its chunks anew, so that they are dropped again."""
    before = len(world.upstream.records())
    answer = world.chat("drop the first", stream=True, fake={"error_after": 1})
    assert answer.status_code >= 400, answer.text
    assert len(world.upstream.records()) - before == 2


def test_stream_of_which_nothing_is_left_is_no_failure_of_the_provider(world: World) -> None:
    """It is not tried again, and nobody's credential rests for it."""
    before = len(world.upstream.records())
    answer = world.chat("drop everything", stream=True)
    assert (answer.status_code, answer.text) == (200, "")
    assert len(world.upstream.records()) - before == 1
    (end,) = world.ends(answer)
    assert (end["outcome"], end["status"]) == ("succeeded", 200)


@pytest.mark.parametrize("stream", [False, True])
def test_router_sends_a_model_to_its_own_executor(world: World, *, stream: bool) -> None:
    answer = world.chat("hello", model="sample-model", stream=stream)
    assert answer.status_code == 200, answer.text
    assert "the plugin" in answer.text


def test_router_sends_a_model_to_a_provider_under_another_name(world: World) -> None:
    answer = world.chat("hello", model="sample-alias")
    assert answer.status_code == 200, answer.text
    assert '"fake-model"' in last_body(world)


@pytest.mark.parametrize("stream", [False, True])
def test_direct_route_passes_the_interceptors_of_its_attempt_once(
    world: World, *, stream: bool
) -> None:
    """They are told what the executor takes, and it gets what they made of the body."""
    answer = world.chat("passes:.", model="sample-model", stream=stream)
    assert answer.status_code == 200, answer.text
    assert answer.text.count("passes: openai") == 1
    assert answer.text.count("openai") == 1


def test_count_goes_where_the_router_sends_it(world: World) -> None:
    """No provider has the model; without the router nobody would count."""
    body = {"model": "sample-echo", "messages": [{"role": "user", "content": "one two three"}]}
    with world.client() as http:
        answer = http.post("/v1/messages/count_tokens", json=body)
        nobody = http.post("/v1/messages/count_tokens", json={**body, "model": "nobody"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["input_tokens"] > 0
    assert nobody.status_code == 404


def test_unknown_client_is_known_by_the_plugin(world: World) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    with world.client(x_sample_user="ann") as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200
    with world.client(x_other="1") as http:
        refused = http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 401
    assert refused.json()["error"]["message"]


def test_claude_client_reaches_an_openai_provider(world: World) -> None:
    body = {
        "model": "fake-model",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hello there"}],
    }
    with world.client() as http:
        whole = http.post("/v1/messages", json=body)
        streamed = http.post("/v1/messages", json={**body, "stream": True})
    assert whole.status_code == 200, whole.text
    assert whole.json()["type"] == "message"
    assert whole.json()["content"][0]["type"] == "text"
    assert streamed.text.startswith("event: message_start")
    assert "event: message_stop" in streamed.text


def test_lifecycle_plugin_hears_of_each_end_once(world: World) -> None:
    answers = [
        world.chat("hi", model="nobody"),
        world.chat("hi", model="echo"),
        world.chat("please refuse"),
    ]
    assert [answer.status_code for answer in answers] == [404, 200, 451]
    # What no provider has reached no interceptor, and so has no end to hear of.
    unknown, *heard = answers
    ends = world.ends(*heard)
    assert sorted((e["outcome"], e["status"]) for e in ends) == [
        ("rejected", 451),
        ("succeeded", 200),
    ]
    assert unknown.headers["x-request-id"] not in {line["request"] for line in world.lines()}


def test_lifecycle_plugin_hears_of_a_stream_at_its_end(world: World) -> None:
    answer = world.chat("hi there", model="echo", stream=True)
    assert answer.status_code == 200
    (end,) = world.ends(answer)
    assert (end["outcome"], end["status"]) == ("succeeded", 200)


def test_lifecycle_plugin_hears_that_a_client_left(world: World) -> None:
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "one two"}]}
    slowly = {**world.gateway.headers(), "x-echo-delay-ms": "300", "x-echo-chunks": "50"}
    with (
        httpx.Client(
            base_url=world.gateway.base_url, headers=slowly, timeout=60, verify=False
        ) as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert next(answer.iter_bytes())
    (end,) = world.ends(answer)
    assert (end["outcome"], end["status"]) == ("canceled", 0)


def test_operator_sees_what_is_registered(world: World) -> None:
    world.chat("hi", model="echo")
    sample = world.plugins()["sample"]
    assert sample["name"] == "Sample"
    assert sample["version"] == "1.2.3"
    assert {"request_interceptor", "model_router", "executor"} <= set(sample["capabilities"])
    (address,) = sample["addresses"]
    assert address["calls"] > 0


@pytest.mark.parametrize("stream", [False, True])
def test_operator_sees_how_long_executors_take(world: World, *, stream: bool) -> None:
    def seconds() -> float:
        return float(sum(a["seconds"] for a in world.plugins()["echo"]["addresses"]))

    before = seconds()
    assert world.chat("hi", model="echo", stream=stream).status_code == 200
    assert seconds() > before
    assert world.plugins()["echo"]["latency_ms"] > 0


def ledger_when(world: World, by: str, name: str, grown: Callable[[dict[str, Any]], bool]) -> None:
    """Return once a row of the usage report is as wanted."""
    deadline = time.monotonic() + 60
    while not any(grown(row) for row in world.gateway.usage(by) if row[by] == name):
        assert time.monotonic() < deadline, world.gateway.usage(by)
        time.sleep(0.2)  # polls another process


@pytest.mark.parametrize("stream", [False, True])
def test_ledger_has_direct_routes_that_failed(world: World, *, stream: bool) -> None:
    model = f"sample-model-that-fails-{stream}"
    answer = world.chat("please break", model=model, stream=stream)
    assert answer.status_code >= 500
    ledger_when(world, "model", model, lambda row: row["attempts"] == row["failed"] == 1)


def test_ledger_has_direct_routes_whose_client_left(world: World) -> None:
    model = "sample-model-left"
    message = {"role": "user", "content": "please linger"}
    body = {"model": model, "stream": True, "messages": [message]}
    with (
        world.client() as http,
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        assert next(answer.iter_bytes())
    ledger_when(world, "model", model, lambda row: row["attempts"] == 1)


def test_ledger_has_direct_routes_under_the_plugin(world: World) -> None:
    model = "sample-model-served"
    assert world.chat("hello", model=model).status_code == 200
    ledger_when(world, "model", model, lambda row: (row["attempts"], row["failed"]) == (1, 0))
    ledger_when(world, "plugin", "sample", lambda row: row["attempts"] > 0)
