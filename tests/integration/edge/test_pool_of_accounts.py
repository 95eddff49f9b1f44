"""
`patchbay up` before a provider whose accounts fail in every way: what clients see, and who is asked next.

Each case is a provider of its own with its own model, so that what rests in one is nothing to the others.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx
import pytest
from tests.harness.observing import until
from tests.harness.threaded import serving
from tests.harness.topology import Up

MESSAGES = [{"role": "user", "content": "hello"}]
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[%s]}\n\n'
ROLE = EVENT % b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'
TEXT = EVENT % b'{"index":0,"delta":{"content":"hi"},"finish_reason":null}'
END = EVENT % b'{"index":0,"delta":{},"finish_reason":"stop"}' + b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
WHOLE = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}


class Reply(NamedTuple):
    """What an account answers: a document, or events of a stream; more is cut off."""

    status: int = 200
    document: Any = WHOLE
    headers: dict[str, str] | None = None
    events: tuple[bytes, ...] | None = None


GOOD = Reply()
GOOD_STREAM = Reply(events=(ROLE, TEXT, END))


def failing(status: int, message: str = "no", code: str = "", **headers: str) -> Reply:
    error = {"message": message, "type": "t", "param": None, "code": code or None}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": error}, named)


Account = Callable[[str, int], Reply]
"""(upstream model, how many calls came before) → answer."""

# Case → account → what it answers.
CASES: dict[str, dict[str, Account]] = {
    "next": {"a": lambda *_: failing(500), "b": lambda *_: GOOD},
    "next-stream": {"a": lambda *_: failing(429), "b": lambda *_: GOOD_STREAM},
    "empty-stream": {"a": lambda *_: Reply(events=()), "b": lambda *_: GOOD_STREAM},
    "timeout-408": {"a": lambda *_: failing(408), "b": lambda *_: GOOD_STREAM},
    "error-in-200": {
        "a": lambda *_: Reply(
            events=(ROLE, b'data: {"error":{"message":"slow","type":"rate_limit_error"}}\n\n')
        ),
        "b": lambda *_: GOOD_STREAM,
    },
    "all-rest": {
        "a": lambda *_: failing(429, retry_after="30"),
        "b": lambda *_: failing(429, retry_after="20"),
    },
    "ten-days": {"a": lambda *_: failing(429, retry_after="864000")},
    "garbage-wait": {"a": lambda *_: failing(429, retry_after="soon, I hope")},
    "origin-down": {"a": lambda *_: failing(520, "origin down")},
    "bad-request": {"a": lambda *_: failing(400), "b": lambda *_: GOOD},
    "one-model": {
        "a": lambda model, _: failing(429, retry_after="60") if model == "sick" else GOOD,
    },
    "spent": {
        "a": lambda *_: failing(429, code="insufficient_quota"),
    },
    "recovers": {"a": lambda _, n: failing(503, retry_after="1") if n == 0 else GOOD_STREAM},
    "aliases": {"a": lambda model, _: failing(503) if model == "one" else GOOD},
    "counted": {"a": lambda *_: GOOD},
    "rule": {"a": lambda *_: failing(418, "the moon is full"), "b": lambda *_: GOOD},
}
MODELS: dict[str, list[Any]] = {
    "one-model": [{"name": "sick", "alias": "one-model"}, {"name": "well", "alias": "one-well"}],
    "spent": ["spent", {"name": "other", "alias": "spent-other"}],
    "aliases": [{"name": "one", "alias": "aliases"}, {"name": "two", "alias": "aliases"}],
}
EXTRA: dict[str, dict[str, Any]] = {
    "recovers": {"retry": {"rounds": 1, "max_wait": "10s"}},
    "rule": {
        "errors": [{"status": 418, "match": ["moon"], "action": "continue-and-cooldown"}],
    },
    # Longer than a busy machine takes to ask again.
    "garbage-wait": {"cooldown": {"backoff": "30s"}},
}


class Provider:
    """The provider of all cases, in a thread."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[str, str]]] = defaultdict(list)
        """Case → (account, upstream model) in order."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                case = self.path.split("/")[1]
                account = self.headers["authorization"].rpartition("-")[2]
                model = body["model"]
                before = len(provider.calls[case])
                provider.calls[case].append((account, model))
                self._answer(CASES[case][account](model, before))

            def _answer(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in (reply.headers or {}).items():
                    self.send_header(name, value)
                if reply.events is None:
                    data = json.dumps(reply.document).encode()
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(data)))
                else:
                    data = b"".join(reply.events)
                    self.send_header("content-type", "text/event-stream")
                    self.send_header("connection", "close")
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    made = Provider()
    with serving(made.server):
        yield made


@pytest.fixture(scope="module")
def gateway(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    config = {
        "client_keys": [{"name": "tests", "key": "test-client-key"}],
        "management_keys": [{"name": "tests", "key": "test-management-key"}],
        "streaming": {"first_byte_grace": "500ms", "keepalive": "300ms"},
        "routing": {"strategy": "fill-first"},
        "providers": [
            {
                "name": case,
                "plugin": "openai-compatible",
                "base_url": f"{provider.url}/{case}/v1",
                "models": MODELS.get(case, [case]),
                "credentials": [
                    {"id": f"{case}-{account}", "api_key": f"test-{case}-{account}"}
                    for account in accounts
                ],
                **EXTRA.get(case, {}),
            }
            for case, accounts in CASES.items()
        ],
    }
    running = Up(tmp_path_factory.mktemp("pool"), config)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(gateway: Up) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=gateway.base_url, headers=gateway.headers(), timeout=60, verify=False
    ) as made:
        yield made


def ask(client: httpx.Client, model: str, *, stream: bool = False) -> httpx.Response:
    body = {"model": model, "messages": MESSAGES, "stream": stream}
    return client.post("/v1/chat/completions", json=body)


def resting(gateway: Up, *credentials: str) -> None:
    """Wait until *credentials* of one case rest, which reports tell that come after the answer."""
    case = credentials[0].rpartition("-")[0]

    def rest() -> bool:
        found = gateway.managed(f"credentials?provider={case}")
        states = {c["id"]: {m["state"] for m in c["models"]} for c in found}
        return all("cooling" in states[credential] for credential in credentials)

    until(rest, 60, f"{credentials} do not rest")


def settled(gateway: Up, answer: httpx.Response) -> None:
    """Wait until the attempts of *answer* are in the ledger: the scheduler, which tells it, knows of them."""
    ask_ledger = "select count(*) from attempts where request_uid = ? and state != 'open'"

    def booked() -> bool:
        with contextlib.closing(sqlite3.connect(gateway.ledger_path, timeout=60)) as ledger:
            (count,) = ledger.execute(ask_ledger, [answer.headers["x-request-id"]]).fetchone()
        return bool(count)

    until(booked, 60, "the ledger does not hear of it")


@pytest.mark.parametrize("case", ["next", "rule"])
def test_failing_account_is_followed_by_the_next(
    client: httpx.Client, gateway: Up, provider: Provider, case: str
) -> None:
    answer = ask(client, case)
    assert answer.status_code == 200
    assert answer.headers["x-patchbay-attempts"] == "2"
    assert [account for account, _ in provider.calls[case]] == ["a", "b"]
    resting(gateway, f"{case}-a")
    assert ask(client, case).headers["x-patchbay-attempts"] == "1", "the first one rests now"


@pytest.mark.parametrize("case", ["next-stream", "empty-stream", "timeout-408", "error-in-200"])
def test_stream_that_fails_before_content_is_another_accounts(
    client: httpx.Client, provider: Provider, case: str
) -> None:
    answer = ask(client, case, stream=True)
    assert answer.status_code == 200
    # On a busy machine the first one's failure takes longer than the silence that is allowed.
    assert answer.content.replace(b": keep-alive\n\n", b"") == ROLE + TEXT + END
    assert [account for account, _ in provider.calls[case]] == ["a", "b"]


def test_request_fault_is_told_and_held_against_nobody(
    client: httpx.Client, gateway: Up, provider: Provider
) -> None:
    for _ in range(2):
        answer = ask(client, "bad-request")
        assert (answer.status_code, answer.headers["x-patchbay-attempts"]) == (400, "1")
        settled(gateway, answer)
    assert [account for account, _ in provider.calls["bad-request"]] == ["a", "a"]


def test_all_resting_is_429_with_the_earliest_recovery_in_each_dialect(
    client: httpx.Client, gateway: Up, provider: Provider
) -> None:
    began = time.monotonic()
    first = ask(client, "all-rest")
    assert first.status_code == 429
    resting(gateway, "all-rest-a", "all-rest-b")
    second = ask(client, "all-rest")
    assert second.status_code == 429
    passed = time.monotonic() - began
    assert 19 - passed <= int(second.headers["retry-after"]) <= 20
    assert second.json()["error"]["code"] == "model_cooldown"
    assert len(provider.calls["all-rest"]) == 2, "nobody was asked"


@pytest.mark.parametrize(
    ("case", "least", "most"), [("ten-days", 3000, 3600), ("garbage-wait", 0, 30)]
)
def test_wait_of_a_provider_is_capped_and_garbage_is_none(
    client: httpx.Client, gateway: Up, provider: Provider, case: str, least: int, most: int
) -> None:
    assert ask(client, case).status_code == 429
    resting(gateway, f"{case}-a")
    answer = ask(client, case)
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "model_cooldown"
    assert least < int(answer.headers["retry-after"]) <= most
    assert len(provider.calls[case]) == 1


def test_upstream_520_stays_520_and_is_named_while_its_account_rests(
    client: httpx.Client, gateway: Up
) -> None:
    first = ask(client, "origin-down")
    assert (first.status_code, first.json()["error"]["message"]) == (520, "origin down")
    resting(gateway, "origin-down-a")
    second = ask(client, "origin-down")
    assert second.status_code == 429
    assert "520" in second.json()["error"]["message"]
    assert "origin down" in second.json()["error"]["message"]


def test_provider_bad_for_one_model_still_serves_the_others(
    client: httpx.Client, gateway: Up, provider: Provider
) -> None:
    assert ask(client, "one-model").status_code == 429
    resting(gateway, "one-model-a")
    assert ask(client, "one-model").status_code == 429
    assert ask(client, "one-well").status_code == 200
    assert [model for _, model in provider.calls["one-model"]] == ["sick", "well"]


def test_spent_account_rests_for_all_its_models(
    client: httpx.Client, gateway: Up, provider: Provider
) -> None:
    assert ask(client, "spent").status_code == 429
    resting(gateway, "spent-a")
    assert ask(client, "spent-other").status_code == 429
    assert len(provider.calls["spent"]) == 1


def test_alias_pool_serves_from_the_models_that_are_well(
    client: httpx.Client, provider: Provider
) -> None:
    answer = ask(client, "aliases")
    assert answer.status_code == 200
    assert answer.headers["x-patchbay-model"] == "two"
    assert provider.calls["aliases"][-1] == ("a", "two")


def test_round_waits_with_keepalives_until_the_account_has_recovered(client: httpx.Client) -> None:
    started = time.monotonic()
    answer = ask(client, "recovers", stream=True)
    assert answer.status_code == 200
    assert time.monotonic() - started >= 1
    assert answer.content.startswith(b": keep-alive\n\n")
    assert answer.content.endswith(ROLE + TEXT + END)


def test_metrics_count_requests_and_attempts(client: httpx.Client, gateway: Up) -> None:
    ask(client, "counted")
    wanted = (
        'patchbay_edge_requests_total{dialect="openai",operation="chat",status="200"}',
        'patchbay_edge_attempts_total{outcome="succeeded",provider="counted"}',
        "patchbay_edge_open_streams 0.0",
    )

    def missing() -> list[str]:
        page = httpx.get(f"{gateway.management_url}/metrics", timeout=60, verify=False).text
        return [line for line in wanted if line not in page]

    # The answer is whole before it is counted.
    until(lambda: not missing(), 60, "not all is counted")
