"""What the fake upstream is told to do, and what every dialect of it offers. No I/O."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Protocol

FOREVER = 3600.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """What to do with one request. Counts are content chunks, one word and one token each."""

    chunks: int = 16
    delay_ms: float = 0
    """Pause before each chunk."""
    bytes_per_write: int = 0
    """Cut each write into pieces of so many bytes; 0 does not."""
    frames_per_write: int = 1
    """Content frames joined into one write; only without delay."""
    status: int = 200
    error: str = "as told"
    """Message of an error answer."""
    retry_after: str = ""
    """Header of that name on errors."""
    fails: int = 0
    """Only the first so many requests of one `mark` fail with the status; 0: all."""
    mark: str = ""
    """Which requests are counted together."""
    stall: str = ""
    """`head`: no answer at all; `body`: a head and then nothing; `N`: nothing after N chunks; `end`: nothing
    after the last event, not even the end of the body."""
    stall_s: float = FOREVER
    half_frame_after: int = -1
    """After so many chunks send half of the next one and close."""
    close_after: int = -1
    """After so many chunks close without an end."""
    drop: bool = False
    """Close when the request has arrived, without a byte of an answer."""
    close_idle: bool = False
    """Close the connection after a whole answer that promised keep-alive."""
    error_after: int = -1
    """After so many chunks send an error event inside the 200 and end."""
    usage: str = "asked"
    """`asked`: as OpenAI does; `always`; `never`; `each`: in every chunk, growing."""
    done: bool = True
    """Whether [DONE] ends chat and completions streams."""
    finish: bool = True
    """Whether a finish_reason is sent."""
    crlf: bool = False
    """CRLF line ends."""
    spaces: bool = False
    """JSON with a blank after colon and comma."""
    cached: int = 0
    """Cached input tokens to report."""
    reasoning: int = 0
    """Reasoning tokens to report; Anthropic and Google think aloud so many words."""
    location: str = ""
    """Answer a redirect to here."""
    padding: int = 0
    """So many extra bytes in a non-streamed answer or error."""
    tools: int = 0
    """So many calls of a tool after the text."""
    picture: bool = False
    """Answer with a picture after the text, where the dialect has them (Gemini)."""
    created: int = 0
    """Input tokens written to the cache, to report (Anthropic)."""
    created_1h: int = 0
    """Those of them that stay an hour."""
    searches: int = 0
    """Web searches of the provider's own, to report: so many, and for Gemini so many tokens read by tools."""
    pings: bool = False
    """Anthropic's pings between events."""
    blocked: str = ""
    """Refuse the prompt inside a 200: Gemini's `blockReason`, Anthropic's `stop_reason`."""
    finishing: str = ""
    """Why the answer ended, in the dialect's words; the default is the regular one."""
    retry_after_ms: str = ""
    """Header of that name on errors."""
    retry_delay: str = ""
    """Google's RetryInfo in errors, as `17s`."""
    quota: str = ""
    """Google's QuotaFailure in errors: `model` or `project`."""
    reason: str = ""
    """Google's ErrorInfo in errors, as `API_KEY_INVALID`."""
    code: str = ""
    """Code, type or status of errors in the dialect's words; the default goes with the status."""
    limits: str = ""
    """Rate-limit headers: `fine`, or `spent` with half a minute to go."""
    token: str = ""
    """The only credential that is accepted; another one is a 401 in the dialect."""
    unstreamed: bool = False
    """Answer in one piece where a stream was asked for."""
    bare_error: bool = False
    """An error inside a stream is bare JSON over many lines, as Google writes some; others are text."""
    models: str = "fake-model text-embedding-fake claude-fake gemini-fake"
    """Names for model lists."""


class Request(Protocol):
    """What the talk needs to know of a request."""

    id: int
    method: str
    path: str
    model: str
    stream: bool
    headers: dict[str, str]


class Talk(Protocol):
    """One request's dialect."""

    head: dict[str, str]
    """Headers of the answer beside those of HTTP."""
    stream_type: str
    """Content type of a streamed answer."""

    @property
    def reports_usage(self) -> bool:
        """Whether the answer says what it consumed."""
        ...

    def tokens(self, output: int) -> dict[str, int]:
        """Return what is reported after *output* words, in the units of a ledger."""
        ...

    def whole(self) -> Json:
        """Return the body of a non-streamed answer."""
        ...

    def opening(self) -> list[bytes]:
        """Return the frames before the first word."""
        ...

    def piece(self, index: int) -> bytes:
        """Return the frame of one word."""
        ...

    def closing(self) -> list[bytes]:
        """Return the frames after the last word."""
        ...

    def error(self) -> bytes:
        """Return the frame of a failure inside a 200."""
        ...

    def failure(self, status: int) -> Json:
        """Return the body of a failure."""
        ...


WEATHER: Json = {"city": "Zürich", "days": 3}
"""Arguments of each call of the tool `get_weather`."""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
"""A PNG of one pixel, base64."""


def word(index: int) -> str:
    """Return one word of an answer, one token."""
    return f"word{index} "


def thought(index: int) -> str:
    """Return one word of thinking, one token."""
    return f"thought{index} "


def text(chunks: int) -> str:
    """Return a whole answer."""
    return "".join(word(i) for i in range(chunks))


def thinking(words: int) -> str:
    """Return all the thinking."""
    return "".join(thought(i) for i in range(words))


def dumps(script: Script, document: Json) -> bytes:
    """Return JSON as the script wants it spaced."""
    separators = (", ", ": ") if script.spaces else (",", ":")
    return json.dumps(document, separators=separators).encode()


def words_of(document: Json, *keys: str) -> int:
    """Return the input tokens of a request: the words of its *keys*, or of all."""
    found = {key: document[key] for key in keys if key in document} or document
    return max(1, len(json.dumps(found).split()))


def limit_headers(script: Script, names: dict[str, str], reset: str) -> dict[str, str]:
    """
    Return rate-limit headers.

    Args:
        script: Says whether the limits are spent.
        names: Prefix of `limit`, `remaining` and `reset` → what is left otherwise.
        reset: When they start anew.
    """
    if not script.limits:
        return {}
    found = {}
    for pattern, left in names.items():
        found[pattern % "limit"] = "1000"
        found[pattern % "remaining"] = "0" if script.limits == "spent" else left
        found[pattern % "reset"] = reset
    return found


def script_of(defaults: Script, headers: dict[str, str], document: Json, model: str = "") -> Script:
    """Return what *defaults* become where model, headers and body of a request say more."""
    told: dict[str, Any] = {}
    _, _, suffix = model.partition("@")
    for pair in suffix.split(",") if suffix else ():
        key, _, value = pair.partition("=")
        told[key] = value
    for name, value in headers.items():
        if name.startswith("x-fake-"):
            told[name[7:].replace("-", "_")] = value
    if isinstance(document.get("fake"), dict):
        told.update(document["fake"])
    changes = {}
    for item in dataclasses.fields(Script):
        if item.name in told:
            changes[item.name] = _typed(type(getattr(defaults, item.name)), told[item.name])
    return dataclasses.replace(defaults, **changes)


def _typed(kind: type, value: Any) -> Any:
    if kind is bool:
        return value in {True, "1", "true", "True"}
    if kind is int and isinstance(value, str) and "." in value:
        return float(value)
    return kind(value)
