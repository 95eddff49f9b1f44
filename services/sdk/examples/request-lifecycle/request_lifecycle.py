"""
A limit on requests at once, and a word that nobody may say: a request interceptor that ends requests.

A slot is taken before a credential is chosen and given back when the request ends. Requests that another
plugin ended before this one saw them end too, so only ids that were admitted here give a slot back.
"""

from __future__ import annotations

import json

import yaml

from patchbay import errors
from patchbay.interceptors import (
    RequestInterceptor,
    RequestInterceptRequest,
    RequestInterceptResponse,
)
from patchbay.lifecycle import RequestCompletion, RequestLifecyclePlugin


class RequestLifecycle(RequestInterceptor, RequestLifecyclePlugin):
    """Ends requests with 429 at the limit and with 403 for the word."""

    id = "request-lifecycle"
    name = "Request lifecycle"
    version = "1.0.0"
    author = "Patchbay"

    def __init__(self) -> None:
        self._limit = 2
        self._word = b""
        # Shared by the copies that later configurations get, as what runs is.
        self._admitted: set[str] = set()

    async def configure(self, config: bytes) -> None:
        """Take `max_concurrency` and `reject_keyword`."""
        settings = yaml.safe_load(config) or {}
        limit = settings.get("max_concurrency", 2)
        if not isinstance(limit, int) or limit < 1:
            raise errors.InvalidRequest("max_concurrency must be a number from 1")
        self._limit = limit
        self._word = str(settings.get("reject_keyword", "")).encode()

    async def intercept_request_before_auth(
        self, request: RequestInterceptRequest
    ) -> RequestInterceptResponse | None:
        """Admit a request, or end it."""
        if self._word and self._word in request.body:
            return _end(403, "the request says what it must not")
        if len(self._admitted) >= self._limit:
            return _end(429, "too many requests at once", (b"retry-after", b"1"))
        self._admitted.add(request.request_id)
        return None

    async def handle_request_complete(self, request: RequestCompletion) -> None:
        """Give the slot back."""
        self._admitted.discard(request.request_id)


def _end(status: int, message: str, *headers: tuple[bytes, bytes]) -> RequestInterceptResponse:
    return RequestInterceptResponse(
        terminate=True,
        status_code=status,
        response_headers=headers,
        response_body=json.dumps({"error": {"message": message}}).encode(),
    )
