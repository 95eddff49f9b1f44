"""Auth providers whose provider key is heard late, and the auth files that wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import msgspec
from tests.unit.scheduler.conftest import make_snapshot

from patchbay.errors import Unavailable
from patchbay.plugin.v1 import auth_provider_pb2, identifier_pb2, plugin_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.hooks import Hook
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.plugins.snapshot import PluginEntry
from patchbay_gateway.scheduler.auth_plugins import AuthPlugins
from patchbay_gateway.scheduler.durable.auth_files import read_auth_dir
from patchbay_gateway.scheduler.parsed_files import ParsedFiles

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = PluginEntry("reader")


class Reader:
    """An auth provider that does not answer at first."""

    def __init__(self) -> None:
        self.away = True
        self.entries = [ENTRY]
        self.slow, self.gate = False, asyncio.Event()
        self.offered = asyncio.Event()
        self.registration = plugin_pb2.RegisterResponse()
        self.generation = 1
        self.registry = self.hooks = self.calls = self

    def of(self, *_: object) -> list[Hook]:
        row = policy("auth_provider")
        return [Hook(entry.id, "auth_provider", entry, row) for entry in self.entries]

    def declaring(self, *_: object) -> list[plugin_pb2.RegisterResponse]:
        return [self.registration]

    def pick(self, _: str) -> object:
        return self

    async def unary(self, _: Hook, method: Any, request: Any, **more: Any) -> Any:
        if self.away:
            if self.slow:
                await self.gate.wait()
            raise Unavailable("not yet")
        if method is methods.AUTH_IDENTIFIER:
            return identifier_pb2.IdentifierResponse(identifier="kind")
        self.offered.set()
        return auth_provider_pb2.AuthParseResponse(handled=False)


async def test_file_is_offered_when_somebody_else_hears_the_key_of_its_plugin(
    tmp_path: Path,
) -> None:
    """Whoever asks first has the answer; the file's reader must hear of it all the same."""
    (tmp_path / "a.json").write_text('{"type": "kind", "access_token": "test-token"}')
    clock, reader, holder = ManualClock(), Reader(), SnapshotHolder()
    plugins = AuthPlugins(cast("Any", reader), clock=clock)
    snapshot = msgspec.structs.replace(make_snapshot(), plugins=(ENTRY,))
    holder.set(snapshot)
    parsed = ParsedFiles(
        plugins, cast("Any", reader), holder=holder, plugins_roots=[b"p" * 32], clock=clock
    )
    offered = read_auth_dir(tmp_path).offered
    await plugins.look(snapshot)
    await clock.advance(0.25)
    running = asyncio.create_task(parsed.run(lambda: offered, lambda: None))
    for _ in range(5):
        await asyncio.sleep(0)
    await clock.advance(9.75)
    reader.away = False
    await plugins.look(snapshot)
    assert plugins.identifier(ENTRY.id) == "kind"
    for _ in range(4):
        await clock.advance(0.5)
    async with asyncio.timeout(60):
        await reader.offered.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_plugin_that_is_gone_or_has_told_its_key_is_not_asked_for_it_again() -> None:
    """The reader of files would look at everything twice a second, for ever."""
    clock, reader = ManualClock(), Reader()
    plugins = AuthPlugins(cast("Any", reader), clock=clock)
    snapshot = msgspec.structs.replace(make_snapshot(), plugins=(ENTRY,))
    await plugins.look(snapshot)
    await clock.advance(11)
    assert plugins.pending
    reader.entries = []
    await plugins.look(snapshot)
    assert not plugins.pending
    reader.entries = [ENTRY]
    reader.slow = True
    slow = asyncio.create_task(plugins.look(snapshot))
    await asyncio.sleep(0)
    reader.away = False
    await plugins.look(snapshot)
    reader.gate.set()
    await slow
    await clock.advance(11)
    await plugins.look(snapshot)
    assert plugins.identifier(ENTRY.id) == "kind"
    assert not plugins.pending
