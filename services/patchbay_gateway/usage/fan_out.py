"""
From the ledger to usage plugins: each final row, at least once, in the ledger's order.

One task a plugin offers it what waits in its queue. A plugin that does not answer is left alone for a while,
and everything waits; a row that it refuses waits alone, and the others go on. The ledger never waits: rows
are read and taken off the queue apart from its own work. Of several usage services on one database the first
by name offers, so that a row is not told twice as a rule; the attempt's uid tells it when it is.

Any plugin that may have the capability is queued for until its handshake says that it has not: so nothing is
missed that happens before it.

Not here: the queue (deliveries.py), the message's way (plugins/usage_plugin.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from patchbay.errors import PatchbayError, Unavailable
from patchbay.plugin.v1 import usage_plugin_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels.port import DRAINING, OF_THE_WAY
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.plugins.calls import PLUGIN_UNAVAILABLE
from patchbay_gateway.plugins.usage_plugin import CAPABILITY, handle_usage, may_listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook, Hooks
    from patchbay_gateway.plugins.registry import PluginRegistry
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.usage.deliveries import Deliveries, Delivery
    from patchbay_gateway.usage.reduce import Row

BATCH: Final = 64
"""Rows read, and taken off, at once."""
_POLL: Final = 1.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 60.0
# A row that a plugin refuses is offered again after a second, then twice as long, at most this long.
_LONGEST_WAIT: Final = 600.0

_NO_ANSWER: Final = OF_THE_WAY | {PLUGIN_UNAVAILABLE, DRAINING}

_log = logs.get_logger("usage.plugins")


class Snapshots(Protocol):
    """The part of a snapshot holder that is used here."""

    @property
    def current(self) -> Snapshot | None:
        """The newest one."""

    def on_change(self, callback: Callable[[Snapshot], None]) -> Callable[[], None]:
        """Call *callback* with each new one; the returned function ends that."""
        ...


class FanOut:
    """
    Offers rows to plugins.

    Args:
        deliveries: What waits.
        registry: Where plugins are; follows the snapshot by itself.
        hooks: Who takes part.
        calls: Calls them.
        snapshots: The configuration.
        leads: Whether this process is the one that offers.
        clock: Time.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        *,
        registry: PluginRegistry,
        hooks: Hooks,
        calls: PluginCalls,
        snapshots: Snapshots,
        leads: Callable[[], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        self._deliveries = deliveries
        self._registry = registry
        self._hooks = hooks
        self._calls = calls
        self._snapshots = snapshots
        self._leads = leads
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._news: dict[str, asyncio.Event] = {}

    async def run(self) -> None:
        """Offer until cancelled."""
        # At once: what becomes final before a new plugin is queued for is not told to it.
        forget = self._snapshots.on_change(lambda _: self._deliveries.news.set())
        try:
            while True:
                with contextlib.suppress(Unavailable):
                    await self._follow()
                await self._wait(self._deliveries.news, _POLL)
                self._deliveries.news.clear()
                for news in self._news.values():
                    news.set()
        finally:
            forget()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def queue(self) -> set[str] | None:
        """
        Queue from now on for those who may listen; return their ids, None before the first snapshot.

        Raises:
            Unavailable: The database is away.
        """
        snapshot = self._snapshots.current
        if snapshot is None:
            return None
        wanted = {p.id for p in snapshot.plugins if may_listen(p) and self._may(p.id)}
        await self._deliveries.follow(wanted)
        return wanted

    async def _follow(self) -> None:
        """Queue for those who may listen, and have a task for each."""
        wanted = await self.queue()
        if wanted is None:
            return
        offering = wanted if wanted and await self._leads() else set()
        for plugin_id in [p for p in self._tasks if p not in offering]:
            del self._news[plugin_id]
            self._tasks.pop(plugin_id).cancel()
        for plugin_id in offering:
            task = self._tasks.get(plugin_id)
            if task is None or task.done():
                self._news[plugin_id] = asyncio.Event()
                self._tasks[plugin_id] = asyncio.create_task(
                    self._offer(plugin_id, self._news[plugin_id]), name=f"usage to {plugin_id}"
                )

    def _may(self, plugin_id: str) -> bool:
        declared = self._registry.declared(plugin_id)
        return not declared or CAPABILITY in declared

    async def _offer(self, plugin_id: str, news: asyncio.Event) -> None:
        """Offer to one plugin what waits for it, for ever."""
        pause = 0.0
        while True:
            hook = self._hook(plugin_id)
            answered, full = True, False
            if hook is not None:
                try:
                    answered, full = await self._batch(hook)
                except Unavailable as error:
                    _log.warning("rows wait for the ledger's database", why=error.message)
                    answered = False
            if answered:
                pause = 0.0
            else:
                pause = min(max(pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
                await self._clock.sleep(pause)
            if full and answered:
                continue
            await self._wait(news, _POLL)
            news.clear()

    def _hook(self, plugin_id: str) -> Hook | None:
        snapshot = self._snapshots.current
        hooks = self._hooks.of(snapshot, CAPABILITY) if snapshot is not None else ()
        return next((hook for hook in hooks if hook.plugin_id == plugin_id), None)

    async def _batch(self, hook: Hook) -> tuple[bool, bool]:
        """Offer what is due; return whether the plugin answers, and whether there is more."""
        now = int(self._clock.now() * 1e6)
        due = await self._deliveries.due(hook.plugin_id, now, BATCH)
        taken: list[Delivery] = []
        refused: list[tuple[Delivery, int]] = []
        answered = True
        try:
            for delivery in due:
                try:
                    await handle_usage(self._calls, hook, record_of(delivery.row, self._kind))
                except PatchbayError as error:
                    _tell(hook, delivery, error)
                    if error.reason in _NO_ANSWER:
                        answered = False
                        break
                    wait = min(2.0**delivery.tries, _LONGEST_WAIT)
                    refused.append((delivery, int((self._clock.now() + wait) * 1e6)))
                else:
                    taken.append(delivery)
        except BaseException:
            # What was taken need not be told again. A database that is away must not hide that this ends.
            with contextlib.suppress(Unavailable):
                await asyncio.shield(self._deliveries.settle(hook.plugin_id, taken, refused))
            raise
        await asyncio.shield(self._deliveries.settle(hook.plugin_id, taken, refused))
        return answered, len(due) >= BATCH

    def _kind(self, credential_id: str) -> str:
        snapshot = self._snapshots.current
        entry = snapshot.credential_by_id.get(credential_id) if snapshot is not None else None
        return entry.kind if entry is not None else ""

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        await pause(self._clock, seconds, event)


def _tell(hook: Hook, delivery: Delivery, error: PatchbayError) -> None:
    if not delivery.tries:
        _log.warning(
            "a usage plugin did not take a row; it is offered again",
            plugin=hook.plugin_id,
            attempt=delivery.row.info[0],
            reason=error.reason,
            why=error.message,
        )


def record_of(row: Row, kind: Callable[[str], str]) -> usage_plugin_pb2.UsageRecord:
    """
    Return *row* as a plugin hears of it.

    Args:
        row: Final.
        kind: Credential id → `api_key`, `oauth2`, `none`, or empty where it is gone.
    """
    info = row.info
    failed = row.outcome != "succeeded"
    record = usage_plugin_pb2.UsageRecord(
        provider=info.provider or info.plugin_id,
        executor_type=info.plugin_id,
        model=info.upstream_model,
        alias=info.model if info.model != info.upstream_model else "",
        api_key=info.client_key,
        auth_id=info.credential_id,
        auth_index=(
            hashlib.sha256(info.credential_id.encode()).hexdigest()[:12]
            if info.credential_id
            else ""
        ),
        auth_type=kind(info.credential_id) if info.credential_id else "",
        failed=failed,
        attempt_uid=info.attempt_uid,
        request_id=info.request_uid,
        tenant=info.tenant,
        format=info.format,
        operation=info.operation,
        cost_nano=row.cost_nano,
        outcome=row.outcome,
    )
    record.requested_at.FromMicroseconds(info.opened_at)
    record.latency.FromMicroseconds(max(0, row.latency or 0))
    if row.first_byte is not None:
        record.ttft.FromMicroseconds(row.first_byte)
    if failed:
        record.failure.status_code = row.http_status
        record.failure.body = row.reason
    usage = row.usage
    if usage is not None:
        record.detail.estimated = usage.estimated
        for unit in _UNITS:
            quantity = getattr(usage, unit)
            if quantity is not None:
                record.detail.items.add(unit=unit, quantity=quantity)
        for unit, quantity in usage.other:
            record.detail.items.add(unit=unit, quantity=quantity)
    return record


_UNITS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "reasoning_tokens",
)
