"""Tests of the example: the three settings, and the contract."""

import asyncio

import pytest
from scheduler_choice import SchedulerChoice

from patchbay import errors
from patchbay.scheduler_plugin import (
    SchedulerAuthCandidate,
    SchedulerBuiltin,
    SchedulerPickRequest,
    SchedulerPickResponse,
)
from patchbay.testing.harness import conformance_of

REQUEST = SchedulerPickRequest(
    "m", candidates=[SchedulerAuthCandidate(name, "openai") for name in ("first", "second")]
)


def pick(config: bytes) -> SchedulerPickResponse | None:
    async def scenario() -> SchedulerPickResponse | None:
        plugin = SchedulerChoice()
        await plugin.configure(config)
        return await plugin.pick(REQUEST)

    return asyncio.run(scenario())


def test_named_credential_is_chosen_where_it_is_a_candidate() -> None:
    assert pick(b"auth_id: second") == SchedulerPickResponse(auth_id="second")
    assert pick(b"auth_id: third") is None


def test_choice_is_delegated() -> None:
    wanted = SchedulerPickResponse(delegate_builtin=SchedulerBuiltin.FILL_FIRST)
    assert pick(b"delegate: fill-first") == wanted
    assert pick(b"delegate: by-the-moon") is None


def test_denial_is_an_error() -> None:
    with pytest.raises(errors.PermissionDenied):
        pick(b"deny: true")


@pytest.mark.parametrize("config", [b"", b"deny: true", b"delegate: round-robin"])
def test_contract_is_kept(config: bytes) -> None:
    configs = {SchedulerChoice.id: config}
    (report,) = asyncio.run(conformance_of(SchedulerChoice(), configs=configs))
    assert report.passed, report.table()
