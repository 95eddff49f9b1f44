"""
Starts of `patchbay up` beside a Redis that does not answer.

With the configuration of an earlier run on disk it serves without, as it would if Redis went away later. On a
first start somebody has mistyped an address or forgotten a server, so it says what to do and ends. Not here:
how services do without Redis, the server that `up` brings itself (kernel/valkey.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from patchbay.errors import Unavailable
from patchbay_gateway.kernel import logs
from patchbay_gateway.kernel.redis import START_PATIENCE
from patchbay_gateway.plugins.sections import read_file

if TYPE_CHECKING:
    from pathlib import Path

    from patchbay_gateway.kernel.redis import Store

# Clients wait meanwhile, and they can be served.
_SHORT: Final = 2.0

_log = logs.get_logger("starting")


async def await_redis(store: Store, data_dir: Path) -> None:
    """
    Return when Redis answers, or when there is a configuration to serve without it.

    Raises:
        FailedPrecondition: The server would lose what is written to it.
        Unavailable: No server, and nothing to serve without it; the text has the remedy.
    """
    known = await asyncio.to_thread(read_file, data_dir / "snapshot.json") is not None
    try:
        await store.check_server(patience=_SHORT if known else START_PATIENCE)
    except Unavailable as error:
        if not known:
            raise Unavailable(
                f"{error.message}. Start that server or correct REDIS_URL (--redis-url); "
                "without either, `patchbay up` brings a server of its own",
                reason=error.reason,
            ) from error
        _log.warning("starting without Redis, from the configuration of before", why=error.message)
