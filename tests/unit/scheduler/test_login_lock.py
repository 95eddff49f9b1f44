"""One call at a time for each login, though one may take longer than its lock."""

from __future__ import annotations

from typing import Any, cast

import pytest

from patchbay.errors import Aborted, Unavailable
from patchbay_gateway.scheduler.login import _Locked


class Redis:
    """Keys that hold a lock."""

    def __init__(self) -> None:
        self.locks: dict[str, object] = {}
        self.away = False

    def key(self, *parts: str) -> str:
        return ":".join(parts)

    async def call(self, command: str, key: str, *arguments: object) -> bytes | None:
        if command == "DEL":
            if self.away:
                raise Unavailable("Redis is away")
            self.locks.pop(key, None)
            return None
        if key in self.locks:
            return None
        self.locks[key] = arguments[0]
        return b"OK"

    async def script(self, _: object, keys: list[str], arguments: list[str]) -> int:
        if self.away:
            raise Unavailable("Redis is away")
        if self.locks.get(keys[0]) == arguments[0]:
            del self.locks[keys[0]]
        return 1


def locked(redis: Redis) -> _Locked:
    return _Locked(cast("Any", redis), "state")


async def test_call_that_outlived_its_lock_takes_nobody_elses() -> None:
    """A third call would redeem the code of the second once more, and be refused for it."""
    redis = Redis()
    async with locked(redis):
        redis.locks.clear()  # its time is over
        second = locked(redis)
        await second.__aenter__()
    with pytest.raises(Aborted):
        await locked(redis).__aenter__()
    await second.__aexit__(None, None, None)
    async with locked(redis):
        pass
    assert redis.locks == {}


async def test_lock_that_cannot_be_given_back_hides_nothing() -> None:
    """What a login brought is kept by then; its caller must hear of it."""
    redis = Redis()
    async with locked(redis):
        redis.away = True
