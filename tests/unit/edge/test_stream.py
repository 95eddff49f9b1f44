"""Two commits, keep-alives and the edge's own deadlines, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.harness import virtual_time

from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.edge.stream import DEADLINE_MARGIN, Answer
from patchbay_gateway.plugins.snapshot import StreamingEntry


class FakeExchange:
    """Remembers what was sent and when."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.head = Head("POST", "/", b"", [], "127.0.0.1")
        self.gone: asyncio.Future[None] = loop.create_future()
        self.sent: list[tuple[float, object]] = []
        self.committed = False
        self._loop = loop

    async def body(self, limit, deadline, charge=None):
        raise AssertionError("must not be called")

    async def send_head(self, status, headers):
        self.sent.append((round(self._loop.time(), 3), status))

    async def send(self, data):
        self.sent.append((round(self._loop.time(), 3), data))

    async def finish(self):
        self.sent.append((round(self._loop.time(), 3), "finish"))

    async def abort(self):
        raise AssertionError("must not be called")


def make_answer(exchange: FakeExchange, **limits) -> Answer:
    entry = StreamingEntry(
        **{"first_byte_grace": 20.0, "keepalive": 15.0, "first_byte_timeout": 120.0, **limits}
    )
    return Answer(
        exchange, entry, grace=entry.first_byte_grace, keepalive=b": ka\n\n", early_head=list
    )


def test_answer_in_time_sends_no_keepalive() -> None:
    async def scenario() -> list[tuple[float, object]]:
        exchange = FakeExchange()
        answer = make_answer(exchange)
        answer.begin_attempt()
        await asyncio.sleep(5)
        answer.heard()
        await answer.commit_headers(200, [])
        await answer.write(b"data")
        await answer.aclose()
        await asyncio.sleep(100)
        return exchange.sent

    assert virtual_time.run(scenario()) == [(5, 200), (5, b"data")]


def test_answer_late_commits_headers_after_grace_and_keeps_alive() -> None:
    """Headers at 20 s with a first keep-alive, then one each 15 s, until content comes."""

    async def scenario() -> list[tuple[float, object]]:
        exchange = FakeExchange()
        answer = make_answer(exchange)
        answer.begin_attempt()
        await asyncio.sleep(60)
        assert answer.headers_committed
        assert not answer.answer_committed
        await answer.commit_headers(200, [])
        await answer.write(b"data")
        await answer.aclose()
        return exchange.sent

    keepalive = b": ka\n\n"
    assert virtual_time.run(scenario()) == [
        (20, 200),
        (20, keepalive),
        (35, keepalive),
        (50, keepalive),
        (60, b"data"),
    ]


def test_answer_silence_between_chunks_is_filled() -> None:
    async def scenario() -> list[tuple[float, object]]:
        exchange = FakeExchange()
        answer = make_answer(exchange)
        answer.begin_attempt()
        answer.heard()
        await answer.commit_headers(200, [])
        for pause in (10, 10, 20):
            await asyncio.sleep(pause)
            answer.heard()
            await answer.write(b"x")
        await answer.aclose()
        return exchange.sent

    assert virtual_time.run(scenario()) == [
        (0, 200),
        (10, b"x"),
        (20, b"x"),
        (35, b": ka\n\n"),
        (40, b"x"),
    ]


@pytest.mark.parametrize("spoken", [False, True])
def test_answer_executor_silent_past_the_margin_cancels_the_owner(spoken: bool) -> None:
    async def scenario() -> float:
        exchange = FakeExchange()
        answer = make_answer(
            exchange, first_byte_timeout=3.0, idle_timeout=7.0, first_byte_grace=0.0
        )
        answer.begin_attempt()
        if spoken:
            answer.heard()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1000)
        assert answer.timed_out
        await answer.aclose()
        return asyncio.get_running_loop().time()

    expected = (7.0 if spoken else 3.0) + DEADLINE_MARGIN
    assert virtual_time.run(scenario()) == pytest.approx(expected, abs=0.1)


def test_answer_second_attempt_starts_the_first_byte_limit_anew() -> None:
    async def scenario() -> bool:
        exchange = FakeExchange()
        answer = make_answer(exchange, first_byte_timeout=3.0, first_byte_grace=0.0)
        answer.begin_attempt()
        await asyncio.sleep(12)
        answer.begin_attempt()
        await asyncio.sleep(12)
        await answer.aclose()
        return answer.timed_out

    assert virtual_time.run(scenario()) is False
