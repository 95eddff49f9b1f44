"""
Selection of a credential for one attempt.

The candidates of a public name at a set of providers are worked out once per snapshot and kept in a ring; a
choice is then a look-up and a step of the ring's strategy. Where rotations stand outlives the snapshot, so
that a change of configuration does not begin them anew. In order: the pinned credential or none; the one to
go on with (`prefer`); the one that the session is bound to (`sticky`), whatever its priority; else the next
of the best priority that has one ready. A route without one goes on to its fallbacks.

Pure but for the rotations: no I/O, no awaits. Hot: once per attempt. Not here: what a credential may serve
(eligibility.py), who is ready (ring.py), whose turn it is (strategies.py), sessions (affinity.py), which
refusal helps most (refusals.py).
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Final

from patchbay.errors import NotFound, PatchbayError, Unavailable
from patchbay_gateway.scheduler import strategies
from patchbay_gateway.scheduler.eligibility import Verdict, judged
from patchbay_gateway.scheduler.refusals import Cooling, Reason, explain
from patchbay_gateway.scheduler.ring import Candidate, Obstacle, PoolView, Ring

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot
    from patchbay_gateway.scheduler.health import Blocked

__all__ = ["Candidate", "Cooling", "PoolView", "Selector"]

# Credentials in the rings of one snapshot, about 300 bytes each; beyond it the rings begin anew.
_ENTRIES: Final = 262_144
# As many snapshots as requests may be pinned to (plugins/distribution.py).
_SNAPSHOTS: Final = 3
# Seconds that a refusal is told again while nothing changed: many are refused at once, and looking at a large
# pool for each would make it worse.
_REASON_HOLDS: Final = 0.5

CHOICE_GONE: Final = "CHOICE_GONE"
"""Reason: the credential that a plugin chose cannot be had any more."""

_Key = tuple[str, tuple[str, ...], str]
"""Public name, providers, strategy (empty: the configured one)."""


class _AllReady:
    """A view that holds nothing against anybody."""

    generation = 0

    def blocked(self, credential_id: str, upstream_model: str) -> Blocked | None:
        """Return None."""

    def in_flight(self, credential_id: str) -> int:
        """Return 0."""
        return 0


class _Rings:
    """What one snapshot's choices need."""

    __slots__ = ("candidates", "entries", "reasons", "rings")

    def __init__(self) -> None:
        self.rings: dict[_Key, Ring] = {}
        self.entries = 0
        self.reasons: dict[_Key, tuple[Reason, int, float]] = {}
        """The last refusal of each ring, with the view's generation and the time it was made at."""
        self.candidates: dict[tuple[str, str], Candidate] = {}
        """Shared by all rings: grants are kept by candidate (grants.py)."""


class Selector:
    """
    Picks credentials.

    Args:
        usable: Whether this scheduler has the material of a credential.
        view: What is held against credentials; the default holds nothing against anybody.
        now: Unix seconds, where a caller of `pick` does not say.
        unusable: Says why it has not: `no_material`, `expired`, `needs_login` or `disabled`.
    """

    def __init__(
        self,
        usable: Callable[[ProviderEntry, CredentialEntry], bool],
        view: PoolView | None = None,
        *,
        now: Callable[[], float] = time.time,
        unusable: Callable[[ProviderEntry, CredentialEntry], str] = lambda *_: "no_material",
    ) -> None:
        self._unusable = unusable
        self._usable = usable
        self._view: PoolView = view if view is not None else _AllReady()
        self._now = now
        self._snapshots: dict[int, _Rings] = {}

    def pick(
        self,
        snapshot: Snapshot,
        model: str,
        providers: tuple[str, ...],
        *,
        exclude: Collection[str] = (),
        tried: Collection[tuple[str, str]] = (),
        prefer: str = "",
        pinned: str = "",
        sticky: str | None = None,
        round: int = 0,  # noqa: A002 - its name in the contract
        now: float | None = None,
        strategy: str = "",
    ) -> Candidate:
        """
        Return the next candidate. The caller asks the view whether its attempt is a probe.

        Args:
            snapshot: What the request is pinned to.
            model: Public name.
            providers: Names of the providers allowed, those of the route's fallbacks included.
            exclude: Ids of credentials not to use.
            tried: (credential id, upstream model) pairs not to use.
            prefer: Id to go on with if it has a model left.
            pinned: The only id allowed; empty means any.
            sticky: Id that the session is bound to.
            round: Of the attempt loop; providers whose `retry.rounds` is smaller take no part.
            now: Unix seconds.
            strategy: Built-in strategy that chooses; empty means the configured one.

        Raises:
            NotFound: MODEL_NOT_FOUND, no such model in the snapshot.
            Cooling: MODEL_COOLDOWN, all that could serve rest.
            ResourceExhausted: CREDENTIALS_BUSY, all that are ready have as many attempts as they may have.
            Unavailable: NO_CREDENTIAL, CREDENTIALS_TRIED, PINNED_NOT_ELIGIBLE, CREDENTIAL_MATERIAL_MISSING.
        """
        if now is None:
            now = self._now()
        if round:
            providers = _of_round(snapshot, providers, round)
        if strategy == snapshot.settings.strategy:
            strategy = ""
        ring = self._ring(snapshot, (model, providers, strategy))
        if pinned:
            found = None if pinned in exclude else ring.one(pinned, now, tried)
        else:
            found = self._again(ring, (prefer, sticky), exclude, tried, now)
            if found is None:
                found = ring.pick(now, exclude=exclude, tried=tried)
        if found is not None:
            return found
        if not pinned:
            for name in snapshot.fallbacks.get(model, ()):
                found = self._ring(snapshot, (name, providers, strategy)).pick(
                    now, exclude=exclude, tried=tried
                )
                if found is not None:
                    return found
        raise self._refusal(snapshot, (model, providers, ""), exclude, tried, pinned, round, now)

    def ready(
        self,
        snapshot: Snapshot,
        model: str,
        providers: tuple[str, ...],
        *,
        exclude: Collection[str] = (),
        tried: Collection[tuple[str, str]] = (),
        round: int = 0,  # noqa: A002 - its name in the contract
        now: float,
    ) -> list[Candidate]:
        """
        Return what `pick` could return now, of the best priority alone, ordered by id of the credential.

        Raises:
            NotFound: MODEL_NOT_FOUND, no such model in the snapshot.
        """
        if round:
            providers = _of_round(snapshot, providers, round)
        for name in (model, *snapshot.fallbacks.get(model, ())):
            ring = self._ring(snapshot, (name, providers, ""))
            if found := ring.ready(now, exclude=exclude, tried=tried):
                return found
        return []

    def one(
        self,
        snapshot: Snapshot,
        model: str,
        providers: tuple[str, ...],
        credential_id: str,
        *,
        tried: Collection[tuple[str, str]] = (),
        now: float,
    ) -> Candidate:
        """
        Return a candidate of *credential_id*, which was found by `ready`.

        Raises:
            Unavailable: CHOICE_GONE, it is not ready any more.
        """
        for name in (model, *snapshot.fallbacks.get(model, ())):
            ring = self._ring(snapshot, (name, providers, ""))
            if (found := ring.one(credential_id, now, tried)) is not None:
                return found
        raise Unavailable("the credential that was chosen is taken", reason=CHOICE_GONE)

    @staticmethod
    def _again(
        ring: Ring,
        ids: tuple[str | None, ...],
        exclude: Collection[str],
        tried: Collection[tuple[str, str]],
        now: float,
    ) -> Candidate | None:
        for id_ in ids:
            if id_ and id_ not in exclude and (found := ring.one(id_, now, tried)) is not None:
                return found
        return None

    # -- rings ------------------------------------------------------------------------------------

    def _ring(self, snapshot: Snapshot, key: _Key) -> Ring:
        kept = self._snapshots.get(snapshot.version)
        ring = kept.rings.get(key) if kept is not None else None
        return ring if ring is not None else self._build(snapshot, key)

    def _build(self, snapshot: Snapshot, key: _Key) -> Ring:
        model, providers, strategy = key
        if model not in snapshot.targets:
            # Not kept: clients invent names without end.
            raise NotFound(f"no model {model!r} in the configuration", reason="MODEL_NOT_FOUND")
        kept = self._snapshots.get(snapshot.version)
        if kept is None:
            kept = self._snapshots[snapshot.version] = _Rings()
            while len(self._snapshots) > _SNAPSHOTS:
                del self._snapshots[min(self._snapshots)]
        strategy = strategy or snapshot.settings.strategy
        tiers = tuple(_tiers(snapshot, model, providers, strategy, kept.candidates))
        ring = Ring(tiers, strategy=strategy, view=self._view, usable=self._usable)
        before = self._newest(key)
        if before is not None:
            ring.resume(before.state())
        if kept.entries + len(ring) > _ENTRIES:
            kept.rings.clear()
            kept.reasons.clear()
            kept.candidates.clear()
            kept.entries = 0
        kept.rings[key] = ring
        kept.entries += len(ring) + 1
        return ring

    def _newest(self, key: _Key) -> Ring | None:
        """Return the ring of the newest snapshot that has one."""
        for version in sorted(self._snapshots, reverse=True):
            if (ring := self._snapshots[version].rings.get(key)) is not None:
                return ring
        return None

    # -- refusals, off the hot path ---------------------------------------------------------------

    def _refusal(
        self,
        snapshot: Snapshot,
        key: _Key,
        exclude: Collection[str],
        tried: Collection[tuple[str, str]],
        pinned: str,
        round_: int,
        now: float,
    ) -> PatchbayError:
        """Say why nothing can be had: of the name and of all that it falls back to."""
        model, providers, _ = key
        plain = not (exclude or tried or pinned or round_)
        known = self._snapshots.get(snapshot.version)
        generation = self._view.generation
        if plain and known is not None and (kept := known.reasons.get(key)) is not None:
            reason, seen, at = kept
            if seen == generation and 0 <= now - at < _REASON_HOLDS:
                return reason.error(now)
        found: dict[str, Obstacle | None] = {}
        for name in (model,) if pinned else (model, *snapshot.fallbacks.get(model, ())):
            found.update(self._ring(snapshot, (name, providers, "")).obstacles(now))
        if pinned:
            found = {id_: obstacle for id_, obstacle in found.items() if id_ == pinned}
        if not found:
            return self._nobody(snapshot, model, providers, pinned, round_)
        spent = {*exclude, *(id_ for id_, _ in tried)}
        reason = explain(
            model, found, found.keys() - spent, lambda id_: self._why_unusable(snapshot, id_)
        )
        if plain and known is not None:
            known.reasons[key] = (reason, generation, now)
        return reason.error(now)

    def _why_unusable(self, snapshot: Snapshot, credential_id: str) -> str:
        provider = snapshot.provider_of[credential_id]
        return self._unusable(provider, snapshot.credential_by_id[credential_id])

    @staticmethod
    def _nobody(
        snapshot: Snapshot, model: str, providers: tuple[str, ...], pinned: str, round_: int
    ) -> PatchbayError:
        if round_ and not providers:
            return Unavailable(
                f"no credential for {model!r} is tried in round {round_}",
                reason="CREDENTIALS_TRIED",
            )
        if pinned:
            return Unavailable(
                f"the credential asked for cannot serve {model!r}", reason="PINNED_NOT_ELIGIBLE"
            )
        states = {
            verdict.value
            for provider, _, _, verdict in judged(snapshot, model)
            if provider.name in providers and verdict is not Verdict.SERVES
        }
        if snapshot.settings.strategy == strategies.WEIGHTED:
            states.add("weight 0")
        why = f" ({', '.join(sorted(states))})" if states else ""
        return Unavailable(f"no credential serves {model!r}{why}", reason="NO_CREDENTIAL")


def _of_round(snapshot: Snapshot, providers: tuple[str, ...], round_: int) -> tuple[str, ...]:
    known = snapshot.provider_by_name
    return tuple(n for n in providers if n in known and known[n].retry.rounds >= round_)


def _tiers(
    snapshot: Snapshot,
    model: str,
    providers: tuple[str, ...],
    strategy: str,
    shared: dict[tuple[str, str], Candidate],
) -> Iterator[Sequence[Sequence[Candidate]]]:
    """Yield the credentials of each priority, best first, each with its candidates."""
    weighted = strategy == strategies.WEIGHTED
    pools: dict[str, list[Candidate]] = {}
    for provider, target, credential, verdict in judged(snapshot, model):
        if verdict is not Verdict.SERVES or provider.name not in providers:
            continue
        if weighted and credential.weight <= 0:
            continue
        name = credential.id, target.model
        candidate = shared.get(name)
        if candidate is None:
            candidate = shared[name] = Candidate(provider, credential, target.model)
        pools.setdefault(credential.id, []).append(candidate)
    place = {} if weighted else _order(snapshot, model, pools)

    def order(pool: list[Candidate]) -> tuple[int, int, str]:
        first = pool[0]
        return -first.credential.priority, place.get(first.provider.name, 0), first.credential.id

    ordered = sorted(pools.values(), key=order)
    for _, tier in itertools.groupby(ordered, key=lambda pool: pool[0].credential.priority):
        yield tuple(tier)


def _order(snapshot: Snapshot, model: str, pools: dict[str, list[Candidate]]) -> dict[str, int]:
    """
    Return provider name → its place.

    A route's are in the order of its targets; else the one with more credentials comes first, then by name.
    """
    if (route := snapshot.route_by_name.get(model)) is not None:
        names = list(dict.fromkeys(target.provider for target in route.targets))
    else:
        counts: dict[str, int] = {}
        for pool in pools.values():
            counts[pool[0].provider.name] = counts.get(pool[0].provider.name, 0) + 1
        names = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: index for index, name in enumerate(names)}
