"""
Serving plugins: `serve(MyPlugin())` is a whole program.

    from patchbay.serve import serve
    serve(MyExecutor(), MyInterceptor(), address="[::]:7003")

Any mix of plugins, each with any mix of capabilities, is served at one address; the call's metadata says
which one it is for. `build_servicers` makes the same servicers for calls within a process. Keys come from
PATCHBAY_PLUGIN_KEY or the file that PATCHBAY_PLUGIN_KEY_FILE names, certificates from PATCHBAY_TLS_DIR, and
PATCHBAY_DRAIN says how many seconds calls in flight may go on after SIGTERM. Not
here: what a plugin does (the modules of the capabilities).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from patchbay import errors, keys, logs
from patchbay.auth_provider import AuthProvider
from patchbay.auth_servicer import AUTH_PROVIDER_SERVICE, AuthProviderServicer
from patchbay.executor import Executor, ExecutorServicer
from patchbay.handshake import Configurations, PluginServicer
from patchbay.host_client import HostClient, HostConnections
from patchbay.metrics import health_port, serving_metrics
from patchbay.secrets import SecretOpener
from patchbay.server import DEFAULT_MESSAGE_LIMIT, Server
from patchbay.tls import Tls
from patchbay.tokens import PluginAuthenticator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from patchbay.capability import Plugin
    from patchbay.server import Served

    PluginKeys = Mapping[str, Sequence[bytes]]
    """Plugin id to its keys, the newest first."""

_logger = logging.getLogger("patchbay.serve")

PLUGIN_SERVICE: Final = "patchbay.plugin.v1.PluginService"
EXECUTOR_SERVICE: Final = "patchbay.plugin.v1.ExecutorService"
DEFAULT_ADDRESS: Final = "[::]:7003"
GRACE: Final = 600.0
"""Seconds that calls in flight may go on after SIGTERM, where PATCHBAY_DRAIN says nothing."""


def drain_seconds(environ: Mapping[str, str]) -> float:
    """
    Return the seconds of PATCHBAY_DRAIN (600, 90s, 10m, 1h), or GRACE.

    Raises:
        FailedPrecondition: It is no duration.
    """
    value = environ.get("PATCHBAY_DRAIN", "")
    if not value:
        return GRACE
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", value)
    if found is None:
        raise errors.FailedPrecondition(
            f"PATCHBAY_DRAIN={value} is no duration; write seconds, or 90s, 10m, 1h",
            reason="DRAIN_INVALID",
        )
    return float(found[1]) * {"ms": 0.001, "m": 60.0, "h": 3600.0}.get(found[2], 1.0)


def load_plugin_keys(environ: Mapping[str, str], plugin_ids: Iterable[str]) -> PluginKeys:
    """
    Return the keys of PATCHBAY_PLUGIN_KEY or PATCHBAY_PLUGIN_KEY_FILE.

    The text is one key for all *plugin_ids*, or lines `id=key`; a second line for an id is the previous
    generation. A key is 32 bytes in hex or base64url.

    Raises:
        FailedPrecondition: Neither is set, the file cannot be read, or a key is malformed.
    """
    ids = list(plugin_ids)
    text, source = environ.get("PATCHBAY_PLUGIN_KEY", ""), "PATCHBAY_PLUGIN_KEY"
    if not text and (path := environ.get("PATCHBAY_PLUGIN_KEY_FILE")):
        source = path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise errors.FailedPrecondition(
                f"PATCHBAY_PLUGIN_KEY_FILE {path} cannot be read: {error.strerror}",
                reason="PLUGIN_KEY_MISSING",
            ) from error
    found: dict[str, list[bytes]] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, separator, value = line.partition("=")
        # Base64 may end in "=", so a line names a plugin only if something follows.
        if separator and value.strip("="):
            found.setdefault(name.strip(), []).append(parse_key(value.strip(), source))
        else:
            for id_ in ids:
                found.setdefault(id_, []).append(parse_key(line, source))
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise errors.FailedPrecondition(
            f"no key for plugin {', '.join(missing)}: set PATCHBAY_PLUGIN_KEY or "
            "PATCHBAY_PLUGIN_KEY_FILE to what `patchbay plugin key ID` prints",
            reason="PLUGIN_KEY_MISSING",
        )
    return found


def parse_key(text: str, source: str) -> bytes:
    """
    Return the 32 bytes of a key in hex or base64url.

    Raises:
        FailedPrecondition: It is neither; the message names *source* and not the text.
    """
    key = b""
    with contextlib.suppress(ValueError):
        if len(text) == 2 * keys.KEY_BYTES:
            key = bytes.fromhex(text)
        else:
            bare = text.rstrip("=").replace("-", "+").replace("_", "/")
            key = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    if len(key) != keys.KEY_BYTES:
        raise errors.FailedPrecondition(
            f"{source} holds no key of {keys.KEY_BYTES} bytes in hex or base64url",
            reason="PLUGIN_KEY_INVALID",
        )
    return key


class _ConfiguredExecutors(ExecutorServicer):
    """Executors in the configuration that each call names."""

    def __init__(
        self, configurations: Configurations, opener: SecretOpener, hosts: HostConnections
    ) -> None:
        super().__init__((), opener=opener, hosts=hosts)
        self._configurations = configurations

    def _executor(self, context: Any) -> Executor:
        plugin = self._configurations.called(context)
        if not isinstance(plugin, Executor):
            raise errors.NotFound(
                f"plugin {plugin.id} is no executor", reason="CAPABILITY_NOT_SERVED"
            )
        return plugin


def build_servicers(
    plugins: Sequence[Plugin], plugin_keys: PluginKeys, *, hosts: HostConnections | None = None
) -> dict[str, object]:
    """
    Return full service name → servicer for *plugins*, for a server or an in-process channel.

    Args:
        plugins: With different ids.
        plugin_keys: Their keys (not channel or sealing keys), the newest first.
        hosts: The ways back to hosts, closed by the caller; default none but what calls name.
    """
    found = HostConnections(plugin_keys) if hosts is None else hosts
    return _build(Configurations(plugins), plugin_keys, found)


def _build(
    configurations: Configurations, plugin_keys: PluginKeys, hosts: HostConnections
) -> dict[str, object]:
    ids = configurations.plugin_ids
    channel_keys = {id_: [keys.channel_key(key) for key in plugin_keys.get(id_, ())] for id_ in ids}
    opener = SecretOpener(keys.sealing_key(key) for id_ in ids for key in plugin_keys.get(id_, ()))
    return_keys = {id_: keys.return_key(found[0]) for id_ in ids if (found := plugin_keys.get(id_))}
    servicers: dict[str, object] = {PLUGIN_SERVICE: PluginServicer(configurations, channel_keys)}
    if any(isinstance(configurations.plugin(id_), Executor) for id_ in ids):
        servicers[EXECUTOR_SERVICE] = _ConfiguredExecutors(configurations, opener, hosts)
    if any(isinstance(configurations.plugin(id_), AuthProvider) for id_ in ids):
        servicers[AUTH_PROVIDER_SERVICE] = AuthProviderServicer(
            configurations.called, opener=opener, return_keys=return_keys, hosts=hosts
        )
    if not _has_hooks(configurations):
        return servicers
    # Some 60 ms of dataclasses and messages, which a process of executors alone does without.
    from patchbay.services import Tools, build_capability_servicers  # noqa: PLC0415 - see above

    tools = Tools(opener, return_keys, hosts)
    return {**servicers, **build_capability_servicers(configurations, tools)}


def _has_hooks(configurations: Configurations) -> bool:
    """Whether a plugin has a capability other than executor and auth provider."""
    return any(
        vars(cls).get("capability_flag", "") not in {"", "executor", "auth_provider"}
        for id_ in configurations.plugin_ids
        for cls in type(configurations.plugin(id_)).__mro__
    )


class PluginServer:
    """
    Plugins at one address: servicers, tokens, health, drain.

    Args:
        plugins: With different ids.
        plugin_keys: Their keys, the newest first.
        message_limit: Largest message in either direction, bytes; the gateway's `limits.body` and 1 MiB.
        tls: Certificates, of calls and callbacks; None for plain HTTP/2.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin],
        plugin_keys: PluginKeys,
        *,
        message_limit: int = DEFAULT_MESSAGE_LIMIT,
        tls: Tls | None = None,
    ) -> None:
        self._configurations = Configurations(plugins)
        self._hosts = HostConnections(plugin_keys, message_limit=message_limit, tls=tls)
        ids = self._configurations.plugin_ids
        channel = {id_: [keys.channel_key(key) for key in plugin_keys.get(id_, ())] for id_ in ids}
        self._server = Server(
            _build(self._configurations, plugin_keys, self._hosts),
            authenticate=PluginAuthenticator(lambda id_: channel.get(id_, ()), ids),
            message_limit=message_limit,
            tls=tls,
        )

    @property
    def in_flight(self) -> int:
        """Calls that run now."""
        return self._server.in_flight

    @property
    def served(self) -> Mapping[str, Served]:
        """What was served so far, by method path."""
        return self._server.served

    async def start(self, *addresses: str) -> int:
        """Listen and return the last port."""
        return await self._server.start(*addresses)

    async def drain(self, grace: float = GRACE, *, notice: float = 1.0) -> None:
        """Let calls in flight finish, then close the plugins (patchbay.server.Server.drain)."""
        await self._server.drain(grace, notice=notice)
        await self._configurations.aclose()

    async def stop(self) -> None:
        """Cancel what runs and close the plugins."""
        await self._server.stop()
        await self._configurations.aclose()
        await self._hosts.aclose()


async def serve_async(
    *plugins: Plugin,
    address: str = DEFAULT_ADDRESS,
    plugin_keys: PluginKeys | None = None,
    grace: float | None = None,
    message_limit: int = DEFAULT_MESSAGE_LIMIT,
    stopping: asyncio.Event | None = None,
) -> None:
    """
    Serve *plugins* at *address* until SIGTERM, SIGINT or *stopping*; then drain.

    Args:
        plugins: With different ids.
        address: `host:port` or `unix:/path`.
        plugin_keys: Default: `load_plugin_keys` of the environment.
        grace: Seconds that calls in flight may go on; None: PATCHBAY_DRAIN of the environment.
        message_limit: As in PluginServer.
        stopping: Set to stop; with it, signals are left to the caller.

    Raises:
        FailedPrecondition: No key, no duration in PATCHBAY_DRAIN, or the address or the port of
            PATCHBAY_HEALTH_PORT is taken.
    """
    if plugin_keys is None:
        plugin_keys = load_plugin_keys(os.environ, [plugin.id for plugin in plugins])
    grace = drain_seconds(os.environ) if grace is None else grace
    health = health_port(os.environ)
    loop = asyncio.get_running_loop()
    signals = () if stopping is not None else (signal.SIGTERM, signal.SIGINT)
    stop = stopping or asyncio.Event()
    tls = Tls.from_environment(os.environ)
    server = PluginServer(plugins, plugin_keys, message_limit=message_limit, tls=tls)
    async with contextlib.AsyncExitStack() as stack:
        if health is not None:
            await stack.enter_async_context(
                serving_metrics(health, server.served, ready=lambda: not stop.is_set())
            )
        port = await server.start(address)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        _logger.info("serving %s at %s (port %d)", [p.id for p in plugins], address, port)
        try:
            await stop.wait()
            # A second signal ends the process at once.
            for number in signals:
                loop.remove_signal_handler(number)
            await server.drain(grace)
        finally:
            await server.stop()


@contextlib.asynccontextmanager
async def connect_host(
    plugin_id: str, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[HostClient]:
    """
    Give a plugin's own tasks the gateway, outside of any call: PATCHBAY_HOST_ADDRESS, proved by its key.

    Raises:
        FailedPrecondition: It has no key; without an address the client's calls raise it.
    """
    found = load_plugin_keys(environ, [plugin_id])
    connections = HostConnections(
        found,
        host_address=environ.get("PATCHBAY_HOST_ADDRESS", ""),
        tls=Tls.from_environment(environ),
    )
    try:
        yield connections.client(plugin_id)
    finally:
        await connections.aclose()


def serve(
    *plugins: Plugin,
    address: str = DEFAULT_ADDRESS,
    grace: float | None = None,
    message_limit: int = DEFAULT_MESSAGE_LIMIT,
) -> None:
    """
    Serve *plugins* until SIGTERM, as `serve_async` does, on an event loop of its own.

    Raises:
        SystemExit: It cannot start; the text on stderr says what to do.
    """
    logs.configure()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        from uvloop import new_event_loop as factory  # noqa: PLC0415 - faster where installed
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(
                serve_async(*plugins, address=address, grace=grace, message_limit=message_limit)
            )
    except errors.PatchbayError as error:
        raise SystemExit(f"patchbay: {error.message}") from None
