"""Tests of the example: whose payload is changed, and the contract."""

import asyncio
import json

import pytest
from service_tier import ServiceTier

from patchbay.testing.harness import called_directly, conformance_of
from patchbay.transform import RequestTransformRequest


def normalized(config: bytes, model: str = "gpt-5.5", body: bytes = b'{"n":1}') -> bytes:
    request = RequestTransformRequest("openai", "openai", model, body)
    plugin = ServiceTier()
    answer = asyncio.run(called_directly(plugin, "NormalizeRequest", request, config=config))
    return bytes(answer.body)


def test_tier_is_set() -> None:
    assert json.loads(normalized(b"fast: true")) == {"n": 1, "service_tier": "priority"}


@pytest.mark.parametrize(
    ("config", "model", "body"),
    [
        (b"fast: false", "gpt-5.5", b"{}"),
        (b"fast: true", "other", b"{}"),
        (b"fast: true", "gpt-5.5", b"[]"),
        (b"fast: true", "gpt-5.5", b"no json"),
    ],
)
def test_others_stay(config: bytes, model: str, body: bytes) -> None:
    assert normalized(config, model, body) == b""


def test_contract_is_kept() -> None:
    configs = {ServiceTier.id: b"{fast: true, model: conformance-model, to_format: claude}"}
    (report,) = asyncio.run(conformance_of(ServiceTier(), configs=configs))
    assert report.passed, report.table()
