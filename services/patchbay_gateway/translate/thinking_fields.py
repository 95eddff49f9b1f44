"""
Where each native format says how much a model is to think.

Only what the suffix of a model name asked for is written, over what the body says; nothing is checked
against the model, for the gateway does not know it. Sources: the API references of the providers. Not
here: what the suffix means (thinking.py), formats of plugins (their thinking appliers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.translate.documents import Document, mapping, number, read_request, write
from patchbay_gateway.translate.formats import CLAUDE, GEMINI, OPENAI, OPENAI_RESPONSE
from patchbay_gateway.translate.thinking import CLAUDE_LEAST, LEVEL_BUDGETS, level_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchbay_gateway.translate.thinking import Thinking

_CLAUDE_ROOM: Final = 4096
"""Tokens that are left for the answer where the body's limit leaves none."""


def apply(name: str, body: bytes, asked: Thinking) -> bytes | None:
    """
    Return *body* with *asked* written into it; None for a format that is not native.

    Raises:
        InvalidRequest: *body* is no JSON object.
    """
    writer = _WRITERS.get(name)
    if writer is None:
        return None
    document = read_request(body)
    writer(document, asked)
    return write(document)


def _level(asked: Thinking) -> str:
    return asked.level or level_of(asked.budget or 0)


def _budget(asked: Thinking) -> int:
    return asked.budget if asked.budget is not None else LEVEL_BUDGETS[asked.level]


def _openai(document: Document, asked: Thinking) -> None:
    level = _level(asked)
    if level == "auto":
        document.pop("reasoning_effort", None)
    else:
        document["reasoning_effort"] = level


def _responses(document: Document, asked: Thinking) -> None:
    level = _level(asked)
    reasoning = dict(mapping(document.get("reasoning")))
    if level == "auto":
        reasoning.pop("effort", None)
    else:
        reasoning["effort"] = level
    document["reasoning"] = reasoning


def _claude(document: Document, asked: Thinking) -> None:
    budget = _budget(asked)
    if budget == 0:
        document["thinking"] = {"type": "disabled"}
        return
    budget = max(LEVEL_BUDGETS["medium"] if budget < 0 else budget, CLAUDE_LEAST)
    document["thinking"] = {"type": "enabled", "budget_tokens": budget}
    # Claude counts thinking against the limit and refuses these beside it.
    if number(document.get("max_tokens")) <= budget:
        document["max_tokens"] = budget + _CLAUDE_ROOM
    for key in ("temperature", "top_k"):
        document.pop(key, None)


def _gemini(document: Document, asked: Thinking) -> None:
    config = dict(mapping(document.get("generationConfig")))
    thinking = dict(mapping(config.get("thinkingConfig")))
    thinking.pop("thinkingLevel", None)
    thinking["thinkingBudget"] = _budget(asked)
    document["generationConfig"] = {**config, "thinkingConfig": thinking}


_WRITERS: Final[dict[str, Callable[[Document, Thinking], None]]] = {
    OPENAI: _openai,
    OPENAI_RESPONSE: _responses,
    CLAUDE: _claude,
    GEMINI: _gemini,
}
