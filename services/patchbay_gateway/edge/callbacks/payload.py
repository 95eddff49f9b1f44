"""The body of a plugin's model call, with the model and `stream` where its format has them. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from patchbay import errors
from patchbay_gateway.edge.scan import rewrite, scan

if TYPE_CHECKING:
    from patchbay.host.v1 import model_pb2
    from patchbay_gateway.edge.dialects.port import Dialect


WHOLE: Final = frozenset({"embeddings", "count_tokens"})
"""Operations that are never streamed."""
STREAM_IN_BODY: Final = frozenset({"openai", "openai-response", "claude"})
"""Formats whose body says model and `stream`; the others say them in the path."""


def payload(asked: model_pb2.HostModelExecutionRequest, entry: Dialect, *, stream: bool) -> bytes:
    """Return the body with the call's model and, where the format has it there, `stream`."""
    if entry.name not in STREAM_IN_BODY:
        return asked.body
    try:
        found = scan(asked.body)
    except errors.InvalidRequest:
        return asked.body  # the pipeline says what is wrong with it
    whole = (asked.operation or "chat") in WHOLE
    same = whole or found.stream is stream or (not stream and found.stream is None)
    data = rewrite(found, model=asked.model)
    if not same and found.stream is None and b'"stream"' not in data:
        data = _with(data, b'"stream":true')
    elif not same:
        data = orjson.dumps({**orjson.loads(data), "stream": stream})
    return data if found.model is not None else _with(data, b'"model":' + orjson.dumps(asked.model))


def _with(data: bytes, member: bytes) -> bytes:
    """Return the JSON object *data* with one more member, every other byte as it was."""
    start = data.index(b"{") + 1
    comma = b"" if data[start:].lstrip().startswith(b"}") else b","
    return b"".join((data[:start], member, comma, data[start:]))
