"""ClientKey: a key that Patchbay gave to one of its clients, kept in a Secret."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from patchbay_operator.api.fields import Fields, Glob, Name, ObjectName, SecretKey, rules
from patchbay_operator.api.status import Status


class KeyRef(Fields):
    """One value of a Secret in the same namespace."""

    name: ObjectName
    """Name of the Secret."""
    key: SecretKey = "key"
    """Key in its data."""


class ClientKeySpec(Fields):
    """Whose key it is, and what it opens."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretRef) == has(oldSelf.secretRef)",
                "a key cannot change between one of yours and a generated one; create another ClientKey",
            )
        )
    )

    secret_ref: KeyRef | None = None
    """A key of yours; absent: one is made once, in the Secret that the status names."""
    models: Annotated[tuple[Glob, ...], Field(min_length=1, max_length=256)] = ("*",)
    """Globs over the model names that it may use."""
    tenant: Name = "default"
    """Whom its usage is counted for."""
    disabled: bool = False
    """Keeps it from opening anything."""


class ClientKeyStatus(Status):
    """What the operator saw of it; never the key."""

    secret_name: Annotated[str, Field(max_length=253)] | None = None
    """Secret that holds the key."""
