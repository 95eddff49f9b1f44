"""
Which models stand behind a base URL of the environment: asked once, when `patchbay up` starts.

OPENAI_BASE_URL often names a server of one's own, whose models no built-in list can know. Standard library
only. Not here: providers of the file, which name their models, and the lists for the providers' own URLs
(kernel/config/environment.py).
"""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from patchbay_gateway.commands.client import direct_opener
from patchbay_gateway.kernel.config import environment_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TIMEOUT: Final = 3.0
"""Seconds; a start waits no longer for it."""
_MAX_ANSWER: Final = 4 << 20


def discover_models(
    env: Mapping[str, str], warn: Callable[[str], None], *, timeout: float = TIMEOUT
) -> dict[str, tuple[str, ...]]:
    """
    Return provider → models for the base URLs of the environment that list theirs.

    Args:
        env: The environment: OPENAI_BASE_URL, OPENAI_API_KEY.
        warn: Told when a list cannot be had.
        timeout: Seconds.

    Raises:
        ConfigError: The key's file cannot be read.
    """
    url = env.get("OPENAI_BASE_URL", "").rstrip("/")
    key = environment_secret("OPENAI_API_KEY", env)
    if not url or not key or urlsplit(url).scheme not in {"http", "https"}:
        return {}
    request = urllib.request.Request(f"{url}/models", headers={"authorization": f"Bearer {key}"})  # noqa: S310 - checked above
    try:
        with direct_opener(url).open(request, timeout=timeout) as answer:
            listed = json.loads(answer.read(_MAX_ANSWER))["data"]
        models = tuple(str(entry["id"]) for entry in listed if entry["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        warn(
            f"OPENAI_BASE_URL does not list its models ({error}); the usual names are assumed. "
            "Name them in patchbay.yaml under providers."
        )
        return {}
    return {"openai": models} if models else {}
