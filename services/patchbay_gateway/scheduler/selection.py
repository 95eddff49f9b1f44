"""
Selection of a credential: round-robin over the best priority that has one left.

The candidates of a public name and a set of providers are worked out once per snapshot and kept; a pick is
then a look-up and a step of a cursor. Cursors outlive the snapshot, so that a change of configuration does
not begin every rotation anew. Candidates of one priority rotate over all their providers, ordered by
provider, credential and model.

Pure but for the cursors: no I/O, no clock, no awaits. Hot: once per attempt. Not here: what a credential may
serve (eligibility.py).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay.errors import NotFound, PatchbayError, Unavailable
from patchbay_gateway.scheduler.eligibility import Verdict, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from patchbay_gateway.plugins.snapshot import CredentialEntry, ProviderEntry, Snapshot

# Rings of one snapshot and cursors over all; beyond it both begin anew. A ring is a few hundred bytes.
_RINGS: Final = 4096
# As many snapshots as requests may be pinned to (plugins/distribution.py).
_SNAPSHOTS: Final = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve an attempt."""

    provider: ProviderEntry
    credential: CredentialEntry
    upstream_model: str


@dataclass(slots=True)
class _Ring:
    """The candidates of one priority and where the rotation stands."""

    candidates: tuple[Candidate, ...]
    cursor: int = 0


_Key = tuple[str, tuple[str, ...]]


class Selector:
    """
    Picks credentials.

    Args:
        usable: Whether a credential can be used by this scheduler now; asked for each candidate in turn.
    """

    def __init__(self, usable: Callable[[ProviderEntry, CredentialEntry], bool]) -> None:
        self._usable = usable
        self._rings: dict[int, dict[_Key, tuple[_Ring, ...]]] = {}

    def pick(
        self,
        snapshot: Snapshot,
        model: str,
        providers: tuple[str, ...],
        *,
        exclude: Collection[str] = (),
        pinned: str = "",
    ) -> Candidate:
        """
        Return the next candidate.

        Args:
            snapshot: What the request is pinned to.
            model: Public name.
            providers: Names of the providers allowed.
            exclude: Ids of credentials not to use.
            pinned: The only id allowed; empty means any.

        Raises:
            NotFound: MODEL_NOT_FOUND, no such model in the snapshot.
            Unavailable: Nothing is eligible; the reason is that of the last obstacle.
        """
        key = (model, providers)
        rings = self._rings.get(snapshot.version, {}).get(key)
        if rings is None:
            rings = self._build(snapshot, key)
        for ring in rings:
            candidates = ring.candidates
            count = len(candidates)
            for step in range(ring.cursor, ring.cursor + count):
                candidate = candidates[step % count]
                credential = candidate.credential
                if exclude and credential.id in exclude:
                    continue
                if pinned and credential.id != pinned:
                    continue
                if not self._usable(candidate.provider, credential):
                    continue
                ring.cursor = (step + 1) % count
                return candidate
        raise self._nothing(snapshot, key, exclude, pinned)

    def _build(self, snapshot: Snapshot, key: _Key) -> tuple[_Ring, ...]:
        model, providers = key
        if model not in snapshot.targets:
            # Not kept: clients invent names without end.
            raise NotFound(f"no model {model!r} in the configuration", reason="MODEL_NOT_FOUND")
        found = [
            Candidate(provider, credential, target.model)
            for provider, target, credential, verdict in judged(snapshot, model)
            if verdict is Verdict.SERVES and provider.name in providers
        ]
        found.sort(
            key=lambda c: (
                -c.credential.priority,
                c.provider.name,
                c.credential.id,
                c.upstream_model,
            )
        )
        cursors = self._cursors(key)
        rings = []
        for priority, tier in itertools.groupby(found, key=lambda c: c.credential.priority):
            candidates = tuple(tier)
            rings.append(_Ring(candidates, cursors.get(priority, 0) % len(candidates)))
        kept = self._rings.setdefault(snapshot.version, {})
        while len(self._rings) > _SNAPSHOTS:
            del self._rings[min(self._rings)]
        if len(kept) >= _RINGS:
            kept.clear()
        result = tuple(rings)
        kept[key] = result
        return result

    def _cursors(self, key: _Key) -> dict[int, int]:
        """Return where the rotation of each priority stands in the newest snapshot that has it."""
        for version in sorted(self._rings, reverse=True):
            if key in self._rings[version]:
                rings = self._rings[version][key]
                return {ring.candidates[0].credential.priority: ring.cursor for ring in rings}
        return {}

    def _nothing(
        self, snapshot: Snapshot, key: _Key, exclude: Collection[str], pinned: str
    ) -> PatchbayError:
        """Say why nothing is eligible; off the hot path."""
        model, providers = key
        verdicts = [
            (credential.id, verdict)
            for provider, _, credential, verdict in judged(snapshot, model)
            if provider.name in providers and (not pinned or credential.id == pinned)
        ]
        serving = [id_ for id_, verdict in verdicts if verdict is Verdict.SERVES]
        if serving and all(id_ in exclude for id_ in serving):
            return Unavailable(
                f"every credential for {model!r} was tried", reason="CREDENTIALS_TRIED"
            )
        if serving:
            return Unavailable(
                f"the credentials for {model!r} have no usable key here; the log says why",
                reason="CREDENTIAL_MATERIAL_MISSING",
                retry_after=1.0,
            )
        if pinned:
            return Unavailable(
                f"the credential asked for cannot serve {model!r}", reason="PINNED_NOT_ELIGIBLE"
            )
        states = sorted({verdict.value for _, verdict in verdicts})
        why = f" ({', '.join(states)})" if states else ""
        return Unavailable(f"no credential serves {model!r}{why}", reason="NO_CREDENTIAL")
