"""What every mapping of the configuration has in common. Not here: any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterable


class Section(BaseModel):
    """Unknown keys are errors; nothing changes after loading; no value is ever in a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def exactly_one(model: BaseModel, names: Iterable[str], *, optional: bool = False) -> None:
    """Raise ValueError unless one of the fields *names* is set."""
    names = tuple(names)
    given = [n for n in names if getattr(model, n) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
    if not given and not optional:
        raise ValueError(f"needs one of {', '.join(names)}")
