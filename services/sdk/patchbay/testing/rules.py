"""
What a rule of the conformance suite is, and what it is tried on.

A rule raises `Broken` when the plugin breaks it and `Skipped` where it says nothing about this plugin or
cannot be seen from where the suite stands. Not here: the rules (`patchbay.testing.rules_*`), the order of
things (`patchbay.testing.conformance`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from patchbay.testing import requests
from patchbay.testing.connection import CallFailed, Connection, Refused, request_class

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay.plugin.v1 import plugin_pb2
    from patchbay.testing.upstream import FakeUpstream
    from patchbay.tls import Tls


NOT_DECLARED: Final = "not declared"
"""Why a rule about a capability is skipped."""


class Broken(Exception):
    """The plugin breaks the rule; the text says how."""


class Skipped(Exception):
    """The rule says nothing here; the text says why."""


class Running(Protocol):
    """What the suite sees of a plugin that it runs itself."""

    def logs(self) -> str:
        """Return what the plugin has written so far."""

    def in_flight(self) -> int | None:
        """Return how many calls run in the plugin; None where it cannot be seen."""

    async def stop(self) -> None:
        """Tell the plugin to drain, and return at once."""

    async def wait(self, seconds: float) -> bool:
        """Whether the plugin ends within that time after `stop`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    id: str
    sentence: str
    """What holds for a good plugin."""
    how: str
    """How it is tried."""
    check: Callable[[Subject], Awaitable[None]]


class Subject:
    """
    One plugin under test.

    Args:
        address: Where it listens.
        plugin_id: Who it should be.
        key: Its key.
        config: Its configuration, YAML.
        upstream: The provider that executors are sent to.
        running: Where the suite runs the plugin itself.
        tls: Certificates of the suite's side; None: without TLS.
    """

    def __init__(
        self,
        address: str,
        plugin_id: str,
        key: bytes,
        *,
        upstream: FakeUpstream,
        config: bytes = b"",
        running: Running | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.plugin_id = plugin_id
        self.key = key
        self.config = config
        self.upstream = upstream
        self.running = running
        self._tls = tls
        self.connections: list[Connection] = []
        self._registered: Connection | None = None
        self._facts: requests.Facts | None = None

    def connect(self, plugin_id: str | None = None, key: bytes | None = None) -> Connection:
        """Return a new connection, closed with the subject."""
        made = Connection(
            self.address,
            self.plugin_id if plugin_id is None else plugin_id,
            self.key if key is None else key,
            tls=self._tls,
        )
        self.connections.append(made)
        return made

    async def registered(self) -> Connection:
        """Return the connection on which the plugin is registered; Skipped where it does not."""
        if self._registered is None:
            made = self.connect()
            try:
                await made.register(self.config)
            except (CallFailed, Refused) as error:
                raise Skipped(f"the plugin does not register: {error}") from None
            self._registered = made
        return self._registered

    async def capabilities(self) -> plugin_pb2.Capabilities:
        """Return what the plugin declares."""
        connection = await self.registered()
        assert connection.registration is not None
        return connection.registration.capabilities

    async def facts(self) -> requests.Facts:
        """Return what representative requests are made from, the plugin's own words among them."""
        if self._facts is not None:
            return self._facts
        connection = await self.registered()
        capabilities = await self.capabilities()
        identifiers: dict[str, str] = {}
        page = ("GET", "/")
        for service in requests.declared_services(capabilities).values():
            if service == "ManagementAPIService":
                page = await self._page(connection, capabilities)
            if "Identifier" in requests.unary_methods(service):
                try:
                    answer = await connection.unary(service, "Identifier", b"")
                except CallFailed:
                    continue
                identifiers[service] = answer.identifier
        self._facts = requests.Facts(connection, capabilities, self.upstream.url, identifiers, page)
        return self._facts

    async def _page(
        self, connection: Connection, capabilities: plugin_pb2.Capabilities
    ) -> tuple[str, str]:
        """Return method and path of one of the plugin's routes."""
        facts = requests.Facts(connection, capabilities)
        service, method = "ManagementAPIService", "RegisterManagement"
        try:
            answer = await connection.unary(
                service, method, requests.representative(facts, service, method)
            )
        except CallFailed:
            return "GET", "/"
        for route in answer.resources:
            return "GET", _below(f"/v0/resource/plugins/{self.plugin_id}/", route.path)
        for route in answer.routes:
            return route.method, _below("/v0/management/", route.path)
        return "GET", "/"

    async def cheap_call(self) -> tuple[str, str, Any]:
        """
        Return service, method and request of one unary call that the plugin serves without a provider.

        Skipped where there is none.
        """
        facts = await self.facts()
        skipped = requests.skipped_methods(facts.capabilities)
        dear = {"StartLogin", "PollLogin", "RefreshAuth", "HttpRequest", "ExecuteCommandLine"}
        found = [
            (service, method)
            for service in requests.declared_services(facts.capabilities).values()
            for method in requests.unary_methods(service)
            if method not in skipped and method not in dear and method != "Identifier"
        ]
        # A capability that takes a body says more than one that takes none.
        found.sort(key=lambda pair: not _takes_body(*pair))
        if not found:
            raise Skipped("the plugin declares no unary capability")
        service, method = found[0]
        return service, method, requests.representative(facts, service, method)

    async def aclose(self) -> None:
        """Close every connection."""
        for connection in self.connections:
            await connection.aclose()


def _takes_body(service: str, method: str) -> bool:
    fields = request_class(service, method).DESCRIPTOR.fields_by_name
    return "body" in fields or "payload" in fields


def _below(prefix: str, path: str) -> str:
    return path if path.startswith(prefix) else prefix + path.lstrip("/")
