"""
A harness for an author's tests: plugins behind a real port with a test key, called as gateways call them.

    async with serving(MyFilter(), config=b"words: [secret]") as served:
        answer = await served.call("InterceptRequestBeforeAuth", RequestInterceptRequest(…))
        async with served.stream_chunks(StreamStart…) …

`await MyFilter().intercept_request_before_auth(request)` needs none of it; the harness is for what lies on
the wire: registration, messages, errors, callbacks. `called_directly` does the same without a port. Not
here: verdicts (`patchbay.testing.conformance`), the gateway's answers (`patchbay.testing.fake_host`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from google.protobuf import message_factory
from google.protobuf.message import Message

from patchbay import errors, logs, wire
from patchbay.serve import PluginServer, build_servicers
from patchbay.services import SERVICES
from patchbay.testing.conformance import Report, check
from patchbay.testing.connection import (
    DESCRIBED,
    PACKAGE,
    TEST_KEY,
    Connection,
    method_of,
    request_class,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from patchbay.capability import Plugin
    from patchbay.testing.fake_host import FakeHost

__all__ = ["DESCRIBED", "TEST_KEY", "Served", "called_directly", "conformance_of", "serving"]


def service_of(method: str) -> str:
    """Return the service that has *method*, without its package; raises ValueError for none or several."""
    found = [s.name for s in SERVICES for call in s.calls if call.method == method]
    if method in {"Execute", "CountTokens", "HttpRequest", "ExecuteStream"}:
        found = ["ExecutorService"]
    elif method in {"ParseAuth", "StartLogin", "PollLogin", "RefreshAuth"}:
        found = ["AuthProviderService"]
    if len(found) != 1:
        raise ValueError(f"{method} is a method of {found or 'no service'}; name the service")
    return found[0]


def as_message(request: object, service: str, method: str) -> Message:
    """Return *request*, a dataclass of a capability or its message, as the message."""
    if isinstance(request, Message):
        return request
    if not dataclasses.is_dataclass(request):
        raise TypeError(f"{request!r} is neither a message nor a request of the SDK")
    made = request_class(service, method)()
    wire.write(request, made)
    return made


class Served:
    """Plugins at `address`."""

    def __init__(
        self,
        server: PluginServer,
        address: str,
        plugin_ids: Sequence[str],
        key: bytes,
        host: FakeHost | None,
        config: bytes,
    ) -> None:
        self.server = server
        self.address = address
        self.key = key
        self._ids = tuple(plugin_ids)
        self._host = host
        self._config = config
        self._connections: dict[str, Connection] = {}

    async def connection(self, plugin_id: str = "") -> Connection:
        """Return the registered connection of a plugin; default the first."""
        wanted = plugin_id or self._ids[0]
        found = self._connections.get(wanted)
        if found is None:
            callback, scope = "", ""
            if self._host is not None:
                callback, scope = self._host.address, self._host.open_scope()
            found = Connection(self.address, wanted, self.key, callback=callback, scope=scope)
            self._connections[wanted] = found
            await found.register(self._config)
        return found

    async def call(
        self, method: str, request: object, *, service: str = "", plugin_id: str = ""
    ) -> Any:
        """
        Call a unary method as a gateway does and return the message of the answer.

        Args:
            method: As on the wire, `InterceptRequestBeforeAuth`.
            request: The SDK's dataclass or the message.
            service: Where several services have the method.
            plugin_id: Where several plugins are served.

        Raises:
            CallFailed: The plugin answered with an error.
        """
        named = service or service_of(method)
        connection = await self.connection(plugin_id)
        return await connection.unary(named, method, as_message(request, named, method))

    async def aclose(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            await connection.aclose()


@contextlib.asynccontextmanager
async def serving(
    *plugins: Plugin, key: bytes = TEST_KEY, config: bytes = b"", host: FakeHost | None = None
) -> AsyncIterator[Served]:
    """
    Serve *plugins* on a free port of this machine.

    Args:
        plugins: With different ids.
        key: Key of all of them.
        config: Configuration of each, YAML.
        host: Grants callbacks; it must have the same keys.
    """
    server = PluginServer(plugins, {plugin.id: [key] for plugin in plugins})
    port = await server.start("127.0.0.1:0")
    served = Served(server, f"127.0.0.1:{port}", [p.id for p in plugins], key, host, config)
    try:
        yield served
    finally:
        await served.aclose()
        await server.stop()


async def called_directly(
    plugin: Plugin,
    method: str,
    request: object,
    *,
    service: str = "",
    config: bytes = b"",
    key: bytes = TEST_KEY,
) -> Any:
    """
    Call a unary method of *plugin* without a port, through messages all the same.

    Raises:
        PatchbayError: The plugin answered with it.
    """
    named = service or service_of(method)
    await plugin.configure(config)
    servicer: Any = build_servicers([plugin], {plugin.id: [key]}).get(PACKAGE + named)
    if servicer is None:
        raise errors.NotFound(
            f"plugin {plugin.id} does not serve {named}", reason="CAPABILITY_NOT_SERVED"
        )
    found = method_of(named, method)
    taken = message_factory.GetMessageClass(found.input_type)
    given = message_factory.GetMessageClass(found.output_type)
    context = SimpleNamespace(
        invocation_metadata=lambda: (("patchbay-plugin", plugin.id),), time_remaining=lambda: 10.0
    )
    message = taken.FromString(as_message(request, named, method).SerializeToString())
    answer = await getattr(servicer, method)(message, context)
    return given.FromString(answer.SerializeToString())


class _Here:
    """A plugin that runs in this process, as the suite sees it (patchbay.testing.rules.Running)."""

    def __init__(self, server: PluginServer, written: io.StringIO) -> None:
        self._server = server
        self._written = written
        self._ending: asyncio.Task[None] | None = None

    def logs(self) -> str:
        """Return what was logged."""
        return self._written.getvalue()

    def in_flight(self) -> int | None:
        """Return the calls that run."""
        return self._server.in_flight

    async def stop(self) -> None:
        """Begin to drain."""
        self._ending = asyncio.ensure_future(self._server.drain(30, notice=0.2))

    async def wait(self, seconds: float) -> bool:
        """Whether it has drained in time."""
        assert self._ending is not None
        done, _ = await asyncio.wait({self._ending}, timeout=seconds)
        return bool(done)

    async def aclose(self) -> None:
        """End it, whatever it does."""
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.gather(self._ending, return_exceptions=True)
        await self._server.stop()


async def conformance_of(
    *plugins: Plugin,
    configs: Mapping[str, bytes] | None = None,
    key: bytes = TEST_KEY,
    only: Sequence[str] | None = None,
) -> list[Report]:
    """
    Serve *plugins* together and return the suite's verdict on each; the last one ends the server.

    Args:
        plugins: With different ids.
        configs: Plugin id to its configuration, YAML.
        key: Key of all of them.
        only: Ids of rules; None: all.
    """
    server = PluginServer(plugins, {plugin.id: [key] for plugin in plugins})
    address = f"127.0.0.1:{await server.start('127.0.0.1:0')}"
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.TextFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    running = _Here(server, written)
    reports = []
    try:
        for number, plugin in enumerate(plugins, 1):
            reports.append(
                await check(
                    address,
                    plugin.id,
                    key,
                    config=(configs or {}).get(plugin.id, b""),
                    running=running if number == len(plugins) else None,
                    only=only,
                )
            )
    finally:
        root.removeHandler(handler)
        await running.aclose()
    return reports
