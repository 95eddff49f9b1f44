"""
Puts together what serves callbacks on an edge.

Not here: what the parts do, when and where the port is open (plugins/callbacks/serving.py).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from patchbay_gateway.edge.callbacks.auths import AuthForwarding
from patchbay_gateway.edge.callbacks.models import ModelCalls
from patchbay_gateway.edge.callbacks.servicer import EdgeHostServicer
from patchbay_gateway.edge.clients import SchedulerKeys
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.kernel.uid import UidSource
from patchbay_gateway.plugins.callbacks.callers import Callers
from patchbay_gateway.plugins.callbacks.http_calls import HttpCalls
from patchbay_gateway.plugins.callbacks.serving import serving_callbacks
from patchbay_gateway.translate.native import native_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from patchbay_gateway.edge.clients import SchedulerCalls
    from patchbay_gateway.edge.running import RunningEdge
    from patchbay_gateway.kernel.channels.port import Channel
    from patchbay_gateway.kernel.config import ProcessSettings


@contextlib.asynccontextmanager
async def edge_callbacks(
    edge: RunningEdge,
    settings: ProcessSettings,
    *,
    scheduler: SchedulerCalls,
    auths: Sequence[Channel],
    port: int,
    always: bool,
) -> AsyncIterator[None]:
    """
    Let plugins call *edge* back.

    Args:
        edge: Runs their model calls; drained before this ends.
        settings: Of this process.
        scheduler: Tells channel keys.
        auths: Channels to the schedulers' HostService, without metadata of their own.
        port: Where to listen; 0 takes a free one.
        always: Whether to listen where nobody is granted anything yet.

    Raises:
        FailedPrecondition: ADDRESS_IN_USE.
    """
    clock = edge.clock
    models = ModelCalls(
        edge.pipeline,
        holder=edge.holder,
        dialects=dialects(),
        native=native_registry(),
        mint=UidSource(clock).mint,
        now=clock.now,
        translation=edge.translation,
    )
    servicer = EdgeHostServicer(
        Callers(edge.holder, keys=SchedulerKeys(scheduler).keys, scopes=edge.scopes, now=clock.now),
        models=models,
        http=HttpCalls(),
        auths=AuthForwarding(auths),
    )
    try:
        async with serving_callbacks(
            servicer,
            edge.scopes,
            settings=settings,
            holder=edge.holder,
            port=port,
            always=always,
        ):
            yield
    finally:
        await models.aclose()
