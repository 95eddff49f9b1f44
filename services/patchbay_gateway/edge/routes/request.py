"""
What a route hands to the pipeline.

`RoutedRequest` says which dialect and operation a request is and what its path already decided; body,
client key and model are the pipeline's to look at. Not here: how paths are read (router.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay.errors import PatchbayError
    from patchbay_gateway.edge.auth import Client
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.exchange import Exchange


class RoutedRequest(msgspec.Struct, frozen=True):
    """A client request of which path and method are understood."""

    dialect: Dialect
    operation: str
    """`chat`, `completions`, `embeddings` or `count_tokens`."""
    exchange: Exchange
    model_from_path: str | None
    """The model, where the path names it (Gemini)."""
    stream_from_path: bool | None
    """Whether to stream, where the path decides it (Gemini)."""
    alt: str
    """Gemini's `alt` with `sse` written as the empty string; empty elsewhere."""
    request_id: str
    """What `x-request-id` answers: the client's own if sane, else new."""
    client_request_id: str | None
    """The client's own id, kept in the ledger; never a key of ours."""
    pinned_credential_id: str = ""
    """The only credential allowed; the request fails instead of rotating. For callers inside the gateway."""
    execution_session_id: str = ""
    """A long-lived session of such a caller: for executors that keep a connection, and for affinity."""
    on_credential: Callable[[str], None] | None = None
    """Told the id of the credential of each attempt, before its call."""
    client: Client | None = None
    """Who asks, where that is known already: model calls of plugins."""
    skip_plugin: str = ""
    """The plugin that asks: its own interceptors and router are left out."""
    depth: int = 0
    """How many executions this one is nested in."""
    trace_id: str = ""
    """Id of the client's request that this one belongs to; empty: its own `request_id`."""
    source: str = ""
    """What made this request, where it is not a client's; plugins see it."""
    on_error: Callable[[PatchbayError], None] | None = None
    """Told what the request fails with, before any of that is sent."""


class Pipeline(Protocol):
    """Serves one request to its end."""

    async def run(self, routed: RoutedRequest) -> None:
        """
        Answer *routed* on its exchange.

        Raises:
            PatchbayError: Nothing was committed; the caller answers in the dialect.
            ClientGone: The client left; nothing is to be answered.
        """
        ...
