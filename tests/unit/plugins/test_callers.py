"""Who calls back, and in which scope."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from patchbay import errors, keys
from patchbay.host.v1 import log_pb2
from patchbay.tokens import host_audience, mint
from patchbay_gateway.plugins.callbacks import log_lines
from patchbay_gateway.plugins.callbacks.callers import Caller, Callers, within
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.grants import Grants
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.scopes import LiveScope, ScopeTable
from patchbay_gateway.plugins.snapshot import PluginEntry, Snapshot

NOW = 1_800_000_000
KEYS = {id_: keys.channel_key(id_.encode() * 8) for id_ in ("one", "two")}
MODELS: dict[str, object] = {"models": True}


class Context:
    """A call's context."""

    def __init__(self, **metadata: str) -> None:
        self._metadata = tuple((f"patchbay-{k}", v) for k, v in metadata.items())

    def invocation_metadata(self) -> Any:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return ""


def token(plugin_id: str, key: bytes | None = None, *, at: int = NOW) -> str:
    """Return the token of a plugin's callback."""
    return mint(key or KEYS[plugin_id], host_audience(plugin_id), "here", at + 100)


class World:
    """Two plugins, their keys and scopes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.time = 0.0
        self.keys = {id_: [key] for id_, key in KEYS.items()}
        self.scopes = ScopeTable("127.0.0.1:7000")
        self.entries = {id_: PluginEntry(id_, host_access=MODELS) for id_ in KEYS}
        holder = SnapshotHolder()
        holder.set(Snapshot(1, plugins=tuple(self.entries.values())))
        self.callers = Callers(
            holder,
            keys=self._keys,
            scopes=self.scopes,
            now=lambda: NOW,
            timer=lambda: self.time,
        )

    async def _keys(self, plugin_id: str) -> list[bytes]:
        return await self.fetch(plugin_id)

    async def fetch(self, plugin_id: str) -> list[bytes]:
        self.asked.append(plugin_id)
        return self.keys[plugin_id]

    def scope(self, plugin_id: str) -> Any:
        entry = self.entries[plugin_id]
        found = self.scopes.open(Hook(plugin_id, "executor", entry, policy("executor")), None)
        assert found is not None
        return found


async def test_caller_is_who_the_key_says_and_keys_are_fetched_once() -> None:
    world = World()
    for _ in range(3):
        caller = await world.callers.identify(Context(plugin="one", token=token("one")))
        assert (caller.plugin_id, caller.grants.models, caller.scope) == ("one", True, None)
    assert world.asked == ["one"]


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"plugin": "one"},
        {"plugin": "nobody", "token": token("one")},
        {"plugin": "two", "token": token("one")},
        {"plugin": "one", "token": token("one", b"another key")},
    ],
)
async def test_stranger_is_nobody_and_costs_one_look_for_keys(metadata: dict[str, str]) -> None:
    world = World()
    for _ in range(5):
        with pytest.raises(errors.Unauthenticated) as refused:
            await world.callers.identify(Context(**metadata))
        assert refused.value.reason == "TOKEN_INVALID"
    assert len(world.asked) <= 1


async def test_new_key_is_found_after_a_while() -> None:
    world = World()
    await world.callers.identify(Context(plugin="one", token=token("one")))
    newer = keys.channel_key(b"newer")
    world.keys["one"] = [newer, KEYS["one"]]
    with pytest.raises(errors.Unauthenticated):
        await world.callers.identify(Context(plugin="one", token=token("one", newer)))
    world.time += 10
    await world.callers.identify(Context(plugin="one", token=token("one", newer)))
    await world.callers.identify(Context(plugin="one", token=token("one")))


class Fetching:
    """Fetches of keys that a test ends."""

    def __init__(self, world: World) -> None:
        self.began: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()
        self._answer, world.fetch = world.fetch, self  # type: ignore[method-assign]

    async def __call__(self, plugin_id: str) -> list[bytes]:
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began.put_nowait(end)
        await end
        return await self._answer(plugin_id)


async def test_first_callbacks_that_come_together_are_all_let_in() -> None:
    """The keys are on their way when the second comes."""
    world = World()
    fetching = Fetching(world)
    own = Context(plugin="one", token=token("one"))
    first = asyncio.ensure_future(world.callers.identify(own))
    end = await fetching.began.get()
    others = [asyncio.ensure_future(world.callers.identify(own)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    end.set_result(None)
    async with asyncio.timeout(60):
        callers = await asyncio.gather(first, *others)
    assert [c.plugin_id for c in callers] == ["one"] * 4
    assert world.asked == ["one"]


async def test_callback_that_is_given_up_leaves_the_look_for_keys_to_the_next() -> None:
    world = World()
    fetching = Fetching(world)
    own = Context(plugin="one", token=token("one"))
    first = asyncio.ensure_future(world.callers.identify(own))
    await fetching.began.get()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.ensure_future(world.callers.identify(own))
    async with asyncio.timeout(60):
        (await fetching.began.get()).set_result(None)
        assert (await second).plugin_id == "one"


async def test_who_waits_for_keys_that_cannot_be_had_hears_why_and_asks_nobody_else() -> None:
    world = World()
    fetching = Fetching(world)
    own = Context(plugin="one", token=token("one"))
    waiting = [asyncio.ensure_future(world.callers.identify(own)) for _ in range(3)]
    end = await fetching.began.get()
    end.set_exception(errors.Unavailable("no scheduler answers", reason="NO_SCHEDULER"))
    async with asyncio.timeout(60):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [getattr(e, "reason", e) for e in ends] == ["NO_SCHEDULER"] * 3
    assert fetching.began.empty()


async def test_old_token_is_refused_without_a_look_for_keys() -> None:
    world = World()
    await world.callers.identify(Context(plugin="one", token=token("one")))
    with pytest.raises(errors.Unauthenticated) as refused:
        await world.callers.identify(Context(plugin="one", token=token("one", at=NOW - 1000)))
    assert refused.value.reason == "TOKEN_EXPIRED"
    assert world.asked == ["one"]


async def test_scope_is_its_plugins_alone_and_ends() -> None:
    world = World()
    scope = world.scope("one")
    own = Context(plugin="one", token=token("one"), scope=scope.id)
    assert (await world.callers.identify(own)).scope == scope
    with pytest.raises(errors.FailedPrecondition) as refused:
        await world.callers.identify(Context(plugin="two", token=token("two"), scope=scope.id))
    assert refused.value.reason == "SCOPE_ENDED"
    scope.close()
    with pytest.raises(errors.FailedPrecondition):
        await world.callers.identify(own)


async def running(scope: LiveScope) -> asyncio.Task[None]:
    """Return what waits for ever in *scope*, once it does."""
    began = asyncio.Event()

    async def run() -> None:
        with within(scope):
            began.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(run())
    await began.wait()
    return task


async def test_what_runs_in_a_scope_ends_with_it() -> None:
    world = World()
    scope = world.scope("one")
    task = await running(scope)
    scope.close()
    with pytest.raises(errors.FailedPrecondition) as ended:
        await task
    assert ended.value.reason == "SCOPE_ENDED"
    assert not task.cancelled()


async def test_cancellation_from_elsewhere_stays_one() -> None:
    world = World()
    task = await running(world.scope("one"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancellation_that_comes_with_the_scopes_end_stays_one() -> None:
    world = World()
    scope = world.scope("one")
    task = await running(scope)
    scope.close()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Lines:
    """A logger that keeps lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((level, event, fields))


@pytest.mark.parametrize(
    ("level", "named"),
    [
        (log_pb2.LOG_LEVEL_UNSPECIFIED, "debug"),
        (log_pb2.LOG_LEVEL_TRACE, "debug"),
        (log_pb2.LOG_LEVEL_DEBUG, "debug"),
        (log_pb2.LOG_LEVEL_INFO, "info"),
        (log_pb2.LOG_LEVEL_WARN, "warning"),
        (log_pb2.LOG_LEVEL_ERROR, "error"),
    ],
)
def test_line_has_its_level_and_its_writer(level: Any, named: str) -> None:
    lines: Any = Lines()
    caller = Caller("one", PluginEntry("one"), Grants(), None)
    request = log_pb2.HostLogRequest(
        level=level, message="  ", fields=b'{" a ":1,"  ":2,"event":"mine"}'
    )
    log_lines.write(caller, request, lines)
    assert lines.lines == [
        (
            named,
            "plugin says",
            {"text": "plugin log", "plugin": "one", "fields": {"a": 1, "event": "mine"}},
        )
    ]


@pytest.mark.parametrize("fields", [b"[1]", b"{", b'{"a":"' + b"x" * 20_000 + b'"}'])
def test_fields_that_are_no_small_object_are_refused(fields: bytes) -> None:
    caller = Caller("one", PluginEntry("one"), Grants(), None)
    with pytest.raises(errors.InvalidRequest) as refused:
        log_lines.write(caller, log_pb2.HostLogRequest(message="x", fields=fields))
    assert refused.value.reason == "INVALID_JSON"
