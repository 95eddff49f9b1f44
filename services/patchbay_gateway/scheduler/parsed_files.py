"""
What plugins make of auth files (pluginapi: ParseAuth).

A file that names a type is offered to the first auth provider of that key, one without to each in turn until
one takes it or fails; what a plugin does not take, or fails at, is read by the gateway itself. What a plugin
made of a file counts on while it cannot be asked anew, and over restarts (grown.py). Asked again when the
file changes and after each handshake. Not here: reading directories (durable/auth_files.py), credentials made
of the answers (grown.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from patchbay.errors import PatchbayError, Unimplemented
from patchbay.keys import sealing_key
from patchbay.plugin.v1 import auth_provider_pb2
from patchbay.secrets import seal
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.policy import policy
from patchbay_gateway.scheduler.auth_data import opened
from patchbay_gateway.scheduler.durable.auth_files import credential_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.auth_data import BroughtAuth
    from patchbay_gateway.scheduler.auth_plugins import AuthPlugin, AuthPlugins
    from patchbay_gateway.scheduler.durable.auth_files import OfferedFile

_LOOK_EVERY: Final = 0.5
_AGAIN: Final = 10.0
_SEALED_FOR: Final = 120.0
_PARSE: Final = "auth_provider.parse"

_log = logs.get_logger("scheduler.auth_files")


@dataclass(frozen=True, slots=True)
class Parsed:
    """What is known of one file."""

    plugin_id: str = ""
    """Whose it is; empty: the gateway's own."""
    identifier: str = ""
    """Provider key of that plugin."""
    auths: tuple[BroughtAuth, ...] = ()
    """What it holds; none: nothing, and the gateway does not read it either."""
    problem: str = ""
    """Why the plugin that knows the type was not heard; empty: it was, or there is none."""

    @property
    def taken(self) -> bool:
        """Whether a plugin has the file."""
        return bool(self.plugin_id)


@dataclass(slots=True)
class _Asked:
    digest: str
    after: tuple[Any, ...]
    parsed: Parsed
    retry_at: float = 0.0


class ParsedFiles:
    """
    The answers of plugins about auth files.

    Args:
        plugins: Auth providers.
        calls: Calls them.
        holder: The snapshot in use.
        plugins_roots: Newest first.
        clock: Time.
    """

    def __init__(
        self,
        plugins: AuthPlugins,
        calls: PluginCalls,
        *,
        holder: SnapshotHolder,
        plugins_roots: Sequence[bytes],
        clock: Clock,
    ) -> None:
        self._plugins = plugins
        self._calls = calls
        self._holder = holder
        self._roots = tuple(plugins_roots)
        self._clock = clock
        self._asked: dict[str, _Asked] = {}
        self.away: tuple[str, ...] = ()
        """Plugins that may know a type and are not registered."""

    def view(self) -> Mapping[str, Parsed]:
        """Return path of a file → what is known of it; a file that nobody was asked about is not in it."""
        return {source: asked.parsed for source, asked in self._asked.items()}

    async def run(
        self, offered: Callable[[], Sequence[OfferedFile]], changed: Callable[[], None]
    ) -> None:
        """Ask until cancelled; call *changed* when the answers are others than before."""
        seen: tuple[int, int] | None = None
        seen_files: Sequence[OfferedFile] = ()
        while True:
            snapshot, files = self._holder.current, offered()
            now = self._clock.monotonic()
            due = self._plugins.pending or any(
                0 < asked.retry_at <= now for asked in self._asked.values()
            )
            if snapshot is not None:
                state = (snapshot.version, self._plugins.generation)
                if due or state != seen or files is not seen_files:
                    # Remembered first: what changes while plugins are asked is seen at the next look.
                    seen, seen_files = state, files
                    if await self.ask(snapshot, files):
                        changed()
            await self._clock.sleep(_LOOK_EVERY)

    async def ask(self, snapshot: Snapshot, files: Sequence[OfferedFile]) -> bool:
        """Ask what was not asked yet; return whether anything is known otherwise than before."""
        plugins = await self._plugins.look(snapshot)
        before, away = self.view(), self.away
        self.away = self._plugins.away(snapshot) if files else ()
        for source in self._asked.keys() - {file.source for file in files}:
            del self._asked[source]
        ready = {plugin.hook.plugin_id for plugin in plugins if plugin.registered}
        there = set(snapshot.plugin_by_id)
        for file in files:
            await self._ask_about(file, plugins, ready, there)
        return self.view() != before or self.away != away

    async def parse(
        self, snapshot: Snapshot, name: str, type_: str, text: str
    ) -> tuple[Parsed, str]:
        """Return what plugins make of a document that is no file yet, and why it was not read, if so."""
        asked = _candidates(type_, await self._plugins.look(snapshot))
        return await self._offer(asked, name, name, type_, text)

    async def _ask_about(
        self, file: OfferedFile, plugins: list[AuthPlugin], ready: set[str], there: set[str]
    ) -> None:
        known = self._asked.get(file.source)
        candidates = _candidates(file.type, plugins)
        if known is not None and known.parsed.taken and known.parsed.plugin_id not in there:
            # It is configured no more: what it said goes with it.
            del self._asked[file.source]
            known = None
        if not candidates:
            # One that is away for a while keeps what it has.
            waits = known is not None and known.parsed.taken and known.parsed.plugin_id not in ready
            if not waits and known is not None:
                del self._asked[file.source]
            return
        after = tuple(each for plugin in candidates for each in plugin.registered)
        same = known is not None and known.digest == file.digest and _same(known.after, after)
        if same and known and (not known.retry_at or self._clock.monotonic() < known.retry_at):
            return
        text = await asyncio.to_thread(file.read)
        if text is None:
            return  # another one by now, seen with the next look at the directory
        parsed, problem = await self._offer(
            candidates, file.source, str(file.path), file.type, text
        )
        retry_at = self._clock.monotonic() + _AGAIN if problem else 0.0
        if problem and known is not None and known.parsed.taken:
            # What it said before counts: a plugin that is broken for a while takes nothing away.
            former = known.parsed
            parsed = Parsed(former.plugin_id, former.identifier, former.auths, problem)
        self._asked[file.source] = _Asked(file.digest, after, parsed, retry_at)

    async def _offer(
        self, plugins: list[AuthPlugin], source: str, path: str, type_: str, text: str
    ) -> tuple[Parsed, str]:
        for plugin in plugins:
            hook, provider = plugin.hook, type_ or plugin.identifier
            try:
                answer = await self._calls.unary(
                    _parsing(hook),
                    methods.PARSE_AUTH,
                    auth_provider_pb2.AuthParseRequest(
                        provider=provider,
                        path=path,
                        file_name=source.rpartition("/")[2],
                        raw_json=seal(
                            sealing_key(plugin_key(self._roots[0], hook.plugin_id)),
                            hook.plugin_id,
                            credential_id(source),
                            0,
                            (),
                            self._clock.now() + _SEALED_FOR,
                            {"document": text},
                        ),
                    ),
                )
                if not answer.handled:
                    continue
                messages = answer.auths or ([answer.auth] if answer.HasField("auth") else [])
                auths = opened(messages, hook.plugin_id, self._roots, self._clock.now())
            except PatchbayError as error:
                if isinstance(error, Unimplemented):
                    continue  # it reads no documents
                problem = f"plugin {hook.plugin_id} does not read it: {error.message}"
                _log.warning("an auth file is not read by its plugin", file=source, why=problem)
                return Parsed(problem=problem), problem
            return Parsed(hook.plugin_id, provider, auths), ""
        return Parsed(), ""


def _candidates(type_: str, plugins: list[AuthPlugin]) -> list[AuthPlugin]:
    """Return whom a file of *type_* is offered to: the first that knows the type, or all without one."""
    ready = [plugin for plugin in plugins if plugin.registered]
    if not type_:
        return ready
    aliases = {type_, "gemini"} if type_ == "gemini-cli" else {type_}
    return [plugin for plugin in ready if plugin.identifier in aliases][:1]


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True))


def _parsing(hook: Hook) -> Hook:
    """Return the step with the deadline of reading a document, a tenth of a refresh's."""
    row = policy(_PARSE, hook.entry.timeouts, hook.entry.failure_policies)
    return type(hook)(hook.plugin_id, hook.capability, hook.entry, row)
