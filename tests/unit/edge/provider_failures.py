"""
Answers of providers that fail, and what the attempt loop made of them.

Not here: the pool that it ran over (harness/pipeline.py).
"""

import json
from typing import Any

from tests.harness.pipeline import FakeExchange, Script

from patchbay.errors import Sent, UpstreamError
from patchbay_gateway.kernel.outcomes import FaultKind

STREAM = b'{"model":"m","stream":true}'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n'
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def answered(
    status: int, code: str = "", *, message: str = "no", wait: float | None = None, **headers: str
) -> UpstreamError:
    body = {"error": {"message": message, "type": "t", "param": None, "code": code or None}}
    return UpstreamError(
        status,
        body=json.dumps(body).encode(),
        content_type="application/json",
        retry_after=wait,
        headers=[(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        sent=Sent.YES,
    )


def told(exchange: FakeExchange) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(exchange.answer)["error"]
    return found


def kinds(script: Script) -> list[str]:
    """Return the kinds held against credentials, `-` for nothing, in order of the reports."""
    return [
        FaultKind(report.fault.kind).name if report.HasField("fault") else "-"
        for report in script.reports
    ]
