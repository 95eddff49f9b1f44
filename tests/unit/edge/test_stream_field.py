"""What `stream` in a body asks for, and that nobody guesses where it is no boolean."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import orjson
import pytest
from tests.harness.pipeline import Edge, Script, pool
from tests.harness.virtual_time import virtual

from patchbay.errors import InvalidRequest
from patchbay.host.v1 import model_pb2
from patchbay_gateway.edge import body
from patchbay_gateway.edge.callbacks.payload import payload
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.routes.request import RoutedRequest
from patchbay_gateway.edge.scan import scan

if TYPE_CHECKING:
    from patchbay_gateway.edge.exchange import Exchange

NO_BOOLEANS = [1, 0, 1.0, "true", "false", "", [], [True], {}]


def streams(dialect: str, value: object, operation: str = "chat") -> bool:
    routed = RoutedRequest(
        dialect=dialects()[dialect],
        operation=operation,
        exchange=cast("Exchange", None),
        model_from_path=None,
        stream_from_path=None,
        alt="",
        request_id="r",
        client_request_id=None,
    )
    document = {"model": "m"} if value is ... else {"model": "m", "stream": value}
    return body.asked(scan(orjson.dumps(document)), routed)[1]


@pytest.mark.parametrize("dialect", ["openai", "openai-response", "claude"])
def test_stream_is_what_its_boolean_says(dialect: str) -> None:
    assert streams(dialect, True)
    assert not streams(dialect, False)
    assert not streams(dialect, None)
    assert not streams(dialect, ...)


@pytest.mark.parametrize("value", NO_BOOLEANS)
@pytest.mark.parametrize("operation", ["chat", "completions"])
@pytest.mark.parametrize("dialect", ["openai", "openai-response"])
def test_openai_stream_that_is_no_boolean_is_refused(
    dialect: str, operation: str, value: object
) -> None:
    with pytest.raises(InvalidRequest, match="'stream' must be true or false") as caught:
        streams(dialect, value, operation)
    assert caught.value.reason == "INVALID_STREAM"


@pytest.mark.parametrize("value", NO_BOOLEANS)
def test_claude_stream_that_is_neither_false_nor_null_streams(value: object) -> None:
    assert streams("claude", value)


@pytest.mark.parametrize("value", NO_BOOLEANS)
def test_embeddings_do_not_stream_whatever_is_said(value: object) -> None:
    assert not streams("openai", value, "embeddings")
    assert not streams("claude", value, "count_tokens")


@virtual
async def test_refusal_is_a_400_before_any_attempt() -> None:
    script = Script()
    client = await Edge(script, pool("a")).ask(b'{"model":"m","stream":1}')
    assert client.status == 400
    error = orjson.loads(client.answer)["error"]
    assert error["message"] == "'stream' must be true or false"
    assert error["type"] == "invalid_request_error"
    assert not script.called


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("value", [*NO_BOOLEANS, None, True, False])
@pytest.mark.parametrize("dialect", ["openai", "claude"])
def test_model_call_of_a_plugin_streams_by_its_method(
    dialect: str, value: object, stream: bool
) -> None:
    asked = model_pb2.HostModelExecutionRequest(
        model="m", body=orjson.dumps({"model": "m", "stream": value})
    )
    data = orjson.loads(payload(asked, dialects()[dialect], stream=stream))
    assert data["stream"] is stream or (value is None and not stream)
