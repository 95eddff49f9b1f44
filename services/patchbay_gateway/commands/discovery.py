"""
Which models stand behind the base URLs of the environment: asked once, when `patchbay up` starts.

OPENAI_BASE_URL, ANTHROPIC_BASE_URL and GOOGLE_GEMINI_BASE_URL often name a server of one's own, whose models
no built-in list can know. Standard library only. Not here: providers of the file, which name their models,
and the lists for the providers' own URLs (kernel/config/environment.py).
"""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from patchbay_gateway.commands.client import direct_opener
from patchbay_gateway.kernel.config import environment_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

TIMEOUT: Final = 3.0
"""Seconds; a start waits no longer for it."""
_MAX_ANSWER: Final = 4 << 20
_VERSIONED: Final = re.compile(r"/v\d+(?:alpha|beta)?\d*$")


@dataclass(frozen=True, slots=True)
class _Listing:
    """How a provider of the environment lists its models."""

    provider: str
    base_url: str
    key: str
    version: str
    """Added to base URLs that name none."""
    query: str
    headers: Callable[[str], dict[str, str]]
    read: Callable[[Any], Iterable[str]]


def _openai_names(answer: Any) -> Iterable[str]:
    return (str(entry["id"]) for entry in answer["data"] if entry["id"])


def _gemini_names(answer: Any) -> Iterable[str]:
    for entry in answer["models"]:
        if "generateContent" in entry.get("supportedGenerationMethods", ["generateContent"]):
            yield str(entry["name"]).removeprefix("models/")


_LISTINGS: Final = (
    _Listing(
        "openai",
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        "",
        "",
        lambda key: {"authorization": f"Bearer {key}"},
        _openai_names,
    ),
    _Listing(
        "anthropic",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_API_KEY",
        "/v1",
        "?limit=1000",
        lambda key: {"x-api-key": key, "anthropic-version": "2023-06-01"},
        _openai_names,
    ),
    _Listing(
        "gemini",
        "GOOGLE_GEMINI_BASE_URL",
        "GEMINI_API_KEY",
        "/v1beta",
        "?pageSize=1000",
        lambda key: {"x-goog-api-key": key},
        _gemini_names,
    ),
)


def discover_models(
    env: Mapping[str, str], warn: Callable[[str], None], *, timeout: float = TIMEOUT
) -> dict[str, tuple[str, ...]]:
    """
    Return provider → models for the base URLs of the environment that list theirs.

    Args:
        env: The environment: OPENAI_BASE_URL, OPENAI_API_KEY and their like.
        warn: Told when a list cannot be had.
        timeout: Seconds.

    Raises:
        ConfigError: A key's file cannot be read.
    """
    asked = []
    for listing in _LISTINGS:
        url = env.get(listing.base_url, "").rstrip("/")
        key = environment_secret(listing.key, env)
        if url and key and urlsplit(url).scheme in {"http", "https"}:
            asked.append((listing, url, key))
    if not asked:
        return {}
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: _ask(each[0], each[1], each[2], timeout), asked))
    found: dict[str, tuple[str, ...]] = {}
    for (listing, _, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, Exception):
            warn(
                f"{listing.base_url} does not list its models ({answer}); the usual names are assumed. "
                "Name them in patchbay.yaml under providers."
            )
        elif answer:
            found[listing.provider] = answer
    return found


def _ask(
    listing: _Listing, url: str, key: str, timeout: float
) -> tuple[str, ...] | OSError | ValueError | KeyError | TypeError | AttributeError:
    """Return the models, or why there is no list of them."""
    if not _VERSIONED.search(url):
        url += listing.version
    request = urllib.request.Request(  # noqa: S310 - the caller looked at the scheme
        f"{url}/models{listing.query}", headers=listing.headers(key)
    )
    try:
        with direct_opener(url).open(request, timeout=timeout) as answer:
            return tuple(listing.read(json.loads(answer.read(_MAX_ANSWER))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return error
