"""
The pool's state in Redis, and this scheduler's view of it: kept current, and brought back after an outage.

Changes come by the channel at once; each second the state is read from the last known version on, counters go
out and places are counted. Marks that were made while Redis was away are pushed when it is back; the later
window wins. Another epoch means that nothing is held against anybody (DESIGN: cooldowns are forgotten), but
what management took out of use comes back from the durable records.

Not here: the state's form (pool_scripts.py), the view (health.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.clock import pause
from patchbay_gateway.plugins.instances import list_instances
from patchbay_gateway.scheduler import marks as rules
from patchbay_gateway.scheduler.health import Change
from patchbay_gateway.scheduler.leases import EpochChanged, read_changes
from patchbay_gateway.scheduler.pool_scripts import CHANGE, SYNC
from patchbay_gateway.scheduler.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.kernel.redis import Store
    from patchbay_gateway.kernel.telemetry import Metrics
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.leases import RedisLeases
    from patchbay_gateway.scheduler.marks import End, Mark
    from patchbay_gateway.scheduler.tally import Counter

_log = logs.get_logger("scheduler.pool")

LOOK_EVERY: Final = 1.0
_PAGE: Final = 200
# Credentials whose places are counted in one look.
_COUNTED: Final = 512
_INSTANCES_EVERY: Final = 5
# Marks and changes that wait for Redis; beyond it the oldest are dropped, which costs a failed attempt each.
_WAITING: Final = 16_384


class Pool:
    """
    Keeps one view.

    Args:
        store: Redis.
        view: What is kept current.
        leases: Knows the epoch.
        clock: Time.
        metrics: Where the number of credentials that rest shows.
    """

    def __init__(
        self,
        store: Store,
        view: HealthView,
        leases: RedisLeases,
        *,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._view = view
        self._leases = leases
        self._clock = clock
        self.disabled: Callable[[], Iterable[str]] = tuple
        """Ids that the durable records say are out of use; asked after an epoch's change."""
        self._epoch = ""
        self._due = asyncio.Event()
        self.tally = Tally()
        self._made: dict[tuple[str, str], int] = {}
        self._orders: dict[tuple[str, str, str], list[str | int]] = {}
        self._schedulers = 1
        self._looks = 0
        self._lock = asyncio.Lock()
        self._cooling = metrics.gauge(
            "scheduler_credentials_cooling",
            "Credentials with a cooldown, for a model or as a whole.",
        )

    def alone(self, ends: Sequence[End]) -> None:
        """Redis did not settle *ends*: apply them here, and push what they changed when it is back."""
        now = int(self._clock.now() * 1000)
        for end in ends:
            for scope in self._view.settle(end):
                self._made[(end.credential_id, scope)] = now
                if len(self._made) > _WAITING:
                    del self._made[next(iter(self._made))]

    # -- changes made on purpose ------------------------------------------------------------------

    async def reset(self, credential_id: str, upstream_model: str = "") -> None:
        """
        Forget what is held against a credential, or one model of it, for all schedulers.

        Raises:
            Unavailable: Redis is away; it is forgotten here, and everywhere when it is back.
        """
        if not upstream_model:
            self.tally.forget_error(credential_id)
        await self._order("reset", credential_id, upstream_model)

    async def switch(self, credential_id: str, *, off: bool) -> None:
        """
        Take a credential out of use or back, for all schedulers. Not durable.

        Raises:
            Unavailable: Redis is away; it is done here, and everywhere when it is back.
        """
        await self._order("off" if off else "on", credential_id)

    async def renewed(self, credential_id: str, version: int, *, replaced: bool = False) -> None:
        """
        A newer version of the material is there: what it lifts is lifted, and no older one is leased.

        Args:
            credential_id: Whose.
            version: The newest.
            replaced: It is other material, perhaps of another account: nothing is held against it.

        Raises:
            Unavailable: As `switch`.
        """
        await self._order("version", credential_id, version, "all" if replaced else "")

    def want_renewed(self, credential_id: str, version: int, *, replaced: bool = False) -> None:
        """As `renewed`: here at once, for the others with the next look."""
        order: list[str | int] = ["version", credential_id, version, "all" if replaced else ""]
        self._wait(order)
        self._here(order)
        self._due.set()

    def want_switched(self, credential_id: str, *, off: bool) -> None:
        """As `switch`, with the next look."""
        waiting = self._orders.get(("switch", credential_id, ""))
        will_be = waiting[0] == "off" if waiting is not None else self._view.disabled(credential_id)
        if will_be != off:
            self._wait(["off" if off else "on", credential_id])
            self._due.set()

    def _wait(self, order: list[str | int]) -> None:
        self._orders[_name(order)] = order
        if len(self._orders) > _WAITING:
            del self._orders[next(iter(self._orders))]

    async def _order(self, *order: str | int) -> None:
        # What waits is older: it must not come after this.
        name = _name(order)
        self._orders.pop(name, None)
        try:
            await self._change(order)
        except (Unavailable, EpochChanged) as error:
            self._wait(list(order))
            self._here(order)
            raise Unavailable(
                "Redis is away: this scheduler knows, the others will when it is back",
                reason="REDIS_UNAVAILABLE",
            ) from error
        except asyncio.CancelledError:
            self._orders.setdefault(name, list(order))  # whether it was heard is unknown
            raise

    async def _change(self, order: Sequence[str | int]) -> None:
        reply = await self._store.script(
            CHANGE,
            [self._store.key("epoch")],
            [self._leases.epoch, self._store.prefix, *order, *[""] * (4 - len(order))],
        )
        if reply == -1:
            raise EpochChanged
        if reply:
            self._view.learn(read_changes(reply))

    def _here(self, order: Sequence[str | int]) -> None:
        """Do to the view alone what an order does to all."""
        what, id_ = order[0], str(order[1])
        if what in {"on", "off"}:
            self._view.learn([Change(0, "o", id_, "", b"1" if what == "off" else b"")])
            return
        lifted = []
        for scope, mark in self._view.marks(id_).items():
            if what == "reset":
                gone = not order[2] or order[2] == scope
            else:
                gone = mark.version < int(order[2]) and bool(order[3] or mark.lifted)
            if gone:
                lifted.append(Change(0, "m", id_, scope, b""))
                self._made.pop((id_, scope), None)
        self._view.learn(lifted)

    # -- keeping current --------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the pool until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(), name="pool-listen")
            group.create_task(self._look(), name="pool-look")

    async def _listen(self) -> None:
        channel = self._store.key("pool")
        async with contextlib.aclosing(self._store.subscribe(channel)) as messages:
            async for message in messages:
                if message is None:
                    self._due.set()
                    continue
                version, kind, id_, scope, value = msgspec.json.decode(message)
                if kind == "f":
                    self._view.count(id_, int(value))
                    continue
                self._view.learn([Change(int(version), kind, id_, scope, value.encode())])
                if self._view.behind:
                    self._due.set()

    async def _look(self) -> None:
        while True:
            self._due.clear()
            try:
                await self.sync()
            except EpochChanged:
                pass  # the keeper of the journal learns the new one and sets it
            except Unavailable:
                self._view.share = self._schedulers
                self._view.lost_at = self._clock.now()
            except PatchbayError as error:
                _log.error("the state of the pool cannot be read", why=error.message)
            self._cooling.set(self._view.cooling())
            await pause(self._clock, LOOK_EVERY, self._due)

    async def sync(self, count: Sequence[str] = ()) -> None:
        """
        Push what waits, and read what changed.

        Args:
            count: Ids of credentials whose places are counted, besides those in use here.

        Raises:
            Unavailable: Redis is away.
            EpochChanged: It was flushed just now.
        """
        async with self._lock:
            await self._settle_epoch()
            for name, order in list(self._orders.items()):
                if self._orders.get(name) is not order:
                    continue  # a newer one took its place meanwhile
                await self._change(order)
                if self._orders.get(name) is order:
                    del self._orders[name]
            await self._exchange(count)
            self._view.share = 0
            self._looks += 1
            if self._looks % _INSTANCES_EVERY == 1:
                found = await list_instances(self._store)
                self._schedulers = max(1, sum(i.kind == "scheduler" for i in found))

    async def _settle_epoch(self) -> None:
        epoch = self._leases.epoch
        if not epoch:
            raise EpochChanged
        if epoch == self._epoch:
            return
        if self._epoch:
            self._view.lost_at = self._clock.now()
            _log.warning("another Redis or a flushed one; cooldowns are forgotten")
        self._view.forget()
        self._epoch = epoch
        for id_ in self.disabled():
            self._wait(["off", id_])

    async def _exchange(self, count: Sequence[str]) -> None:
        made, self._made = self._made, {}
        counters: Mapping[str, Counter] = self.tally.take()
        pushes = [
            {"i": id_, "s": scope, "m": self._mark(id_, scope), "a": at}
            for (id_, scope), at in made.items()
        ]
        busy = list(dict.fromkeys([*count, *self._view.counted()[:_COUNTED]]))
        try:
            all_read = await self._read(pushes, counters, busy)
            self.tally.told()
            while not all_read:
                all_read = await self._read([], {}, [])
        except BaseException:
            self._made = made | self._made
            self.tally.give_back()
            raise

    def _mark(self, credential_id: str, scope: str) -> Mark | None:
        return self._view.marks(credential_id).get(scope)

    async def _read(
        self, pushes: list[dict[str, Any]], counters: Mapping[str, Counter], busy: list[str]
    ) -> bool:
        """Exchange once; return whether that was all."""
        known = self._view.version
        reply = await self._store.script(
            SYNC,
            [self._store.key("epoch")],
            [
                self._epoch,
                known,
                int(self._clock.now() * 1000),
                self._store.prefix,
                _PAGE,
                *(msgspec.json.encode(part) if part else "" for part in (pushes, counters, busy)),
            ],
        )
        if reply == -1:
            raise EpochChanged
        version, everything, states, places = reply
        if version < known:
            # A failover lost the newest changes; what is left was read from the beginning.
            self._view.forget()
        for at in range(0, len(states), 2):
            fields = dict(zip(states[at + 1][::2], states[at + 1][1::2], strict=True))
            found = {
                name[2:].decode(): rules.decode(value)
                for name, value in fields.items()
                if name.startswith(b"s:")
            }
            self._view.replace(
                states[at].decode(),
                found,
                off=b"off" in fields,
                version=version,
                material=int(fields.get(b"version", 0)),
            )
        self._view.read_up_to(version)
        if states:
            self._view.changed()
        for at in range(0, len(places), 2):
            self._view.count(places[at].decode(), places[at + 1])
        return bool(everything)


def _name(order: Sequence[str | int]) -> tuple[str, str, str]:
    """Return what an order is about: of two with one name the newer is enough."""
    what = "switch" if order[0] in {"on", "off"} else str(order[0])
    # What is held against one model is forgotten besides what is held against another, and a version that
    # lifts all is not the same as a newer one that lifts little.
    more = {"reset": 2, "version": 3}.get(what)
    return what, str(order[1]), "" if more is None else str(order[more])
