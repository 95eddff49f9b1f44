"""
management.register and management.handle: routes and pages of plugins' own.

A plugin's routes are below `/v0/management/`, its pages below `/v0/resource/plugins/<id>/`; both are matched
as they are written, without patterns. Of two plugins with the same route the one with the higher priority has
it; what the gateway itself serves there is never theirs (edge/management). A GET route with a menu entry is a
page, as for plugins of old, and as private as the others. What a plugin registers is asked for when its
handshake changed and somebody asks; where it cannot be had, what it registered before stays.

Not here: who may ask, HTTP (edge/management/plugin_routes.py, edge/routes/pages.py).
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from patchbay import errors, status
from patchbay.plugin.v1 import management_api_pb2
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from patchbay.errors import Headers
    from patchbay.plugin.v1 import plugin_pb2
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook, Hooks
    from patchbay_gateway.plugins.registry import PluginRegistry
    from patchbay_gateway.plugins.snapshot import Snapshot

CAPABILITY: Final = "management_api"
ROUTES: Final = "/v0/management"
PAGES: Final = "/v0/resource/plugins"

_REGISTER: Final = 10.0
_AGAIN: Final = 5.0
_BAD: Final = re.compile(r"[\s:*?#]")
_METHOD: Final = re.compile(r"[A-Za-z]{1,32}\Z")

_log = logs.get_logger("plugins.management")


@dataclass(frozen=True, slots=True)
class Menu:
    """A page that shows in menus."""

    path: str
    menu: str
    description: str


@dataclass(frozen=True, slots=True)
class Registered:
    """What one plugin registered; paths are whole."""

    routes: tuple[tuple[str, str], ...] = ()
    """(method, path)."""
    pages: frozenset[str] = frozenset()
    menus: tuple[Menu, ...] = ()


@dataclass(slots=True)
class _Known:
    registered: Registered = field(default_factory=Registered)
    asked: Sequence[plugin_pb2.RegisterResponse] = ()
    """The handshakes that this was registered after."""
    retry_at: float = 0.0


class ManagementPlugins:
    """
    Routes and pages of the plugins of the current snapshot.

    Args:
        registry: Tells whose handshake changed.
        hooks: Who takes part.
        calls: Calls them.
        snapshot: The current one.
        timer: Monotonic seconds.
        patience: Seconds for which a look at all plugins waits for those that were just asked what they
            register.
    """

    def __init__(
        self,
        registry: PluginRegistry,
        hooks: Hooks,
        calls: PluginCalls,
        snapshot: Callable[[], Snapshot | None],
        *,
        timer: Callable[[], float] = time.monotonic,
        patience: float = 1.0,
    ) -> None:
        self._registry = registry
        self._hooks = hooks
        self._calls = calls
        self._snapshot = snapshot
        self._timer = timer
        self._patience = patience
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, tuple[asyncio.Task[None], float]] = {}
        """By plugin: the question under way, and since when."""

    async def aclose(self) -> None:
        """End the questions that are under way."""
        tasks = [task for task, _ in self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def route(self, method: str, path: str) -> Hook | None:
        """Return the plugin that has the route, None when nobody has."""
        for hook in await self._current():
            if (method, path) in self._known[hook.plugin_id].registered.routes:
                return hook
        return None

    async def page(self, path: str, *, public: bool = False) -> Hook | None:
        """Return the plugin that has the page; with *public*, only one whose pages clients may see."""
        plugin_id = path.removeprefix(f"{PAGES}/").partition("/")[0]
        snapshot = self._snapshot()
        entry = snapshot.plugin_by_id.get(plugin_id) if snapshot is not None else None
        if entry is None or (public and not entry.public):
            return None
        for hook in await self._current(plugin_id):
            if hook.plugin_id != plugin_id:
                continue
            if path.rstrip("/") in self._known[plugin_id].registered.pages:
                return hook
        return None

    async def menus(self) -> dict[str, tuple[Menu, ...]]:
        """Return plugin id → its menu entries."""
        return {
            h.plugin_id: self._known[h.plugin_id].registered.menus for h in await self._current()
        }

    async def handle(
        self,
        hook: Hook,
        method: str,
        path: str,
        headers: Headers,
        query: Iterable[tuple[str, str]],
        body: bytes,
    ) -> tuple[int, Headers, bytes]:
        """
        Return status, headers and body of the plugin's answer.

        Raises:
            PatchbayError: It has none.
        """
        request = management_api_pb2.ManagementRequest(method=method, path=path, body=body)
        status.headers_to_map(headers, request.headers)
        for name, value in query:
            request.query[name].values.append(value)
        answer = await self._calls.unary(hook, methods.HANDLE_MANAGEMENT, request)
        code = answer.status_code or 200
        if not 200 <= code <= 599:
            raise errors.Internal(f"plugin {hook.plugin_id} answered with status {code}")
        return code, status.headers_from_map(answer.headers), answer.body

    async def _current(self, only: str = "") -> Sequence[Hook]:
        """Return the plugins with the capability, what they register known as well as it can be."""
        now = self._timer()
        for hook in self._having():
            if only not in {"", hook.plugin_id} or hook.plugin_id in self._asking:
                continue
            if self._stale(hook):
                task = asyncio.get_running_loop().create_task(self._ask(hook))
                self._asking[hook.plugin_id] = task, now
                task.add_done_callback(partial(self._asked, hook.plugin_id))
        await self._wait_for_answers(only, now)
        # Not those of before: who came meanwhile is known by its own question.
        hooks = self._having()
        for gone in self._known.keys() - {h.plugin_id for h in hooks}:
            del self._known[gone]
        for hook in hooks:
            self._known.setdefault(hook.plugin_id, _Known())
        return hooks

    def _having(self) -> Sequence[Hook]:
        snapshot = self._snapshot()
        return self._hooks.of(snapshot, CAPABILITY) if snapshot is not None else ()

    async def _wait_for_answers(self, only: str, now: float) -> None:
        """Wait for the plugin that is asked for; for all of them no longer than a quick one takes."""
        if only:
            if only in self._asking:
                await asyncio.wait([self._asking[only][0]])
            return
        left = {task: since + self._patience - now for task, since in self._asking.values()}
        waited_for = [task for task, seconds in left.items() if seconds > 0]
        if waited_for:
            await asyncio.wait(waited_for, timeout=max(left.values()))

    def _asked(self, plugin_id: str, task: asyncio.Task[None]) -> None:
        del self._asking[plugin_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("asking a plugin what it registers failed", exc_info=error)

    def _stale(self, hook: Hook) -> bool:
        known = self._known.get(hook.plugin_id)
        now = self._registry.declaring(hook.plugin_id, CAPABILITY)
        if not now:
            return False
        if known is None:
            return True
        same = len(now) == len(known.asked) and all(
            a is b for a, b in zip(now, known.asked, strict=True)
        )
        return not same and self._timer() >= known.retry_at

    async def _ask(self, hook: Hook) -> None:
        known = self._known.setdefault(hook.plugin_id, _Known())
        asked = self._registry.declaring(hook.plugin_id, CAPABILITY)
        request = management_api_pb2.ManagementRegistrationRequest(
            base_path=ROUTES, resource_base_path=f"{PAGES}/{hook.plugin_id}"
        )
        try:
            answer = await self._calls.unary(
                hook, methods.REGISTER_MANAGEMENT, request, deadline=_REGISTER
            )
        except errors.PatchbayError as error:
            warn(hook, error)
            known.retry_at = self._timer() + _AGAIN
            return
        known.registered = read(hook.plugin_id, answer)
        known.asked = asked


def read(plugin_id: str, answer: management_api_pb2.ManagementRegistrationResponse) -> Registered:
    """Return what of *answer* can be served; the log says what cannot."""
    routes: list[tuple[str, str]] = []
    pages: dict[str, Menu] = {}
    for route in answer.routes:
        method = (route.method or "GET").upper()
        if method == "GET" and route.menu.strip():
            _add_page(plugin_id, pages, route.path, route.menu, route.description)
            continue
        path = _whole(route.path, ROUTES, ROUTES)
        if path is None or not _METHOD.match(method):
            _log.warning("a route is refused", plugin=plugin_id, method=method, path=route.path)
        elif (method, path) not in routes:
            routes.append((method, path))
    for page in answer.resources:
        _add_page(plugin_id, pages, page.path, page.menu, page.description)
    menus = tuple(menu for menu in pages.values() if menu.menu)
    return Registered(tuple(routes), frozenset(pages), menus)


def _add_page(
    plugin_id: str, pages: dict[str, Menu], path: str, menu: str, description: str
) -> None:
    own = f"{PAGES}/{plugin_id}"
    whole = _whole(path, own, own, f"/plugins/{plugin_id}", ROUTES)
    if whole is None:
        _log.warning("a page is refused", plugin=plugin_id, path=path)
    else:
        pages.setdefault(whole, Menu(whole, menu.strip(), description))


def _whole(path: str, base: str, *optional: str) -> str | None:
    """Return *path* below *base*, whichever of the *optional* prefixes it has; None if it is no path."""
    path = path.strip(" ").rstrip("/")
    for prefix in optional:
        if path == prefix or path.startswith(f"{prefix}/"):
            path = path[len(prefix) :]
            break
    path = path.lstrip("/")
    if not path or _BAD.search(path) or any(part in {"", ".", ".."} for part in path.split("/")):
        return None
    return f"{base}/{path}"
