"""
Session identifiers in a request, for affinity: the first of fourteen sources that says something.

| | source |
|---|---|
| 1 | header `x-claude-code-session-id` |
| 2 | the session part of Claude's `metadata.user_id` |
| 3-6 | headers `session-id` or `session_id`, `x-session-id`, `x-session-affinity`, `x-client-request-id` |
| 7 | body `session_id` or `sessionId` |
| 8 | body `prompt_cache_key`, with the conversation's id as alias |
| 9 | body `conversation` or `conversation.id` |
| 10 | body `metadata.user_id` |
| 11 | body `conversation_id` |
| 12 | the execution session of the caller |
| 13 | derived: the first instructions (50 characters) and the first user input |
| 14 | derived: beginnings of the first user and assistant messages |

14 has a second form without the assistant's words, so that the first turn and the second meet. Identifiers
have 1 to 256 bytes and no control characters; others are passed over. Derived ones are hashed with who asks,
so that two clients with one prompt are two sessions. Only asked where affinity is on; the body is read once
and only the fields named here. Not here: tenants and bindings (scheduler).
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patchbay_gateway.edge.request import Request

_MAX_BYTES: Final = 256
# Larger bodies are read in a thread: bytes.
_ON_LOOP: Final = 1 << 20
_INSTRUCTIONS: Final = 50
_BEGINNING: Final = 100
_HEADERS: Final = (
    (b"session-id", b"session_id"),
    (b"x-session-id",),
    (b"x-session-affinity",),
    (b"x-client-request-id",),
)
_CLAUDE_MARK: Final = "_session_"
_NOTHING: Final = msgspec.Raw()
# Turns that are looked through for the first words of each side.
_FIRST_TURNS: Final = 8


class _Body(msgspec.Struct):
    """What of a body can name a session; the rest is skipped by the decoder."""

    session_id: Any = None
    sessionId: Any = None  # noqa: N815 - the field's name
    prompt_cache_key: Any = None
    conversation: Any = None
    conversation_id: Any = None
    metadata: Any = None
    instructions: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    systemInstruction: msgspec.Raw = _NOTHING  # noqa: N815 - the field's name
    system_instruction: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING
    contents: msgspec.Raw = _NOTHING


_BODY: Final = msgspec.json.Decoder(_Body)
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


async def find(request: Request) -> list[str]:
    """Return `identifiers`, for large bodies without keeping the loop."""
    assert request.document is not None
    if len(request.document.data) <= _ON_LOOP:
        return identifiers(request)
    return await asyncio.to_thread(identifiers, request)


def identifiers(request: Request) -> list[str]:
    """Return the identifiers of the first source that has any, strongest first; empty for none."""
    headers = dict(request.routed.exchange.head.headers)
    if found := _sound(headers.get(b"x-claude-code-session-id")):
        return [found]
    body = _read(request)
    if found := _claude_session(body):
        return [found]
    for names in _HEADERS:
        for name in names:
            if found := _sound(headers.get(name)):
                return [found]
    for ids in _in_body(body):
        if ids:
            return ids
    if found := _sound(request.routed.execution_session_id):
        return [found]
    return _derived(request, body)


def _read(request: Request) -> _Body:
    assert request.document is not None
    try:
        return _BODY.decode(request.document.data)
    except msgspec.DecodeError:
        return _Body()


def _claude_session(body: _Body) -> str:
    """Return the session of `user_…_account_…_session_ID`, or of a JSON object with `session_id`."""
    user = _user_id(body)
    if user.startswith("{"):
        try:
            told = msgspec.json.decode(user, type=dict[str, Any])
        except msgspec.DecodeError:
            return ""
        return _sound(told.get("session_id"))
    _, mark, session = user.rpartition(_CLAUDE_MARK)
    return _sound(session) if mark else ""


def _user_id(body: _Body) -> str:
    user = body.metadata.get("user_id") if isinstance(body.metadata, dict) else None
    return user if isinstance(user, str) else ""


def _in_body(body: _Body) -> Iterator[list[str]]:
    conversation = body.conversation
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    conversation = _sound(conversation)
    yield _some(_sound(body.session_id) or _sound(body.sessionId))
    if key := _sound(body.prompt_cache_key):
        alias = conversation or _sound(body.conversation_id)
        yield _some(key, alias)
    yield _some(conversation)
    yield _some(_sound(_user_id(body)))
    yield _some(_sound(body.conversation_id))


def _some(*found: str) -> list[str]:
    return [each for each in dict.fromkeys(found) if each]


def _sound(value: object) -> str:
    """Return *value* as an identifier, empty if it is none."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return ""
    value = value.strip()
    if not value or len(value.encode("utf-8", "replace")) > _MAX_BYTES:
        return ""
    return value if value.isprintable() else ""


def _derived(request: Request, body: _Body) -> list[str]:
    turns = _turns(body)
    user = turns.get("user", "")
    if not user:
        return []
    client = request.client
    who = f"{client.tenant}\0{client.name}" if client is not None else ""
    instructions = turns.get("system", "")
    if instructions:
        words = (instructions[:_INSTRUCTIONS], user, request.routed.dialect.name)
        return [_hashed("ctx:v1", who, *words)]
    short = _hashed("msg:v1", who, user[:_BEGINNING])
    if answer := turns.get("assistant", ""):
        return [_hashed("msg:v1", who, user[:_BEGINNING], answer[:_BEGINNING]), short]
    return [short]


def _hashed(kind: str, *parts: str) -> str:
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16)
    return f"{kind}:{digest.hexdigest()}"


def _turns(body: _Body) -> dict[str, str]:
    """Return the first words of `system`, `user` and `assistant`."""
    found: dict[str, str] = {}
    for raw in (body.instructions, body.system, body.systemInstruction, body.system_instruction):
        if text := _text(_value(raw)):
            found["system"] = text
            break
    given = _value(body.input) if bytes(body.input)[:1] == b'"' else None
    if isinstance(given, str) and given.strip():
        found["user"] = given.strip()
        return found
    for raw in (body.messages, body.input, body.contents):
        try:
            turns = _LIST.decode(raw) if raw else []
        except msgspec.DecodeError:
            continue
        for turn in turns[:_FIRST_TURNS]:
            _take(_value(turn), found)
    return found


def _take(turn: Any, found: dict[str, str]) -> None:
    if not isinstance(turn, dict):
        return
    role = turn.get("role", "user")
    role = {"developer": "system", "model": "assistant"}.get(role, role)
    if role in {"system", "user", "assistant"} and role not in found and (text := _text(turn)):
        found[role] = text


def _text(value: Any) -> str:
    """Return the first text in a message, part or list of parts."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return next((text for part in value if (text := _text(part))), "")
    if isinstance(value, dict):
        for key in ("text", "content", "parts"):
            if key in value and (text := _text(value[key])):
                return text
    return ""


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw) if raw else None
    except msgspec.DecodeError:
        return None
