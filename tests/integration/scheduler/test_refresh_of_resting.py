"""An account that rests after a failure keeps its token fresh: the two know nothing of each other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.fakes.identity import running_identity
from tests.integration.scheduler.conftest import acquire, eventually
from tests.integration.scheduler.test_auth_dir import serving, write
from tests.integration.scheduler.test_pool import fault

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.type.v1 import error_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.scheduler.conftest import Gateway


async def test_account_that_rests_is_refreshed_all_the_same(
    gateway: Gateway, tmp_path: Path
) -> None:
    directory = tmp_path / "auths"
    directory.mkdir()
    async with running_identity("a") as identity:
        # The second refresh, which the short life of the first token brings, waits until it is looked for.
        identity.behave(hold=True)
        identity.behave(expires_in=6.0, times=1)
        write(
            directory,
            "team",
            refresh_token="test-refresh-a-0",
            token_url=identity.token_url,
            client_id="c",
        )
        async with serving(gateway, directory) as (scheduler, holder):

            async def status() -> scheduler_pb2.CredentialStatus:
                request = scheduler_pb2.ListCredentialsRequest(ids=["team"])
                return (await scheduler.ListCredentials(request)).credentials[0]

            async def ready() -> bool:
                return (await status()).models[0].state == "ready"

            await eventually(ready)
            assert holder.current is not None
            answer = await scheduler.Acquire(acquire(holder.current.version, "R-1"))
            spent = fault(
                answer.results[0].lease,
                scheduler_pb2.FAULT_KIND_QUOTA,
                3000,
                scope=error_pb2.FAULT_SCOPE_CREDENTIAL,
            )
            await scheduler.Report(spent)

            async def rests() -> bool:
                return (await status()).models[0].state == "cooling"

            await eventually(rests)
            version = (await status()).version
            identity.release()

            async def refreshed() -> bool:
                return (await status()).version > version

            await eventually(refreshed)
            found = await status()
            assert found.version > version
            assert found.refresh.state == "ok"
            assert found.models[0].state == "cooling", "a new token brings no quota back"
            assert found.models[0].until.seconds > time.time() + 2000
        assert [p.token for p in identity.log] == ["a.0", "a.1"]
