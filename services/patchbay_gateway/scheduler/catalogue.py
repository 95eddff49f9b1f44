"""
The catalogue: which public models can be served now, and by whom.

A model is listed while at least one credential serves it and its material is here. Worked out once per
snapshot and set of material. Not here: the shapes that clients see (edge/routes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.scheduler.eligibility import Verdict, judged

if TYPE_CHECKING:
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials

_KEPT: Final = 4


class Catalogue:
    """Model lists of the last snapshots."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lists: dict[tuple[int, int], tuple[tuple[str, tuple[str, ...]], ...]] = {}

    def models(self, snapshot: Snapshot) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return (public name, names of the providers that serve it), ordered by name."""
        key = (snapshot.version, self._credentials.generation)
        found = self._lists.get(key)
        if found is None:
            while len(self._lists) >= _KEPT:
                del self._lists[next(iter(self._lists))]
            found = self._lists[key] = tuple(self._work_out(snapshot))
        return found

    def _work_out(self, snapshot: Snapshot) -> list[tuple[str, tuple[str, ...]]]:
        models = []
        for name in sorted(snapshot.targets):
            providers = dict.fromkeys(
                provider.name
                for provider, _, credential, verdict in judged(snapshot, name)
                if verdict is Verdict.SERVES and self._credentials.usable(provider, credential)
            )
            if providers:
                models.append((name, tuple(providers)))
        return models
