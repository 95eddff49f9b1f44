"""What plugins ask of the gateway and what it answers, as dataclasses (patchbay.host.v1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from patchbay.wire import of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.errors import Headers
    from patchbay.headers import Query


@dataclass(frozen=True, slots=True)
class HTTPRequest:
    """One HTTP request through the gateway's client."""

    url: str
    """Absolute, http or https."""
    method: str = "GET"
    """HTTP method."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Headers."""
    body: bytes = b""
    """Body."""


@dataclass(frozen=True, slots=True)
class HTTPResponse:
    """Its answer; any status is one."""

    status_code: int
    """HTTP status."""
    headers: Headers = field(default_factory=list)
    """Headers."""
    body: bytes = b""
    """Body."""


@dataclass(frozen=True, slots=True)
class HostModelExecutionRequest:
    """One model call."""

    model: str
    """As a client would name it."""
    body: bytes
    """In `entry_protocol`; whether it asks for a stream inside is the plugin's business."""
    entry_protocol: str = "openai"
    """Format of the body."""
    exit_protocol: str = ""
    """Format of the answer; empty: `entry_protocol`."""
    headers: Sequence[tuple[bytes, bytes]] = ()
    """Empty: those of the client's request, in a scope; else they replace them all."""
    query: Query = field(default_factory=list)
    """As `headers`."""
    alt: str = ""
    """Alternate route or mode suffix."""
    operation: str = "chat"
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    stream: bool = False
    """Set by the method that is called."""


@dataclass(frozen=True, slots=True)
class HostModelExecutionResponse:
    """Its answer."""

    status_code: int
    """HTTP status, 2xx."""
    headers: Headers = field(default_factory=list)
    """As a client would get them."""
    body: bytes = b""
    """In `exit_protocol`."""
    content_type: str = ""
    """Empty means application/json."""


@dataclass(frozen=True, slots=True)
class HostRecentRequestEntry:
    """Attempts of one span of time."""

    time: str
    """Label of the span."""
    success: int = 0
    """Attempts that succeeded."""
    failed: int = 0
    """Attempts that failed."""


@dataclass(frozen=True, slots=True)
class HostAuthFileEntry:
    """One credential without material. Empty means unknown or not so."""

    id: str
    """Credential id."""
    auth_index: str
    """Opaque short form of the id."""
    name: str = ""
    """Name of its file, or its id."""
    type: str = ""
    """`api_key`, `oauth2` or `none`."""
    provider: str = ""
    """Provider."""
    label: str = ""
    """Label for people."""
    status: str = ""
    """`ready`, `cooling`, `disabled`, `needs_login` or the like."""
    status_message: str = ""
    """Why, one sentence."""
    disabled: bool = False
    """Whether it is out of use."""
    unavailable: bool = False
    """Whether it cannot serve now."""
    runtime_only: bool = False
    """Whether nothing durable stands behind it."""
    source: str = ""
    """`configuration`, `file`, `secret` or `memory`."""
    path: str = ""
    """Where it comes from, for people."""
    size: int = 0
    """Size of its document, bytes."""
    modtime: float | None = None
    """Unix seconds when its document last changed."""
    updated_at: float | None = None
    """Unix seconds when anything about it last changed."""
    created_at: float | None = None
    """Unix seconds when it was made."""
    last_refresh: float | None = None
    """Unix seconds when it was last refreshed."""
    next_retry_after: float | None = None
    """Unix seconds when it is tried again."""
    email: str = ""
    """Mail address of the account."""
    project_id: str = ""
    """Project of the account."""
    account_type: str = ""
    """Kind of account."""
    account: str = ""
    """Account."""
    priority: int = 0
    """Larger first."""
    note: str = ""
    """Note of the operator."""
    websockets: bool = False
    """Whether it serves over sockets."""
    success: int = 0
    """Attempts that succeeded lately."""
    failed: int = 0
    """Attempts that failed lately."""
    recent_requests: Sequence[HostRecentRequestEntry] = field(
        default=(), metadata=of(HostRecentRequestEntry)
    )
    """The same by time, oldest first."""


@dataclass(frozen=True, slots=True)
class HostAuth:
    """The document of one credential. It does not show in a repr."""

    auth_index: str
    """As asked for."""
    name: str
    """Name of its file."""
    path: str
    """Where it comes from, for people."""
    document: Mapping[str, object] = field(repr=False)
    """The document."""
