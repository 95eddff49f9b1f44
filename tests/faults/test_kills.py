"""SIGKILL at random instants, under load: nothing is billed twice, nothing that was seen is missing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from tests.faults.conftest import AT_FULL_LENGTH
from tests.harness.load import Load, Verdict
from tests.harness.observing import alive, descendants, until
from tests.harness.topology import Up, make_config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.faults.conftest import Lengths
    from tests.harness.judge import Judge
    from tests.harness.topology import Services
    from tests.harness.upstream import Upstream


def make_load(gateway: Up | Services) -> Load:
    return Load(
        gateway.base_url,
        gateway.headers(),
        clients=8,
        extra={"fake": {"chunks": 12, "delay_ms": 4}},
    )


async def hurt(
    gateway: Up | Services, victims: Sequence[str], lengths: Lengths, seed: int, verdict: Judge
) -> Load:
    """Kill and restart each victim under load, as often as asked, at instants that *seed* decides."""
    rng = random.Random(seed)
    load = make_load(gateway)
    turns = [victim for victim in victims for _ in range(lengths.kills)]
    rng.shuffle(turns)
    async with load.running():
        await asyncio.sleep(1.0)
        verdict.remember_memory(but=victims)
        for victim in turns:
            process = gateway.processes[victim]
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            await asyncio.to_thread(process.kill)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            await asyncio.to_thread(process.start)
        await asyncio.sleep(0.5)
        deadline = time.monotonic() + 60
        while load.verdicts[Verdict.COMPLETE] <= 20:
            assert time.monotonic() < deadline, (load.verdicts, load.statuses)
            await asyncio.sleep(0.1)  # others' progress, slow on a busy machine
    return load


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that a failure prints, to run the same instants again."""
    value = random.SystemRandom().randrange(1 << 30)
    request.node.add_report_section("setup", "seed", f"kill seed {value}")
    return value


async def test_up_killed_at_random_instants_ledger_agrees(
    make_up: Callable[..., Up], judge: Callable[..., Judge], lengths: Lengths, seed: int
) -> None:
    gateway = make_up()
    verdict = judge(gateway)
    load = await hurt(gateway, ["up"], lengths, seed, verdict)
    assert not load.lies
    verdict.check_answers()
    # The last one has cleaned up after the others and served; from here on it does not grow.
    verdict.remember_memory()
    async with load.running():
        await asyncio.sleep(2.0)
    assert not load.lies
    verdict.check_ledger()
    verdict.check_memory()


# One after the other, and at full length each alone. Who lives through a test must not have grown.
SCHEDULERS = ("scheduler0", "scheduler1")
VICTIMS = [["edge", "usage"], ["executor0", *SCHEDULERS]]
ALONE = [[victim] for victims in VICTIMS for victim in victims]


@pytest.mark.parametrize("victims", ALONE if AT_FULL_LENGTH else VICTIMS, ids="-".join)
async def test_service_killed_at_random_instants_ledger_agrees(
    victims: list[str],
    make_services: Callable[..., Services],
    judge: Callable[..., Judge],
    lengths: Lengths,
    seed: int,
) -> None:
    gateway = make_services()
    verdict = judge(gateway)
    load = await hurt(gateway, victims, lengths, seed, verdict)
    assert not load.lies
    verdict.check_answers()
    verdict.check_ledger()
    verdict.check_memory()


async def test_scheduler_killed_clients_see_nothing(
    make_services: Callable[..., Services], judge: Callable[..., Judge]
) -> None:
    """With another scheduler there, a dead one costs no client an answer."""
    gateway = make_services()
    verdict = judge(gateway)
    load = make_load(gateway)
    async with load.running():
        await asyncio.sleep(1.0)
        verdict.remember_memory(but=["scheduler0"])
        await asyncio.to_thread(gateway.processes["scheduler0"].kill)
        await asyncio.sleep(1.5)
    assert set(load.verdicts) == {Verdict.COMPLETE}, (load.verdicts, load.statuses)
    await asyncio.to_thread(gateway.processes["scheduler0"].start)
    verdict.check_ledger()
    verdict.check_memory()


async def test_every_scheduler_dead_answers_503_with_retry_after(
    make_services: Callable[..., Services], judge: Callable[..., Judge]
) -> None:
    """In the client's dialect, and open streams finish."""
    import httpx  # noqa: PLC0415 - only here

    gateway = make_services()
    verdict = judge(gateway)
    verdict.check_answers()
    verdict.remember_memory(but=SCHEDULERS)
    async with httpx.AsyncClient(
        base_url=gateway.base_url, headers=gateway.headers(), timeout=60, verify=False
    ) as client:
        body = {
            "model": "fake-model",
            "stream": True,
            "messages": [],
            "fake": {"chunks": 40, "delay_ms": 50},
        }
        async with client.stream("POST", "/v1/chat/completions", json=body) as running:
            chunks = running.aiter_bytes()
            first = await anext(chunks)
            for name in SCHEDULERS:
                await asyncio.to_thread(gateway.processes[name].kill)
            refused = await client.post(
                "/v1/chat/completions", json={**body, "stream": False}, timeout=60
            )
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["message"]
            rest = first + b"".join([c async for c in chunks])
            assert rest.endswith(b"data: [DONE]\n\n")
    for name in SCHEDULERS:
        await asyncio.to_thread(gateway.processes[name].start)
    verdict.check_answers()
    verdict.check_ledger()
    verdict.check_memory()


async def test_workers_killed_then_plain_up_ledger_agrees(
    tmp_path: Path,
    upstream: Upstream,
    judge: Callable[..., Judge],
    lengths: Lengths,
) -> None:
    """
    What two data processes answered while Redis hung is billed by the one process that comes after them.

    Everything is killed while the answers are in files alone, and the one process once more on its way.
    """
    config, env = make_config(upstream.url), {**lengths.env, "PATCHBAY_INSTALLATION": "adopted"}
    before = Up(tmp_path, config, env, workers=2)
    plain = Up(tmp_path, config, env)
    data = tmp_path / "data"
    try:
        before.start()
        family = descendants(before.processes["up"].pid)
        (valkey,) = (pid for pid, line in family.items() if "valkey-server" in line)
        load = make_load(before)
        os.kill(valkey, signal.SIGSTOP)
        async with load.running():
            deadline = time.monotonic() + 60
            while load.verdicts[Verdict.COMPLETE] <= 40:
                assert time.monotonic() < deadline, (load.verdicts, load.statuses)
                await asyncio.sleep(0.1)  # others' progress
            # With answers under way, as a power failure finds them.
            await asyncio.to_thread(before.processes["up"].kill)
            with contextlib.suppress(ProcessLookupError):  # it may have gone with its parent
                os.kill(valkey, signal.SIGKILL)
        await asyncio.to_thread(until, lambda: not any(map(alive, family)))
        assert list(data.glob("workers/data-*/journal"))
        await asyncio.to_thread(plain.start)
        await asyncio.sleep(random.uniform(0.0, 0.3))  # a random instant of the adoption
        await asyncio.to_thread(plain.processes["up"].kill)
        await asyncio.to_thread(plain.start)
        assert not load.lies
        verdict = judge(plain)
        verdict.check_answers()
        found = verdict.check_ledger()
        assert found.attempts >= 40
        await asyncio.to_thread(
            until, lambda: not list(data.glob("workers/**/journal*")), 60, "the files are removed"
        )
    finally:
        before.stop()
        plain.stop()
