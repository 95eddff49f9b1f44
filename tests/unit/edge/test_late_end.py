"""A plugin ends a request in an attempt, when keep-alives have gone out already and when none have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.harness import virtual_time
from tests.harness.pipeline import Edge, FakeExchange, Script, pool

from patchbay.errors import Sent, UpstreamError
from patchbay_gateway.plugins.request_interceptors import Intercepted, Terminated
from patchbay_gateway.plugins.snapshot import SettingsEntry, StreamingEntry

if TYPE_CHECKING:
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.edge.steps import Steps

WHOLE = b'{"model":"m"}'
STREAM = b'{"model":"m","stream":true}'


def ended(attempt: int, payload: bytes) -> tuple[FakeExchange, Request]:
    """Return client and request of one that a plugin ends in its *attempt*; the first takes 25 s to fail."""
    seen: list[Request] = []

    async def ask() -> FakeExchange:
        limits = StreamingEntry(first_byte_grace=20, keepalive=15)
        script = Script(default=[25.0, UpstreamError(500, "gone wrong", sent=Sent.YES)])
        edge = Edge(script, pool("a", "b"), settings=SettingsEntry(streaming=limits))
        plugins = edge.pipeline._plugins

        def of(request: Request) -> Steps:
            seen.append(request)
            steps = plugins.made(request)
            real = steps.after

            async def after(**asked: Any) -> Intercepted:
                if asked["attempt"] < attempt:
                    return await real(**asked)
                raise Terminated("guard", 451, [(b"x-why", b"law")], b'{"refused":true}')

            steps.after = after  # type: ignore[method-assign]
            return steps

        plugins.of = of  # type: ignore[method-assign]
        return await edge.ask(payload)

    client: FakeExchange = virtual_time.run(ask())
    (request,) = seen
    return client, request


@pytest.mark.parametrize("payload", [WHOLE, STREAM])
def test_end_before_any_byte_is_the_plugins_answer(payload: bytes) -> None:
    client, request = ended(1, payload)
    assert (client.status, client.answer) == (451, b'{"refused":true}')
    assert client.headers[b"x-why"] == b"law"
    assert (request.status, request.terminated) == (451, True)


def test_end_after_keepalives_is_an_error_that_the_client_can_read() -> None:
    client, request = ended(2, STREAM)
    assert client.status == 200
    assert client.answer.startswith(b":")
    assert b'data: {"error"' in client.answer
    assert client.finished
    assert not client.aborted
    assert (request.status, request.terminated) == (451, True)
