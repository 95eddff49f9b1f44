"""Tests of the example: each mode, and the contract."""

import asyncio
import json

import pytest
from thinking_budget import ThinkingBudget

from patchbay.testing.harness import conformance_of
from patchbay.thinking import ThinkingApplyRequest, ThinkingConfig, ThinkingMode


@pytest.mark.parametrize(
    ("config", "written"),
    [
        (ThinkingConfig(ThinkingMode.BUDGET, budget=512), {"max_tokens": 512}),
        (ThinkingConfig(ThinkingMode.LEVEL, level="high"), {"effort": "high"}),
        (ThinkingConfig(ThinkingMode.NONE), {"effort": "none"}),
        (ThinkingConfig(ThinkingMode.AUTO), {"effort": "auto"}),
    ],
)
def test_setting_is_written(config: ThinkingConfig, written: dict[str, object]) -> None:
    request = ThinkingApplyRequest("mine", b'{"n":1}', config=config)
    body = asyncio.run(ThinkingBudget().apply_thinking(request))
    assert body is not None
    assert json.loads(body) == {"n": 1, "reasoning": written}


def test_without_a_setting_the_payload_stays() -> None:
    request = ThinkingApplyRequest("mine", b"{}")
    assert asyncio.run(ThinkingBudget().apply_thinking(request)) is None


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(ThinkingBudget()))
    assert report.passed, report.table()
