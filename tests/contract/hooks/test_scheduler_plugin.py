"""What a plugin chooses and what is made of it, behind both channels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.plugin.v1 import scheduler_plugin_pb2 as pb
from patchbay.scheduler_plugin import (
    SchedulerBuiltin,
    SchedulerPickRequest,
    SchedulerPickResponse,
    SchedulerPlugin,
)
from patchbay_gateway.plugins.hooks import Facts
from patchbay_gateway.plugins.scheduler_plugin import Choice, SchedulerPlugins, scrubbed

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

FACTS = Facts("openai", "gpt-5.5")


class Chooser(SchedulerPlugin):
    id: ClassVar = "chooser"
    name: ClassVar = "Chooser"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self, answer: object = None) -> None:
        self.answer = answer
        self.seen: list[SchedulerPickRequest] = []

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        self.seen.append(request)
        if self.answer == "hang":
            await asyncio.sleep(300)
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is None or isinstance(self.answer, SchedulerPickResponse)
        return self.answer


class Second(Chooser):
    id: ClassVar = "second"


def request() -> pb.SchedulerPickRequest:
    return pb.SchedulerPickRequest(
        provider="fake",
        providers=["fake"],
        model="gpt-5.5",
        stream=True,
        options=pb.SchedulerOptions(metadata=b'{"attempt":1}'),
        candidates=[
            pb.SchedulerAuthCandidate(
                id=id_, provider="fake", priority=3, status="ready", attributes={"plan": "pro"}
            )
            for id_ in ("a", "b")
        ],
    )


async def picked(hosted: Hosted) -> Choice | None:
    plugins = SchedulerPlugins(hosted.hooks, hosted.calls)
    hook = plugins.first(hosted.snapshot, FACTS)
    assert hook is not None
    return await plugins.pick(hook, request())


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (SchedulerPickResponse(auth_id="b"), Choice(auth_id="b")),
        (
            SchedulerPickResponse(auth_id="a", delegate_builtin=SchedulerBuiltin.FILL_FIRST),
            Choice(auth_id="a"),
        ),
        (
            SchedulerPickResponse(delegate_builtin=SchedulerBuiltin.FILL_FIRST),
            Choice(strategy="fill-first"),
        ),
        (
            SchedulerPickResponse(delegate_builtin=SchedulerBuiltin.ROUND_ROBIN),
            Choice(strategy="round-robin"),
        ),
        (SchedulerPickResponse(auth_id="b", handled=False), None),
        (SchedulerPickResponse(auth_id="nobody"), None),
        (SchedulerPickResponse(), None),
        (None, None),
    ],
)
async def test_choice_counts_if_there_is_such_a_one(
    channel: str, answer: SchedulerPickResponse | None, expected: Choice | None
) -> None:
    plugin = Chooser(answer)
    async with hosting([plugin], channel) as hosted:
        assert await picked(hosted) == expected
    (seen,) = plugin.seen
    assert (seen.provider, seen.providers, seen.model, seen.stream) == (
        "fake",
        ("fake",),
        "gpt-5.5",
        True,
    )
    assert [c.id for c in seen.candidates] == ["a", "b"]
    assert seen.candidates[0].attributes == {"plan": "pro"}
    assert seen.options is not None
    assert seen.options.metadata == {"attempt": 1}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("answer", [errors.Internal("broken"), "hang"])
async def test_failure_and_silence_fail_the_attempt(channel: str, answer: object) -> None:
    async with hosting([Chooser(answer)], channel, chooser={"timeouts": {"scheduler": 0.1}}) as h:
        with pytest.raises(errors.Unavailable) as raised:
            await picked(h)
    assert raised.value.reason == "PLUGIN_FAILED"


@pytest.mark.parametrize("channel", CHANNELS)
async def test_failure_that_is_ignored_leaves_the_choice(channel: str) -> None:
    entry = {"failure_policies": {"scheduler": "Ignore"}}
    async with hosting([Chooser(errors.Internal("broken"))], channel, chooser=entry) as hosted:
        assert await picked(hosted) is None


async def test_first_by_priority_alone_is_asked() -> None:
    first, second = Chooser(), Second(SchedulerPickResponse(auth_id="a"))
    async with hosting([first, second]) as hosted:
        assert await picked(hosted) is None
    assert len(first.seen) == 1
    assert not second.seen


async def test_first_that_matches_is_the_first() -> None:
    entry = {"match": {"models": ("claude-*",)}}
    async with hosting([Chooser(), Second()], chooser=entry) as hosted:
        hook = SchedulerPlugins(hosted.hooks, hosted.calls).first(hosted.snapshot, FACTS)
    assert hook is not None
    assert hook.plugin_id == "second"


def test_attributes_that_look_like_secrets_are_taken_out() -> None:
    kept = {"plan": "pro", "region": "eu"}
    secret = dict.fromkeys(
        [
            "api_key",
            "API-Key",
            "x.apikey",
            "refreshToken",
            "cookie_jar",
            "proxy_url",
            "Auth-Header",
        ],
        "x",
    )
    assert scrubbed({**kept, **secret}) == kept
