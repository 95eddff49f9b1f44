"""
A request of OpenAI Chat Completions, as Claude Messages takes it.

What has no counterpart is left out: penalties, seeds, log probabilities, `n`, `response_format`. Sources: the
API references of both providers. Not here: the answer's way back (claude_answers.py).
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from patchbay.errors import InvalidRequest
from patchbay_gateway.translate import thinking, tools
from patchbay_gateway.translate.documents import (
    Document,
    mapping,
    number,
    read_request,
    sequence,
    text,
    write,
)

# Claude demands a limit and OpenAI's clients often send none; CLIProxyAPI's default.
_MAX_TOKENS: Final = 32000
_DATA_URL: Final = re.compile(r"data:([^;,]+)(?:;[^,]*)?;base64,(.*)", re.DOTALL)
_COPIED: Final = ("top_p", "top_k", "metadata", "service_tier")


def translate_request(model: str, body: bytes, stream: bool) -> bytes:
    """
    Translate *body*.

    Raises:
        InvalidRequest: No JSON object, or content that Claude cannot take.
    """
    given = read_request(body)
    system, messages = _conversation(sequence(given.get("messages")))
    wanted: Document = {
        "model": model,
        "max_tokens": number(given.get("max_tokens"))
        or number(given.get("max_completion_tokens"))
        or _MAX_TOKENS,
        "messages": messages or [{"role": "user", "content": [{"type": "text", "text": ""}]}],
    }
    if system:
        wanted["system"] = system
    wanted.update({key: given[key] for key in _COPIED if given.get(key) is not None})
    _sampling(given, wanted)
    _user(given, wanted)
    _tools(given, wanted)
    _thinking(given, wanted)
    if stream:
        wanted["stream"] = True
    return write(wanted)


def _sampling(given: Document, wanted: Document) -> None:
    temperature = given.get("temperature")
    # Claude's newer models refuse both together, and its scale ends at 1.
    if isinstance(temperature, int | float) and "top_p" not in wanted:
        wanted["temperature"] = min(temperature, 1)
    stop = given.get("stop")
    stops = [stop] if isinstance(stop, str) else [s for s in sequence(stop) if text(s)]
    if stops:
        wanted["stop_sequences"] = stops


def _user(given: Document, wanted: Document) -> None:
    metadata = mapping(wanted.pop("metadata", None))
    user = text(metadata.get("user_id")) or text(given.get("user"))
    # OpenAI's metadata is a mapping of the client's own; Claude knows this one key.
    if user:
        wanted["metadata"] = {"user_id": user}


def _tools(given: Document, wanted: Document) -> None:
    found = []
    for tool in sequence(given.get("tools")):
        function = mapping(mapping(tool).get("function"))
        if not text(function.get("name")):
            continue
        one: Document = {
            "name": function["name"],
            "input_schema": tools.object_schema(function.get("parameters")),
        }
        if text(function.get("description")):
            one["description"] = function["description"]
        if cache := mapping(tool).get("cache_control") or function.get("cache_control"):
            one["cache_control"] = cache
        found.append(one)
    if not found:
        return
    wanted["tools"] = found
    choice = _tool_choice(given.get("tool_choice"))
    if given.get("parallel_tool_calls") is False:
        choice = {**(choice or {"type": "auto"})}
        if choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
    if choice:
        wanted["tool_choice"] = choice


def _tool_choice(choice: object) -> Document | None:
    if isinstance(choice, str):
        kind = {"auto": "auto", "none": "none", "required": "any"}.get(choice)
        return {"type": kind} if kind else None
    name = text(mapping(mapping(choice).get("function")).get("name"))
    return {"type": "tool", "name": name} if name else None


def _thinking(given: Document, wanted: Document) -> None:
    budget = thinking.Thinking(level=text(given.get("reasoning_effort")).lower()).tokens
    if not budget:
        return
    if budget < 0:
        budget = thinking.LEVEL_BUDGETS["medium"]
    # Thinking counts against the limit, and Claude refuses it beside a forced tool.
    budget = min(max(budget, thinking.CLAUDE_LEAST), wanted["max_tokens"] - 1)
    forced = mapping(wanted.get("tool_choice")).get("type") in {"any", "tool"}
    if budget < thinking.CLAUDE_LEAST or forced:
        return
    wanted["thinking"] = {"type": "enabled", "budget_tokens": budget}
    for key in ("temperature", "top_k"):
        wanted.pop(key, None)


# -- messages ---------------------------------------------------------------------------------------


def _conversation(messages: list[Any]) -> tuple[list[Document], list[Document]]:
    """Return the system blocks and the turns, neighbours of one role merged."""
    system: list[Document] = []
    turns: list[Document] = []
    results: dict[str, Document] = {}
    for position, entry in enumerate(messages):
        message = mapping(entry)
        role = text(message.get("role"))
        if role in {"system", "developer"}:
            system += _marked(_texts(message.get("content")), message)
            continue
        if role in {"tool", "function"}:
            given = text(message.get("tool_call_id")) or text(message.get("name"))
            block = _tool_result(message, given)
            if given and given in results:
                # Said twice: the last content counts, at the first place.
                results[given].clear()
                results[given].update(block)
                continue
            results[given] = block
            blocks = [block]
            role = "user"
        elif role == "assistant":
            blocks = _assistant(message, position)
        elif role == "user":
            blocks = _marked(_parts(message.get("content")), message)
        else:
            raise InvalidRequest(
                f"messages[{position}].role {role!r} is not known", reason="MESSAGE_ROLE"
            )
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return system, turns


def _marked(blocks: list[Document], message: Document) -> list[Document]:
    """Put the message's own `cache_control` on its last block, unless that has one."""
    cache = message.get("cache_control")
    if cache and blocks:
        blocks[-1].setdefault("cache_control", cache)
    return blocks


def _texts(content: object) -> list[Document]:
    return [block for block in _parts(content) if block["type"] == "text"]


def _parts(content: object) -> list[Document]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    blocks = []
    for entry in sequence(content):
        part = mapping(entry)
        block = _part(part)
        if block is None:
            continue
        if part.get("cache_control"):
            block["cache_control"] = part["cache_control"]
        blocks.append(block)
    return blocks


def _part(part: Document) -> Document | None:
    kind = text(part.get("type"))
    if kind in {"text", "input_text", "output_text"}:
        return {"type": "text", "text": part["text"]} if text(part.get("text")) else None
    if kind == "refusal":
        return {"type": "text", "text": text(part.get("refusal"))}
    if kind == "image_url":
        given = part.get("image_url")
        url = given if isinstance(given, str) else text(mapping(given).get("url"))
        return {"type": "image", "source": _source(url)}
    if kind == "file":
        data = text(mapping(part.get("file")).get("file_data"))
        if data:
            return {"type": "document", "source": _source(data)}
    raise InvalidRequest(
        f"content of type {kind!r} cannot be translated for Claude; send text, images or files as data",
        reason="CONTENT_NOT_TRANSLATABLE",
    )


def _source(url: str) -> Document:
    inline = _DATA_URL.fullmatch(url)
    if inline is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": inline[1], "data": inline[2]}


def _assistant(message: Document, position: int) -> list[Document]:
    blocks = _marked(_parts(message.get("content")), message)
    for index, entry in enumerate(sequence(message.get("tool_calls"))):
        call = mapping(entry)
        function = mapping(call.get("function"))
        if text(function.get("name")):
            blocks.append(
                {
                    "type": "tool_use",
                    "id": tools.claude_id(text(call.get("id")), position * 1000 + index),
                    "name": function["name"],
                    "input": tools.arguments(text(function.get("arguments"))),
                }
            )
    legacy = mapping(message.get("function_call"))
    if text(legacy.get("name")):
        blocks.append(
            {
                "type": "tool_use",
                "id": tools.claude_id(legacy["name"], position),
                "name": legacy["name"],
                "input": tools.arguments(text(legacy.get("arguments"))),
            }
        )
    return blocks


def _tool_result(message: Document, call: str) -> Document:
    content = message.get("content")
    inner: object = content if isinstance(content, str) else _parts(content)
    if isinstance(content, dict):
        inner = orjson.dumps(content).decode()
    block: Document = {
        "type": "tool_result",
        "tool_use_id": tools.claude_id(call, 0),
        "content": inner,
    }
    if message.get("cache_control"):
        block["cache_control"] = message["cache_control"]
    return block
