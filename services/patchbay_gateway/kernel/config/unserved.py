"""
Keys of the model that this release accepts and does nothing with: the one list of them.

They are accepted so that a file written for a later release loads. Whoever sets one is told: by
`config check`, in the log of a starting service, on docs/configuration.md. Not here: the keys (model.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from patchbay_gateway.kernel.config.model import Config

UNSERVED: Final[frozenset[str]] = frozenset()
"""Path of each key, `[]` behind a list; its default is what this release does."""


def unserved(config: Config, keys: Collection[str] = UNSERVED) -> tuple[str, ...]:
    """Return the paths, as `plugins.0.match`, of unserved *keys* that *config* sets to another value."""
    return tuple(_used(config, "", "", keys)) if keys else ()


def _used(model: BaseModel, path: str, shape: str, keys: Collection[str]) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        here, kind = f"{path}{name}", f"{shape}{name}"
        if kind in keys:
            if value != field.get_default(call_default_factory=True):
                yield here
        elif isinstance(value, BaseModel):
            yield from _used(value, f"{here}.", f"{kind}.", keys)
        elif isinstance(value, tuple):
            for index, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _used(entry, f"{here}.{index}.", f"{kind}[].", keys)
