"""
Model lists for clients: what this key may use, in the dialect's shape.

Not here: which list a client wants (routes/router.py), how a shape looks (dialects/).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from patchbay.errors import NotFound, PatchbayError
from patchbay_gateway.edge import knowing
from patchbay_gateway.edge.dialects.port import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.edge.auth import Authenticator, Client
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.exchange import Head
    from patchbay_gateway.edge.steps import PluginSteps
    from patchbay_gateway.plugins.snapshot import ProviderEntry, Snapshot

# Of a name that a client asked for, so many characters are told back.
_MAX_SHOWN: Final = 200


class ModelLists:
    """
    Answers `GET …/models[/{id}]`.

    Args:
        snapshot: The current one.
        authenticator: Who asks.
        plugins: Who else knows clients; None: nobody.
        refused: Told of a request whose client nobody knows.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        authenticator: Authenticator,
        plugins: PluginSteps | None = None,
        refused: Callable[[PatchbayError], None] | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._authenticator = authenticator
        self._plugins = plugins
        self._refused = refused

    async def answer(self, dialect: Dialect, head: Head, model: str | None) -> bytes:
        """
        Return the list, or *model* alone, as JSON.

        Raises:
            Unauthenticated: No key, or an unknown one.
            PermissionDenied: Open access was asked for in a way it does not answer.
            Unavailable: FRONTEND_AUTH_UNAVAILABLE.
            NotFound: reason MODEL_NOT_FOUND; also for a model that the key may not use.
        """
        snapshot = self._snapshot()
        try:
            if self._plugins is None:
                client = self._authenticator.authenticate(head, snapshot)
            else:
                client = await knowing.reader(head, snapshot, self._authenticator, self._plugins)
        except PatchbayError as error:
            if self._refused is not None:
                self._refused(error)
            raise
        if model is None:
            return dialect.model_list(cards(snapshot, client))
        name = model.removeprefix("models/")
        for card in cards(snapshot, client):
            if card.id == name:
                return dialect.model_detail(card)
        raise NotFound(f"the model {name[:_MAX_SHOWN]!r} does not exist", reason="MODEL_NOT_FOUND")


def cards(snapshot: Snapshot, client: Client) -> list[ModelCard]:
    """Return the models that *client* may use, by name, with at least one credential left for them."""
    found = []
    for name, targets in sorted(snapshot.targets.items()):
        if not client.allows(name):
            continue
        for target in targets:
            provider = snapshot.provider_by_name.get(target.provider)
            if provider is not None and _served(provider, name):
                found.append(ModelCard(id=name, owned_by=provider.name))
                break
    return found


def _served(provider: ProviderEntry, name: str) -> bool:
    # A provider without any credential entry asks for none.
    return not provider.credentials or any(
        not c.disabled and not any(fnmatchcase(name, glob) for glob in c.excluded_models)
        for c in provider.credentials
    )
