"""
What was consumed, as lines of JSON in a file: a usage plugin.

Records come again after an error or silence, so what was written is remembered by `attempt_uid`; records
of a former life of this process are read from the file.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import yaml

from patchbay import errors
from patchbay.usage_plugin import UsagePlugin, UsageRecord


class UsageSink(UsagePlugin):
    """Appends each attempt to a file, once."""

    id = "usage-sink"
    name = "Usage sink"
    version = "1.0.0"
    author = "Patchbay"

    def __init__(self) -> None:
        self._path: Path | None = None
        self._written: set[str] = set()
        self._lock = asyncio.Lock()

    async def configure(self, config: bytes) -> None:
        """Take `path`; without one nothing is written."""
        path = (yaml.safe_load(config) or {}).get("path")
        if path is None:
            return
        self._path = Path(path)
        try:
            lines = await asyncio.to_thread(_read, self._path)
        except OSError as error:
            raise errors.InvalidRequest(f"path {path}: {error.strerror}") from None
        self._written = {json.loads(line)["attempt_uid"] for line in lines}

    async def handle_usage(self, record: UsageRecord) -> None:
        """Write one record, unless it is there."""
        if self._path is None:
            return
        detail = {item.unit: item.quantity for item in record.detail.items} if record.detail else {}
        line = {
            "attempt_uid": record.attempt_uid,
            "model": record.model,
            "provider": record.provider,
            "client": record.api_key,
            "outcome": record.outcome,
            "usage": detail,
            "cost_nano": record.cost_nano,
        }
        async with self._lock:
            if record.attempt_uid in self._written:
                return
            await asyncio.to_thread(_append, self._path, json.dumps(line))
            self._written.add(record.attempt_uid)


def _read(path: Path) -> list[str]:
    path.touch()
    return path.read_text(encoding="utf-8").splitlines()


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
