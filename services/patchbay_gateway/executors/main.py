"""
Builds the built-in executors: for this process (`running_executors`) or as a service (`run`).

The only module here that knows the kernel. Not here: what executors do.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.executor import ExecutorServicer
from patchbay.keys import sealing_key
from patchbay.secrets import SecretOpener
from patchbay_gateway.executors.aiohttp_upstream import AiohttpUpstream
from patchbay_gateway.executors.echo import EchoExecutor
from patchbay_gateway.executors.openai_compatible import OpenAICompatibleExecutor
from patchbay_gateway.executors.proxies import Proxies
from patchbay_gateway.kernel.keys import plugin_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from patchbay.executor import Executor
    from patchbay_gateway.executors.upstream import Upstream

SERVICE: Final = "patchbay.plugin.v1.ExecutorService"

_BUILDERS: Final[Mapping[str, Callable[[Upstream], Executor]]] = {
    OpenAICompatibleExecutor.id: OpenAICompatibleExecutor,
    EchoExecutor.id: lambda _: EchoExecutor(),
}

BUILT_IN: Final = tuple(_BUILDERS)
"""Ids of the executors that come with the gateway."""


@dataclass(frozen=True, slots=True)
class RunningExecutors:
    """Executors that are ready for calls."""

    executors: tuple[Executor, ...]
    servicers: Mapping[str, object]
    """Full service name → servicer, for an in-process channel or a server."""


@contextlib.asynccontextmanager
async def built_executors(
    plugins: Iterable[str] = (), *, env: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Executor, ...]]:
    """
    Build executors over one upstream and close them at the end of the block.

    Args:
        plugins: Ids; none means all built-ins.
        env: The environment, for its proxies.

    Raises:
        NotFound: An id that is no built-in's.
    """
    chosen = tuple(dict.fromkeys(plugins)) or BUILT_IN
    for plugin_id in chosen:
        if plugin_id not in _BUILDERS:
            raise errors.NotFound(
                f"no built-in executor {plugin_id!r}; there are {', '.join(BUILT_IN)}",
                reason="PLUGIN_UNKNOWN",
            )
    upstream = AiohttpUpstream(Proxies(os.environ if env is None else env))
    executors = tuple(_BUILDERS[plugin_id](upstream) for plugin_id in chosen)
    try:
        yield executors
    finally:
        for executor in executors:
            await executor.aclose()
        await upstream.aclose()


@contextlib.asynccontextmanager
async def running_executors(
    plugins: Iterable[str] = (),
    *,
    roots: Sequence[bytes] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningExecutors]:
    """
    Build executors for an in-process channel.

    Args:
        plugins: Ids; none means all built-ins.
        roots: The `plugins` roots, newest first; the executors' sealing keys are derived from them.
        env: The environment, for its proxies.
    """
    async with built_executors(plugins, env=env) as executors:
        keys = [
            sealing_key(plugin_key(root, executor.id)) for root in roots for executor in executors
        ]
        servicer = ExecutorServicer(executors, opener=SecretOpener(keys))
        yield RunningExecutors(executors, {SERVICE: servicer})
