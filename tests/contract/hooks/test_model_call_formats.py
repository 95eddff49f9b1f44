"""Model calls in formats that only plugins can translate: the way in, and the way out; both channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import orjson
import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.host.v1 import model_pb2
from patchbay.transform import (
    RequestTransformRequest,
    RequestTranslator,
    ResponseTransformRequest,
    ResponseTranslator,
)
from patchbay_gateway.edge.callbacks.models import ModelCalls
from patchbay_gateway.edge.dialects.table import dialects
from patchbay_gateway.edge.translation import Translation
from patchbay_gateway.plugins.callbacks.callers import Caller
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.grants import grants_of
from patchbay_gateway.plugins.snapshot import PluginEntry
from patchbay_gateway.translate.native import native_registry

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

    from patchbay_gateway.edge.routes.request import RoutedRequest

pytestmark = pytest.mark.parametrize("channel", CHANNELS)
PATIENT: dict[str, Any] = {"timeouts": {"request_translator": 30.0, "response_translator": 30.0}}


class Shout(RequestTranslator, ResponseTranslator):
    """Knows the format `shout`: `{"say": TEXT}` there, `HEARD:` before whatever came back."""

    id: ClassVar = "shout"
    name: ClassVar = "Shout"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def translate_request(self, request: RequestTransformRequest) -> bytes | None:
        self.asked.append((request.from_format, request.to_format))
        if request.from_format != "shout":
            return None
        said = {"role": "user", "content": orjson.loads(request.body)["say"]}
        return orjson.dumps({"model": request.model, "messages": [said], "stream": request.stream})

    async def translate_response(self, request: ResponseTransformRequest) -> bytes | None:
        self.asked.append((request.from_format, request.to_format))
        return b"HEARD:" + request.body if request.to_format == "shout" else None


class Pipeline:
    """Keeps what it is given and answers as an OpenAI gateway would."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.formats: list[str] = []

    async def run(self, routed: RoutedRequest) -> None:
        exchange = routed.exchange
        self.formats.append(routed.dialect.name)
        self.bodies.append(orjson.loads(await exchange.body(1 << 20, 1)))
        await exchange.send_head(200, [(b"content-type", b"application/json")])
        if routed.stream_from_path:
            await exchange.send(b"data: 1\n\ndata: 2\n\n")
            await exchange.send(b"data: [DONE]\n\n")
        else:
            await exchange.send(b'{"ok":true}')
        await exchange.finish()


def model_calls(hosted: Hosted) -> tuple[ModelCalls, Pipeline]:
    holder = SnapshotHolder()
    holder.set(hosted.snapshot)
    pipeline = Pipeline()
    native = native_registry()
    made = ModelCalls(
        pipeline,
        holder=holder,
        dialects=dialects(),
        native=native,
        mint=lambda: "01REQUEST",
        now=lambda: 1_800_000_000.0,
        translation=Translation(native, hosted.hooks, hosted.calls),
    )
    return made, pipeline


def caller() -> Caller:
    entry = PluginEntry("shout", host_access={"models": True})
    return Caller("shout", entry, grants_of(entry), None)


def asked(body: bytes, **fields: Any) -> model_pb2.HostModelExecutionRequest:
    return model_pb2.HostModelExecutionRequest(
        **{"entry_protocol": "shout", "model": "m", "body": body, **fields}
    )


async def test_call_in_a_plugins_format_is_brought_to_a_dialect_and_back(channel: str) -> None:
    async with hosting([shout := Shout()], channel, shout=PATIENT) as hosted:
        made, pipeline = model_calls(hosted)
        async with made.call(caller(), asked(b'{"say":"hi"}'), stream=False) as call:
            assert await call.whole() == b'HEARD:{"ok":true}'
        (body,) = pipeline.bodies
        assert (body["model"], body["messages"][0]["content"]) == ("m", "hi")
        assert pipeline.formats == ["openai"]
        assert shout.asked == [("shout", "openai"), ("openai", "shout")]
        await made.aclose()


async def test_streamed_call_in_a_plugins_format_is_translated_event_by_event(channel: str) -> None:
    async with hosting([Shout()], channel, shout=PATIENT) as hosted:
        made, _ = model_calls(hosted)
        request = asked(b'{"say":"hi"}', stream=True)
        async with made.call(caller(), request, stream=True) as call:
            chunks = [chunk async for batch in call.chunks() for chunk in batch]
        events = [b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
        assert chunks == [b"HEARD:" + event for event in events]
        await made.aclose()


async def test_call_in_a_dialect_may_ask_for_an_answer_in_a_plugins_format(channel: str) -> None:
    async with hosting([Shout()], channel, shout=PATIENT) as hosted:
        made, pipeline = model_calls(hosted)
        request = asked(
            b'{"model":"m","messages":[]}', entry_protocol="claude", exit_protocol="shout"
        )
        async with made.call(caller(), request, stream=False) as call:
            assert await call.whole() == b'HEARD:{"ok":true}'
        assert pipeline.formats == ["claude"]
        await made.aclose()


async def test_call_in_a_plugins_format_may_ask_for_an_answer_in_a_dialect(channel: str) -> None:
    async with hosting([Shout()], channel, shout=PATIENT) as hosted:
        made, _ = model_calls(hosted)
        request = asked(b'{"say":"hi"}', exit_protocol="openai")
        async with made.call(caller(), request, stream=False) as call:
            assert await call.whole() == b'{"ok":true}'
        await made.aclose()


async def test_format_that_no_plugin_translates_is_refused(channel: str) -> None:
    async with hosting([Shout()], channel, shout=PATIENT) as hosted:
        made, pipeline = model_calls(hosted)
        with pytest.raises(errors.InvalidRequest) as caught:
            async with made.call(caller(), asked(b"{}", entry_protocol="whisper"), stream=False):
                raise AssertionError
        assert caught.value.reason == "NO_TRANSLATION"
        assert pipeline.formats == []
