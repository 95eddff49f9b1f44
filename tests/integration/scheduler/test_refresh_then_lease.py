"""A request that met a 401 goes on with the new token, whichever scheduler it asks next."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.fakes.identity import running_identity
from tests.integration.scheduler.conftest import ROOTS, acquire, eventually

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay_gateway.executors.main import running_executors
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.scheduler.conftest import Gateway

FILE = """
providers:
  - name: fake
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [m]
    credentials:
      - id: team
        oauth2: {{token_url: "{url}", client_id: c, refresh_token: test-refresh-a-0}}
"""


async def test_refreshed_at_one_scheduler_leased_at_the_other(
    gateway: Gateway, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        identity = await stack.enter_async_context(running_identity("a"))
        executors = await stack.enter_async_context(
            running_executors(["oauth2"], roots=ROOTS.plugins, env={})
        )
        channel = InProcessChannel(executors.servicers, strict=True)
        stack.push_async_callback(channel.close)
        more: dict[str, Any] = {
            "config": FILE.format(url=identity.token_url),
            "settings": {"credentials_dir": tmp_path / "shared"},
            "local": {"oauth2": channel},
        }
        one, holder = await stack.enter_async_context(gateway.scheduler("a", **dict(more)))
        other, _ = await stack.enter_async_context(gateway.scheduler("b", **dict(more)))
        assert holder.current is not None
        snapshot = holder.current.version

        async def ask(uid: str) -> scheduler_pb2.AcquireResult:
            return (await other.Acquire(acquire(snapshot, uid))).results[0]

        async def leased() -> bool:
            return (await ask("R0-1")).HasField("lease")

        await eventually(leased)
        version = (await ask("R0-1")).lease.credential_version
        for n in range(1, 11):
            refused = scheduler_pb2.RefreshCredentialRequest(credential_id="team", version=version)
            newer = (await one.RefreshCredential(refused)).version
            assert newer > version
            result = await ask(f"R{n}-1")
            assert not result.HasField("refusal"), (n, result.refusal)
            assert result.lease.credential_version == newer, n
            version = newer
