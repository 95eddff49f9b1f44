"""The translations that come with the gateway. Built once by whoever wires a process; not changed after."""

from __future__ import annotations

from patchbay_gateway.translate import (
    claude_answers,
    claude_to_openai,
    openai_answers,
    openai_to_claude,
)
from patchbay_gateway.translate.formats import CLAUDE, OPENAI
from patchbay_gateway.translate.registry import Pair, Registry


def native_registry() -> Registry:
    """Return a registry with the native pairs."""
    registry = Registry()
    registry.register(
        OPENAI,
        CLAUDE,
        Pair(
            request=openai_to_claude.translate_request,
            whole=claude_answers.translate_answer,
            stream=claude_answers.Stream,
        ),
    )
    registry.register(
        CLAUDE,
        OPENAI,
        Pair(
            request=claude_to_openai.translate_request,
            whole=openai_answers.translate_answer,
            stream=openai_answers.Stream,
            count=openai_answers.count_answer,
        ),
    )
    return registry
