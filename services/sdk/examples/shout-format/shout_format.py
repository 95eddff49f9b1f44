"""
A format of one's own: translators from it and to it, and normalizers around an answer.

In `shout` a request is `{"shout": "HELLO"}` and an answer `{"heard": "…"}`. Gateways ask translators for
pairs that they do not know themselves; every one that does not know the pair either says None.
"""

from __future__ import annotations

import json
from typing import Any

from patchbay.transform import (
    RequestTransformRequest,
    RequestTranslator,
    ResponseAfterTranslator,
    ResponseBeforeTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)


class ShoutFormat(
    RequestTranslator, ResponseTranslator, ResponseBeforeTranslator, ResponseAfterTranslator
):
    """Translates `shout` to chat completions, and answers back."""

    id = "shout-format"
    name = "Shout format"
    version = "1.0.0"
    author = "Patchbay"

    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        """Return the chat."""
        if (request.from_format, request.to_format) != ("shout", "openai"):
            return None
        text = str(_object(request.body).get("shout", "")).lower()
        chat = {"model": request.model, "messages": [{"role": "user", "content": text}]}
        return json.dumps({**chat, "stream": request.stream}).encode()

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        """Return what was heard; of a stream, each chunk as a line, with its number."""
        if (request.from_format, request.to_format) != ("openai", "shout"):
            return None
        if not request.stream:
            choice = _object(request.body)["choices"][0]
            return json.dumps({"heard": choice["message"]["content"].upper()}).encode()
        data = request.body.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return b'{"heard": null}\n'
        request.state["count"] = number = request.state.get("count", 0) + 1
        said = "".join(c["delta"].get("content") or "" for c in _object(data).get("choices", ()))
        return json.dumps({"heard": said.upper(), "number": number}).encode() + b"\n"

    async def normalize_response_before(self, request: ResponseTransformRequest) -> bytes | None:
        """Take out what the executor should not have sent, before translation."""
        if request.stream or b'"debug"' not in request.body:
            return None
        answer = _object(request.body)
        answer.pop("debug", None)
        return json.dumps(answer).encode()

    async def normalize_response_after(self, request: ResponseTransformRequest) -> bytes | None:
        """Sign whole answers in `shout`, after translation."""
        if request.stream or request.to_format != "shout":
            return None
        return json.dumps({**_object(request.body), "by": request.model}).encode()


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    return found if isinstance(found, dict) else {}
