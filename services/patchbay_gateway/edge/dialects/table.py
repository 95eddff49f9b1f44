"""The dialects by name, as the router and the pipeline are given them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.edge.dialects.claude import ClaudeDialect
from patchbay_gateway.edge.dialects.gemini import GeminiDialect
from patchbay_gateway.edge.dialects.openai import OpenAIDialect
from patchbay_gateway.edge.dialects.openai_response import OpenAIResponseDialect

if TYPE_CHECKING:
    from patchbay_gateway.edge.dialects.port import Dialect

GEMINI_JSON: Final = "gemini-json"
"""Key of Gemini as one JSON array; its `name` is `gemini` all the same."""


def dialects() -> dict[str, Dialect]:
    """Return the built-in dialects; they hold no state."""
    return {
        "openai": OpenAIDialect(),
        "openai-response": OpenAIResponseDialect(),
        "claude": ClaudeDialect(),
        "gemini": GeminiDialect(),
        GEMINI_JSON: GeminiDialect(sse=False),
    }
