"""What the suite complains of in answers, and whose words it takes for gRPC's own."""

from __future__ import annotations

import grpc
import pytest

from patchbay.testing.answers import header_complaint
from patchbay.testing.connection import Failure
from patchbay.testing.rules_calls import made_by_grpc

CODE = grpc.StatusCode


def test_headers_of_an_answer_are_the_providers_and_in_lower_case() -> None:
    assert header_complaint(["content-type", "x-request-id"]) == ""
    assert "lower case" in header_complaint(["content-type", "X-Request-Id"])
    for name in ("content-length", "content-encoding", "transfer-encoding"):
        assert name in header_complaint([name])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (CODE.RESOURCE_EXHAUSTED, "Received message larger than max (35651622 vs. 34603008)"),
        (CODE.RESOURCE_EXHAUSTED, "grpc: received message larger than max (35651622 vs. 34603008)"),
        (CODE.RESOURCE_EXHAUSTED, "gRPC message exceeds maximum size 34603008: 35651622"),
        (CODE.RESOURCE_EXHAUSTED, "Received message exceeds the maximum configured message size."),
        (CODE.OUT_OF_RANGE, "Error, decoded message length too large: found 35651622 bytes"),
        (CODE.UNIMPLEMENTED, "unknown service x"),
        (CODE.DEADLINE_EXCEEDED, ""),
    ],
)
def test_status_of_a_grpc_library_needs_no_details(code: grpc.StatusCode, words: str) -> None:
    """In the words of C, Go, Java, .NET and Rust."""
    assert made_by_grpc(Failure("p", code, words))


def test_bare_status_of_the_plugin_itself_needs_them() -> None:
    assert not made_by_grpc(Failure("p", CODE.RESOURCE_EXHAUSTED, "too many"))
    assert not made_by_grpc(Failure("p", CODE.INTERNAL, "oops"))
