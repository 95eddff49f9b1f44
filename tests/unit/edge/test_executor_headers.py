"""Headers that an executor says, whoever wrote it, on their way to the client."""

from __future__ import annotations

import pytest
from tests.harness import virtual_time
from tests.harness.pipeline import Edge, FakeExchange, Script, pool

from patchbay.errors import Sent, UpstreamError
from patchbay_gateway.plugins.snapshot import SettingsEntry

TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'


@pytest.mark.parametrize("stream", [False, True])
def test_headers_of_an_executor_are_judged_however_they_are_written(*, stream: bool) -> None:
    async def ask() -> FakeExchange:
        script = Script(default=[TEXT, b"data: [DONE]\n\n"] if stream else b'{"ok":true}')
        script.headers = {
            "Set-Cookie": "a=b",
            "X-Team": "red\r\nx-evil: 1",
            "x-price": "3 €",
            "X-Patchbay-Model": "other",
        }
        edge = Edge(script, pool("a"), settings=SettingsEntry(headers_passthrough=True))
        return await edge.ask(b'{"model":"m","stream":true}' if stream else b'{"model":"m"}')

    client = virtual_time.run(ask())
    assert client.status == 200
    shown = {name: value for name, value in client.headers.items() if name.lower() == name}
    assert shown == client.headers
    assert client.headers[b"x-team"] == b"red  x-evil: 1"
    assert client.headers[b"x-price"] == b"3 ?"
    assert b"set-cookie" not in client.headers
    assert client.headers.get(b"x-patchbay-model") != b"other"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_headers_of_an_executor_are_shown_only_where_somebody_wants_it(
    *, stream: bool, wanted: bool
) -> None:
    """And then those of the attempt that answered."""

    async def ask() -> FakeExchange:
        script = Script(default=[TEXT, b"data: [DONE]\n\n"] if stream else b'{"ok":true}')
        script.headers = {"x-team": "second"}
        failed = UpstreamError(500, headers=[(b"x-team", b"first")], sent=Sent.YES)
        script.answers["a", "up"] = [failed]
        settings = SettingsEntry(headers_passthrough=wanted)
        edge = Edge(script, pool("a", "b"), settings=settings)
        return await edge.ask(b'{"model":"m","stream":true}' if stream else b'{"model":"m"}')

    client = virtual_time.run(ask())
    assert client.headers[b"x-patchbay-attempts"] == b"2"
    assert client.headers.get(b"x-team") == (b"second" if wanted else None)
