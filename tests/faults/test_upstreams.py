"""Upstreams that stall, cut, lie: what the client sees and what is billed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.judge import Judge
    from tests.harness.topology import Services, Up
    from tests.harness.upstream import Upstream

CHAT = "/v1/chat/completions"
TIMES = {
    "first_byte_grace": "500ms",
    "keepalive": "400ms",
    "first_byte_timeout": "2s",
    "idle_timeout": "2s",
}


@pytest.fixture(params=["up", "services"])
def gateway(request: pytest.FixtureRequest) -> Up | Services:
    """Both topologies, with short times."""
    made: Up | Services = request.getfixturevalue(f"make_{request.param}")(streaming=TIMES)
    return made


def ask(gateway: Up | Services, *, stream: bool, **fake: Any) -> httpx.Response:
    return httpx.post(
        gateway.base_url + CHAT,
        json={
            "model": "fake-model",
            "stream": stream,
            "messages": [{"role": "user", "content": "hello"}],
            "fake": {"chunks": 8, **fake},
        },
        headers=gateway.headers(),
        timeout=60,
        verify=False,
    )


def ask_soon(gateway: Up | Services, **fake: Any) -> httpx.Response:
    """Ask for a stream that fails at once; again where a busy machine let the grace pass before it did."""
    for _ in range(5):
        response = ask(gateway, stream=True, **fake)
        if not response.text.startswith(":"):
            break
        assert_terminal_error(response)
    return response


def assert_terminal_error(response: httpx.Response) -> None:
    """The stream ended with the dialect's error event and without [DONE]."""
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    assert response.text.rstrip().rpartition("data: ")[2].startswith('{"error"'), response.text


def test_upstream_misbehaves_client_always_knows(
    gateway: Up | Services, judge: Callable[..., Judge]
) -> None:
    """One gateway through every misbehaviour, then the ledger."""
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory()
    # No answer at all: a status while nothing is committed, else the terminal event.
    assert ask(gateway, stream=False, stall="head").status_code == 504
    late = ask(gateway, stream=True, stall="head")
    assert late.text.startswith(":"), "no keep-alive before the first byte"
    assert_terminal_error(late)
    # A head, then nothing.
    assert ask(gateway, stream=False, stall="body").status_code == 504
    # Nothing after three chunks.
    started = time.monotonic()
    stalled = ask(gateway, stream=True, stall="3")
    assert_terminal_error(stalled)
    assert ": " in stalled.text.partition('"content"')[2], "no keep-alive in the silence"
    assert time.monotonic() - started < 30, "it stalls for ever"
    # Half a frame, an early close.
    assert_terminal_error(ask(gateway, stream=True, half_frame_after=3))
    assert_terminal_error(ask(gateway, stream=True, close_after=3))
    # An error event inside a 200: before any content a status, after it the event and nothing more.
    assert ask_soon(gateway, error_after=0).status_code >= 400
    inside = ask(gateway, stream=True, error_after=3)
    assert inside.status_code == 200
    assert inside.text.count('"error"') == 1
    assert "[DONE]" not in inside.text
    # A connection that is dropped: another credential is tried once, then a 502.
    dropped = ask(gateway, stream=False, drop=True)
    assert dropped.status_code == 502, dropped.text
    # A slow but whole answer is whole.
    slow = ask(gateway, stream=True, delay_ms=250)
    assert slow.text.endswith("data: [DONE]\n\n")
    # An error of the provider arrives as it was.
    refused = ask_soon(gateway, status=429, retry_after="7")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    verdict.check_answers()
    verdict.check_ledger()
    verdict.check_memory()


def test_upstream_gone_answers_502_and_nothing_reached_it(
    make_up: Callable[..., Up], judge: Callable[..., Judge], upstream: Upstream
) -> None:
    """Nobody listens: both credentials are tried, the client gets a 502, the ledger says `no`."""
    gateway = make_up()
    upstream.process.kill()
    response = ask(gateway, stream=False)
    assert response.status_code == 502
    assert response.headers["x-patchbay-attempts"] == "2"
    upstream.process.start()
    verdict = judge(gateway)
    verdict.check_ledger()
    assert verdict.rows("select distinct outcome, reached from attempts") == [("failed", "no")]
