"""Rules of the process: health, drain, logs. Not here: calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from patchbay.testing.connection import CallFailed, Connection
from patchbay.testing.rules import Broken, Rule, Skipped
from patchbay.testing.rules_calls import secret_in

if TYPE_CHECKING:
    from patchbay.testing.rules import Subject

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOTICE: Final = 5.0
_END: Final = 15.0
_NOT_OURS: Final = (
    "the suite does not run the plugin; give `patchbay plugin check` its file, or --run a program"
)


def _health(connection: Connection) -> Any:
    return health_pb2_grpc.HealthStub(connection.channel)


async def _serving(subject: Subject) -> None:
    stub = _health(subject.connect())
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        first = await watch.read()
        watch.cancel()
    except grpc.aio.AioRpcError as error:
        raise Broken(f"health: {error.code().name}: {error.details()}") from None
    if answer.status != _SERVING or first is grpc.aio.EOF or first.status != _SERVING:
        raise Broken("health is not SERVING under the empty name, asked or watched")


async def _drain(subject: Subject) -> None:
    running = subject.running
    if running is None:
        raise Skipped(_NOT_OURS)
    connection = await subject.registered()
    service, method, request = await subject.cheap_call()
    watch = _health(connection).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    try:
        first = await asyncio.wait_for(watch.read(), 20)
        if first is grpc.aio.EOF or first.status != _SERVING:
            raise Broken("health was not SERVING before the drain")
        await running.stop()
        try:
            told = await asyncio.wait_for(watch.read(), _NOTICE)
        except TimeoutError:
            raise Broken(f"health was still SERVING {_NOTICE:g} s after the signal") from None
        except grpc.aio.AioRpcError:
            raise Broken("the process ended without saying NOT_SERVING") from None
        if told is grpc.aio.EOF or told.status == _SERVING:
            raise Broken("the process ended without saying NOT_SERVING")
        try:
            await connection.unary(service, method, request, seconds=5)
        except CallFailed as error:
            failure = error.failure
            late = failure.code is grpc.StatusCode.UNAVAILABLE
            if late and failure.details and failure.metadata.get("sent") != "NO":
                raise Broken(f"refused while draining without `sent` NO: {failure}") from None
    finally:
        watch.cancel()
    for made in subject.connections:
        await made.aclose()
    if not await running.wait(_END):
        raise Broken(f"the process has not ended {_END:g} s after the signal, with no call in it")


async def _logs(subject: Subject) -> None:
    if subject.running is None:
        raise Skipped(_NOT_OURS)
    for line in subject.running.logs().splitlines():
        if what := secret_in(line.encode(), subject.key):
            raise Broken(f"a line of the log holds {what}")


HEALTH: Final = (
    Rule(
        "health.serving",
        "grpc.health.v1 says SERVING under the empty name, asked and watched.",
        "Check and Watch",
        _serving,
    ),
)
LAST: Final = (
    Rule(
        "health.drain",
        "Told to stop, a plugin says NOT_SERVING, serves or refuses (sent NO) what comes, and ends.",
        "SIGTERM while health is watched",
        _drain,
    ),
    Rule(
        "secrets.logs",
        "No line of the log holds a secret.",
        "every secret of the suite has a mark that is looked for in the output",
        _logs,
    ),
)
"""The plugin is gone after them."""
