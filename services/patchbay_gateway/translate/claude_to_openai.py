"""
A request of Claude Messages, as OpenAI Chat Completions takes it.

Thinking of earlier turns is left out: its signatures mean nothing to another provider. Server tools and
`top_k` have no counterpart. Sources: the API references of both providers. Not here: the answer's way back
(openai_answers.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

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

if TYPE_CHECKING:
    from collections.abc import Iterable

_COPIED = ("temperature", "top_p", "service_tier")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def translate_request(model: str, body: bytes, stream: bool) -> bytes:
    """
    Translate *body*.

    Raises:
        InvalidRequest: No JSON object.
    """
    given = read_request(body)
    wanted: Document = {"model": model, "messages": list(_messages(given))}
    if limit := number(given.get("max_tokens")):
        wanted["max_tokens"] = limit
    wanted.update({key: given[key] for key in _COPIED if given.get(key) is not None})
    if stops := [s for s in sequence(given.get("stop_sequences")) if text(s)]:
        wanted["stop"] = stops
    if user := text(mapping(given.get("metadata")).get("user_id")):
        wanted["user"] = user
    _tools(given, wanted)
    if effort := _effort(given):
        wanted["reasoning_effort"] = effort
    if stream:
        wanted["stream"] = True
        # The answer's last event tells the usage, whether the client asks or not (Messages API).
        wanted["stream_options"] = {"include_usage": True}
    return write(wanted)


def _effort(given: Document) -> str:
    asked = mapping(given.get("thinking"))
    kind = text(asked.get("type"))
    if kind == "enabled":
        return thinking.level_of(number(asked.get("budget_tokens")))
    if kind == "adaptive":
        return text(mapping(given.get("output_config")).get("effort")) or "high"
    return ""


def _tools(given: Document, wanted: Document) -> None:
    found = []
    for entry in sequence(given.get("tools")):
        tool = mapping(entry)
        # Tools that Anthropic runs itself have a type of their own and no schema.
        if not text(tool.get("name")) or text(tool.get("type")) not in {"", "custom"}:
            continue
        schema = {"type": "object", **mapping(tool.get("input_schema"))}
        function: Document = {"name": tool["name"], "parameters": tools.with_properties(schema)}
        if text(tool.get("description")):
            function["description"] = tool["description"]
        found.append({"type": "function", "function": function})
    if not found:
        return
    wanted["tools"] = found
    choice = mapping(given.get("tool_choice"))
    kind = text(choice.get("type"))
    if kind == "tool" and text(choice.get("name")):
        wanted["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif kind in _CHOICES:
        wanted["tool_choice"] = _CHOICES[kind]
    if choice.get("disable_parallel_tool_use") is True:
        wanted["parallel_tool_calls"] = False


# -- messages ---------------------------------------------------------------------------------------


def _messages(given: Document) -> Iterable[Document]:
    if system := _parts(given.get("system")):
        yield {"role": "system", "content": _flat(system)}
    for entry in sequence(given.get("messages")):
        message = mapping(entry)
        role = text(message.get("role"))
        content = message.get("content")
        if role == "assistant":
            yield from _assistant(content)
        elif role == "system":
            said = "".join(text(part.get("text")) for part in _parts(content))
            if said:
                reminder = f"<system-reminder>\n{said}\n</system-reminder>"
                yield {"role": "user", "content": reminder}
        else:
            yield from _user(content)


def _assistant(content: object) -> Iterable[Document]:
    parts = _parts(content)
    calls = [
        {
            "id": text(block.get("id")),
            "type": "function",
            "function": {
                "name": text(block.get("name")),
                "arguments": orjson.dumps(mapping(block.get("input"))).decode(),
            },
        }
        for block in map(mapping, sequence(content))
        if block.get("type") == "tool_use"
    ]
    if not parts and not calls:
        return
    message: Document = {"role": "assistant", "content": _flat(parts) if parts else None}
    if calls:
        message["tool_calls"] = calls
    yield message


def _user(content: object) -> Iterable[Document]:
    """Yield the results of tools first: they must follow the calls at once (Chat Completions)."""
    for block in map(mapping, sequence(content)):
        if block.get("type") == "tool_result":
            yield {
                "role": "tool",
                "tool_call_id": text(block.get("tool_use_id")),
                "content": _result(block.get("content")),
            }
    if parts := _parts(content):
        yield {"role": "user", "content": _flat(parts)}


def _result(content: object) -> Any:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content] if text(content.get("type")) in {"text", "image"} else content
    if isinstance(content, list):
        parts = _parts(content)
        if len(parts) == len(content):
            return _flat(parts)
    return orjson.dumps(content).decode()


def _parts(content: object) -> list[Document]:
    """Return the text, images and documents of *content*; everything else is somebody else's."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    parts: list[Document] = []
    for block in map(mapping, sequence(content)):
        kind = block.get("type")
        if kind == "text" and text(block.get("text")):
            parts.append({"type": "text", "text": block["text"]})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _url(block)}})
        elif kind == "document":
            parts.append(_document(block))
    return parts


def _document(block: Document) -> Document:
    source = mapping(block.get("source"))
    if text(source.get("type")) == "text":
        return {"type": "text", "text": text(source.get("data"))}
    name = text(block.get("title")) or "document"
    return {"type": "file", "file": {"filename": name, "file_data": _url(block)}}


def _url(block: Document) -> str:
    source = mapping(block.get("source"))
    if text(source.get("type")) == "base64":
        return f"data:{text(source.get('media_type'))};base64,{text(source.get('data'))}"
    return text(source.get("url"))


def _flat(parts: list[Document]) -> Any:
    """Return plain text as such, which the oldest compatible servers understand; else the parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts
