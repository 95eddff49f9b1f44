"""
Reading and writing the JSON documents that are translated.

Documents come from strangers: every accessor answers for a value of the wrong type as for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from patchbay.errors import InvalidRequest, Sent, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Mapping

Document = dict[str, Any]


def read_request(body: bytes) -> Document:
    """
    Parse a client's body.

    Raises:
        InvalidRequest: It is not a JSON object.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}", reason="BODY_NOT_JSON") from error
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object", reason="BODY_NOT_JSON")
    return document


def read_answer(body: bytes) -> Document:
    """
    Parse a provider's body.

    Raises:
        UpstreamError: It is not a JSON object.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise UpstreamError(
            502,
            "the provider's answer is not a JSON object",
            body=body[: 64 << 10],
            sent=Sent.YES,
            reason="UPSTREAM_NOT_JSON",
        )
    return document


def write(document: Mapping[str, Any]) -> bytes:
    """Return the JSON of *document*."""
    return orjson.dumps(document)


def text(value: object) -> str:
    """Return a string value; anything else is empty."""
    return value if isinstance(value, str) else ""


def mapping(value: object) -> Document:
    """Return an object value; anything else is empty."""
    return value if isinstance(value, dict) else {}


def sequence(value: object) -> list[Any]:
    """Return an array value; anything else is empty."""
    return value if isinstance(value, list) else []


def number(value: object) -> int:
    """Return a whole number that is not negative; anything else is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return max(0, int(value))
