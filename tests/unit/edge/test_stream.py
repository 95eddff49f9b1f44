"""Two commits, keep-alives and the edge's own deadlines, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from tests.harness import virtual_time

from patchbay.alarms import Alarms
from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.edge.stream import Answer
from patchbay_gateway.plugins.policy import EDGE_MARGIN
from patchbay_gateway.plugins.snapshot import StreamingEntry


class FakeExchange:
    """Remembers what was sent and when."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.head = Head("POST", "/", b"", [], "127.0.0.1")
        self.gone: asyncio.Future[None] = loop.create_future()
        self.sent: list[tuple[float, object]] = []
        self.committed = False
        self.slow = 0.0
        self._loop = loop

    async def body(self, limit, deadline, charge=None):
        raise AssertionError("must not be called")

    async def send_head(self, status, headers):
        assert not self.committed, "a second head"
        self.committed = True
        self.sent.append((round(self._loop.time(), 3), status))

    async def send(self, data):
        assert self.committed, "bytes before the head"
        if self.slow:
            await asyncio.sleep(self.slow)
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
        exchange,
        Alarms(),
        entry,
        grace=entry.first_byte_grace,
        keepalive=b": ka\n\n",
        early_head=list,
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

    expected = (7.0 if spoken else 3.0) + EDGE_MARGIN
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


def test_answer_content_in_the_turn_of_the_early_commit_follows_the_head() -> None:
    """The timer and the first content fall into one turn of the loop: one head, and first."""

    async def scenario() -> list[object]:
        exchange = FakeExchange()
        answer = make_answer(exchange)
        answer.begin_attempt()
        answer.ring()  # the early commit is scheduled and has not run
        assert not exchange.sent
        loop = asyncio.get_running_loop()
        loop.moved += 20  # type: ignore[attr-defined]
        answer.ring()
        assert answer.headers_committed
        await answer.commit_headers(200, [])
        await answer.write(b"data")
        await answer.aclose()
        return [what for _, what in exchange.sent]

    assert virtual_time.run(scenario()) == [200, b": ka\n\n", b"data"]


def test_answer_slow_client_is_not_the_executors_silence() -> None:
    """A client that takes minutes for what was sent costs the executor nothing."""

    async def scenario() -> bool:
        exchange = FakeExchange()
        answer = make_answer(exchange, idle_timeout=5.0)
        answer.begin_attempt()
        answer.heard()
        await answer.commit_headers(200, [])
        exchange.slow = 100.0
        await answer.write(b"data")
        exchange.slow = 0.0
        await asyncio.sleep(10)
        await answer.aclose()
        return answer.timed_out

    assert virtual_time.run(scenario()) is False


def test_answer_client_slow_to_take_a_keepalive_is_not_the_executors_silence() -> None:
    """The answer waits for the early head and its keep-alive to be taken first."""

    async def scenario() -> tuple[bool, list[tuple[float, object]]]:
        exchange = FakeExchange()
        exchange.slow = 100.0
        answer = make_answer(exchange, idle_timeout=5.0)
        answer.begin_attempt()
        await asyncio.sleep(25)
        answer.heard()
        await answer.commit_headers(200, [])
        exchange.slow = 0.0
        await answer.write(b"data")
        await answer.aclose()
        return answer.timed_out, exchange.sent

    timed_out, sent = virtual_time.run(scenario())
    assert timed_out is False
    assert sent == [(20, 200), (120, b": ka\n\n"), (120, b"data")]


def test_answer_whole_waits_for_the_body_too() -> None:
    """A non-streamed answer may take first byte and idle time; nothing is heard in between."""

    async def scenario() -> float:
        exchange = FakeExchange()
        limits = StreamingEntry(first_byte_timeout=3.0, idle_timeout=7.0)
        answer = Answer(
            exchange, Alarms(), limits, grace=0.0, keepalive=b"", early_head=list, whole=True
        )
        answer.begin_attempt()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1000)
        await answer.aclose()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(scenario()) == pytest.approx(20.0, abs=0.1)
