"""
What the edge knows of one request, and what it says of it: to the journal and in answer headers.

Filled on the way down the pipeline. Not here: decisions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from patchbay import status
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.edge import headers
from patchbay_gateway.edge.dialects.port import StreamState
from patchbay_gateway.kernel import uid
from patchbay_gateway.plugins.header_merge import told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay.errors import Headers
    from patchbay.type.v1 import headers_pb2
    from patchbay_gateway.edge.auth import Client
    from patchbay_gateway.edge.body import Document
    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.routes.request import RoutedRequest
    from patchbay_gateway.edge.steps import Steps
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.snapshot import ProviderEntry, Snapshot
    from patchbay_gateway.translate.thinking import Thinking


class Request(msgspec.Struct):
    """One request."""

    routed: RoutedRequest
    uid: str
    snapshot: Snapshot
    clock: Clock
    started: float
    """Monotonic seconds."""
    client: Client | None = None
    document: Document | None = None
    model: str = ""
    stream: bool = False
    state: StreamState = msgspec.field(default_factory=StreamState)
    session_ids: list[str] = msgspec.field(default_factory=list)
    """For affinity, strongest first; empty where it is off."""
    number: int = 0
    """Number of the current attempt; 0 before the first."""
    status: int = 0
    """What the client got, as the ledger has it; 0 while nobody knows."""
    provider: ProviderEntry | None = None
    upstream_model: str = ""
    steps: Steps | None = None
    """What plugins do to it; None: nobody wants it."""
    thinking: Thinking | None = None
    """What the suffix of the model's name asked for."""
    error: str = ""
    """What the client was told of a failure: the text, for the exception's frames hold the body."""
    terminated: bool = False
    """A plugin answered the client."""
    direct: str = ""
    """Plugin id of a direct route: no provider and no credential."""
    answered_in: Dialect | None = None
    """The dialect of the provider of the current attempt, where it is not the client's."""
    waited: float = 0.0
    """Seconds spent waiting for executors; the rest of the time is ours."""

    def info(self, number: int, installation: str) -> journal_pb2.AttemptInfo:
        """Return what the edge knows of attempt *number*; 0 for a refusal."""
        info = journal_pb2.AttemptInfo()
        self.describe(info, number, installation)
        return info

    def describe(self, info: journal_pb2.AttemptInfo, number: int, installation: str) -> None:
        """
        Write into an empty *info* what `info` returns.

        Field by field: keyword arguments of a message cost three times as much (docs/architecture.md,
        "Messages on the hot path").
        """
        routed, client = self.routed, self.client
        info.attempt_uid = uid.attempt_uid(self.uid, number)
        info.request_uid = self.uid
        info.number = number
        info.tenant = "default"
        if client is not None:
            info.tenant = client.tenant
            info.client_key = client.name
        info.installation = installation
        if routed.client_request_id:
            info.client_request_id = routed.client_request_id
        info.model = self.model
        info.format = routed.dialect.name
        info.operation = routed.operation
        info.stream = self.stream
        info.snapshot_version = self.snapshot.version
        millis = int(self.clock.now() * 1000)
        opened = info.opened_at
        opened.seconds = millis // 1000
        opened.nanos = millis % 1000 * 1_000_000

    def stream_headers(self, content_type: str = "") -> Headers:
        """Return the headers that make a stream of an answer."""
        kind = content_type.encode() or self.routed.dialect.stream_content_type
        return [*told([(b"content-type", kind)]), *headers.SSE_HEADERS[1:]]

    def early_headers(self) -> Headers:
        """Return the headers of an early commit: what is not yet known is left out."""
        kind = self.stream_headers() if self.stream else [(b"content-type", b"application/json")]
        return self._with_id(kind) + headers.answer_headers(self.routed.request_id, patchbay=False)

    def answer_headers(
        self, extra: Headers, upstream: Mapping[str, headers_pb2.StringList] | None = None
    ) -> Headers:
        """
        Return the headers of the answer.

        Args:
            extra: Content type and the like.
            upstream: The provider's headers as an executor hands them on; read only where the
                configuration passes them on.
        """
        settings = self.snapshot.settings
        result = list(extra)
        if settings.headers_passthrough and upstream:
            result += headers.from_upstream(told(status.headers_from_map(upstream)))
        if extra:  # an error brings its own
            result = self._with_id(result)
        return result + headers.answer_headers(
            self.routed.request_id,
            patchbay=settings.headers_patchbay and self.provider is not None,
            model=self.upstream_model,
            provider=self.provider.name if self.provider is not None else "",
            attempts=self.number,
            overhead_ms=(self.clock.monotonic() - self.started - self.waited) * 1000,
        )

    def _with_id(self, found: Headers) -> Headers:
        """Return *found* with the id under the name that the dialect's SDK shows it by."""
        if self.routed.dialect.name != "claude" or any(n == b"request-id" for n, _ in found):
            return found
        return [*found, (b"request-id", self.routed.request_id.encode("latin-1"))]
