"""
Usage plugins: the base class of a plugin that hears what was consumed (pluginapi: UsagePlugin).

Every settled attempt comes from the journal; an error or silence brings the record again, so a record may
come more than once: `attempt_uid` tells. Not here: the ledger and its prices (the gateway's).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from patchbay.capability import Plugin
from patchbay.wire import of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.errors import Headers


@dataclass(frozen=True, slots=True)
class UsageItem:
    """One unit and how much of it."""

    unit: str
    """`input_tokens`, `output_tokens`, `cache_read_tokens`, `cache_creation_tokens`, `reasoning_tokens`, …"""
    quantity: int
    """Never negative."""


@dataclass(frozen=True, slots=True)
class UsageDetail:
    """Quantities by unit."""

    items: Sequence[UsageItem] = field(default=(), metadata=of(UsageItem))
    """One per unit; an absent unit is unknown."""
    estimated: bool = False
    """True when the gateway counted because the provider had not said."""

    def quantity(self, unit: str) -> int:
        """Return the quantity of *unit*, 0 when unknown."""
        return next((item.quantity for item in self.items if item.unit == unit), 0)

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.quantity("input_tokens") + self.quantity("output_tokens")


@dataclass(frozen=True, slots=True)
class UsageFailure:
    """Why an attempt failed."""

    status_code: int = 0
    """HTTP status of the failure."""
    body: str = ""
    """The reason, or the provider's text without secrets."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One attempt and what it consumed."""

    attempt_uid: str
    """Key of the ledger's row; the same when a record comes again."""
    model: str
    """Upstream model."""
    provider: str = ""
    """Name of the provider; on a direct route the executor's plugin id."""
    executor_type: str = ""
    """Executor plugin id."""
    alias: str = ""
    """Model as the client named it, where it differs."""
    api_key: str = ""
    """Name of the client key or principal; never a key."""
    auth_id: str = ""
    """Credential id."""
    auth_index: str = ""
    """Opaque short form of it."""
    auth_type: str = ""
    """`api_key`, `oauth2` or `none`."""
    source: str = ""
    """Empty for clients, `plugin_host_model_callback` for nested calls."""
    reasoning_effort: str = ""
    """That was asked for."""
    service_tier: str = ""
    """That was asked for or reported."""
    generate: bool | None = None
    """False for warm-ups that generate nothing; None means True."""
    requested_at: float | None = None
    """Unix seconds when the attempt was opened."""
    latency: float | None = None
    """Seconds from opening to the end."""
    ttft: float | None = None
    """Seconds from opening to the first chunk; None when none came."""
    failed: bool = False
    """Whether it failed; a client that left counts."""
    failure: UsageFailure | None = field(default=None, metadata=of(UsageFailure))
    """Set when it failed."""
    detail: UsageDetail | None = field(default=None, metadata=of(UsageDetail))
    """Quantities; None: nothing is known."""
    response_headers: Headers = field(default_factory=list)
    """Selected headers of the provider's answer."""
    request_id: str = ""
    """Id of the execution, as in the interceptors."""
    tenant: str = ""
    """Tenant."""
    format: str = ""
    """Format that the client spoke."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    cost_nano: int = 0
    """Cost in units of 10⁻⁹ of the price list's currency."""
    outcome: str = ""
    """`succeeded`, `failed`, `cancelled` or `lost`."""


class UsagePlugin(Plugin):
    """A plugin that hears what was consumed."""

    capability_flag: ClassVar = "usage_plugin"

    async def handle_usage(self, record: UsageRecord) -> None:
        """Take one record. 5 s at most; an error brings it again."""
        raise NotImplementedError
