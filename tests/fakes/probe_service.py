"""
A service of the tests' own: its descriptor is made at run time, its servicer does what a test asks.

BytesValue in, BytesValue out; the request's bytes name the behaviour.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2

from patchbay_gateway.kernel.channels.port import Method

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

SERVICE = "patchbay.test.v1.ProbeService"
Bytes = wrappers_pb2.BytesValue
UNARY = Method(f"/{SERVICE}/Unary", Bytes, Bytes)
STREAM = Method(f"/{SERVICE}/Stream", Bytes, Bytes)
BIDI = Method(f"/{SERVICE}/Bidi", Bytes, Bytes)
MISSING = Method(f"/{SERVICE}/Missing", Bytes, Bytes)

SECRET_TEXT = "text that must stay inside"

whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody")


def describe() -> None:
    """Put the service's descriptor into the default pool, once."""
    pool = descriptor_pool.Default()
    with_file = descriptor_pb2.FileDescriptorProto(
        name="patchbay/test/v1/probe.proto",
        package="patchbay.test.v1",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = with_file.service.add(name="ProbeService")
    for name, client, server in (
        ("Unary", False, False),
        ("Stream", False, True),
        ("Bidi", True, True),
        ("Missing", False, False),
    ):
        service.method.add(
            name=name,
            input_type=".google.protobuf.BytesValue",
            output_type=".google.protobuf.BytesValue",
            client_streaming=client,
            server_streaming=server,
        )
    pool.AddSerializedFile(with_file.SerializeToString())


class ProbeServicer:
    """Does what a test asks and remembers what happened to it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.finished = asyncio.Event()
        self.go_on = asyncio.Event()
        self.produced = 0
        self.error: BaseException | None = None
        self.seen: list[Any] = []
        self.remaining: float | None = None

    async def Unary(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.started.set()
        self.remaining = context.time_remaining()
        self.seen.append(request)
        try:
            match request.value:
                case b"hang":
                    await asyncio.Event().wait()
                case b"hang, then work on":
                    try:
                        await asyncio.Event().wait()
                    finally:
                        await self.go_on.wait()
                case b"raise":
                    assert self.error is not None
                    raise self.error
                case b"give up":
                    raise asyncio.CancelledError  # noqa: TRY301
                case b"whose":
                    return Bytes(value=whose.get().encode())
                case b"metadata":
                    pairs = dict(context.invocation_metadata() or ())
                    return Bytes(value=str(pairs.get("patchbay-plugin")).encode())
                case b"large":
                    return Bytes(value=b"x" * (3 << 20))
                case b"peer":
                    return Bytes(value=context.peer().encode())
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.finished.set()
        return Bytes(value=b"echo " + request.value)

    async def Stream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.started.set()
        self.remaining = context.time_remaining()
        self.seen.append(request)
        try:
            match request.value:
                case b"three":
                    for number in range(3):
                        yield Bytes(value=b"%d" % number)
                case b"two, then raise":
                    yield Bytes(value=b"0")
                    yield Bytes(value=b"1")
                    assert self.error is not None
                    raise self.error
                case b"one, then hang":
                    yield Bytes(value=b"0")
                    await asyncio.Event().wait()
                case b"endless":
                    block = b"x" * (32 << 10)
                    while True:
                        self.produced += 1
                        yield Bytes(value=block)
                case b"endless, small":
                    while True:
                        self.produced += 1
                        yield Bytes(value=b"x" * 16)
                case b"one, then large":
                    yield Bytes(value=b"0")
                    yield Bytes(value=b"x" * (3 << 20))
                case b"one, then give up":
                    yield Bytes(value=b"0")
                    raise asyncio.CancelledError  # noqa: TRY301
                case b"whose":
                    yield Bytes(value=whose.get().encode())
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.finished.set()

    async def Bidi(self, requests: AsyncIterable[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.started.set()
        try:
            async for request in requests:
                if request.value == b"raise":
                    assert self.error is not None
                    raise self.error
                if request.value == b"stop reading":
                    self.started.set()
                    await self.go_on.wait()
                if request.value == b"bye":
                    return
                yield Bytes(value=b"echo " + request.value)
            yield Bytes(value=b"end")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.finished.set()
