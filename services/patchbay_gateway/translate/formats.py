"""
Names of wire formats, and the spellings that plugins use for them.

Source of the aliases: pluginapi, executor input and output formats. Any other string is a plugin's own format
and kept as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

OPENAI: Final = "openai"
OPENAI_RESPONSE: Final = "openai-response"
CLAUDE: Final = "claude"
GEMINI: Final = "gemini"

_ALIASES: Final = {
    "chat-completions": OPENAI,
    "chat_completions": OPENAI,
    "openai-chat-completions": OPENAI,
    "openai_chat_completions": OPENAI,
    "responses": OPENAI_RESPONSE,
    "openai-responses": OPENAI_RESPONSE,
    "openai_responses": OPENAI_RESPONSE,
    "anthropic": CLAUDE,
}
_NOTHING: Final = frozenset({"", "none"})


def canonical(name: str) -> str:
    """Return the one spelling of *name*; empty for `none` and nothing."""
    name = name.strip().lower()
    return "" if name in _NOTHING else _ALIASES.get(name, name)


def canonical_list(names: Iterable[str]) -> tuple[str, ...]:
    """Return the spellings of *names*, duplicates and `none` left out, order kept."""
    return tuple(dict.fromkeys(found for name in names if (found := canonical(name))))
