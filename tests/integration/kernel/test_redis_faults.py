"""The Store against a server that hangs, dies, comes back, is flushed or is not one."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import PROBE_EVERY, Script, Store, ensure_epoch


@pytest.fixture
async def hurt(own_valkey):
    """A Store with the usual timeout on a server that the test may hurt."""
    made = Store(own_valkey.url, installation="x", clock=SystemClock())
    yield made
    await made.aclose()


async def failing_calls(store: Store, count: int) -> list[float]:
    """Seconds that each of *count* calls in a row took to fail."""
    took = []
    for _ in range(count):
        start = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await store.call("PING")
        assert caught.value.reason == "REDIS_UNAVAILABLE"
        took.append(time.monotonic() - start)
    return took


async def until(store: Store, available: bool) -> None:
    changed = asyncio.Event()
    forget = store.on_change(lambda _: changed.set())
    async with asyncio.timeout(30):
        while store.available is not available:
            changed.clear()
            await changed.wait()
    forget()


async def test_hung_server_fails_within_the_timeout_then_at_once_and_heals(own_valkey, hurt):
    await hurt.call("SET", "a", "1")
    seen: list[bool] = []
    hurt.on_change(seen.append)
    own_valkey.signal(signal.SIGSTOP)
    took = await failing_calls(hurt, 6)
    assert max(took[:3]) < 5, "250 ms and what a busy machine adds"
    assert min(took[3:]) < 0.2, "the breaker is open: nobody waits 250 ms any more"
    assert seen == [False]
    own_valkey.signal(signal.SIGCONT)
    await until(hurt, available=True)
    assert await hurt.call("GET", "a") == b"1"
    assert seen == [False, True]


async def test_hung_server_all_waiting_calls_fail_together_as_one_failure(own_valkey, hurt):
    await hurt.call("PING")
    own_valkey.signal(signal.SIGSTOP)
    start = time.monotonic()
    results = await asyncio.gather(*(hurt.call("PING") for _ in range(100)), return_exceptions=True)
    assert time.monotonic() - start < 10, "one after the other it would be 25 s"
    assert {type(result) for result in results} == {Unavailable}
    assert hurt.available, "one event, not a hundred"
    own_valkey.signal(signal.SIGCONT)


async def test_late_replies_of_a_hung_server_reach_nobody(own_valkey, hurt):
    """The commands may have run; their replies must not be taken for those of later commands."""
    await hurt.call("SET", "n", "0")
    own_valkey.signal(signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await hurt.call("INCR", "n")
    own_valkey.signal(signal.SIGCONT)
    for n in range(20):
        assert await hurt.call("ECHO", str(n)) == str(n).encode()
    assert int(await hurt.call("GET", "n")) <= 2, "nothing is sent twice"


async def test_killed_server_that_comes_back_is_used_again(own_valkey, hurt):
    counting = Script("return redis.call('INCR', KEYS[1])")
    await hurt.script(counting, ["n"], [])
    epoch = await ensure_epoch(hurt)
    own_valkey.kill()
    await failing_calls(hurt, 3)
    assert not hurt.available
    own_valkey.start()
    await until(hurt, available=True)
    assert await hurt.script(counting, ["n"], []) == 1, (
        "the script is sent again to an empty server"
    )
    assert await ensure_epoch(hurt) != epoch


async def test_restart_between_calls_costs_no_more_than_one_of_them(own_valkey, hurt):
    await hurt.call("PING")
    own_valkey.kill()
    own_valkey.start()
    failures = 0
    for _ in range(20):
        try:
            await hurt.call("PING")
        except Unavailable:
            failures += 1
    assert failures <= 1
    assert hurt.available


async def test_flushed_server_runs_scripts_again(hurt):
    script = Script("return ARGV[1]")
    assert await hurt.script(script, [], ["1"]) == b"1"
    await hurt.call("FLUSHALL")
    await hurt.call("SCRIPT", "FLUSH")
    results = await asyncio.gather(*(hurt.script(script, [], [n]) for n in range(10)))
    assert results == [b"%d" % n for n in range(10)]


async def test_breaker_open_probe_pace_is_half_a_second(own_valkey, hurt):
    own_valkey.kill()
    await failing_calls(hurt, 3)
    own_valkey.start()
    start = time.monotonic()
    await until(hurt, available=True)
    assert time.monotonic() - start < 10 * PROBE_EVERY


async def test_subscriber_comes_back_after_a_restart_and_says_so(own_valkey, hurt):
    messages = hurt.subscribe("c")
    async with asyncio.timeout(30):
        assert await anext(messages) is None
        own_valkey.kill()
        own_valkey.start()
        assert await anext(messages) is None
        await hurt.call("PUBLISH", "c", "after")
        assert await anext(messages) == b"after"
    await messages.aclose()


async def test_reader_of_a_group_fails_when_the_server_dies_and_reads_on_afterwards(
    own_valkey, hurt
):
    reading = asyncio.create_task(hurt.read_group("s", "g", "c", 1, 30_000))
    await asyncio.sleep(0.1)
    own_valkey.kill()
    with pytest.raises(Unavailable):
        await reading
    own_valkey.start()
    await hurt.call("XADD", "s", "*", "e", "1")
    assert [fields for _, fields in await hurt.read_group("s", "g", "c", 1, 1000)] == [{b"e": b"1"}]


async def test_server_out_of_memory_is_unavailable_not_a_bug_of_ours(hurt):
    await hurt.call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Unavailable, match="OOM"):
        await hurt.call("SET", "a", "1")


async def test_replica_after_a_failover_is_left(hurt):
    await hurt.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(Unavailable, match=r"READONLY|MASTERDOWN"):
        await hurt.call("SET", "a", "1")
    await hurt.call("REPLICAOF", "NO", "ONE")
    assert await hurt.call("SET", "a", "1") == b"OK"


async def test_nobody_listens_fails_at_once(free_port):
    store = Store(f"redis://127.0.0.1:{free_port}", installation="x", clock=SystemClock())
    assert max(await failing_calls(store, 2)) < 0.2
    await store.aclose()


async def test_other_kind_of_server_is_named(free_port):
    async def web(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(web, "127.0.0.1", free_port)
    store = Store(f"redis://127.0.0.1:{free_port}", installation="x", clock=SystemClock())
    with pytest.raises(Unavailable, match="not a Redis server"):
        await store.call("PING")
    await store.aclose()
    server.close()
    await server.wait_closed()


@pytest.mark.usefixtures("no_leaked_tasks")
async def test_aclose_while_the_breaker_is_open_leaves_nothing(free_port):
    store = Store(f"redis://127.0.0.1:{free_port}", installation="x", clock=SystemClock())
    await failing_calls(store, 4)
    await store.aclose()


@pytest.mark.usefixtures("no_leaked_tasks")
async def test_aclose_while_connections_are_made_ends_their_users(free_port):
    """Nobody may be left waiting on a connection that came up just after the end."""
    greeted = asyncio.Semaphore(0)
    answer = asyncio.Event()
    ends: list[asyncio.Task[object]] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        greeted.release()
        await answer.wait()
        writer.write(b"%0\r\n")
        while await reader.read(1000):
            pass
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", free_port)
    url = f"redis://127.0.0.1:{free_port}"
    store = Store(url, installation="x", clock=SystemClock(), timeout=5)

    async def listen() -> None:
        async for _ in store.subscribe("c"):
            pass

    ends += [
        asyncio.create_task(listen()),
        asyncio.create_task(store.read_group("s", "g", "c", 1, 60_000)),
        asyncio.create_task(store.call("PING")),
    ]
    for _ in ends:
        await greeted.acquire()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    answer.set()
    async with asyncio.timeout(30):
        await closing
        listened, *failed = await asyncio.gather(*ends, return_exceptions=True)
    assert listened is None
    assert [type(each) for each in failed] == [Unavailable, Unavailable]
    server.close()
    await server.wait_closed()
