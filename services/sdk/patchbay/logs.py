"""
Structured logs of a plugin on standard error: one line an event, as JSON or for people.

Standard `logging`, so that a plugin's own loggers and its libraries come out in the same form: pass fields
as `extra`. Fields named like secrets are masked, as a net below the rule that nobody logs them; tracebacks
carry no local variables. `serve` calls `configure` unless the program has set up logging itself. Not here:
lines in the gateway's log (`HostClient.log`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

MASK: Final = "***"

_SECRET: Final = ("api_key", "apikey", "authorization", "password", "secret", "token", "cookie")
# `tokens` are counted, not hidden; `token_url` and the like are no secrets.
_HARMLESS: Final = ("_tokens", "_url", "_id", "_name", "_type", "_file")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was passed as `extra`, secrets masked."""
    return {
        name: MASK if _is_secret(name) else value
        for name, value in vars(record).items()
        if name not in _STANDARD
    }


def _is_secret(name: str) -> bool:
    lower = name.lower()
    return any(word in lower for word in _SECRET) and not lower.endswith(_HARMLESS)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: event, logger, level, timestamp, the extra fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "event": record.getMessage(),
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": _timestamp(record),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A line for people, the extra fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        level = record.levelname.lower()
        line = f"{_timestamp(record)} {level:<7} {record.name}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _timestamp(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{stamp}.{int(record.msecs):03d}Z"


def configure(
    environ: Mapping[str, str] = os.environ, *, stream: TextIO | None = None, force: bool = False
) -> None:
    """
    Set up the root logger from LOG_FORMAT (json, text; default text at a terminal) and LOG_LEVEL.

    Args:
        environ: The environment.
        stream: Default standard error.
        force: Also where the program has set up logging itself.
    """
    root = logging.getLogger()
    if root.handlers and not force:
        return
    output = stream or sys.stderr
    wanted = environ.get("LOG_FORMAT", "text" if output.isatty() else "json")
    handler = logging.StreamHandler(output)
    handler.setFormatter(TextFormatter() if wanted == "text" else JsonFormatter())
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping().get(environ.get("LOG_LEVEL", "info").upper())
    root.setLevel(logging.INFO if level is None else level)
