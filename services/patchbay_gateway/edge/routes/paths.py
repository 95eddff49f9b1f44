"""
From method and path to what is asked: the table of client routes.

Pure: no exchange, no dialect objects. Not here: what is done about it (router.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from patchbay.errors import NotFound, PatchbayError


class MethodNotAllowed(PatchbayError):
    """The path exists, the method does not (405). `allow` goes into the `Allow` header."""

    default_reason = "METHOD_NOT_ALLOWED"

    def __init__(self, allow: str) -> None:
        super().__init__(f"this path answers {allow} only")
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Target:
    """What a path asks for."""

    kind: str
    """`run`, `models`, `model` or `health`."""
    dialect: str
    """Dialect by the path; for `/v1/models` the headers decide (models.py)."""
    operation: str = ""
    model: str | None = None
    stream: bool | None = None


# Base URLs that SDKs of a provider are pointed at when one host serves several APIs.
_PREFIXES: Final = {"/openai/": "openai", "/anthropic/": "claude", "/genai/": "gemini"}

_POSTS: Final = {
    "/v1/chat/completions": Target("run", "openai", "chat"),
    "/v1/completions": Target("run", "openai", "completions"),
    "/v1/embeddings": Target("run", "openai", "embeddings"),
    "/v1/responses": Target("run", "openai-response", "chat"),
    "/v1/messages": Target("run", "claude", "chat"),
    "/v1/messages/count_tokens": Target("run", "claude", "count_tokens"),
}
_GETS: Final = {
    "/healthz": Target("health", "openai"),
    "/v1/models": Target("models", "openai"),
    "/v1beta/models": Target("models", "gemini"),
}
_ACTIONS: Final = {
    "generateContent": ("chat", False),
    "streamGenerateContent": ("chat", True),
    "countTokens": ("count_tokens", False),
}
_GEMINI_MODELS: Final = "/v1beta/models/"
_OPENAI_MODELS: Final = "/v1/models/"
_READ: Final = ("GET", "HEAD")
# Of what a client asked for, so many characters are told back.
_MAX_SHOWN: Final = 200


def strip_prefix(path: str) -> tuple[str, str]:
    """Return *path* without a provider prefix and the dialect that the prefix names, or ''."""
    for prefix, dialect in _PREFIXES.items():
        if path.startswith(prefix):
            return path[len(prefix) - 1 :], dialect
    return path, ""


def guess_dialect(path: str) -> str:
    """Return the dialect in which an unknown *path* is refused, by path alone; '' when open."""
    bare, named = strip_prefix(path)
    if bare.startswith("/v1beta"):
        return "gemini"
    if bare.startswith("/v1/messages"):
        return "claude"
    if bare.startswith("/v1/responses"):
        return "openai-response"
    return named


def resolve(method: str, path: str) -> Target:
    """
    Return what *method* and *path* (percent-decoded) ask for.

    Raises:
        NotFound: No such path; reason NO_ROUTE, or NO_ACTION for an unknown Gemini action.
        MethodNotAllowed: Another method than the path answers.
    """
    found = _POSTS.get(path)
    if found is not None:
        if method != "POST":
            raise MethodNotAllowed("POST")
        return found
    bare, named = strip_prefix(path) if path.startswith(tuple(_PREFIXES)) else (path, "")
    if named:
        found = _POSTS.get(bare)
        if found is not None:
            if method != "POST":
                raise MethodNotAllowed("POST")
            return found
    if bare.startswith(_GEMINI_MODELS) and ":" in (tail := bare[len(_GEMINI_MODELS) :]):
        return _gemini_action(method, tail)
    if method == "POST" and bare.startswith(_OPENAI_MODELS):
        # Newer SDKs of Google's speak its v1; nobody else posts to a model.
        tail = bare[len(_OPENAI_MODELS) :]
        if tail.rpartition(":")[2] in _ACTIONS:
            return _gemini_action(method, tail)
    found = _GETS.get(bare)
    if found is None and bare.startswith(_GEMINI_MODELS) and len(bare) > len(_GEMINI_MODELS):
        found = Target("model", "gemini", model=bare[len(_GEMINI_MODELS) :])
    # A model name may hold slashes: `prefix/name` of a credential's prefix.
    if found is None and bare.startswith(_OPENAI_MODELS) and len(bare) > len(_OPENAI_MODELS):
        found = Target("model", "openai", model=bare[len(_OPENAI_MODELS) :])
    if found is None:
        raise NotFound(f"no route {method} {_brief(path)}", reason="NO_ROUTE")
    if method not in _READ:
        raise MethodNotAllowed("GET, HEAD")
    if named and found.kind != "health":
        return Target(found.kind, named, model=found.model)
    return found


def _gemini_action(method: str, tail: str) -> Target:
    # The last colon: model names of other providers hold colons themselves (`llama3:8b`).
    model, _, action = tail.rpartition(":")
    known = _ACTIONS.get(action)
    if known is None or not model:
        if method in _READ and model:
            return Target("model", "gemini", model=tail)
        raise NotFound(f"no action {_brief(action)!r} on models", reason="NO_ACTION")
    if method != "POST":
        raise MethodNotAllowed("POST")
    operation, stream = known
    return Target("run", "gemini", operation, model=model, stream=stream)


def _brief(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
