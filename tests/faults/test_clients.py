"""Clients that leave, stall, send half of it or too much."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import pytest
from tests.harness.load import Load, Verdict
from tests.harness.observing import until_meanwhile
from tests.harness.rawclient import RawClient, post

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.conftest import Lengths
    from tests.harness.judge import Judge
    from tests.harness.topology import Services, Up
    from tests.harness.upstream import Upstream

CHAT = "/v1/chat/completions"


def make_body(**fake: Any) -> dict[str, Any]:
    return {
        "model": "fake-model",
        "stream": True,
        "messages": [{"role": "user", "content": "hello"}],
        "fake": {"chunks": 100, "delay_ms": 20, **fake},
    }


@pytest.fixture
def raw_client() -> Iterator[Callable[..., RawClient]]:
    """Make clients; what a failed test leaves open is closed."""
    made: list[RawClient] = []

    def make(port: int, receive_buffer: int = 0) -> RawClient:
        made.append(RawClient(port, receive_buffer=receive_buffer))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.mark.parametrize("way", ["reset", "close"])
@pytest.mark.parametrize("topology", ["up", "services"])
async def test_client_leaves_mid_stream_upstream_is_cancelled_and_billed(
    way: str,
    topology: str,
    request: pytest.FixtureRequest,
    upstream: Upstream,
    judge: Callable[..., Judge],
    lengths: Lengths,
    raw_client: Callable[..., RawClient],
) -> None:
    """Upstream is left within 100 ms; what was produced is billed as estimated."""
    gateway: Up | Services = request.getfixturevalue(f"make_{topology}")()
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory()
    client = raw_client(gateway.port)
    await client.connect()
    await client.send(post(CHAT, make_body(chunks=1000), gateway.headers()))
    await client.read_until(b"word9 ")
    getattr(client, way)()
    left = time.time()
    await until_meanwhile(lambda: any(r["aborted"] for r in upstream.records()))
    (record,) = (r for r in upstream.attempts() if r["aborted"])
    assert record["ended_at"] - left < 0.1 + lengths.slack, "upstream was not cancelled in time"
    verdict.check_ledger()
    ((outcome, reached, estimated, output),) = verdict.rows(
        "select outcome, reached, estimated, output_tokens from attempts"
        f" where attempt_uid = '{record['attempt']}'"
    )
    assert (outcome, reached, bool(estimated)) == ("cancelled", "yes", True)
    assert isinstance(output, int)
    assert 1 <= output <= record["chunks_sent"] * 3
    verdict.check_memory()


async def test_clients_leave_at_every_stage_nothing_stays(
    make_up: Callable[..., Up], judge: Callable[..., Judge], raw_client: Callable[..., RawClient]
) -> None:
    """In the head, in the body, before the first byte, in the stream: no task, lease or memory stays."""
    gateway = make_up()
    verdict = judge(gateway)
    whole = post(CHAT, make_body(chunks=20, delay_ms=5), gateway.headers())
    stalled = post(CHAT, make_body(stall="head", stall_s=30), gateway.headers())
    verdict.check_answers()
    verdict.remember_memory()
    for turn in range(40):
        for data, pause in (
            (whole[:20], 0.0),
            (whole[:-10], 0.0),
            (whole, 0.0),
            (whole, 0.005 * (turn % 20)),
            (stalled, 0.02),
        ):
            client = raw_client(gateway.port)
            await client.connect()
            await client.send(data)
            await asyncio.sleep(pause)
            client.reset() if turn % 2 else client.close()
    verdict.check_answers()
    verdict.check_ledger()
    verdict.check_memory()


async def test_client_reads_a_byte_a_second_others_do_not_notice(
    make_up: Callable[..., Up], judge: Callable[..., Judge], raw_client: Callable[..., RawClient]
) -> None:
    """A slow reader blocks its own upstream, not memory and nobody else."""
    gateway = make_up()
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory()
    slow = raw_client(gateway.port, receive_buffer=4096)
    await slow.connect()
    await slow.send(post(CHAT, make_body(chunks=60_000, delay_ms=0), gateway.headers()))
    load = Load(gateway.base_url, gateway.headers(), clients=4, extra={"fake": {"chunks": 8}})
    async with load.running():
        for _ in range(4):
            assert await slow.read(1)
            await asyncio.sleep(1)
    assert set(load.verdicts) == {Verdict.COMPLETE}, load.verdicts
    slow.reset()
    verdict.check_ledger()
    verdict.check_memory()


async def test_client_takes_nothing_is_gone_after_the_write_stall(
    make_up: Callable[..., Up],
    judge: Callable[..., Judge],
    upstream: Upstream,
    raw_client: Callable[..., RawClient],
) -> None:
    gateway = make_up(streaming={"write_stall": "2s"})
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory()
    stalled = raw_client(gateway.port, receive_buffer=4096)
    await stalled.connect()
    await stalled.send(post(CHAT, make_body(chunks=200_000, delay_ms=0), gateway.headers()))
    await until_meanwhile(lambda: any(r["aborted"] for r in upstream.records()))
    verdict.check_ledger()
    verdict.check_memory()
    stalled.close()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_body_too_large_is_413_and_costs_no_memory(
    encoding: str,
    make_up: Callable[..., Up],
    judge: Callable[..., Judge],
    raw_client: Callable[..., RawClient],
) -> None:
    """100 MiB as they are, and as a bomb of 100 KB; a client that reads while it sends sees why."""
    gateway = make_up()
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory()
    head = b'{"model":"fake-model","messages":[{"role":"user","content":"'
    body = head + b"a" * (100 << 20) + b'"}]}'
    if encoding == "gzip":
        body = gzip.compress(body, 6)
    request = post(CHAT, body, {**gateway.headers(), "content-encoding": encoding})
    for _ in range(3):
        client = raw_client(gateway.port)
        await client.connect()
        sending = asyncio.create_task(client.send(request))
        answer = await client.read_all()
        with contextlib.suppress(ConnectionError):  # closed while we still sent
            await sending
        status, _, told = answer.partition(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 413 "), answer
        assert json.loads(told)["error"]["message"]
    verdict.check_answers()
    verdict.check_memory()


async def test_thousand_streams_on_one_edge_all_complete(
    make_up: Callable[..., Up], judge: Callable[..., Judge], lengths: Lengths
) -> None:
    gateway = make_up()
    verdict = judge(gateway)
    load = Load(
        gateway.base_url,
        gateway.headers(),
        clients=lengths.streams,
        extra={"fake": {"chunks": 20, "delay_ms": 100}},
    )
    idle = gateway.processes["up"].rss()
    for _ in range(2):
        verdict.remember_memory()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            verdicts = await asyncio.gather(
                *(load.one(session, stream=True) for _ in range(lengths.streams))
            )
        assert verdicts.count(Verdict.COMPLETE) == lengths.streams, load.lies[:3]
        await asyncio.to_thread(gateway.processes["up"].wait_ready)
    report = verdict.check_ledger()
    assert report.unknown == 0
    # The first peak leaves arenas of the allocator behind (nothing in them); the second leaves nothing.
    verdict.check_memory()
    assert gateway.processes["up"].rss() < idle + (48 << 20)


async def test_stream_of_three_lease_times_keeps_its_lease(
    make_services: Callable[..., Services], judge: Callable[..., Judge], lengths: Lengths
) -> None:
    """It is renewed, never swept, and settled as what it was."""
    gateway = make_services()
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory()
    seconds = 3 * lengths.lease_ttl + lengths.lease_grace
    body = make_body(chunks=int(seconds * 4), delay_ms=250)
    async with httpx.AsyncClient(timeout=seconds * 3, verify=False) as client:
        response = await client.post(gateway.base_url + CHAT, json=body, headers=gateway.headers())
    assert response.text.endswith("data: [DONE]\n\n")
    verdict.check_ledger()
    newest = "select outcome, reached from attempts order by attempt_uid desc limit 1"
    assert verdict.rows(newest) == [("succeeded", "yes")]
    verdict.check_memory()
