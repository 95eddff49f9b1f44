"""Frontend auth plugins, asked as the pipeline asks them, behind both channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
from tests.harness.hosting import CHANNELS, hosting

from patchbay import errors
from patchbay.frontend_auth import FrontendAuthProvider, FrontendAuthRequest, FrontendAuthResponse
from patchbay_gateway.plugins.frontend_auth import FrontendAuth, Principal

if TYPE_CHECKING:
    from tests.harness.hosting import Hosted

pytestmark = pytest.mark.parametrize("channel", CHANNELS)


class Known(FrontendAuthProvider):
    """Answers what the test put in."""

    name: ClassVar = "Known"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    def __init__(self, answer: FrontendAuthResponse | Exception | None) -> None:
        self.answer = answer
        self.seen: list[FrontendAuthRequest] = []

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        self.seen.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class First(Known):
    id: ClassVar = "first"


class Second(Known):
    id: ClassVar = "second"


class Guard(Known):
    id: ClassVar = "guard"
    exclusive: ClassVar = True


class OtherGuard(Guard):
    id: ClassVar = "other-guard"


def ann(**metadata: str) -> FrontendAuthResponse:
    return FrontendAuthResponse(authenticated=True, principal="ann", metadata=metadata)


async def ask(hosted: Hosted) -> Principal | None:
    return await FrontendAuth(hosted.hooks, hosted.calls).authenticate(
        hosted.snapshot,
        method="POST",
        path="/v1/chat/completions",
        headers=[(b"authorization", b"Bearer theirs")],
        query={"a": ["1", "2"]},
        body=b"{}",
        remote="127.0.0.1",
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        FrontendAuthResponse(authenticated=False, principal="ann"),
        errors.FailedPrecondition("no", reason="NO"),
        RuntimeError("a bug"),
    ],
    ids=str,
)
async def test_who_fails_or_does_not_know_admits_nobody(
    channel: str, answer: FrontendAuthResponse | Exception | None
) -> None:
    async with hosting([First(answer)], channel) as hosted:
        assert await ask(hosted) is None
    async with hosting([First(answer), Second(ann())], channel) as hosted:
        assert (found := await ask(hosted))
        assert (found.provider, found.name) == ("plugin:second", "ann")


async def test_first_that_knows_the_client_wins(channel: str) -> None:
    async with hosting([First(ann(tenant="acme")), second := Second(ann())], channel) as hosted:
        assert (found := await ask(hosted))
        assert (found.provider, found.tenant) == ("plugin:first", "acme")
        assert second.seen == []


async def test_plugin_sees_what_the_client_sent_for_authentication(channel: str) -> None:
    async with hosting([first := First(None)], channel) as hosted:
        await ask(hosted)
        (seen,) = first.seen
        assert (b"authorization", b"Bearer theirs") in list(seen.headers)
        assert (seen.method, seen.path, seen.body) == ("POST", "/v1/chat/completions", b"{}")


async def test_exclusive_one_decides_alone(channel: str) -> None:
    async with hosting([First(ann()), Guard(None)], channel) as hosted:
        auth = FrontendAuth(hosted.hooks, hosted.calls)
        assert (alone := auth.exclusive(hosted.snapshot))
        assert alone.plugin_id == "guard"
        assert await ask(hosted) is None


async def test_first_exclusive_one_by_order_counts(channel: str) -> None:
    async with hosting([OtherGuard(ann()), guard := Guard(None)], channel) as hosted:
        assert (found := await ask(hosted))
        assert found.provider == "plugin:other-guard"
        assert guard.seen == []


@pytest.mark.parametrize("failure", [errors.FailedPrecondition("no", reason="NO"), ValueError()])
async def test_exclusive_one_that_fails_fails_everybody(channel: str, failure: Exception) -> None:
    async with hosting([Guard(failure), First(ann())], channel) as hosted:
        with pytest.raises(errors.Unavailable) as caught:
            await ask(hosted)
        assert caught.value.reason == "FRONTEND_AUTH_UNAVAILABLE"


async def test_without_its_capability_an_exclusive_one_is_none(channel: str) -> None:
    allowed = {"capabilities": ("frontend_auth_provider",)}
    async with hosting([Guard(None), First(ann())], channel, guard=allowed) as hosted:
        assert FrontendAuth(hosted.hooks, hosted.calls).exclusive(hosted.snapshot) is None
        assert (found := await ask(hosted))
        assert found.provider == "plugin:first"
