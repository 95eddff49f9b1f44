"""Reasoning settings for a provider of one's own: a thinking applier."""

from __future__ import annotations

import json

from patchbay.thinking import ThinkingApplier, ThinkingApplyRequest, ThinkingMode

_EFFORT = {ThinkingMode.NONE: "none", ThinkingMode.AUTO: "auto"}


class ThinkingBudget(ThinkingApplier):
    """Writes `reasoning: {effort}` or `{max_tokens}` into payloads of its provider."""

    id = "thinking-budget"
    name = "Thinking budget"
    version = "1.0.0"
    author = "Patchbay"

    async def apply_thinking(self, request: ThinkingApplyRequest) -> bytes | None:
        """Write the setting; None where there is none."""
        config = request.config
        if config is None or config.mode is ThinkingMode.UNSPECIFIED:
            return None
        payload = json.loads(request.body)
        if config.mode is ThinkingMode.BUDGET:
            payload["reasoning"] = {"max_tokens": config.budget}
        else:
            payload["reasoning"] = {"effort": _EFFORT.get(config.mode, config.level)}
        return json.dumps(payload).encode()
