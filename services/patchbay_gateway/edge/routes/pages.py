"""
Pages of plugins on the clients' port: only of those that the configuration calls public.

Anybody may read them, so they get nothing of the caller's: no credentials, no cookies. Not here: private
pages (edge/management/plugin_routes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from patchbay import errors
from patchbay_gateway.edge.headers import for_plugins, query_for_plugins
from patchbay_gateway.edge.routes import answers
from patchbay_gateway.kernel import logs
from patchbay_gateway.plugins.management_api import PAGES
from patchbay_gateway.plugins.response_headers import SANDBOX, for_pages

if TYPE_CHECKING:
    from patchbay_gateway.edge.exchange import Exchange
    from patchbay_gateway.plugins.management_api import ManagementPlugins

_PLAIN = (b"content-type", b"text/plain; charset=utf-8")

_log = logs.get_logger("edge.pages")


def is_page(path: str) -> bool:
    """Whether *path* is a plugin's page, if there is such a one."""
    return path.startswith(f"{PAGES}/")


class PublicPages:
    """
    Answers exchanges for pages.

    Args:
        plugins: Who has which.
    """

    def __init__(self, plugins: ManagementPlugins) -> None:
        self._plugins = plugins

    async def answer(self, exchange: Exchange) -> None:
        """Answer with the plugin's page, 404 where there is no public one, 502 where it does not answer."""
        head = exchange.head
        path = head.path.rstrip("/")
        hook = None
        if head.method in {"GET", "HEAD"}:
            hook = await self._plugins.page(path, public=True)
        if hook is None:
            await answers.send_whole(exchange, 404, [_PLAIN], b"no such page\n")
            return
        query = query_for_plugins(head.query).decode("latin-1")
        try:
            code, headers, body = await self._plugins.handle(
                hook,
                "GET",
                path,
                for_plugins(head.headers),
                parse_qsl(query, keep_blank_values=True),
                b"",
            )
        except errors.PatchbayError as error:
            _log.warning(
                "a plugin did not answer", plugin=hook.plugin_id, path=path, why=error.message
            )
            text = f"plugin {hook.plugin_id} did not answer\n".encode()
            await answers.send_whole(exchange, 502, [_PLAIN], text)
            return
        await answers.send_whole(
            exchange,
            code,
            [*for_pages(headers), SANDBOX, (b"x-content-type-options", b"nosniff")],
            body,
        )
