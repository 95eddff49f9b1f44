"""One connection, fed by hand: order, fragments, cancellation, limits, time."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
import uvloop
from tests.harness import virtual_time

from patchbay_gateway.kernel import resp
from patchbay_gateway.kernel.resp import Connection, ConnectionLost, ReplyError


class Wire(asyncio.Transport):
    """What the connection writes to; nothing ever leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
async def wire():
    return Wire()


@pytest.fixture
async def connection(wire):
    made = Connection(5.0)
    made.connection_made(wire)
    yield made
    made.close()


async def test_send_packs_text_bytes_and_numbers(connection, wire):
    connection.send("SET", "é", b"\r\n", 7)
    assert wire.written == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xa9\r\n$2\r\n\r\n\r\n$1\r\n7\r\n"


async def test_replies_in_fragments_reach_their_callers_in_order(connection):
    first, second = connection.send("A"), connection.send("B")
    for byte in b"$5\r\nhello\r\n*2\r\n:1\r\n_\r\n":
        connection.data_received(bytes([byte]))
    assert first.result() == b"hello"
    assert second.result() == [1, None]


async def test_cancelled_caller_keeps_its_place(connection):
    leaving, staying = connection.send("A"), connection.send("B")
    leaving.cancel()
    connection.data_received(b"+one\r\n+two\r\n")
    assert staying.result() == b"two"


async def test_error_reply_is_a_value_with_its_word(connection):
    future = connection.send("A")
    connection.data_received(b"-NOSCRIPT No matching script\r\n")
    assert isinstance(future.result(), ReplyError)
    assert future.result().code == "NOSCRIPT"


async def test_pushes_are_no_replies(wire):
    pushed: list[list[object]] = []
    connection = Connection(5.0, on_push=pushed.append)
    connection.connection_made(wire)
    future = connection.send("PING")
    connection.data_received(b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n+PONG\r\n")
    assert future.result() == b"PONG"
    assert pushed == [[b"message", b"c", b"m"]]
    connection.close()


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400\r\n", b"+unasked\r\n"])
async def test_nonsense_ends_the_connection(connection, wire, garbage):
    connection.data_received(garbage)
    assert connection.lost
    assert wire.aborted


async def test_end_fails_all_who_wait_and_tells_once(connection):
    told: list[bool] = []
    connection.on_lost = lambda _, failed: told.append(failed)
    waiting = connection.send_many([["A"], ["B"]])
    connection.connection_lost(None)
    connection.close()
    assert [type(future.result()) for future in waiting] == [ConnectionLost, ConnectionLost]
    assert isinstance(connection.send("C").result(), ConnectionLost)
    assert told == [True]


async def test_end_while_nobody_waits_is_no_failure(connection):
    told: list[bool] = []
    connection.on_lost = lambda _, failed: told.append(failed)
    connection.connection_lost(None)
    assert told == [False]


async def test_too_many_waiting_commands_are_refused(connection):
    waiting = [connection.send("A") for _ in range(resp.MAX_PENDING)]
    assert isinstance(connection.send("B").result(), ConnectionLost)
    assert not waiting[0].done()


def test_late_reply_ends_the_connection_and_a_timely_one_does_not():
    async def main() -> None:
        connection = Connection(5.0)
        connection.connection_made(Wire())
        for _ in range(3):
            quick = connection.send("A")
            await asyncio.sleep(3)
            connection.data_received(b"+ok\r\n")
            assert await quick == b"ok"
        loop = asyncio.get_running_loop()
        start = loop.time()
        assert isinstance(await connection.send("A"), ConnectionLost)
        assert 5.0 <= loop.time() - start < 6.0
        assert connection.lost

    virtual_time.run(main())


def test_busy_loop_is_not_taken_for_a_hung_server():
    """A reply that came while the loop was busy must still count, in whatever order the loop looks."""
    ours, theirs = socket.socketpair()
    asked, busy, replied = threading.Event(), threading.Event(), threading.Event()

    def server() -> None:
        theirs.recv(1000)
        asked.set()
        busy.wait(60)
        theirs.sendall(b"+ok\r\n")
        replied.set()

    async def main() -> object:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(0.5), sock=ours)
        future = connection.send("PING")
        await asyncio.to_thread(asked.wait, 60)
        busy.set()
        replied.wait(60)
        time.sleep(0.6)  # noqa: ASYNC251 - busy beyond the deadline
        reply = await future
        connection.close()
        await connection.wait_closed()
        return reply

    answering = threading.Thread(target=server)
    answering.start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == b"ok"
    answering.join()
    theirs.close()
