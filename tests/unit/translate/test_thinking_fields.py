"""Where each native format says how much a model is to think."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from patchbay_gateway.translate import thinking_fields
from patchbay_gateway.translate.thinking import Thinking


@pytest.mark.parametrize(
    ("name", "body", "asked", "wanted"),
    [
        ("openai", {}, Thinking(level="high"), {"reasoning_effort": "high"}),
        (
            "openai",
            {"reasoning_effort": "low"},
            Thinking(budget=9000),
            {"reasoning_effort": "high"},
        ),
        ("openai", {"reasoning_effort": "low"}, Thinking(level="auto"), {}),
        (
            "openai-response",
            {"reasoning": {"summary": "auto"}},
            Thinking(level="low"),
            {"reasoning": {"summary": "auto", "effort": "low"}},
        ),
        (
            "claude",
            {"max_tokens": 100000, "temperature": 0.5},
            Thinking(level="medium"),
            {"max_tokens": 100000, "thinking": {"type": "enabled", "budget_tokens": 8192}},
        ),
        (
            "claude",
            {"max_tokens": 100},
            Thinking(budget=10),
            {"max_tokens": 5120, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        ("claude", {}, Thinking(level="none"), {"thinking": {"type": "disabled"}}),
        (
            "gemini",
            {"generationConfig": {"topK": 1, "thinkingConfig": {"includeThoughts": True}}},
            Thinking(level="auto"),
            {
                "generationConfig": {
                    "topK": 1,
                    "thinkingConfig": {"includeThoughts": True, "thinkingBudget": -1},
                }
            },
        ),
    ],
)
def test_setting_is_written_in_the_providers_words(
    name: str, body: dict[str, Any], asked: Thinking, wanted: dict[str, Any]
) -> None:
    written = thinking_fields.apply(name, orjson.dumps(body), asked)
    assert written is not None
    assert orjson.loads(written) == wanted


def test_format_of_a_plugin_is_left_to_its_applier() -> None:
    assert thinking_fields.apply("own", b"{}", Thinking(level="low")) is None
