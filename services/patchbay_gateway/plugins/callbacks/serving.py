"""
The port at which plugins call a process back.

A service listens from its start. `patchbay up` listens only while it needs to: when a plugin that runs
elsewhere is granted something, be it by a later snapshot. What is bound is written into the process's scopes,
and with that into every call that grants callbacks. Not here: what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.host.v1 import host_pb2
from patchbay.server import Server, message_limit_for
from patchbay_gateway.kernel import logs
from patchbay_gateway.plugins.grants import grants_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from patchbay_gateway.kernel.config import ProcessSettings
    from patchbay_gateway.plugins.distribution import SnapshotHolder
    from patchbay_gateway.plugins.scopes import ScopeTable
    from patchbay_gateway.plugins.snapshot import Snapshot

HOST_SERVICE: Final[str] = host_pb2.DESCRIPTOR.services_by_name["HostService"].full_name
"""Full name of the service, for channels and servers."""

_WILDCARDS: Final = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104 - compared, not bound

_log = logs.get_logger("plugins.callbacks")


def advertised(settings: ProcessSettings, port: int) -> str:
    """
    Return where plugins reach a process that listens on *port*: `host:port`.

    PATCHBAY_ADVERTISE_ADDRESS says it; of its port only what belongs to the configured one, for processes
    beside it listen elsewhere.
    """
    if settings.advertise_address:
        if port == settings.grpc_port:
            return settings.advertise_address
        return f"{settings.advertise_address.rpartition(':')[0]}:{port}"
    host = settings.host
    if host in _WILDCARDS:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def wanted(snapshot: Snapshot | None) -> bool:
    """Whether a plugin of *snapshot* that runs elsewhere is granted anything."""
    return snapshot is not None and any(
        not entry.builtin and grants_of(entry).some for entry in snapshot.plugin_by_id.values()
    )


@contextlib.asynccontextmanager
async def serving_callbacks(
    servicer: object,
    scopes: ScopeTable,
    *,
    settings: ProcessSettings,
    holder: SnapshotHolder,
    port: int,
    always: bool,
) -> AsyncIterator[None]:
    """
    Serve callbacks on a port of their own.

    Args:
        servicer: Of HostService; it sees for itself who calls.
        scopes: Told the address.
        settings: Of this process: where it listens, what it advertises.
        holder: Grants, and the size of messages.
        port: 0 takes a free one. Where *always* is not said, a free one is taken, too, when it is not free.
        always: Listen from the start, come what may.

    Raises:
        FailedPrecondition: ADDRESS_IN_USE, with *always*.
    """
    server: Server | None = None

    async def begin(at: str, limit: int) -> tuple[Server, int]:
        made = Server(
            {HOST_SERVICE: servicer}, message_limit=message_limit_for(limit), tls=settings.tls
        )
        try:
            return made, await made.start(at)
        except BaseException:
            # Also when this process ends just now: nobody else knows of it yet.
            await made.stop()
            raise

    async def listen() -> None:
        nonlocal server
        limit = holder.current.settings.body_limit if holder.current is not None else 0
        try:
            server, bound = await begin(
                settings.model_copy(update={"grpc_port": port}).grpc_listen, limit
            )
        except errors.FailedPrecondition:
            if always:
                raise
            server, bound = await begin(
                settings.model_copy(update={"grpc_port": 0}).grpc_listen, limit
            )
        scopes.address = advertised(settings, bound)
        _log.info("plugins may call back", address=scopes.address)

    async def follow() -> None:
        changed = asyncio.Event()
        forget = holder.on_change(lambda _: changed.set())
        try:
            while not wanted(holder.current):
                changed.clear()
                await changed.wait()
            await listen()
        finally:
            forget()

    follower: asyncio.Task[None] | None = None
    if always or wanted(holder.current):
        await listen()
    else:
        follower = asyncio.get_running_loop().create_task(follow(), name="callbacks-follow")
        follower.add_done_callback(_told)
    try:
        yield
    finally:
        if follower is not None:
            follower.cancel()
            await asyncio.wait([follower])
        scopes.address = ""
        if server is not None:
            await server.stop()


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("callbacks of plugins are not served", exc_info=error)
