"""The Store against a real server: results, scripts, groups, channels, and a server that is well."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal

import pytest
from tests.integration.kernel.blocked import until_blocked

from patchbay.errors import FailedPrecondition, Unavailable
from patchbay_gateway.kernel.clock import SystemClock
from patchbay_gateway.kernel.redis import CommandRefused, Script, Store, ensure_epoch

ECHO = Script("return {KEYS[1], ARGV[1], 7, false}")


@pytest.fixture
async def alone(own_valkey):
    """A Store that has its server to itself; as patient as `store`."""
    made = Store(own_valkey.url, installation="x", clock=SystemClock(), timeout=20.0)
    yield made
    await made.aclose()


async def test_call_returns_bytes_ints_none_lists_and_dicts(store):
    key = store.key("h")
    assert await store.call("HSET", key, "a", 1, "b", b"\xff\r\n") == 2
    assert await store.call("HGETALL", key) == {b"a": b"1", b"b": b"\xff\r\n"}
    assert await store.call("GET", store.key("missing")) is None
    assert await store.call("HMGET", key, "a", "c") == [b"1", None]


async def test_keys_of_an_installation_share_one_slot(store):
    assert store.key("cred", "x").startswith("pb1:{t-")
    assert store.key("cred", "x").endswith("}:cred:x")


async def test_script_missing_in_the_server_is_sent_and_then_named(store):
    assert await store.script(ECHO, [store.key("k")], [b"v"]) == [
        store.key("k").encode(),
        b"v",
        7,
        None,
    ]
    assert await store.call("SCRIPT", "EXISTS", ECHO.sha) == [1]


async def test_refused_command_is_told_with_its_word_and_breaks_nothing(store):
    await store.call("SET", store.key("s"), "text")
    for _ in range(5):
        with pytest.raises(CommandRefused) as caught:
            await store.call("LPUSH", store.key("s"), "x")
        assert caught.value.word == "WRONGTYPE"
    assert store.available
    assert await store.call("GET", store.key("s")) == b"text"


async def test_pipeline_replies_in_order_and_one_refusal_raises(store):
    key = store.key("n")
    assert await store.pipeline([["INCR", key], ["INCRBY", key, 5], ["GET", key]]) == [1, 6, b"6"]
    with pytest.raises(CommandRefused):
        await store.pipeline([["LPUSH", key, "x"], ["INCR", key]])
    assert await store.call("GET", key) == b"7"


async def test_cancelled_calls_never_give_a_reply_to_another(store):
    """300 calls, half of them cancelled at random instants: each survivor gets its own value."""
    rng = random.Random(1)

    async def one(n: int) -> int:
        return int(await store.call("ECHO", str(n)))

    for _ in range(10):
        tasks = [asyncio.create_task(one(n)) for n in range(30)]
        for task in rng.sample(tasks, 15):
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            assert result == n or isinstance(result, asyncio.CancelledError)
    assert await store.call("ECHO", "end") == b"end"


async def test_calls_of_one_turn_share_one_connection(alone):
    await asyncio.gather(*(alone.call("ECHO", "x") for _ in range(200)))
    assert await _clients(alone) == 1


async def _clients(store: Store) -> int:
    listing: bytes = await store.call("CLIENT", "LIST")
    return listing.count(b"name=patchbay ")


async def test_ensure_epoch_is_the_same_until_flushed(store):
    epoch = await ensure_epoch(store)
    assert await ensure_epoch(store) == epoch
    await store.call("DEL", store.key("epoch"))
    assert await ensure_epoch(store) != epoch


async def test_read_group_makes_the_group_reads_and_reads_again_what_was_not_acknowledged(store):
    stream = store.key("journal")
    assert await store.read_group(stream, "ledger", "c1", 10, 10) == []
    ids = [await store.call("XADD", stream, "*", "e", n) for n in range(3)]
    read = await store.read_group(stream, "ledger", "c1", 2, 10)
    assert read == [(ids[0], {b"e": b"0"}), (ids[1], {b"e": b"1"})]
    await store.call("XACK", stream, "ledger", ids[0])
    assert await store.read_group(stream, "ledger", "c1", 10, 0, after="0") == [
        (ids[1], {b"e": b"1"})
    ]
    await store.call("XDEL", stream, ids[1])
    assert await store.read_group(stream, "ledger", "c1", 10, 0, after="0") == [(ids[1], {})]


async def test_read_group_waits_longer_than_the_timeout_of_calls(own_valkey, alone):
    quick = Store(own_valkey.url, installation="x", clock=SystemClock(), timeout=1.0)
    stream = alone.key("journal")
    reading = asyncio.create_task(quick.read_group(stream, "g", "c", 1, 60_000))
    await until_blocked(alone)
    with pytest.raises(Unavailable):
        await quick.call("BLPOP", alone.key("nothing"), 0)  # ends with the timeout of calls
    await alone.call("XADD", stream, "*", "e", "late")
    assert (await reading)[0][1] == {b"e": b"late"}
    await quick.aclose()


async def test_read_group_stream_gone_is_made_anew(store):
    stream = store.key("journal")
    await store.call("XADD", stream, "*", "e", 1)
    assert len(await store.read_group(stream, "g", "c", 10, 10)) == 1
    await store.call("DEL", stream)
    await store.call("XADD", stream, "*", "e", 2)
    assert [fields for _, fields in await store.read_group(stream, "g", "c", 10, 10)] == [
        {b"e": b"2"}
    ]


async def test_read_group_cancelled_takes_nothing_afterwards(alone):
    store, stream = alone, alone.key("journal")
    reading = asyncio.create_task(store.read_group(stream, "g", "c", 1, 60_000))
    await until_blocked(store)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    # The server learns of the end a moment later.
    await until_blocked(store, blocked=False)
    await store.call("XADD", stream, "*", "e", 1)
    assert len(await store.read_group(stream, "g", "other", 1, 10)) == 1


async def test_subscribe_begins_with_none_and_misses_nothing_after_it(store):
    channel = store.key("changes")
    async with contextlib.aclosing(store.subscribe(channel)) as messages:
        assert await anext(messages) is None
        for n in range(300):
            await store.call("PUBLISH", channel, n)
        assert [await anext(messages) for _ in range(300)] == [b"%d" % n for n in range(300)]


async def test_subscribe_slow_reader_is_told_that_it_missed_some(store):
    channel = store.key("changes")
    async with contextlib.aclosing(store.subscribe(channel)) as messages:
        await anext(messages)
        await store.pipeline([["PUBLISH", channel, n] for n in range(3000)])
        received = [await anext(messages)]
        while received[-1] != b"2999":
            received.append(await anext(messages))
        assert None in received


async def test_check_server_evicting_policy_is_refused_with_the_remedy(alone):
    await alone.check_server()
    await alone.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(FailedPrecondition, match="CONFIG SET maxmemory-policy noeviction"):
        await alone.check_server()


async def test_check_server_that_is_slow_to_answer_is_asked_again(own_valkey):
    own = Store(own_valkey.url, installation="x", clock=SystemClock())
    own_valkey.signal(signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable):
            await own.check_server()
        checked = asyncio.create_task(own.check_server(patience=60))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(checked), 0.5)
    finally:
        own_valkey.signal(signal.SIGCONT)
    await checked
    await own.aclose()


async def test_closed_store_refuses_calls(valkey):
    closed = Store(valkey.url, installation="x", clock=SystemClock(), timeout=20.0)
    await closed.call("PING")
    await closed.aclose()
    await closed.aclose()
    for failing in (closed.call("PING"), closed.read_group("s", "g", "c", 1, 1)):
        with pytest.raises(Unavailable):
            await failing


@pytest.mark.usefixtures("no_leaked_tasks")
async def test_aclose_ends_readers_and_subscribers(own_valkey):
    made = Store(own_valkey.url, installation="x", clock=SystemClock(), timeout=20.0)
    subscribed = asyncio.Event()

    async def listen() -> None:
        async for _ in made.subscribe(made.key("c")):
            subscribed.set()

    listening = asyncio.create_task(listen())
    reading = asyncio.create_task(made.read_group(made.key("s"), "g", "c", 1, 60_000))
    async with asyncio.timeout(60):
        await subscribed.wait()
    await until_blocked(made)
    await made.aclose()
    await listening
    with pytest.raises(Unavailable):
        await reading


async def test_logins_and_databases_of_the_url(own_valkey):
    admin = Store(own_valkey.url, installation="x", clock=SystemClock(), timeout=20.0)
    await admin.call("ACL", "SETUSER", "gate", "on", ">test-pass@word", "~*", "&*", "+@all")
    address = own_valkey.url.removeprefix("redis://")
    user = Store(
        f"redis://gate:test-pass%40word@{address}/3",
        installation="x",
        clock=SystemClock(),
        timeout=20.0,
    )
    await user.call("SET", user.key("a"), "3")
    assert b"user=gate" in await user.call("CLIENT", "LIST")
    assert b"db=3" in await user.call("CLIENT", "LIST")
    wrong = Store(
        f"redis://gate:test-wrong@{address}", installation="x", clock=SystemClock(), timeout=20.0
    )
    with pytest.raises(Unavailable, match="WRONGPASS") as caught:
        await wrong.call("PING")
    assert "test-wrong" not in str(caught.value)
    for each in (admin, user, wrong):
        await each.aclose()
