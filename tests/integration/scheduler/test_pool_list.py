"""What ListCredentials says is what the next Acquire does, after any history."""

from __future__ import annotations

import random

import pytest
from tests.integration.scheduler.conftest import acquire, eventually
from tests.integration.scheduler.test_pool import fault

from patchbay.scheduler.v1 import scheduler_pb2
from patchbay.type.v1 import error_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.kernel.clock import ManualClock

FILE = """
providers:
  - name: fake
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [m, n, {name: big-model, alias: big}]
    credentials:
      - {id: one, api_key: test-key-one, max_in_flight: 2}
      - {id: two, api_key: test-key-two, excluded_models: [n]}
      - {id: three, api_key: test-key-three, prefix: team}
      - {id: out, api_key: test-key-out, disabled: true}
      - {id: bare, api_key_env: NOWHERE}
  - name: still
    plugin: openai-compatible
    base_url: http://127.0.0.1:9/v1
    models: [still]
routing: {queue: {length: 0}}
"""
CREDENTIALS = ("one", "two", "three")
KINDS = tuple(scheduler_pb2.FaultKind.values())
SCOPES = (error_pb2.FAULT_SCOPE_MODEL, error_pb2.FAULT_SCOPE_CREDENTIAL)


class History:
    """One scheduler and what happened to it."""

    def __init__(self, scheduler, version, clock, seed):
        self.scheduler = scheduler
        self.version = version
        self.clock = clock
        self.random = random.Random(seed)
        self.open = []
        self.count = 0

    async def ask(self, model, credential="", provider="fake"):
        self.count += 1
        request = acquire(self.version, f"R{self.count}-1", model=model)
        request.items[0].providers[:] = [provider]
        request.items[0].pinned_credential_id = credential
        return (await self.scheduler.Acquire(request)).results[0]

    async def settle(self):
        """Return when all that was reported is in Redis: calls go in their order."""
        assert (await self.ask("still", provider="still")).HasField("lease")

    async def listed(self):
        answer = await self.scheduler.ListCredentials(scheduler_pb2.ListCredentialsRequest())
        return {(c.id, m.model): m for c in answer.credentials for m in c.models}

    async def end(self, lease, kind=None):
        """Report an attempt: with a fault, or as cancelled, which says nothing."""
        request = scheduler_pb2.ReportRequest(edge_id="edge")
        item = request.items.add(attempt=lease.attempt)
        item.settlement.outcome = journal_pb2.OUTCOME_CANCELLED
        if kind == "ok":
            item.settlement.outcome = journal_pb2.OUTCOME_SUCCEEDED
        elif kind is not None:
            request = fault(
                lease,
                kind,
                self.random.choice((0, 0, 5, 900_000)),
                scope=self.random.choice(SCOPES),
            )
        await self.scheduler.Report(request)

    async def step(self):
        rng = self.random
        dice = rng.random()
        if dice < 0.45:
            result = await self.ask(
                rng.choice(("m", "n", "big", "team/m")), rng.choice(("", *CREDENTIALS))
            )
            if result.HasField("lease"):
                self.open.append(result.lease)
        elif dice < 0.8 and self.open:
            lease = self.open.pop(rng.randrange(len(self.open)))
            await self.end(lease, rng.choice((*KINDS, "ok", "ok", None)))
        elif dice < 0.93:
            await self.clock.advance(rng.choice((0.5, 5, 70, 700)))
        elif dice < 0.96:
            await self.scheduler.ResetCredential(
                scheduler_pb2.ResetCredentialRequest(credential_id=rng.choice(CREDENTIALS))
            )
        else:
            await self.scheduler.SetCredentialDisabled(
                scheduler_pb2.SetCredentialDisabledRequest(
                    credential_id=rng.choice(CREDENTIALS), disabled=rng.random() < 0.4
                )
            )


@pytest.mark.parametrize("seed", range(3))
async def test_ready_is_what_the_next_attempt_gets(gateway, seed):
    clock = ManualClock()
    async with gateway.scheduler("a", FILE, clock=clock) as (scheduler, holder):
        history = History(scheduler, holder.current.version, clock, seed)
        seen = set()
        for _ in range(12):
            for _ in range(6):
                await history.step()
            await history.settle()
            listed = await history.listed()
            for (credential, model), status in listed.items():
                if credential.startswith("still"):
                    continue
                result = await history.ask(model, credential)
                ready = result.HasField("lease")
                assert ready == (status.state == "ready"), (credential, model, status, result)
                seen.add(status.state)
                if ready:
                    await history.end(result.lease)
                    await history.settle()
        assert {"ready", "cooling", "disabled", "excluded", "no_material"} <= seen


async def test_models_say_who_cannot_serve_them_and_why(gateway):
    clock = ManualClock()
    async with gateway.scheduler("a", FILE, clock=clock) as (scheduler, holder):
        history = History(scheduler, holder.current.version, clock, 1)
        lease = (await history.ask("n", "one")).lease
        await scheduler.Report(fault(lease, scheduler_pb2.FAULT_KIND_QUOTA, 60))
        await history.settle()
        plain = await scheduler.ListModels(scheduler_pb2.ListModelsRequest())
        assert [m.id for m in plain.models] == [
            "big",
            "m",
            "n",
            "still",
            "team/big",
            "team/m",
            "team/n",
        ]
        assert all(m.available for m in plain.models)
        request = scheduler_pb2.ListModelsRequest(include_unavailable=True)

        async def told():
            models = {m.id: m for m in (await scheduler.ListModels(request)).models}
            found = {o.credential_id: o.reason for o in models["n"].obstacles}
            return found == {
                "one": "cooling",
                "two": "excluded",
                "out": "disabled",
                "bare": "no material",
            }

        await eventually(told)
