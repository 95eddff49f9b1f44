"""
Placing attempts: choose, have Redis check the choice, choose again where the pool was not as thought.

A choice is made on this scheduler's view; the script that leases checks it again. What it refuses it
explains, the view learns it, and the next choice is another one or a refusal with its reason. So attempts
that arrive together for the last place of a credential, or for its probe, get it once.

Not here: choosing (selection.py), the call (booking.py), messages (service.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from patchbay.errors import PatchbayError, Unavailable
from patchbay_gateway.scheduler.alone import PROBING, Refused
from patchbay_gateway.scheduler.leases import Check
from patchbay_gateway.scheduler.selection import CHOICE_GONE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.booking import LeaseBook
    from patchbay_gateway.scheduler.grants import Grant, Grants
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.selection import Candidate, Selector

# Seconds for reading material of which another scheduler told.
_READ: Final = 1.0
# Choices per attempt. Each one that fails teaches the view, so more only help while the pool changes faster.
_TURNS: Final = 8


class Wish(msgspec.Struct):
    """One attempt that wants a credential; the fields are those of `Selector.pick`."""

    uid: str
    snapshot: Snapshot
    model: str
    providers: tuple[str, ...]
    exclude: Sequence[str] = ()
    tried: Sequence[tuple[str, str]] = ()
    prefer: str = ""
    pinned: str = ""
    round: int = 0
    sticky: str | None = None
    chosen: str = ""
    """Credential that a plugin chose (picking.py)."""
    strategy: str = ""
    """Built-in strategy that a plugin wants."""


class Placed(msgspec.Struct, eq=False):
    """A lease of one's own."""

    grant: Grant
    probe: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """The lease that the attempt had already."""

    value: str


class _Turn:
    """The choices that share one call."""

    __slots__ = ("checks", "chosen", "leases", "planned", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.leases: list[tuple[str, str]] = []
        self.checks: dict[int, Check] = {}
        self.chosen: list[tuple[int, Grant]] = []
        self.planned: list[str] = []
        """Credentials with a cap, once per place that was chosen."""


class Placing:
    """
    Places attempts.

    Args:
        selector: Chooses.
        grants: Makes leases.
        book: Takes them.
        view: What is known of the pool.
        clock: Time.
        read: Reads the durable record of a credential anew; None: there are none.
    """

    def __init__(
        self,
        *,
        selector: Selector,
        grants: Grants,
        book: LeaseBook,
        view: HealthView,
        clock: Clock,
        read: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        self._read = read
        self._selector = selector
        self._grants = grants
        self._book = book
        self._view = view
        self._clock = clock

    async def place(self, wishes: Sequence[Wish]) -> list[Placed | Standing | PatchbayError]:
        """
        Return for each wish its lease or why it gets none.

        Raises:
            ResourceExhausted: Too many wait; nothing was leased.
            Unavailable: This scheduler is shutting down.
        """
        self._book.admit()
        results: list[Placed | Standing | PatchbayError | None] = [None] * len(wishes)
        left: Sequence[int] = range(len(wishes))
        for _ in range(_TURNS):
            turn = self._choose(wishes, left, results)
            if not turn.leases:
                break
            try:
                taken = await self._book.take(turn.leases, turn.checks, turn.version)
            finally:
                for credential_id in turn.planned:
                    self._view.planned(credential_id)
            again: list[int] = []
            outdated: list[tuple[Wish, Grant]] = []
            for (index, grant), answer in zip(turn.chosen, taken, strict=True):
                if answer is None:
                    results[index] = Placed(grant)
                elif answer is PROBING:
                    results[index] = Placed(grant, probe=True)
                elif isinstance(answer, Refused):
                    again.append(index)
                    if answer.why == "OUTDATED":
                        outdated.append((wishes[index], grant))
                    continue
                elif isinstance(answer, str):
                    results[index] = Standing(answer)
                    continue
                credential = grant.candidate.credential
                if credential.max_in_flight:
                    self._view.hold(credential.id, wishes[index].uid)
            if outdated:
                await self._catch_up(outdated)
            left = again
            if not left:
                break
        for index in left:
            results[index] = results[index] or _restless()
        return results  # type: ignore[return-value] # every one is filled by now

    async def _catch_up(self, outdated: Sequence[tuple[Wish, Grant]]) -> None:
        """Read newer material that is on its way here; attempts that it does not reach do without it."""
        for id_ in dict.fromkeys(grant.candidate.credential.id for _, grant in outdated):
            if self._read is not None:
                with contextlib.suppress(PatchbayError, TimeoutError):
                    async with asyncio.timeout(_READ):
                        await self._read(id_)
        now = self._clock.now()
        for wish, grant in outdated:
            newest = self._grants.of(wish.snapshot, grant.candidate, now)
            if newest.lease.credential_version <= grant.lease.credential_version:
                wish.exclude = [*wish.exclude, grant.candidate.credential.id]

    def _choose(
        self,
        wishes: Sequence[Wish],
        indices: Sequence[int],
        results: list[Placed | Standing | PatchbayError | None],
    ) -> _Turn:
        view, now = self._view, self._clock.now()
        turn = _Turn(view.version)
        pick, grant_of = self._selector.pick, self._grants.of
        touches, outdated = view.touches, view.outdated
        for index in indices:
            wish = wishes[index]
            try:
                if wish.chosen:
                    candidate = self._chosen(wish, now)
                else:
                    candidate = pick(
                        wish.snapshot,
                        wish.model,
                        wish.providers,
                        exclude=wish.exclude,
                        tried=wish.tried,
                        prefer=wish.prefer,
                        pinned=wish.pinned,
                        sticky=wish.sticky,
                        round=wish.round,
                        now=now,
                        strategy=wish.strategy,
                    )
            except PatchbayError as error:
                results[index] = error
                continue
            credential = candidate.credential
            grant = grant_of(wish.snapshot, candidate, now)
            if (
                credential.max_in_flight
                or touches(credential.id)
                or outdated(credential.id, grant.lease.credential_version)
            ):
                turn.checks[len(turn.leases)] = Check(credential.max_in_flight)
            if credential.max_in_flight:
                view.plan(credential.id)
                turn.planned.append(credential.id)
            turn.leases.append((wish.uid, grant.value))
            turn.chosen.append((index, grant))
        return turn

    def _chosen(self, wish: Wish, now: float) -> Candidate:
        if wish.chosen in wish.exclude:
            raise Unavailable("the credential that was chosen is outdated", reason=CHOICE_GONE)
        return self._selector.one(
            wish.snapshot, wish.model, wish.providers, wish.chosen, tried=wish.tried, now=now
        )


def _restless() -> PatchbayError:
    return Unavailable(
        "the pool changes faster than a credential can be chosen; try again",
        reason="POOL_RESTLESS",
        retry_after=0.1,
    )
