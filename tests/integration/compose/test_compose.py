"""docker-compose.yml on a real engine: images, keys, traffic over three executors, a killed container."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tests.integration.compose.conftest import EXECUTORS, docker

if TYPE_CHECKING:
    import httpx
    from tests.integration.compose.conftest import Stack

# Building five images takes minutes where nothing is cached.
pytestmark = [pytest.mark.requires("compose"), pytest.mark.timeout(1200)]

BODY = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}


async def _stream(client: httpx.AsyncClient, *, chunks: int = 20, delay_ms: int = 20) -> str:
    """Return how one stream ended: done, or with an error event of its dialect."""
    steering = {"x-echo-chunks": str(chunks), "x-echo-delay-ms": str(delay_ms)}
    answer = await client.post(
        "/v1/chat/completions", json={**BODY, "stream": True}, headers=steering
    )
    if answer.status_code != 200:
        return str(answer.status_code)
    last = answer.text.rstrip().rpartition("\n\n")[2]
    if last == "data: [DONE]":
        return "done"
    return "error event" if '"error"' in last else f"cut after {last!r}"


async def _streams(stack: Stack, count: int, **steering: int) -> Counter[str]:
    async with stack.client() as client:
        return Counter(await asyncio.gather(*(_stream(client, **steering) for _ in range(count))))


def _cpu_seconds(container: str) -> float:
    script = (
        "import urllib.request as u; "
        "print(u.urlopen('http://127.0.0.1:9103/metrics').read().decode())"
    )
    text = docker("exec", container, "/app/bin/python3", "-c", script)
    (line,) = (x for x in text.splitlines() if x.startswith("process_cpu_seconds_total"))
    return float(line.split()[1])


@pytest.mark.parametrize("target", ["edge", "scheduler", "executors", "usage", "up"])
def test_image_runs_as_nobody_without_installer(images: str, target: str) -> None:
    """An image has a numeric user that is not root, our program, and no pip to add others with."""
    script = "import importlib.util as i, os; print(os.getuid(), i.find_spec('pip'))"
    name = f"patchbay/{target}:{images}"
    run = ("run", "--rm", "--read-only", "--network=none", "--entrypoint=/app/bin/python3")
    assert docker(*run, name, "-I", "-c", script).split() == ["65532", "None"]
    assert docker("run", "--rm", "--network=none", name, "version")


async def test_printed_client_key_is_answered_in_its_dialect(stack: Stack) -> None:
    async with stack.client() as client:
        chat = await client.post("/v1/chat/completions", json=BODY)
        messages = await client.post("/v1/messages", json={**BODY, "max_tokens": 9})
        client.headers["authorization"] = "Bearer another"
        refused = await client.post("/v1/chat/completions", json=BODY)
    assert chat.json()["choices"][0]["message"]["content"] == "one two three"
    assert messages.json()["content"][0]["text"] == "one two three"
    assert refused.status_code == 401


async def test_second_start_keeps_the_keys(stack: Stack) -> None:
    stack.compose("run", "--rm", "init")
    async with stack.client() as client:
        answer = await client.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 200


async def test_scaled_executors_share_the_load(stack: Stack) -> None:
    """Each of three executors does a fair part of the work."""
    executors = stack.containers("executors")
    assert len(executors) == EXECUTORS
    before = [_cpu_seconds(c) for c in executors]
    assert await _streams(stack, 90) == {"done": 90}
    spent = [_cpu_seconds(c) - b for c, b in zip(executors, before, strict=True)]
    assert min(spent) > 0.3 * max(spent), spent


async def test_killed_executor_costs_only_its_open_streams(stack: Stack) -> None:
    """Streams on a killed container end with an error event, all others and all later ones are whole."""
    before = stack.attempts()
    victim = stack.containers("executors")[0]
    load = asyncio.create_task(_streams(stack, 60, chunks=60, delay_ms=50))
    await asyncio.sleep(1)  # the streams are under way for three seconds
    await asyncio.to_thread(docker, "kill", victim)
    ended = await load
    assert set(ended) <= {"done", "error event"}, ended
    assert ended["done"] >= 20
    assert await _streams(stack, 30, delay_ms=0) == {"done": 30}
    stack.compose("up", "-d", "--no-build", "--scale", f"executors={EXECUTORS}")
    for _ in range(600):
        after = stack.attempts()
        if after["requests"] - before["requests"] == 90:
            break
        await asyncio.sleep(0.1)  # the ledger follows within seconds
    assert after["requests"] - before["requests"] == 90
    assert after["attempts"] - before["attempts"] >= 90
    assert after["lost"] == before["lost"]
