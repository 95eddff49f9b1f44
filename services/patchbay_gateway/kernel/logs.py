"""
Structured logs on standard error: one line an event, as JSON or for people.

Loggers may be made at import; nothing is set up before `configure`. What libraries say through `logging`
comes out in the same form, from WARNING on. Fields with names of secrets are masked, as a net below the rule
that nobody logs them; tracebacks carry no local variables.

Not here: metrics (telemetry.py) and what is worth a line; nothing on the path of a request is, but failures.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TextIO, cast

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

Format = Literal["json", "text"]

_SECRET_NAMES: Final = (
    "api_key",
    "apikey",
    "authorization",
    "password",
    "secret",
    "token",
    "cookie",
)
# `tokens` are counted, not hidden; `token_url` and the like are no secrets.
_HARMLESS: Final = ("_tokens", "_url", "_id", "_name", "_type", "_file")
MASK: Final = "***"


class Logger(Protocol):
    """What `get_logger` returns: an event in a few fixed words, everything that varies in fields."""

    def debug(self, event: str, **fields: Any) -> None: ...  # noqa: D102 - the class says it
    def info(self, event: str, **fields: Any) -> None: ...  # noqa: D102
    def warning(self, event: str, **fields: Any) -> None: ...  # noqa: D102
    def error(self, event: str, **fields: Any) -> None: ...  # noqa: D102
    def exception(self, event: str, **fields: Any) -> None: ...  # noqa: D102
    def bind(self, **fields: Any) -> Logger: ...  # noqa: D102


def get_logger(name: str) -> Logger:
    """Return the logger of a part of the program, as `scheduler.refresh`."""
    return cast("Logger", structlog.get_logger(logger_name=name))


def configure(
    format: Format = "json",  # noqa: A002 - the setting's name
    level: str = "info",
    *,
    stream: TextIO | None = None,
) -> None:
    """
    Set up all logging of this process.

    Args:
        format: "json" for machines, "text" for people.
        level: debug, info, warning or error, in any case.
        stream: Default standard error.

    Raises:
        ValueError: An unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r} is not one of debug, info, warning, error")
    output = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        _name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        mask_secrets,
    ]
    rendering: list[structlog.typing.Processor]
    if format == "json":
        rendering = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    else:
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def _name(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # structlog keeps the word `logger` for an argument of its own.
    if "logger_name" in event:
        event["logger"] = event.pop("logger_name")
    return event


def mask_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace the values of fields that are named like secrets (a structlog processor)."""
    for name in event:
        lowered = name.lower()
        if any(word in lowered for word in _SECRET_NAMES) and not lowered.endswith(_HARMLESS):
            event[name] = MASK
    return event


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=_foreign).decode()


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return repr(value)
