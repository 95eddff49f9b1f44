"""Which dialect a request of the fake upstream is in, and its lists of models. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from tests.fakes.claude_talk import ClaudeTalk
from tests.fakes.gemini_talk import GeminiTalk, action
from tests.fakes.openai_talk import OpenAITalk

if TYPE_CHECKING:
    from tests.fakes.script import Json, Request, Script, Talk


def dialect_of(path: str, headers: dict[str, str]) -> str:
    """Return `claude`, `gemini` or `openai`."""
    bare = path.partition("?")[0]
    if bare.endswith(("/messages", "/messages/count_tokens")) or "anthropic-version" in headers:
        return "claude"
    if "x-goog-api-key" in headers or "/v1beta/" in f"{bare}/":
        return "gemini"
    return "openai"


def asked(path: str, headers: dict[str, str], document: Json) -> tuple[str, bool]:
    """Return the model as the request names it and whether the answer is a stream."""
    if dialect_of(path, headers) == "gemini":
        model, what = action(path)
        return unquote(model), what == "streamGenerateContent"
    return str(document.get("model", "")), document.get("stream") is True


def talk_of(script: Script, record: Request, document: Json) -> Talk:
    """Return who answers."""
    dialect = dialect_of(record.path, record.headers)
    if dialect == "claude":
        return ClaudeTalk(script, record, document)
    if dialect == "gemini":
        return GeminiTalk(script, record, document)
    return OpenAITalk(script, record, document)


def models(script: Script, record: Request) -> Json | None:
    """Return a list of models or one of them; None where the path asks for something else."""
    path = record.path.partition("?")[0].rstrip("/")
    before, found, name = path.rpartition("/models/")
    if record.method != "GET" or not (path.endswith("/models") or (found and before)):
        return None
    dialect = dialect_of(record.path, record.headers)
    # A provider lists what it speaks: names of others begin with their dialect.
    others = {"claude", "gemini"} - {dialect}
    names = [name for name in script.models.split() if not name.startswith(tuple(others))]
    if dialect in {"claude", "gemini"}:
        names = [name for name in names if name.startswith(dialect)]
    if name and unquote(name) in names:
        return _card(dialect, unquote(name))
    cards = [_card(dialect, each) for each in names]
    if dialect == "gemini":
        return {"models": cards}
    if dialect == "claude":
        return {"data": cards, "has_more": False, "first_id": names[0], "last_id": names[-1]}
    return {"object": "list", "data": cards}


def _card(dialect: str, name: str) -> Json:
    if dialect == "gemini":
        methods = ["generateContent", "streamGenerateContent", "countTokens"]
        return {"name": f"models/{name}", "version": name, "supportedGenerationMethods": methods}
    if dialect == "claude":
        return {
            "id": name,
            "type": "model",
            "display_name": name,
            "created_at": "2025-01-01T00:00:00Z",
            "lifecycle": "active",
        }
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "fake"}
