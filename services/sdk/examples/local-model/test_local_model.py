"""Tests of the example: its model, its answer, the contract."""

import asyncio
import json

from local_model import MODEL, LocalModel

from patchbay.models import ModelRegistrationRequest
from patchbay.plugin.v1 import executor_pb2
from patchbay.testing.harness import conformance_of, serving


def test_model_is_registered_and_answers() -> None:
    async def scenario() -> None:
        async with serving(LocalModel()) as served:
            told = await served.call("RegisterModels", ModelRegistrationRequest())
            assert (told.provider, [model.id for model in told.models]) == ("local-model", [MODEL])
            asked = executor_pb2.ExecutorRequest(model=MODEL, format="openai", payload=b"{}")
            answer = json.loads((await served.call("Execute", asked)).payload)
            assert answer["choices"][0]["message"]["content"].endswith("9 10")

    asyncio.run(scenario())


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(LocalModel()))
    assert report.passed, report.table()
