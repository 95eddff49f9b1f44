"""
The client port: one callable that takes an exchange and sees to it that it is answered.

Health and model lists are answered here, everything else by the pipeline; what either raises becomes an
answer in the client's dialect. No CORS: OPTIONS is a method like any other that no route has, so a
browser's preflight gets 405 and the page is refused. HEAD is GET without a body. Not here: the table of
paths (paths.py), what an error looks like (dialects/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from patchbay import errors
from patchbay_gateway.edge.dialects.table import GEMINI_JSON
from patchbay_gateway.edge.exchange import ClientGone
from patchbay_gateway.edge.routes import answers, paths
from patchbay_gateway.edge.routes.pages import is_page
from patchbay_gateway.edge.routes.request import RoutedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patchbay_gateway.edge.dialects.port import Dialect
    from patchbay_gateway.edge.exchange import Exchange, Head
    from patchbay_gateway.edge.models import ModelLists
    from patchbay_gateway.edge.routes.pages import PublicPages
    from patchbay_gateway.edge.routes.request import Pipeline

_MAX_REQUEST_ID: Final = 128


def client_request_id(head: Head) -> str | None:
    """Return the client's `x-request-id` if it is sane: 1 to 128 printable ASCII characters."""
    for name, value in head.headers:
        if name == b"x-request-id":
            if 0 < len(value) <= _MAX_REQUEST_ID and value.isascii():
                text = value.decode("ascii")
                if text.isprintable():
                    return text
            return None
    return None


def sniff_dialect(head: Head) -> str:
    """
    Return the dialect of a client on a path that several dialects share.

    `anthropic-version` or a user agent beginning `claude-cli` mean Claude; `x-goog-api-key` means
    Gemini; else OpenAI.
    """
    found = "openai"
    for name, value in head.headers:
        if name == b"anthropic-version":
            return "claude"
        if name == b"user-agent" and value.lower().startswith(b"claude-cli"):
            return "claude"
        if name == b"x-goog-api-key":
            found = "gemini"
    return found


class Router:
    """
    Answers exchanges.

    Args:
        pipeline: Serves POSTs that run a model.
        lists: Answers model lists.
        dialects: By name, from dialects/table.py.
        mint: Makes a request id.
        on_bug: Told of an exception outside the error tree; returns the id that the client sees.
        pages: Public pages of plugins.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        lists: ModelLists,
        dialects: Mapping[str, Dialect],
        mint: Callable[[], str],
        on_bug: Callable[[BaseException], str],
        pages: PublicPages | None = None,
    ) -> None:
        self._pages = pages
        self._pipeline = pipeline
        self._lists = lists
        self._dialects = dialects
        self._mint = mint
        self._on_bug = on_bug

    async def __call__(self, exchange: Exchange) -> None:
        """Answer *exchange*; never raises but for cancellation."""
        head = exchange.head
        own_id = client_request_id(head)
        request_id = own_id or self._mint()
        dialect: Dialect | None = None
        try:
            if is_page(head.path) and self._pages is not None:
                await self._pages.answer(exchange)
                return
            target = paths.resolve(head.method, head.path)
            dialect = self._dialects[target.dialect]
            if target.kind == "run":
                alt = _alt(head.query) if target.dialect == "gemini" else ""
                if alt and target.stream:
                    dialect = self._dialects[GEMINI_JSON]
                await self._pipeline.run(
                    RoutedRequest(
                        dialect=dialect,
                        operation=target.operation,
                        exchange=exchange,
                        model_from_path=target.model,
                        stream_from_path=target.stream,
                        alt=alt,
                        request_id=request_id,
                        client_request_id=own_id,
                    )
                )
            elif target.kind == "health":
                await answers.send_json(exchange, 200, b'{"status":"ok"}', [])
            else:
                # The prefix of a provider, or /v1beta, is explicit; plain /v1/models is anybody's.
                if head.path.startswith("/v1/"):
                    dialect = self._dialects[sniff_dialect(head)]
                body = await self._lists.answer(dialect, head, target.model)
                await answers.send_json(
                    exchange, 200, body, [(b"x-request-id", request_id.encode())]
                )
        except ClientGone:
            return
        except errors.PatchbayError as error:
            await self._refuse(exchange, dialect, error, request_id)
        except Exception as error:  # noqa: BLE001 - the boundary: on_bug logs it, the client gets its id
            bug = errors.Internal(repr(error), metadata={"error_id": self._on_bug(error)})
            await self._refuse(exchange, dialect, bug, request_id)

    async def _refuse(
        self,
        exchange: Exchange,
        dialect: Dialect | None,
        error: errors.PatchbayError,
        request_id: str,
    ) -> None:
        if dialect is None:
            head = exchange.head
            dialect = self._dialects[paths.guess_dialect(head.path) or sniff_dialect(head)]
        try:
            if exchange.committed:
                # Whoever committed should have ended the answer; it must not look finished.
                await exchange.abort()
            else:
                await answers.send_error(exchange, dialect, error, request_id)
        except ClientGone:
            return


def _alt(query: bytes) -> str:
    if not query:
        return ""
    values = dict(parse_qsl(query.decode("latin-1")))
    alt = values.get("alt") or values.get("$alt") or ""
    return "" if alt == "sse" else alt
