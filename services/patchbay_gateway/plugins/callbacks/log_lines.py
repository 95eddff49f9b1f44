"""
Lines that plugins write to the host's log.

The host adds who wrote it and for which request. Nothing that a plugin says becomes an event or a field of
ours: its text and its fields stay below names of their own. Not here: who may (anybody that proves its id).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from patchbay import errors
from patchbay.host.v1 import log_pb2
from patchbay_gateway.kernel import logs

if TYPE_CHECKING:
    from patchbay_gateway.kernel.logs import Logger
    from patchbay_gateway.plugins.callbacks.callers import Caller

_LARGEST_FIELDS: Final = 16 << 10
_LONGEST: Final = 8 << 10
"""Characters of a message; the rest is cut off."""

_log = logs.get_logger("plugins.callbacks")


def write(caller: Caller, request: log_pb2.HostLogRequest, log: Logger = _log) -> None:
    """
    Write one line of *caller*.

    Raises:
        InvalidRequest: INVALID_JSON, `fields` is no JSON object or too large.
    """
    fields = _fields(request.fields)
    found: dict[str, Any] = {"plugin": caller.plugin_id}
    if caller.request_id:
        found["request_id"] = caller.request_id
    if fields:
        found["fields"] = fields
    message = request.message.strip()[:_LONGEST] or "plugin log"
    say = {
        log_pb2.LOG_LEVEL_INFO: log.info,
        log_pb2.LOG_LEVEL_WARN: log.warning,
        log_pb2.LOG_LEVEL_ERROR: log.error,
    }.get(request.level, log.debug)
    say("plugin says", text=message, **found)


def _fields(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    if len(data) > _LARGEST_FIELDS:
        raise errors.InvalidRequest(
            f"the fields of a line are larger than {_LARGEST_FIELDS} bytes", reason="INVALID_JSON"
        )
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise errors.InvalidRequest("fields is not JSON", reason="INVALID_JSON") from error
    if not isinstance(found, dict):
        raise errors.InvalidRequest("fields is no JSON object", reason="INVALID_JSON")
    return {name.strip(): value for name, value in found.items() if name.strip()}
