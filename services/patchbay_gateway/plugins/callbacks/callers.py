"""
Who calls back, by the key of its channel, and in which scope.

The message and the metadata say what they like: a caller is the plugin whose channel key made the token, it
is granted what the current snapshot says, and a scope counts only for the plugin that it was opened for. A
token that no known key made has the keys fetched anew, seldom. Not here: what is then done (the host services
of edge and scheduler).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.tokens import PLUGIN_KEY, SCOPE_KEY, HostAuthenticator
from patchbay_gateway.plugins.grants import Grants, grants_of
from patchbay_gateway.plugins.scopes import SCOPE_ENDED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from patchbay_gateway.kernel.channels.port import CallContext
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.scopes import LiveScope, ScopeTable
    from patchbay_gateway.plugins.snapshot import PluginEntry

    ChannelKeys = Callable[[str], Awaitable[Sequence[bytes]]]
    """Plugin id to its channel keys, any generation; may raise PatchbayError."""

ACCESS_DENIED: Final = "HOST_ACCESS_DENIED"
"""Reason of a PermissionDenied: the declaration grants no such call."""

# Seconds between two looks for the keys of one plugin: a stranger must not make us ask all the time.
_AGAIN: Final = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """One callback's origin."""

    plugin_id: str
    entry: PluginEntry
    grants: Grants
    scope: LiveScope | None
    """None outside of any call of the host."""

    @property
    def request_id(self) -> str:
        """Id of the execution that the scope belongs to; empty without one."""
        if self.scope is None or self.scope.execution is None:
            return ""
        return self.scope.execution.request_id

    def need(self, granted: bool, what: str, key: str) -> None:
        """
        Refuse what is not granted.

        Args:
            granted: Whether it is.
            what: Of a sentence: "plugin x may not …".
            key: Of the declaration's `host_access`.

        Raises:
            PermissionDenied: HOST_ACCESS_DENIED.
        """
        if not granted:
            raise errors.PermissionDenied(
                f"plugin {self.plugin_id} may not {what}: its declaration grants no "
                f"host_access.{key}",
                reason=ACCESS_DENIED,
            )


@dataclass(slots=True)
class _Look:
    """The looks for one plugin's keys: one at a time."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: int = 0
    """Looks that came to an end, whatever it was."""
    found: float = float("-inf")
    """When keys were found last, by the timer."""
    failure: errors.PatchbayError | None = None
    """What the last look ended with."""


class Callers:
    """
    Tells who calls.

    Args:
        holder: The snapshot that grants.
        keys: Where channel keys come from.
        scopes: Those of this process.
        now: Unix seconds.
        timer: Monotonic seconds.
    """

    def __init__(
        self,
        holder: SnapshotHolder,
        *,
        keys: ChannelKeys,
        scopes: ScopeTable,
        now: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holder = holder
        self._fetch = keys
        self._scopes = scopes
        self._timer = timer
        self._keys: dict[str, tuple[bytes, ...]] = {}
        self._looks: dict[str, _Look] = {}
        self._authenticator = HostAuthenticator(lambda id_: self._keys.get(id_, ()), now=now)

    async def identify(self, context: CallContext) -> Caller:
        """
        Return who makes a call.

        Raises:
            Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED.
            FailedPrecondition: SCOPE_ENDED.
            Unavailable: Keys cannot be had, or there is no configuration yet.
        """
        snapshot = self._holder.current
        if snapshot is None:
            raise errors.Unavailable(
                "the gateway has no configuration yet", reason="NOT_READY", retry_after=1
            )
        metadata = context.invocation_metadata() or ()
        named = dict(metadata)
        plugin_id = str(named.get(PLUGIN_KEY, ""))
        entry = snapshot.plugin_by_id.get(plugin_id)
        if entry is None:
            raise errors.Unauthenticated(
                "no plugin of this installation has this id", reason="TOKEN_INVALID"
            )
        try:
            self._authenticator(plugin_id, metadata)
        except errors.Unauthenticated as error:
            if error.reason != "TOKEN_INVALID" or not await self._look_again(plugin_id):
                raise
            self._authenticator(plugin_id, metadata)
        scope = None
        if scope_id := str(named.get(SCOPE_KEY, "")):
            scope = self._scopes.find(scope_id, plugin_id)
        return Caller(plugin_id, entry, grants_of(entry), scope)

    async def _look_again(self, plugin_id: str) -> bool:
        """
        Fetch the keys of a plugin unless that was done a moment ago; return whether they are others now.

        Who comes while they are fetched waits for them: a plugin's first callbacks often come together.
        """
        before = self._keys.get(plugin_id)
        look = self._looks.setdefault(plugin_id, _Look())
        ended = look.ended
        async with look.lock:
            if look.ended == ended and self._timer() - look.found >= _AGAIN:
                # One that is cancelled here has not looked, and the next one does.
                try:
                    self._keys[plugin_id] = tuple(await self._fetch(plugin_id))
                except errors.PatchbayError as error:
                    look.ended, look.failure = look.ended + 1, error.with_traceback(None)
                else:
                    look.ended, look.failure, look.found = look.ended + 1, None, self._timer()
            if look.failure is not None:
                failure = look.failure
                raise errors.Unavailable(
                    failure.message, reason=failure.reason, retry_after=failure.retry_after
                )
        return self._keys.get(plugin_id) != before


@contextlib.contextmanager
def within(scope: LiveScope | None) -> Iterator[None]:
    """
    Let the body, a part of one task, end with *scope*.

    Raises:
        FailedPrecondition: SCOPE_ENDED, it ended meanwhile.
    """
    if scope is None:
        yield
        return
    task = asyncio.current_task()
    assert task is not None
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True
        task.cancel()

    forget = scope.bind(end)
    try:
        yield
    except asyncio.CancelledError:
        if not ended or task.uncancel():
            raise
        raise errors.FailedPrecondition(
            "the call that this callback belongs to is over", reason=SCOPE_ENDED
        ) from None
    finally:
        forget()
