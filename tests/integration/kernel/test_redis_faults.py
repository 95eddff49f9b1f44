"""The Store against a server that hangs, dies, comes back, is flushed or is not one."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from tests.integration.kernel.blocked import until_blocked

from patchbay.errors import Unavailable
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import PROBE_EVERY, Script, Store, ensure_epoch


@pytest.fixture
async def hurt(own_valkey):
    """A Store with the usual timeout on a server that the test may let hang."""
    made = Store(own_valkey.url, installation="x", clock=SystemClock())
    yield made
    await made.aclose()


@pytest.fixture
async def cut(own_valkey):
    """A Store on a server that the test may end; it is as patient as a busy machine needs."""
    made = Store(own_valkey.url, installation="x", clock=SystemClock(), timeout=20.0)
    yield made
    await made.aclose()


async def awake(valkey) -> None:
    """Wait until a server that was stopped answers; it has run by then what it was sent before."""
    patient = Store(valkey.url, installation="x", clock=SystemClock(), timeout=60.0)
    await patient.call("PING")
    await patient.aclose()


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
    async with asyncio.timeout(60):
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
    assert max(took[:3]) < 20, "250 ms and what a busy machine adds"
    assert min(took[3:]) < 0.2, "the breaker is open: nobody waits 250 ms any more"
    assert seen == [False]
    own_valkey.signal(signal.SIGCONT)
    await until(hurt, available=True)
    assert seen == [False, True]
    assert await hurt.call("GET", "a") == b"1"


async def test_hung_server_all_waiting_calls_fail_together_as_one_failure(own_valkey, hurt):
    await hurt.call("PING")
    own_valkey.signal(signal.SIGSTOP)
    start = time.monotonic()
    results = await asyncio.gather(*(hurt.call("PING") for _ in range(100)), return_exceptions=True)
    assert time.monotonic() - start < 20, "one after the other it would be 25 s"
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
    await awake(own_valkey)
    for n in range(20):
        assert await hurt.call("ECHO", str(n)) == str(n).encode()
    assert int(await hurt.call("GET", "n")) <= 2, "nothing is sent twice"


async def test_killed_server_that_comes_back_is_used_again(own_valkey, cut):
    counting = Script("return redis.call('INCR', KEYS[1])")
    await cut.script(counting, ["n"], [])
    epoch = await ensure_epoch(cut)
    own_valkey.kill()
    await failing_calls(cut, 3)
    assert not cut.available
    own_valkey.start()
    await until(cut, available=True)
    assert await cut.script(counting, ["n"], []) == 1, "the script is sent again to an empty server"
    assert await ensure_epoch(cut) != epoch


async def test_restart_between_calls_costs_no_more_than_one_of_them(own_valkey, cut):
    await cut.call("PING")
    own_valkey.kill()
    own_valkey.start()
    failures = 0
    for _ in range(20):
        try:
            await cut.call("PING")
        except Unavailable:
            failures += 1
    assert failures <= 1
    assert cut.available


async def test_flushed_server_runs_scripts_again(cut):
    script = Script("return ARGV[1]")
    assert await cut.script(script, [], ["1"]) == b"1"
    await cut.call("FLUSHALL")
    await cut.call("SCRIPT", "FLUSH")
    results = await asyncio.gather(*(cut.script(script, [], [n]) for n in range(10)))
    assert results == [b"%d" % n for n in range(10)]


async def test_breaker_open_probe_pace_is_half_a_second(own_valkey, cut):
    own_valkey.kill()
    await failing_calls(cut, 3)
    own_valkey.start()
    start = time.monotonic()
    await until(cut, available=True)
    assert time.monotonic() - start < 40 * PROBE_EVERY


async def test_subscriber_comes_back_after_a_restart_and_says_so(own_valkey, cut):
    messages = cut.subscribe("c")
    async with asyncio.timeout(60):
        assert await anext(messages) is None
        own_valkey.kill()
        own_valkey.start()
        assert await anext(messages) is None
        await cut.call("PUBLISH", "c", "after")
        assert await anext(messages) == b"after"
    await messages.aclose()


async def test_reader_of_a_group_fails_when_the_server_dies_and_reads_on_afterwards(
    own_valkey, cut
):
    reading = asyncio.create_task(cut.read_group("s", "g", "c", 1, 30_000))
    await until_blocked(cut)
    own_valkey.kill()
    with pytest.raises(Unavailable):
        await reading
    own_valkey.start()
    await cut.call("XADD", "s", "*", "e", "1")
    assert [fields for _, fields in await cut.read_group("s", "g", "c", 1, 1000)] == [{b"e": b"1"}]


async def test_server_out_of_memory_is_unavailable_not_a_bug_of_ours(cut):
    await cut.call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(Unavailable, match="OOM"):
        await cut.call("SET", "a", "1")


async def test_replica_after_a_failover_is_left(cut):
    await cut.call("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(Unavailable, match=r"READONLY|MASTERDOWN"):
        await cut.call("SET", "a", "1")
    await cut.call("REPLICAOF", "NO", "ONE")
    assert await cut.call("SET", "a", "1") == b"OK"


async def test_nobody_listens_fails_at_once(free_port):
    store = Store(
        f"redis://127.0.0.1:{free_port}", installation="x", clock=SystemClock(), timeout=60.0
    )
    assert max(await failing_calls(store, 2)) < 30
    await store.aclose()


async def test_other_kind_of_server_is_named(free_port):
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)  # what is unread at the close would be answered with a reset
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(web, "127.0.0.1", free_port)
    store = Store(
        f"redis://127.0.0.1:{free_port}", installation="x", clock=SystemClock(), timeout=20.0
    )
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
    store = Store(url, installation="x", clock=SystemClock(), timeout=60.0)

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
    async with asyncio.timeout(60):
        await closing
        listened, *failed = await asyncio.gather(*ends, return_exceptions=True)
    assert listened is None
    assert [type(each) for each in failed] == [Unavailable, Unavailable]
    server.close()
    await server.wait_closed()
