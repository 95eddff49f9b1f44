"""A note in every whole answer: a response interceptor that changes body and headers."""

from __future__ import annotations

import json

from patchbay.interceptors import (
    ResponseInterceptor,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
)


class ResponseStamp(ResponseInterceptor):
    """Adds the field `stamp` to JSON objects and takes a header away."""

    id = "response-stamp"
    name = "Response stamp"
    version = "1.0.0"
    author = "Patchbay"
    needs_request_body = False

    async def intercept_response(
        self, request: ResponseInterceptRequest
    ) -> ResponseInterceptResponse | None:
        """Stamp an answer; one that is no JSON object stays."""
        try:
            answer = json.loads(request.body)
        except ValueError:
            return None
        if not isinstance(answer, dict):
            return None
        answer["stamp"] = {"model": request.model, "request_id": request.request_id}
        return ResponseInterceptResponse(
            body=json.dumps(answer).encode(),
            headers=[(b"x-stamped", b"yes")],
            clear_headers=["server"],
        )
